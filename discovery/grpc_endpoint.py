"""A connection to a running `telltale serve`, by the stubs of `telltale.v1`: `discovery` imports nothing of `service`.

    async with GrpcEndpoint("grpc://127.0.0.1:50051") as endpoint:
        reply = await endpoint.generate(messages, Sampling(max_tokens=64), label="telltale lab ...")

`grpcs://` is TLS. Faults are the errors of `discovery.errors`; those that may pass are `PassingFault`s, for the
caller's `Patience` to try again.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

import grpc
import grpc.aio
from google.protobuf.json_format import MessageToDict
from telltale.v1 import generation_pb2, generation_pb2_grpc, monitor_pb2, monitor_pb2_grpc, types_pb2

from discovery.call_retries import AnswerTime, PassingFault
from discovery.chat_model import Message
from discovery.errors import EndpointError, ReplyError

SCHEMES = ("grpc", "grpcs")

_PASSING = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.INTERNAL,
}
_WRONG_REQUEST = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE}
_CUT_OFF = {generation_pb2.FINISH_REASON_LENGTH, generation_pb2.FINISH_REASON_CONTEXT_LENGTH}
_REASON_PREFIX = "FINISH_REASON_"


class KeyRefused(EndpointError):
    """The server does not know the key: nothing was read."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a reply is drawn."""

    max_tokens: int
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float | None = None
    """None: the server's default."""
    seed: int | None = None
    """None: drawn by the server."""


class Generated(NamedTuple):
    """One whole reply."""

    text: str
    finish: str
    """Why it ended: eos, length, context_length, ..."""
    is_cut_off: bool
    """Whether it ended for want of room."""
    prompt_tokens: int
    completion_tokens: int
    monitors: tuple[dict[str, Any], ...] = ()
    """What each monitor that ran made of it: monitor, role, level (none, info, warning, critical), levels that it has,
    scored_tokens, and max_statistic, None where there were too few tokens to fire."""
    steering: dict[str, Any] | None = None
    """What steering did: positions_changed, mean_relative_norm and max_relative_norm; None if none was asked for."""


class Rendered(NamedTuple):
    """A conversation as the model reads it, up to where the reply begins."""

    text: str
    """Without special tokens, which have none."""
    token_ids: tuple[int, ...]


class ServedFacts(NamedTuple):
    """What a server says of itself."""

    model: dict[str, Any]
    """Its `ModelInfo`, field by field."""
    slots: int
    """Requests that it runs at once."""
    context_length: int
    steering: dict[str, Any]
    """What decides what a steering operation does: sae_sha256, hook_point, max_relative_norm."""

    @property
    def model_name(self) -> str:
        return str(self.model.get("name", ""))


class GrpcEndpoint:
    """One server. `async with` it, in one event loop."""

    def __init__(
        self, url: str, *, key: str | None = None, timeout_seconds: float = 120.0, monitors: Sequence[str] = ()
    ) -> None:
        """`monitors` run on every request. EndpointError if `url` is no address of a gRPC server."""
        self.url, self._monitors = url, tuple(monitors)
        self._target, self._is_tls = _parse(url)
        self._metadata = (("authorization", f"Bearer {key}"),) if key else ()
        self.answer_time = AnswerTime.of(timeout_seconds)
        """For a whole reply."""

    async def __aenter__(self) -> Self:
        credentials = grpc.ssl_channel_credentials() if self._is_tls else None
        channel = grpc.aio.secure_channel(self._target, credentials) if credentials else None
        self._channel = channel or grpc.aio.insecure_channel(self._target)
        self._stub = generation_pb2_grpc.GenerationServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._packs = monitor_pb2_grpc.MonitorServiceStub(self._channel)  # type: ignore[no-untyped-call]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._channel.close()

    async def facts(self) -> ServedFacts:
        """What is served."""
        seconds = self.answer_time.seconds
        try:
            info = await self._stub.GetServerInfo(
                generation_pb2.GetServerInfoRequest(), timeout=seconds, metadata=self._metadata
            )
        except grpc.aio.AioRpcError as error:
            raise self._fault(error, seconds) from None
        model = MessageToDict(info.model, preserving_proto_field_name=True)
        steering = {
            "sae_sha256": info.sae.sha256,
            "hook_point": info.steering_hook_point,
            "max_relative_norm": info.limits.max_steering_relative_norm,
        }
        return ServedFacts(model, info.limits.slots, info.limits.context_length, steering)

    async def packs(self) -> dict[str, str]:
        """Name -> content hash of the packs of all its monitors."""
        seconds = self.answer_time.seconds
        try:
            answer = await self._packs.ListMonitors(
                monitor_pb2.ListMonitorsRequest(), timeout=seconds, metadata=self._metadata
            )
        except grpc.aio.AioRpcError as error:
            raise self._fault(error, seconds) from None
        return {monitor.name: monitor.pack_sha256 for monitor in answer.monitors}

    async def generate(
        self, messages: list[Message], sampling: Sampling, *, label: str, steering: Sequence[Any] = ()
    ) -> Generated:
        """The reply to `messages`, steered if so. PassingFault if the server stopped in the middle of it, too."""
        request = self._request(messages, sampling, label)
        request.steering.extend(steering)
        return (await self._generate(request))[0]

    async def render(self, messages: list[Message], *, label: str) -> Rendered:
        """What the server's chat template makes of `messages`."""
        request = self._request(messages, Sampling(max_tokens=1), label)
        request.watch.include_prompt = True
        return (await self._generate(request))[1]

    def _request(self, messages: list[Message], sampling: Sampling, label: str) -> Any:
        return generation_pb2.GenerateRequest(
            chat=types_pb2.Chat(messages=[types_pb2.Message(**message) for message in messages]),
            sampling=types_pb2.SamplingParams(**asdict(sampling)),  # None leaves a field unset
            # Lies that were asked for are no alerts: nothing runs that was not named.
            watch=types_pb2.Watch(no_defaults=True, monitors=self._monitors),
            label=label,
        )

    async def _generate(self, request: Any) -> tuple[Generated, Rendered]:
        """The reply, and the prompt if the request asks for it."""
        prompt: list[Any] = []
        reply: list[str] = []
        levels: dict[str, list[str]] = {}
        finished, seconds = None, self.answer_time.seconds
        try:
            async for response in self._stub.Generate(request, timeout=seconds, metadata=self._metadata):
                match response.WhichOneof("event"):
                    case "started":
                        levels = {monitor.name: _levels(monitor) for monitor in response.started.monitors}
                    case "tokens":
                        prompt += [token for token in response.tokens.tokens if token.is_prompt]
                        reply += [token.text for token in response.tokens.tokens if not token.is_prompt]
                    case "finished":
                        finished = response.finished
        except grpc.aio.AioRpcError as error:
            raise self._fault(error, seconds) from None
        if finished is None or finished.reason == generation_pb2.FINISH_REASON_SHUTDOWN:
            raise PassingFault(f"endpoint {self.url} ended in the middle of an answer")
        generated = Generated(
            "".join(reply),
            generation_pb2.FinishReason.Name(finished.reason).removeprefix(_REASON_PREFIX).lower(),
            finished.reason in _CUT_OFF,
            finished.usage.prompt_tokens,
            finished.usage.completion_tokens,
            tuple(_reading(summary, levels[summary.monitor]) for summary in finished.monitors),
            _steered(finished.steering) if finished.HasField("steering") else None,
        )
        return generated, Rendered("".join(token.text for token in prompt), tuple(token.id for token in prompt))

    def _fault(self, error: grpc.aio.AioRpcError, seconds: float) -> EndpointError | ReplyError:
        """What a call that failed, and might have taken `seconds`, means for the run."""
        code = error.code()
        late = code is grpc.StatusCode.DEADLINE_EXCEEDED
        details = self.answer_time.lengthen(seconds) if late else " ".join((error.details() or "").split())[:300]
        what = f"endpoint {self.url} answered {code.name}: {details}"
        if code in _PASSING:
            return PassingFault(what, retry_after=_retry_after(error))
        if code is grpc.StatusCode.UNAUTHENTICATED:
            return KeyRefused(what)
        return ReplyError(what) if code in _WRONG_REQUEST else EndpointError(what)


def _levels(monitor: Any) -> list[str]:
    return [_severity(level.severity) for level in monitor.levels]


def _severity(severity: Any) -> str:
    return types_pb2.Severity.Name(severity).removeprefix("SEVERITY_").lower()


def _reading(summary: Any, levels: list[str]) -> dict[str, Any]:
    return {
        "monitor": summary.monitor,
        "role": summary.role,
        "level": _severity(summary.level) if summary.fired else "none",
        "levels": levels,
        "scored_tokens": summary.scored_tokens,
        "max_statistic": summary.max_statistic if summary.HasField("max_statistic") else None,
    }


def _steered(report: Any) -> dict[str, Any]:
    return {
        "positions_changed": report.positions_changed,
        "mean_relative_norm": round(report.mean_relative_norm, 5),
        "max_relative_norm": round(report.max_relative_norm, 5),
    }


def _parse(url: str) -> tuple[str, bool]:
    """Target and whether it is to be reached by TLS; EndpointError if `url` is no address of a gRPC server."""
    try:
        parts = urlsplit(url)
        sound = parts.scheme in SCHEMES and parts.hostname and parts.port and parts.path in ("", "/")
    except ValueError:  # a port that is none
        sound = False
    if not sound or parts.username or parts.query:
        raise EndpointError(f"endpoint must be grpc://HOST:PORT or grpcs://HOST:PORT, got {url!r}")
    return parts.netloc, parts.scheme == "grpcs"


def _retry_after(error: grpc.aio.AioRpcError) -> float | None:
    """Seconds of the `retry-after-ms` trailer."""
    for key, value in error.trailing_metadata() or ():
        if key == "retry-after-ms" and isinstance(value, str) and value.isdecimal():
            return int(value) / 1000
    return None
