"""Typed asyncio client of a telltale server.

    async with TelltaleClient("127.0.0.1:50051") as client:
        async for event in client.generate("Once upon a time", watch=["lying"], max_tokens=64):
            match event:
                case Token():
                    print(event.text, event.reading("lying"))
                case Alert():
                    print("alert:", event.monitor, event.score)

Methods raise the exceptions of `service.errors` and nothing of gRPC. A call that fails before anything of its answer
has arrived is tried again (see `client_calls`). Closing an iterator cancels its call on the server; leave a loop
early through `contextlib.aclosing`, or the cancellation waits for the garbage collector.
"""

import asyncio
import difflib
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any, Self, Unpack

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from telltale.v1 import (
    feature_pb2,
    feature_pb2_grpc,
    generation_pb2,
    generation_pb2_grpc,
    monitor_pb2,
    monitor_pb2_grpc,
)

from service.client_calls import Calls, RetryPolicy
from service.client_catalog import ServerInfo, WatchedFeature
from service.client_channel import open_channel
from service.client_events import Alert, Baseline, Event, Started
from service.client_features import Feature, FeatureMatch, FeatureOrder
from service.client_journal import JournalCalls
from service.client_lookup import MAX_MATCHES, MAX_PAGE, all_pages, check_is_list, list_request, search_request
from service.client_monitors import Monitor
from service.client_reply import Reply, ScoreResult, gather
from service.client_request import GenerateOptions, Prompt, ScoreOptions, generate_request, score_request
from service.client_wire import decode, decode_event, decode_score
from service.errors import InvalidRequest, NotFound, NotReady, RpcFailed

SERVICE = "telltale.v1.GenerationService"
_POLL_SECONDS = 0.2


class TelltaleClient:
    """One connection to a server. Make it, use it and close it in one event loop; calls may run side by side."""

    def __init__(
        self,
        target: str,
        *,
        api_key: str | None = None,
        tls: bool | str | Path = False,
        retry: RetryPolicy | None = None,
    ) -> None:
        """See `client_channel.open_channel` for `target` and `tls`. `api_key` is sent with every call."""
        self._channel = open_channel(target, tls=tls)
        self._metadata = (("authorization", f"Bearer {api_key}"),) if api_key else ()
        self._calls = Calls(self._metadata, retry or RetryPolicy())
        # The stubs, for use with `call` where the wire's own messages are wanted.
        self.generation = generation_pb2_grpc.GenerationServiceStub(self._channel)
        self.features = feature_pb2_grpc.FeatureServiceStub(self._channel)
        self.monitors = monitor_pb2_grpc.MonitorServiceStub(self._channel)
        self.journal = JournalCalls(self._channel, self.call)
        self._health = health_pb2_grpc.HealthStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls that still run are cancelled."""
        await self._channel.close()

    # Generating and scoring

    async def generate(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> AsyncGenerator[Event, None]:
        """Generate: one Started, then tokens and alerts as they happen, then exactly one Finished.

        Args:
            prompt: text, messages or token ids.
            options: see `GenerateOptions`; what is not given is the server's default.

        Raises:
            ServiceError: see `errors` for the kinds.
        """
        request = await self.generate_request(prompt, **options)
        watched: tuple[WatchedFeature, ...] = ()
        async with aclosing(self.stream(request, timeout_seconds=options.get("timeout_seconds"))) as responses:
            async for response in responses:
                for event in decode_event(response, watched):
                    begun = event.event if isinstance(event, Baseline) else event
                    if isinstance(begun, Started):
                        watched = begun.watched
                    yield event

    async def complete(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Reply:
        """Generate, and return everything at the end. Arguments and errors are those of `generate`."""
        return gather([event async for event in self.generate(prompt, **options)])

    async def score(self, prompt: Prompt, **options: Unpack[ScoreOptions]) -> ScoreResult:
        """Read an existing text, conversation or token ids: the readings `generate` would give, without generating."""
        request = await self.score_request(prompt, **options)
        timeout_seconds = options.get("timeout_seconds")
        return decode_score(await self.call(self.generation.Score, request, timeout_seconds=timeout_seconds))

    async def score_request(self, prompt: Prompt, **options: Unpack[ScoreOptions]) -> Any:
        """The wire request of `score`, names of features resolved; for use with `call`."""
        return score_request(prompt, options, features=await self._latents(options.get("watch", ())))

    async def generate_request(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Any:
        """The wire request of `generate`, names of features resolved; for use with `stream`."""
        return generate_request(prompt, options, features=await self._latents(options.get("watch", ())))

    async def stream(self, request: Any, *, timeout_seconds: float | None = None) -> AsyncGenerator[Any, None]:
        """The wire responses to a wire request; what `generate` is made of."""
        responses = self._calls.stream(self.generation.Generate, request, timeout_seconds=timeout_seconds)
        async with aclosing(responses):
            finished = False
            async for response in responses:
                finished = response.HasField("finished")
                yield response
            if not finished:  # a proxy that ends a stream early and calls it a success
                raise RpcFailed("UNKNOWN", "the stream ended without Finished.")

    async def call(self, method: Any, request: Any, *, timeout_seconds: float | None = None) -> Any:
        """A wire response to a wire request, of any unary method of the stubs, with key, retries and typed errors."""
        return await self._calls.unary(method, request, timeout_seconds=timeout_seconds)

    # What the server has

    async def server_info(self, *, timeout_seconds: float | None = None) -> ServerInfo:
        """What is served, with which limits and defaults."""
        request = generation_pb2.GetServerInfoRequest()
        response = await self.call(self.generation.GetServerInfo, request, timeout_seconds=timeout_seconds)
        return decode(ServerInfo, response)

    async def list_features(
        self,
        *,
        include_unnamed: bool = False,
        order: FeatureOrder = "index",
        limit: int | None = None,
        timeout_seconds: float | None = None,
    ) -> list[Feature]:
        """Named features, or all latents, without their evidence and examples; the first `limit` in that order.

        Raises:
            InvalidRequest: an order but `index` needs a server with a latent catalogue.
        """
        request = list_request(include_unnamed=include_unnamed, order=order)
        messages = await self.feature_messages(request, limit=limit, timeout_seconds=timeout_seconds)
        return [decode(Feature, message) for message in messages]

    async def feature_messages(
        self, request: Any, *, limit: int | None = None, timeout_seconds: float | None = None
    ) -> list[Any]:
        """The wire messages of `list_features`. The timeout is that of a page."""
        call = partial(self.call, self.features.ListFeatures, timeout_seconds=timeout_seconds)
        return await all_pages(call, request, "features", most_of_page=MAX_PAGE, limit=limit)

    async def search_features(
        self,
        text: str | None = None,
        *,
        like: int | str | None = None,
        limit: int | None = 20,
        timeout_seconds: float | None = None,
    ) -> list[FeatureMatch]:
        """Latents that have all words of `text`, or those whose decoder rows are most like that of `like`; best first.

        Raises:
            InvalidRequest: neither or both are given, or a text without a word, too long or of too many words.
            NotFound: no feature is called `like`.
        """
        latent = None if like is None else (await self.resolve_features([like]))[0]
        request = search_request(text, like=latent)
        messages = await self.match_messages(request, limit=limit, timeout_seconds=timeout_seconds)
        return [decode(FeatureMatch, message) for message in messages]

    async def match_messages(
        self, request: Any, *, limit: int | None = None, timeout_seconds: float | None = None
    ) -> list[Any]:
        """The wire messages of `search_features`. The timeout is that of a page."""
        call = partial(self.call, self.features.SearchFeatures, timeout_seconds=timeout_seconds)
        return await all_pages(call, request, "matches", most_of_page=MAX_MATCHES, limit=limit)

    async def get_feature(self, key: int | str, *, timeout_seconds: float | None = None) -> Feature:
        """One latent with its evidence and examples, by index or name.

        Raises:
            NotFound: no feature has that name.
        """
        return decode(Feature, await self.feature_message(key, timeout_seconds=timeout_seconds))

    async def feature_message(self, key: int | str, *, timeout_seconds: float | None = None) -> Any:
        """The wire message of `get_feature`."""
        by = {"index": key} if isinstance(key, int) else {"name": key}
        try:
            request = feature_pb2.GetFeatureRequest(**by)
        except ValueError:
            raise InvalidRequest.field("index", f"must be 0 or more. Got {key}.") from None
        return (await self.call(self.features.GetFeature, request, timeout_seconds=timeout_seconds)).feature

    async def list_monitors(self, *, timeout_seconds: float | None = None) -> list[Monitor]:
        """All monitors, by name."""
        request = monitor_pb2.ListMonitorsRequest()
        response = await self.call(self.monitors.ListMonitors, request, timeout_seconds=timeout_seconds)
        return [decode(Monitor, monitor) for monitor in response.monitors]

    async def get_monitor(self, name: str, *, timeout_seconds: float | None = None) -> Monitor:
        """One monitor, with the numbers of its calibration and its evidence.

        Raises:
            NotFound: no monitor has that name.
        """
        return decode(Monitor, await self.monitor_message(name, timeout_seconds=timeout_seconds))

    async def monitor_message(self, name: str, *, timeout_seconds: float | None = None) -> Any:
        """The wire message of `get_monitor`."""
        request = monitor_pb2.GetMonitorRequest(name=name)
        return (await self.call(self.monitors.GetMonitor, request, timeout_seconds=timeout_seconds)).monitor

    async def watch_alerts(self, monitors: Sequence[str] = ()) -> AsyncGenerator[Alert, None]:
        """The alerts of all requests from now on, of these monitors or of all. Ends only with an exception.

        Raises:
            InvalidRequest: an unknown monitor, or a text in place of a list.
            SlowConsumer: alerts were not read fast enough; some may be missing.
            NotReady: the server went away.
        """
        check_is_list("monitors", monitors, "names")
        request = monitor_pb2.WatchAlertsRequest(monitors=monitors)
        async with aclosing(self.alert_messages(request)) as responses:
            async for response in responses:
                yield decode(Alert, response.alert)

    async def alert_messages(self, request: Any) -> AsyncGenerator[Any, None]:
        """The wire messages of `watch_alerts`."""
        async with aclosing(self._calls.stream(self.monitors.WatchAlerts, request)) as responses:
            async for response in responses:
                yield response
        raise NotReady("the server ended the stream of alerts.")

    async def wait_ready(self, *, timeout_seconds: float = 60.0) -> None:
        """Wait until the server takes requests.

        Raises:
            NotReady: it does not within that time.
        """
        status = "not reachable"
        try:
            async with asyncio.timeout(timeout_seconds):
                while True:
                    async with aclosing(self._health_changes()) as changes:
                        async for status in changes:
                            if status == "SERVING":
                                return
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            raise NotReady(f"the server is not ready after {timeout_seconds:g} s: {status}.") from None

    async def resolve_features(self, features: Sequence[int | str]) -> list[int]:
        """The latents of features given by name or latent.

        Raises:
            NotFound: no feature has that name; says which names are near.
        """
        if not any(isinstance(feature, str) for feature in features):
            return [int(feature) for feature in features]
        # Asked anew every time: after a restart the same name may belong to another latent.
        latents = {feature.name: feature.index for feature in await self.list_features() if feature.name}
        return [latents[f] if f in latents else _latent(f, list(latents)) for f in features]

    async def _latents(self, watch: Sequence[int | str]) -> list[int]:
        check_is_list("watch", watch, "latents and names")
        return await self.resolve_features(watch)

    async def _health_changes(self) -> AsyncGenerator[str, None]:
        """What the health service says, until it says no more."""
        request = health_pb2.HealthCheckRequest(service=SERVICE)
        call = self._health.Watch(request, metadata=self._metadata, wait_for_ready=True)
        try:
            async for response in call:
                yield health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)
        except grpc.aio.AioRpcError as error:
            yield error.details() or error.code().name
        finally:
            call.cancel()


def _latent(feature: int | str, names: Sequence[str]) -> int:
    if isinstance(feature, int):
        return feature
    raise NotFound(f"feature {feature!r}", suggestions=difflib.get_close_matches(feature, names, cutoff=0.4))
