"""A `ChatModel` behind the project's own server: `--endpoint grpc://127.0.0.1:50051`, or `grpcs://` with TLS.

Talks `telltale.v1` by its stubs, because `discovery` imports nothing of `service`. The server writes freely: the shape
of the answer is asked for in words, checked by `chat_model.ask` and asked for again. A small model seldom gets it
right; `--endpoint local` writes with the same weights and puts the shape in for it.
"""

import json
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import grpc
import grpc.aio
from telltale.v1 import generation_pb2, generation_pb2_grpc, types_pb2

from discovery.call_limits import Meter, Pace, Reservation, Usage, estimate_tokens
from discovery.call_retries import PassingFault, Patience
from discovery.chat_model import ChatReply, Message
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


class GrpcChat:
    """The model of one server. `async with` it, in one event loop."""

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        timeout_seconds: float = 120.0,
        temperature: float = 0.0,
        patience: Patience | None = None,
        pace: Pace | None = None,
        meter: Meter | None = None,
    ) -> None:
        self._url, self._target, self._is_tls = url, *_parse(url)
        self._metadata = (("authorization", f"Bearer {key}"),) if key else ()
        self._timeout_seconds, self._temperature = timeout_seconds, temperature
        self._patience, self.pace, self.meter = patience or Patience(), pace or Pace(), meter or Meter()
        self._name = ""

    @property
    def name(self) -> str:
        """The served model's; known once the server has been asked."""
        return self._name

    async def __aenter__(self) -> Self:
        credentials = grpc.ssl_channel_credentials() if self._is_tls else None
        channel = grpc.aio.secure_channel(self._target, credentials) if credentials else None
        self._channel = channel or grpc.aio.insecure_channel(self._target)
        self._stub = generation_pb2_grpc.GenerationServiceStub(self._channel)  # type: ignore[no-untyped-call]
        try:
            self._name = f"{await self._patience.call(self._model_name)} (telltale)"
        except BaseException:
            await self._channel.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._channel.close()

    async def _model_name(self) -> str:
        try:
            info = await self._stub.GetServerInfo(
                generation_pb2.GetServerInfoRequest(), timeout=self._timeout_seconds, metadata=self._metadata
            )
        except grpc.aio.AioRpcError as error:
            raise self._fault(error) from None
        return str(info.model.name)

    async def reply(self, messages: list[Message], schema: dict[str, Any], max_tokens: int) -> ChatReply:
        """Answer `messages`; see `ChatModel`. The schema goes into the first message, as text."""
        told = _with_schema(messages, schema)
        request = generation_pb2.GenerateRequest(
            chat=types_pb2.Chat(messages=[types_pb2.Message(**message) for message in told]),
            sampling=types_pb2.SamplingParams(temperature=self._temperature, max_tokens=max_tokens),
            label="telltale lab explain",
        )
        most = Usage(estimate_tokens("".join(message["content"] for message in told)), max_tokens)
        return await self._patience.call(lambda: self._call(request, most))

    async def _call(self, request: Any, most: Usage) -> ChatReply:
        await self.pace.wait(most.total)
        with self.meter.call(most) as reservation:
            try:
                return await self._read(request, reservation)
            except grpc.aio.AioRpcError as error:
                if error.code() in _WRONG_REQUEST | {grpc.StatusCode.UNAUTHENTICATED}:
                    reservation.used = Usage(0, 0)
                raise self._fault(error) from None

    async def _read(self, request: Any, reservation: Reservation) -> ChatReply:
        """The stream of one generation as a reply. PassingFault if the server stopped in the middle of it."""
        parts: list[str] = []
        finished = None
        async for response in self._stub.Generate(request, timeout=self._timeout_seconds, metadata=self._metadata):
            match response.WhichOneof("event"):
                case "tokens":
                    parts += [token.text for token in response.tokens.tokens if not token.is_prompt]
                case "finished":
                    finished = response.finished
        if finished is None or finished.reason == generation_pb2.FINISH_REASON_SHUTDOWN:
            raise PassingFault(f"endpoint {self._url} ended in the middle of an answer")
        reservation.used = Usage(finished.usage.prompt_tokens, finished.usage.completion_tokens)
        return ChatReply("".join(parts), finished.reason in _CUT_OFF)

    def _fault(self, error: grpc.aio.AioRpcError) -> EndpointError | ReplyError:
        """What a failed call means for the run."""
        code = error.code()
        what = f"endpoint {self._url} answered {code.name}: {' '.join((error.details() or '').split())[:300]}"
        if code in _PASSING:
            return PassingFault(what, retry_after=_retry_after(error))
        return ReplyError(what) if code in _WRONG_REQUEST else EndpointError(what)


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


def _with_schema(messages: list[Message], schema: dict[str, Any]) -> list[Message]:
    first, *others = messages
    asked = f"{first['content']}\nThe answer must follow this JSON schema: {json.dumps(schema)}"
    return [{"role": first["role"], "content": asked}, *others]


def _retry_after(error: grpc.aio.AioRpcError) -> float | None:
    """Seconds of the `retry-after-ms` trailer."""
    for key, value in error.trailing_metadata() or ():
        if key == "retry-after-ms" and isinstance(value, str) and value.isdecimal():
            return int(value) / 1000
    return None
