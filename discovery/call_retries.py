"""When a failed call is made again: only for faults that pass, and after the time that the server asks for.

Else after 1, 2, 4, ... seconds with as much again by chance, so that callers spread out. What an answer did not come in
is doubled for the next one: a slow machine would give up at the same place each time.
"""

import asyncio
import random
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Self, TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt
from tqdm import tqdm

from discovery.errors import EndpointError

T = TypeVar("T")
MOST_LONGER = 8


class PassingFault(EndpointError):
    """A fault that may be gone at the next attempt."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds the server asks to wait."""


@dataclass(slots=True)
class AnswerTime:
    """How long an answer may take: longer for those to come once one has taken too long."""

    seconds: float
    most_seconds: float

    @classmethod
    def of(cls, seconds: float) -> Self:
        """At first `seconds`, in the end 8 times that."""
        return cls(seconds, MOST_LONGER * seconds)

    def lengthen(self, waited: float) -> str:
        """Allow twice the time waited in vain, and say so. Of calls that ran side by side one has an effect."""
        self.seconds = max(self.seconds, min(2 * waited, self.most_seconds))
        return f"no answer within {waited:g} s (--timeout), the next one may take {self.seconds:g} s"


def on_stderr(line: str) -> None:
    """A notice beside whatever progress bars there are."""
    tqdm.write(line, file=sys.stderr)


@dataclass(frozen=True, slots=True)
class Patience:
    """How often a call is made, and how long it waits in between."""

    max_attempts: int = 6
    max_wait_seconds: float = 120.0
    """Between two attempts; a server that asks for more ends the run."""
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    notice: Callable[[str], object] = lambda _line: None
    """Told in a line of each attempt that failed and is made again."""

    async def call(self, make: Callable[[], Awaitable[T]]) -> T:
        """What `make` returns once it raises no PassingFault any more; the last one if it always does."""
        attempts = AsyncRetrying(
            retry=retry_if_exception_type(PassingFault),
            stop=stop_after_attempt(self.max_attempts),
            wait=self._seconds_to_wait,
            before_sleep=self._tell,
            sleep=self.sleep,
            reraise=True,
        )

        async def attempt() -> T:  # tenacity awaits what is written as a coroutine, not what returns one
            return await make()

        return await attempts(attempt)

    def _tell(self, state: RetryCallState) -> None:
        fault = state.outcome.exception() if state.outcome else None
        seconds = state.next_action.sleep if state.next_action else 0.0
        attempt = f"attempt {state.attempt_number + 1} of {self.max_attempts}"
        self.notice(f"{fault}; {attempt} in {seconds:.0f} s")

    def _seconds_to_wait(self, state: RetryCallState) -> float:
        fault = state.outcome.exception() if state.outcome else None
        asked = fault.retry_after if isinstance(fault, PassingFault) else None
        if asked is not None and asked > self.max_wait_seconds:
            raise EndpointError(
                f"{fault}; it asks to wait for {asked:.0f} s, max_wait_seconds is {self.max_wait_seconds:g}"
            )
        growing = 2.0 ** (state.attempt_number - 1)
        return min(self.max_wait_seconds, growing + random.uniform(0, growing) if asked is None else asked)
