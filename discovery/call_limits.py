"""What calls to a paid or shared endpoint may cost, and how fast they may come.

    Pace    at most so many requests, and so many tokens, in any 60 seconds
    Meter   at most so many tokens, and so much money, in one run

Both are asked *before* a call, with the most it can use: its prompt, estimated from the text, and all the tokens its
answer may have. The meter then counts what the endpoint says was used; a call whose answer never came counts with its
most, because it may well be billed. So a limit holds unless a prompt has more tokens than estimated.

The clock and the sleep are arguments: tests need no time.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from discovery.errors import BudgetError, ExplainError

WINDOW_SECONDS = 60.0

_CHARACTERS_PER_TOKEN = 3
"""English has about 4, code and names about 3: fewer than usual, so that estimates err upwards."""


class Usage(NamedTuple):
    """Tokens of one call."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def total(self) -> int:
        return self.prompt_tokens + self.completion_tokens


def estimate_tokens(text: str) -> int:
    """Tokens of `text`, rather too many than too few. Counted in bytes: other scripts have more tokens a character."""
    return len(text.encode("utf-8", "replace")) // _CHARACTERS_PER_TOKEN + 1


# --- speed ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Pace:
    """Lets calls through so that no 60 seconds have too many."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    _recent: deque[tuple[float, int]] = field(default_factory=deque)
    """(time, tokens) of the calls of the last window, oldest first."""
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while waiting, so that calls go in the order in which they came."""

    async def wait(self, num_tokens: int) -> None:
        """Return when a call of `num_tokens` may go. ExplainError if it never may."""
        if self.tokens_per_minute is not None and num_tokens > self.tokens_per_minute:
            raise ExplainError(
                f"tokens per minute must allow a single call, which may use {num_tokens}, got {self.tokens_per_minute}"
            )
        async with self._turn:
            while (seconds := self._seconds_to_wait(num_tokens)) > 0:
                await self.sleep(seconds)
            self._recent.append((self.clock(), num_tokens))

    def _seconds_to_wait(self, num_tokens: int) -> float:
        now = self.clock()
        while self._recent and self._recent[0][0] <= now - WINDOW_SECONDS:
            self._recent.popleft()
        calls, tokens, seconds = len(self._recent), num_tokens + sum(tokens for _, tokens in self._recent), 0.0
        for started, freed in self._recent:
            if not self._is_full(calls, tokens):
                break
            # It would do if this call were out of the window too.
            calls, tokens, seconds = calls - 1, tokens - freed, started + WINDOW_SECONDS - now
        return seconds

    def _is_full(self, calls: int, tokens: int) -> bool:
        over_calls = self.requests_per_minute is not None and calls >= self.requests_per_minute
        return over_calls or (self.tokens_per_minute is not None and tokens > self.tokens_per_minute)


# --- cost -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SpendingLimits:
    """What one run may use. None: no limit."""

    max_cost: float | None = None
    """In the currency of the prices."""
    max_tokens_total: int | None = None
    price_prompt_1k: float = 0.0
    """Of 1,000 prompt tokens."""
    price_completion_1k: float = 0.0

    def __post_init__(self) -> None:
        for name in ("max_cost", "max_tokens_total", "price_prompt_1k", "price_completion_1k"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise ExplainError(f"{name} must be 0 or more, got {value}")
        if self.max_cost is not None and not self.price_prompt_1k + self.price_completion_1k > 0:
            raise ExplainError("max_cost needs prices: price_prompt_1k and price_completion_1k are 0")

    def cost(self, usage: Usage) -> float:
        return (usage.prompt_tokens * self.price_prompt_1k + usage.completion_tokens * self.price_completion_1k) / 1000


@dataclass(slots=True)
class Reservation:
    """One call in flight: its most, until it says what it used."""

    most: Usage
    used: Usage | None = None


@dataclass(slots=True)
class Meter:
    """Counts what a run uses, calls in flight at their most."""

    limits: SpendingLimits = field(default_factory=SpendingLimits)
    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    num_estimated: int = 0
    """Calls counted by estimate: their answer never came, or did not say what it used."""
    _in_flight: list[Reservation] = field(default_factory=list)

    @property
    def used(self) -> Usage:
        return Usage(self.prompt_tokens, self.completion_tokens)

    @property
    def cost(self) -> float:
        return self.limits.cost(self.used)

    @contextmanager
    def call(self, most: Usage) -> Iterator[Reservation]:
        """Make a call inside the block, and set `used` on what it yields. BudgetError if it could cost too much."""
        self._check(most)
        reservation = Reservation(most)
        self._in_flight.append(reservation)
        try:
            yield reservation
        finally:
            self._in_flight.remove(reservation)
            used = most if reservation.used is None else reservation.used
            self.num_estimated += reservation.used is None
            self.calls += 1
            self.prompt_tokens += used.prompt_tokens
            self.completion_tokens += used.completion_tokens

    def _check(self, most: Usage) -> None:
        reserved = [reservation.most for reservation in self._in_flight] + [most]
        tokens = self.used.total + sum(usage.total for usage in reserved)
        if self.limits.max_tokens_total is not None and tokens > self.limits.max_tokens_total:
            raise BudgetError(
                f"max_tokens_total is {self.limits.max_tokens_total}: {self.used.total} tokens are used, and the calls "
                f"in flight and the next one may use {tokens - self.used.total}"
            )
        cost = self.cost + sum(self.limits.cost(usage) for usage in reserved)
        if self.limits.max_cost is not None and cost > self.limits.max_cost:
            raise BudgetError(
                f"max_cost is {self.limits.max_cost:g}: {self.cost:.4g} is spent, and the calls in flight and the next "
                f"one may cost {cost - self.cost:.4g}"
            )
