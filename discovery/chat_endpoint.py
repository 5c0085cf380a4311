"""An OpenAI-compatible chat endpoint: hosted, Ollama, vLLM, llama.cpp's or llama-cpp-python's server.

    POST {url}/chat/completions   with `response_format`, as https://platform.openai.com/docs/api-reference/chat says

Servers differ in what they take as `response_format`; the forms are tried from the strictest on and the first one that
is not refused stays in use. Servers that want `max_completion_tokens`, or no temperature, get their way too.

What passes (too many requests, server errors, broken connections, answers that are no JSON) is tried again, after the
time the server asks for in `Retry-After`, else after a growing one. What does not pass raises EndpointError. The key
comes from the environment, goes into one header, and is struck out of every message.
"""

import asyncio
import json
import os
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import cache
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

from discovery.call_limits import Meter, Pace, Reservation, Usage, estimate_tokens
from discovery.call_retries import AnswerTime, PassingFault, Patience
from discovery.chat_model import ChatReply, Message
from discovery.errors import EndpointError, ReplyError

KEY_VARIABLE = "TELLTALE_EXPLAIN_API_KEY"

_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_UNBILLED = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
"""Nothing was sent."""
_MESSAGE_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class EndpointSettings:
    """Where a model is, and how patiently it is asked."""

    url: str
    """Up to and without /chat/completions, as a rule ending in /v1."""
    model: str
    key: str | None = field(default=None, repr=False)
    key_variable: str = KEY_VARIABLE
    """Where the key was looked for, for messages."""
    timeout_seconds: float = 120.0
    """For a whole answer, at first: see `call_retries.AnswerTime`."""
    max_attempts: int = 6
    max_wait_seconds: float = 120.0
    """Between two attempts; a server that asks for more ends the run."""
    temperature: float = 0.0

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            sound = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
        except ValueError:  # a port that is none, a bracket too few
            sound = False
        if not sound:
            raise EndpointError(f"endpoint must be a URL with http or https, got {self.url!r}")
        if parts.username or parts.password:
            raise EndpointError(f"endpoint must hold no user and password: the key is read from {self.key_variable}")
        check_key(self.key, self.key_variable)
        if self.max_attempts < 1 or not self.timeout_seconds > 0:
            raise EndpointError("max_attempts must be 1 or more and timeout_seconds above 0")

    @property
    def address(self) -> str:
        """The resource; a query of the URL (a version, say) stays behind it."""
        parts = urlsplit(self.url)
        path = parts.path.rstrip("/").removesuffix("/chat/completions")
        return parts._replace(path=f"{path}/chat/completions", fragment="").geturl()

    @property
    def shown(self) -> str:
        """For messages: without a query, which may hold a key."""
        return urlsplit(self.url)._replace(query="", fragment="").geturl()


def key_from_environment(variable: str = KEY_VARIABLE) -> str | None:
    """The key, if there is one. By default from a variable made for this: no other key goes to a server by accident."""
    key = os.environ.get(variable, "").strip() or None
    check_key(key, variable)
    return key


def check_key(key: str | None, variable: str = KEY_VARIABLE) -> None:
    """EndpointError unless `key` can stand in a header."""
    if key is not None and not (key.isascii() and key.isprintable()):
        raise EndpointError(f"{variable} must be printable ASCII, got something else")


class RefusedRequest(ReplyError):
    """The server calls the request itself wrong (HTTP 400, 422)."""


class ChatEndpoint:
    """A `ChatModel` behind HTTP. `async with` it, in one event loop."""

    def __init__(
        self,
        settings: EndpointSettings,
        *,
        pace: Pace | None = None,
        meter: Meter | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        notice: Callable[[str], object] = lambda _line: None,
    ) -> None:
        self.settings = settings
        self.pace, self.meter = pace or Pace(), meter or Meter()
        self.answer_time = AnswerTime.of(settings.timeout_seconds)
        self._patience = Patience(settings.max_attempts, settings.max_wait_seconds, sleep, notice)
        headers = {"Authorization": f"Bearer {settings.key}"} if settings.key else {}
        self._client = httpx.AsyncClient(headers=headers, verify=_tls())
        self._form = 0
        """Of `_response_formats`, the first that may work."""
        self._limit_name, self._takes_temperature = "max_tokens", True

    @property
    def name(self) -> str:
        return self.settings.model

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def reply(self, messages: list[Message], schema: dict[str, Any], max_tokens: int) -> ChatReply:
        """Answer `messages`; see `ChatModel`."""
        forms = _response_formats(schema)
        for form in range(self._form, len(forms)):
            try:
                reply = await self._try_until_it_passes(messages, forms[form], max_tokens)
            except RefusedRequest:
                if form + 1 == len(forms):
                    raise
            else:
                self._form = max(self._form, form)
                return reply
        raise AssertionError("unreachable")

    async def _try_until_it_passes(
        self, messages: list[Message], response_format: dict[str, Any] | None, max_tokens: int
    ) -> ChatReply:
        return await self._patience.call(lambda: self._adapted_call(messages, response_format, max_tokens))

    async def _adapted_call(
        self, messages: list[Message], response_format: dict[str, Any] | None, max_tokens: int
    ) -> ChatReply:
        """One call; made again at once if the server names a parameter that it wants otherwise."""
        while True:
            try:
                return await self._call(messages, response_format, max_tokens)
            except RefusedRequest as refusal:
                if not self._adapt(str(refusal)):
                    raise

    def _adapt(self, refusal: str) -> bool:
        if self._limit_name == "max_tokens" and "max_completion_tokens" in refusal:
            self._limit_name = "max_completion_tokens"
        elif self._takes_temperature and "temperature" in refusal:
            self._takes_temperature = False
        else:
            return False
        return True

    async def _call(
        self, messages: list[Message], response_format: dict[str, Any] | None, max_tokens: int
    ) -> ChatReply:
        body: dict[str, Any] = {"model": self.settings.model, "messages": messages, self._limit_name: max_tokens}
        if self._takes_temperature:
            body["temperature"] = self.settings.temperature
        if response_format is not None:
            body["response_format"] = response_format
        text = json.dumps(body)
        most = Usage(estimate_tokens(text), max_tokens)
        await self.pace.wait(most.total)
        with self.meter.call(most) as reservation:
            response = await self._post(body, reservation)
            payload = self._payload(response, reservation)
            reservation.used = _usage(payload)
            return self._read(payload)

    async def _post(self, body: dict[str, Any], reservation: Reservation) -> httpx.Response:
        seconds = self.answer_time.seconds
        try:
            async with asyncio.timeout(seconds):
                return await self._client.post(self.settings.address, json=body, timeout=seconds)
        except (httpx.TransportError, TimeoutError) as error:
            if isinstance(error, _UNBILLED):
                reservation.used = Usage(0, 0)
            late = isinstance(error, (TimeoutError, httpx.ReadTimeout))
            what = self.answer_time.lengthen(seconds) if late else self._clean(str(error)) or type(error).__name__
            raise PassingFault(f"endpoint {self.settings.shown} can't be reached: {what}") from None
        except httpx.HTTPError as error:
            raise EndpointError(f"endpoint {self.settings.shown}: {self._clean(str(error))}") from None

    def _payload(self, response: httpx.Response, reservation: Reservation) -> dict[str, Any]:
        """The body of an answer; every status and body that is none raises."""
        if not response.is_success:
            reservation.used = Usage(0, 0)
            self._raise_for(response)
        try:
            payload = response.json()
        except ValueError:
            raise PassingFault(f"endpoint {self.settings.shown} sent no JSON: {self._clean(response.text)}") from None
        if isinstance(payload, dict) and payload.get("error"):  # some gateways send errors with status 200
            raise PassingFault(f"endpoint {self.settings.shown}: {self._clean(_error_message(payload))}")
        if not isinstance(payload, dict) or not isinstance(payload.get("choices"), list) or not payload["choices"]:
            raise PassingFault(f"endpoint {self.settings.shown} sent no choices: {self._clean(response.text)}")
        return payload

    def _raise_for(self, response: httpx.Response) -> None:
        status, message = response.status_code, self._clean(_error_message(_json_or_text(response)))
        what = f"endpoint {self.settings.shown} answered HTTP {status}: {message}"
        if status in (401, 403):
            having = "the key in" if self.settings.key else "no key in"
            raise EndpointError(f"{what} (with {having} {self.settings.key_variable})")
        if status == 429 and "insufficient_quota" in response.text:
            raise EndpointError(what)  # waiting brings no money
        if status in _PASSING:
            raise PassingFault(what, retry_after=_retry_after(response))
        if status in (400, 422):
            raise RefusedRequest(what)
        raise EndpointError(what)

    def _read(self, payload: dict[str, Any]) -> ChatReply:
        choice = payload["choices"][0]
        message = choice.get("message") if isinstance(choice, dict) else None
        if not isinstance(message, dict):
            raise PassingFault(f"endpoint {self.settings.shown} sent no message: {self._clean(json.dumps(choice))}")
        if message.get("refusal"):
            raise ReplyError(f"the model refuses: {self._clean(str(message['refusal']))}")
        if choice.get("finish_reason") == "content_filter":
            raise ReplyError("the endpoint's content filter stopped the answer")
        return ChatReply(str(message.get("content") or ""), choice.get("finish_reason") == "length")

    def _clean(self, text: str) -> str:
        """One line without the key."""
        text = text.replace(self.settings.key, "***") if self.settings.key else text
        return " ".join(text.split())[:_MESSAGE_CHARACTERS]


@cache
def _tls() -> ssl.SSLContext:
    """Reading the certificates takes longer than many a call."""
    return httpx.create_ssl_context()


def _response_formats(schema: dict[str, Any]) -> list[dict[str, Any] | None]:
    """Ways to ask for JSON, strictest first."""
    portable = portable_schema(schema)
    return [
        # OpenAI, Ollama, vLLM, llama.cpp, LM Studio
        {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": portable}},
        # llama-cpp-python, Together
        {"type": "json_object", "schema": portable},
        {"type": "json_object"},
        None,
    ]


def portable_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """`schema` in what every server's strict mode takes: structure and enumerations, no lengths and no titles."""
    kept: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "properties":
            kept[key] = {name: portable_schema(part) for name, part in value.items()}
        elif key == "items":
            kept[key] = portable_schema(value)
        elif key in ("type", "required", "enum", "description", "additionalProperties"):
            kept[key] = value
    return kept


def _usage(payload: dict[str, Any]) -> Usage | None:
    """What the server says was used; None if it doesn't, or not in numbers."""
    said = payload.get("usage")
    if not isinstance(said, dict):
        return None
    prompt, completion = said.get("prompt_tokens"), said.get("completion_tokens")
    if type(prompt) is not int or type(completion) is not int or min(prompt, completion) < 0:
        return None
    return Usage(prompt, completion)


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds of `Retry-After`, which holds seconds or a date (RFC 9110, 10.2.3)."""
    value = response.headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def _json_or_text(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return response.text


def _error_message(payload: Any) -> str:
    """The message, wherever the server puts it: {"error": {"message"}}, {"error": "..."}, {"detail"}, plain text."""
    if isinstance(payload, dict):
        error = payload.get("error") or payload.get("detail") or payload
        payload = error.get("message", error) if isinstance(error, dict) else error
    return payload if isinstance(payload, str) else json.dumps(payload)
