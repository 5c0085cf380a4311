"""A `ChatModel` behind the project's own server: `--endpoint grpc://127.0.0.1:50051`, or `grpcs://` with TLS.

The server writes freely: the shape of the answer is asked for in words, checked by `chat_model.ask` and asked for
again. A small model seldom gets it right; `--endpoint local` writes with the same weights and puts the shape in for it.
"""

import json
from types import TracebackType
from typing import Any, Self

from discovery.call_limits import Meter, Pace, Usage, estimate_tokens
from discovery.call_retries import Patience
from discovery.chat_model import ChatReply, Message
from discovery.errors import ReplyError
from discovery.grpc_endpoint import GrpcEndpoint, KeyRefused, Sampling

_LABEL = "telltale lab explain"


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
        self._endpoint = GrpcEndpoint(url, key=key, timeout_seconds=timeout_seconds)
        self._temperature = temperature
        self._patience, self.pace, self.meter = patience or Patience(), pace or Pace(), meter or Meter()
        self._name = ""

    @property
    def name(self) -> str:
        """The served model's; known once the server has been asked."""
        return self._name

    async def __aenter__(self) -> Self:
        await self._endpoint.__aenter__()
        try:
            self._name = f"{(await self._patience.call(self._endpoint.facts)).model_name} (telltale)"
        except BaseException:
            await self._endpoint.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._endpoint.__aexit__(kind, error, at)

    async def reply(self, messages: list[Message], schema: dict[str, Any], max_tokens: int) -> ChatReply:
        """Answer `messages`; see `ChatModel`. The schema goes into the first message, as text."""
        told = _with_schema(messages, schema)
        most = Usage(estimate_tokens("".join(message["content"] for message in told)), max_tokens)
        return await self._patience.call(lambda: self._call(told, most))

    async def _call(self, messages: list[Message], most: Usage) -> ChatReply:
        await self.pace.wait(most.total)
        with self.meter.call(most) as reservation:
            sampling = Sampling(most.completion_tokens, self._temperature)
            try:
                reply = await self._endpoint.generate(messages, sampling, label=_LABEL)
            except (ReplyError, KeyRefused):
                reservation.used = Usage(0, 0)
                raise
            reservation.used = Usage(reply.prompt_tokens, reply.completion_tokens)
            return ChatReply(reply.text, reply.is_cut_off)


def _with_schema(messages: list[Message], schema: dict[str, Any]) -> list[Message]:
    first, *others = messages
    asked = f"{first['content']}\nThe answer must follow this JSON schema: {json.dumps(schema)}"
    return [{"role": first["role"], "content": asked}, *others]
