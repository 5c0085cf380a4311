"""When a failed call is made again: only for faults that pass, and after the time that the server asks for.

Else after 1, 2, 4, ... seconds with as much again by chance, so that callers spread out.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt

from discovery.errors import EndpointError

T = TypeVar("T")


class PassingFault(EndpointError):
    """A fault that may be gone at the next attempt."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds the server asks to wait."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How often a call is made, and how long it waits in between."""

    max_attempts: int = 6
    max_wait_seconds: float = 120.0
    """Between two attempts; a server that asks for more ends the run."""
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    async def call(self, make: Callable[[], Awaitable[T]]) -> T:
        """What `make` returns once it raises no PassingFault any more; the last one if it always does."""
        attempts = AsyncRetrying(
            retry=retry_if_exception_type(PassingFault),
            stop=stop_after_attempt(self.max_attempts),
            wait=self._seconds_to_wait,
            sleep=self.sleep,
            reraise=True,
        )

        async def attempt() -> T:  # tenacity awaits what is written as a coroutine, not what returns one
            return await make()

        return await attempts(attempt)

    def _seconds_to_wait(self, state: RetryCallState) -> float:
        fault = state.outcome.exception() if state.outcome else None
        asked = fault.retry_after if isinstance(fault, PassingFault) else None
        if asked is not None and asked > self.max_wait_seconds:
            raise EndpointError(
                f"{fault}; it asks to wait for {asked:.0f} s, max_wait_seconds is {self.max_wait_seconds:g}"
            )
        growing = 2.0 ** (state.attempt_number - 1)
        return min(self.max_wait_seconds, growing + random.uniform(0, growing) if asked is None else asked)
