"""Carries out the client's calls: API key, deadline, retries, typed errors.

A call is tried again only while nothing of its answer has arrived, because a generation is not idempotent: a second
one may say something else. UNAVAILABLE is tried again by itself, RESOURCE_EXHAUSTED only if the server says when.
"""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import grpc.aio

from service.client_status import retry_after_seconds, to_error

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """When to try a failed call again: exponential waits, longer ones if the server asks for them, all jittered."""

    max_attempts: int = 4
    """Calls made at most, the first included; 1 never tries again."""
    base_delay_seconds: float = 0.2
    """Wait before the second attempt; doubles with each."""
    max_delay_seconds: float = 10.0
    """Longest wait. A server that asks for more is not tried again."""

    def delay_seconds(self, attempt: int, error: grpc.RpcError) -> float | None:
        """How long to wait after failed attempt number `attempt`, counted from 1; None to give up."""
        code, asked = error.code(), retry_after_seconds(error)
        retriable = code is grpc.StatusCode.UNAVAILABLE or (
            code is grpc.StatusCode.RESOURCE_EXHAUSTED and asked is not None
        )
        if not retriable or attempt >= self.max_attempts or (asked or 0.0) > self.max_delay_seconds:
            return None
        backoff = min(self.base_delay_seconds * 2 ** (attempt - 1), self.max_delay_seconds)
        # Up, never down, from what the server asked for; half to whole of our own guess.
        return asked * random.uniform(1.0, 1.25) if asked is not None else backoff * random.uniform(0.5, 1.0)


class Calls:
    """Calls of one client."""

    def __init__(self, metadata: tuple[tuple[str, str], ...], retry: RetryPolicy) -> None:
        self._metadata = metadata
        self._retry = retry

    async def unary(self, method: Any, request: Any, *, timeout_seconds: float | None = None) -> Any:
        """The response of a stub's unary method. The timeout spans all attempts."""

        async def attempt(remaining_seconds: float | None) -> Any:
            return await method(request, timeout=remaining_seconds, metadata=self._metadata)

        return await self._retrying(attempt, timeout_seconds)

    async def stream(
        self, method: Any, request: Any, *, timeout_seconds: float | None = None
    ) -> AsyncGenerator[Any, None]:
        """The responses of a stub's streaming method; closing the iterator cancels the call."""

        async def attempt(remaining_seconds: float | None) -> tuple[Any, Any]:
            call = method(request, timeout=remaining_seconds, metadata=self._metadata)
            try:
                return call, await call.read()
            except BaseException:
                call.cancel()
                raise

        call, response = await self._retrying(attempt, timeout_seconds)
        try:
            while response is not grpc.aio.EOF:
                yield response
                response = await call.read()
        except grpc.aio.AioRpcError as error:
            raise to_error(error) from error
        finally:
            call.cancel()  # does nothing to a call that has ended

    async def _retrying(self, attempt: Callable[[float | None], Awaitable[T]], timeout_seconds: float | None) -> T:
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        number = 0
        while True:
            number += 1
            try:
                return await attempt(_until(deadline))
            except grpc.aio.AioRpcError as error:
                delay_seconds, remaining_seconds = self._retry.delay_seconds(number, error), _until(deadline)
                if delay_seconds is None or (remaining_seconds is not None and delay_seconds >= remaining_seconds):
                    raise to_error(error) from error
            await asyncio.sleep(delay_seconds)


def _until(deadline: float | None) -> float | None:
    return None if deadline is None else max(deadline - time.monotonic(), 0.0)
