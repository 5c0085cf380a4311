"""The state machine: levels, escalation, hysteresis, minimum tokens and cooldown, on hand-written and random scores."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from monitors.alarm import Alarm, Phase, Transition
from monitors.errors import MonitorError
from monitors.thresholds import LEVELS, Marks

MARKS = Marks(clear=1.0, warning=2.0, critical=4.0)
WARNED, CRITICAL = Transition(True, "warning", 2.0), Transition(True, "critical", 4.0)
WARNING_CLEARED, CRITICAL_CLEARED = Transition(False, "warning", 1.0), Transition(False, "critical", 1.0)

# Whole numbers around the marks, so that equality with a mark comes up often.
scores = st.lists(st.integers(-1, 6).map(float), max_size=60)
optional_levels = st.sampled_from([(2.0, 4.0), (2.0, None), (None, 4.0), (3.0, 3.0), (2.0, 2.0)])


def run(
    scores: list[float], marks: Marks = MARKS, *, min_tokens: int = 1, cooldown: int = 0
) -> list[Transition | None]:
    alarm = Alarm(min_tokens, cooldown)
    return [alarm.step(score, marks) for score in scores]


def test_fires_only_strictly_above_a_mark():
    assert run([2.0, 2.0]) == [None, None]
    assert run([2.0, math.nextafter(2.0, 3.0)]) == [None, WARNED]
    assert run([4.0, math.nextafter(4.0, 5.0)]) == [WARNED, CRITICAL]


def test_clears_only_strictly_below_the_clear_mark():
    assert run([3.0, 1.0, 1.0]) == [WARNED, None, None]
    assert run([3.0, 1.0, math.nextafter(1.0, 0.0)]) == [WARNED, None, WARNING_CLEARED]


def test_a_warning_rises_to_critical_once_and_is_not_taken_back():
    assert run([3.0, 5.0, 3.0, 5.0, 1.5, 0.0]) == [WARNED, CRITICAL, None, None, None, CRITICAL_CLEARED]


def test_a_score_over_critical_is_critical_at_once():
    assert run([5.0, 3.0, 0.0, 3.0]) == [CRITICAL, None, CRITICAL_CLEARED, WARNED]


def test_an_absent_level_does_not_fire():
    assert run([3.0, 5.0], Marks(1.0, 2.0, None)) == [WARNED, None]
    assert run([3.0, 5.0], Marks(1.0, None, 4.0)) == [None, CRITICAL]
    assert run([9.0], Marks(1.0, None, None)) == [None]


def test_marks_may_change_while_an_alert_is_open():
    alarm = Alarm(1, 0)
    assert alarm.step(3.0, Marks(1.0, 2.0, None)) == WARNED
    assert alarm.step(3.0, Marks(2.5, None, 2.9)) == Transition(True, "critical", 2.9)
    assert alarm.step(2.0, Marks(2.5, None, None)) == Transition(False, "critical", 2.5)


def test_hysteresis_keeps_a_score_between_the_marks_from_flapping():
    assert run([3.0, 1.5, 2.5, 1.5, 0.5, 1.5]) == [WARNED, None, None, None, WARNING_CLEARED, None]


def test_waits_for_the_minimum_of_scored_tokens():
    assert run([9.0, 9.0, 9.0], min_tokens=3) == [None, None, CRITICAL]


def test_cooldown_counts_the_tokens_after_the_clearing_one():
    assert run([3.0, 0.0, 3.0, 3.0, 3.0], cooldown=2) == [WARNED, WARNING_CLEARED, None, None, WARNED]
    assert run([9.0, 0.0, 9.0, 9.0, 9.0], cooldown=2) == [CRITICAL, CRITICAL_CLEARED, None, None, CRITICAL]


def test_a_level_that_was_not_reached_yet_is_no_repetition_and_does_not_wait():
    assert run([3.0, 0.0, 3.0, 9.0, 0.0, 9.0], cooldown=9) == [
        WARNED,
        WARNING_CLEARED,
        None,
        CRITICAL,
        CRITICAL_CLEARED,
        None,
    ]


@given(scores, optional_levels, st.integers(0, 3), st.integers(1, 8), st.integers(0, 6))
def test_a_level_is_reached_if_and_only_if_the_largest_excess_is_over_it(scores, levels, clear, min_tokens, cooldown):
    """What thresholds are calibrated on, and rates are measured by."""
    low = min(mark for mark in levels if mark is not None)
    alarm = Alarm(min_tokens, cooldown)
    for score in scores:
        alarm.step(score, Marks(min(float(clear), low), *levels))
    largest = max(scores[min_tokens - 1 :], default=-math.inf)
    names = [name for name, mark in zip(LEVELS, levels, strict=True) if mark is not None and largest > mark]
    assert alarm.highest == (names[-1] if names else None)


def test_without_cooldown_the_next_token_can_fire():
    assert run([3.0, 0.0, 3.0]) == [WARNED, WARNING_CLEARED, WARNED]


def test_phases_and_levels_follow_the_transitions():
    alarm = Alarm(1, 2)
    seen = [(alarm.phase, alarm.level)]
    for score in [3.0, 5.0, 0.0, 0.0, 0.0]:
        alarm.step(score, MARKS)
        seen.append((alarm.phase, alarm.level))
    assert seen == [
        (Phase.ARMED, None),
        (Phase.FIRING, "warning"),
        (Phase.FIRING, "critical"),
        (Phase.CLEARED, None),
        (Phase.CLEARED, None),
        (Phase.ARMED, None),
    ]


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_non_finite_score_is_refused_and_leaves_the_state_alone(score):
    alarm = Alarm(2, 0)
    with pytest.raises(MonitorError, match=f"^score: wanted a finite number, got {score}$"):
        alarm.step(score, MARKS)
    assert (alarm.phase, alarm.num_scored) == (Phase.ARMED, 0)
    assert alarm.step(9.0, MARKS) is None  # the refused one did not count towards the minimum
    assert alarm.step(9.0, MARKS) == CRITICAL


@given(scores, optional_levels, st.integers(0, 3), st.integers(1, 8), st.integers(0, 6))
@example([3.0, 0.0, 3.0, 0.0], (2.0, 4.0), 1, 1, 0)
@example([3.0, 3.0, 3.0, 0.0, 5.0, 3.0, 5.0], (2.0, 4.0), 1, 3, 1)
def test_fires_rises_and_clears_at_the_first_token_that_may(scores, levels, clear, min_tokens, cooldown):
    """The machine retold as a search: from each event on, the next token that meets every condition of the next."""
    warning, critical = levels
    low = min(mark for mark in levels if mark is not None)
    marks = Marks(min(float(clear), low), warning, critical)

    def is_critical(i: int) -> bool:
        return critical is not None and scores[i] > critical

    expected: list[Transition | None] = [None] * len(scores)
    start = earliest = min_tokens - 1
    was_critical = False
    while True:
        fired = next(
            (
                i
                for i in range(start, len(scores))
                if (is_critical(i) and not was_critical)
                or (i >= earliest and (is_critical(i) or (warning is not None and scores[i] > warning)))
            ),
            None,
        )
        if fired is None:
            break
        below = (i for i in range(fired + 1, len(scores)) if scores[i] < marks.clear)
        cleared = next(below, len(scores))
        risen = next((i for i in range(fired, cleared) if is_critical(i)), None)
        if risen != fired:
            expected[fired] = Transition(True, "warning", warning)
        if risen is not None:
            expected[risen] = Transition(True, "critical", critical)
            was_critical = True
        if cleared == len(scores):
            break
        expected[cleared] = Transition(False, "warning" if risen is None else "critical", marks.clear)
        start, earliest = cleared + 1, cleared + 1 + cooldown
    assert run(scores, marks, min_tokens=min_tokens, cooldown=cooldown) == expected
