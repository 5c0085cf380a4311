"""call_limits: no window is too full, no run too dear, and calls in flight count."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.call_limits import WINDOW_SECONDS, Meter, Pace, SpendingLimits, Usage, estimate_tokens
from discovery.errors import BudgetError, ExplainError


class Clock:
    """Time that passes only in `sleep`."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


def times_of(calls: list[int], requests: int | None, tokens: int | None) -> list[float]:
    """When each call goes, all of them waiting at once."""
    clock, started = Clock(), []

    async def call(pace: Pace, num: int) -> None:
        await pace.wait(num)
        started.append(clock.now)

    async def run() -> None:
        pace = Pace(requests, tokens, clock=clock, sleep=clock.sleep)
        await asyncio.gather(*(call(pace, num) for num in calls))

    asyncio.run(run())
    return started


@given(
    st.lists(st.integers(1, 50), max_size=30), st.one_of(st.none(), st.integers(1, 5)), st.none() | st.integers(50, 120)
)
def test_no_minute_has_too_many_calls_or_tokens(calls, requests, tokens):
    started = times_of(calls, requests, tokens)
    assert started == sorted(started)
    for begin in started:
        window = [num for num, at in zip(calls, started, strict=True) if begin <= at < begin + WINDOW_SECONDS]
        assert requests is None or len(window) <= requests
        assert tokens is None or sum(window) <= tokens


def test_the_pace_waits_no_longer_than_it_must():
    assert times_of([1] * 5, 2, None) == [0, 0, 60, 60, 120]
    assert times_of([60, 60, 30, 20], None, 100) == [0, 60, 60, 120]
    assert times_of([10] * 4, None, None) == [0] * 4


def test_a_call_that_can_never_go_is_refused():
    with pytest.raises(ExplainError, match="must allow a single call, which may use 101, got 100"):
        times_of([101], None, 100)


def test_cost_is_counted_by_prices():
    meter = Meter(SpendingLimits(price_prompt_1k=2.0, price_completion_1k=10.0))
    with meter.call(Usage(1000, 500)) as call:
        call.used = Usage(900, 100)
    assert (meter.used, meter.num_estimated) == ((900, 100), 0)
    assert meter.cost == pytest.approx(0.9 * 2 + 0.1 * 10)


def test_calls_in_flight_count_with_their_most():
    meter = Meter(SpendingLimits(max_tokens_total=100))
    with meter.call(Usage(40, 20)) as first:
        with pytest.raises(BudgetError, match=r"max_tokens_total is 100: 0 tokens are used, and .* may use 101"):
            meter.call(Usage(21, 20)).__enter__()
        with meter.call(Usage(20, 20)) as second:
            second.used = Usage(20, 1)
        first.used = Usage(40, 2)
    with meter.call(Usage(37, 0)) as third:
        third.used = Usage(37, 0)
    assert meter.used.total == 100
    assert meter.calls == 3


def test_a_call_without_an_answer_counts_with_its_most():
    meter = Meter()
    with pytest.raises(OSError), meter.call(Usage(40, 20)):
        raise OSError
    assert (meter.used.total, meter.num_estimated) == (60, 1)


def test_max_cost_is_never_passed():
    meter = Meter(SpendingLimits(max_cost=1.0, price_completion_1k=1.0))
    for _ in range(10):
        with meter.call(Usage(0, 100)) as call:
            call.used = Usage(0, 100)
    with pytest.raises(BudgetError, match="max_cost is 1: 1 is spent, and the calls in flight and the next one"):
        meter.call(Usage(0, 1)).__enter__()


@pytest.mark.parametrize(
    ("limits", "match"),
    [
        ({"max_cost": 1.0}, "max_cost needs prices"),
        ({"max_cost": -1.0, "price_prompt_1k": 1.0}, "max_cost must be 0 or more, got -1"),
        ({"price_prompt_1k": float("nan")}, "price_prompt_1k must be 0 or more, got nan"),
        ({"max_tokens_total": -5}, "max_tokens_total must be 0 or more"),
    ],
)
def test_limits_that_make_no_sense_are_refused(limits, match):
    with pytest.raises(ExplainError, match=match):
        SpendingLimits(**limits)


def test_tokens_are_estimated_upwards():
    assert estimate_tokens("The quick brown fox jumps over the lazy dog.") >= 10
    assert estimate_tokens("海" * 10) >= 10
