"""The state machine: thresholds, hysteresis, minimum tokens and cooldown, on hand-written and on random scores."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from monitors.errors import MonitorError
from monitors.rules import Rule, RulePhase, RuleState, Transition

RULE = Rule(threshold=2.0, clear_threshold=1.0, window=1, min_tokens=1, cooldown_tokens=0, severity="warning")

# Whole numbers around the thresholds, so that equality with a threshold comes up often.
scores = st.lists(st.integers(-1, 4).map(float), max_size=60)


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    low, high = sorted([draw(st.integers(0, 3)), draw(st.integers(0, 3))])
    return replace(
        RULE,
        threshold=float(high),
        clear_threshold=float(low),
        min_tokens=draw(st.integers(1, 8)),
        cooldown_tokens=draw(st.integers(0, 6)),
    )


def run(rule: Rule, scores: list[float]) -> list[Transition | None]:
    state = RuleState(rule)
    return [state.step(score) for score in scores]


def fired_and_cleared(transitions: list[Transition | None]) -> list[tuple[int, Transition]]:
    return [(i, transition) for i, transition in enumerate(transitions) if transition is not None]


def test_fires_only_strictly_above_the_threshold():
    assert run(RULE, [2.0, 2.0]) == [None, None]
    assert run(RULE, [2.0, math.nextafter(2.0, 3.0)]) == [None, Transition.FIRED]


def test_clears_only_strictly_below_the_clear_threshold():
    assert run(RULE, [3.0, 1.0, 1.0]) == [Transition.FIRED, None, None]
    assert run(RULE, [3.0, 1.0, math.nextafter(1.0, 0.0)]) == [Transition.FIRED, None, Transition.CLEARED]


def test_hysteresis_keeps_a_score_between_the_thresholds_from_flapping():
    assert run(RULE, [3.0, 1.5, 2.5, 1.5, 0.5, 1.5]) == [Transition.FIRED, None, None, None, Transition.CLEARED, None]


def test_without_hysteresis_a_score_on_the_threshold_changes_nothing():
    rule = replace(RULE, clear_threshold=2.0)
    assert run(rule, [3.0, 2.0, 1.9, 2.0, 2.1]) == [Transition.FIRED, None, Transition.CLEARED, None, Transition.FIRED]


def test_waits_for_the_minimum_of_scored_tokens():
    assert run(replace(RULE, min_tokens=3), [9.0, 9.0, 9.0]) == [None, None, Transition.FIRED]


def test_cooldown_counts_the_tokens_after_the_clearing_one():
    rule = replace(RULE, cooldown_tokens=2)
    assert run(rule, [3.0, 0.0, 9.0, 9.0, 9.0]) == [Transition.FIRED, Transition.CLEARED, None, None, Transition.FIRED]


def test_without_cooldown_the_next_token_can_fire():
    assert run(RULE, [3.0, 0.0, 3.0]) == [Transition.FIRED, Transition.CLEARED, Transition.FIRED]


def test_phases_follow_the_transitions():
    state = RuleState(replace(RULE, cooldown_tokens=2))
    phases = [state.phase]
    for score in [3.0, 0.0, 0.0, 0.0]:
        state.step(score)
        phases.append(state.phase)
    assert phases == [RulePhase.ARMED, RulePhase.FIRING, RulePhase.CLEARED, RulePhase.CLEARED, RulePhase.ARMED]


def test_firing_is_the_firing_phase():
    state = RuleState(replace(RULE, cooldown_tokens=1))
    firing = [state.firing]
    for score in [3.0, 1.5, 0.0, 0.0]:
        state.step(score)
        firing.append(state.firing)
    assert firing == [False, True, True, False, False]


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_non_finite_score_is_refused_and_leaves_the_state_alone(score):
    state = RuleState(replace(RULE, min_tokens=2))
    state.step(0.0)
    with pytest.raises(MonitorError, match=f"^score: wanted a finite number, got {score}$"):
        state.step(score)
    assert state.phase is RulePhase.ARMED
    # Counted once, the refused score would have let the machine fire here; not counted at all, it fires here too.
    assert state.step(9.0) is Transition.FIRED


def test_a_refused_score_does_not_count_towards_the_minimum():
    state = RuleState(replace(RULE, min_tokens=2))
    with pytest.raises(MonitorError):
        state.step(math.nan)
    assert state.step(9.0) is None


@given(rules(), scores)
@example(RULE, [3.0, 0.0, 3.0, 0.0])
def test_fired_and_cleared_alternate_starting_with_fired(rule, scores):
    transitions = [transition for _, transition in fired_and_cleared(run(rule, scores))]
    assert transitions[0::2] == [Transition.FIRED] * len(transitions[0::2])
    assert transitions[1::2] == [Transition.CLEARED] * len(transitions[1::2])


@given(rules(), scores)
@example(replace(RULE, min_tokens=2), [3.0, 3.0])
def test_never_fires_before_the_minimum(rule, scores):
    assert Transition.FIRED not in run(rule, scores)[: rule.min_tokens - 1]


@given(rules(), scores)
@example(replace(RULE, cooldown_tokens=1), [3.0, 0.0, 3.0, 3.0])
def test_never_fires_during_cooldown(rule, scores):
    events = fired_and_cleared(run(rule, scores))
    for (cleared_at, _), (fired_at, _) in zip(events[1::2], events[2::2], strict=False):
        assert fired_at > cleared_at + rule.cooldown_tokens


@given(rules(), scores)
@example(replace(RULE, cooldown_tokens=1, min_tokens=3), [3.0, 3.0, 3.0, 0.0, 3.0, 3.0])
def test_fires_and_clears_at_the_first_token_that_may(rule, scores):
    """The machine retold as a search: from each event on, the next token that meets every condition of the next."""
    expected = []
    earliest = rule.min_tokens - 1
    while True:
        fired = next((i for i in range(earliest, len(scores)) if scores[i] > rule.threshold), None)
        if fired is None:
            break
        expected.append((fired, Transition.FIRED))
        cleared = next((i for i in range(fired + 1, len(scores)) if scores[i] < rule.clear_threshold), None)
        if cleared is None:
            break
        expected.append((cleared, Transition.CLEARED))
        earliest = cleared + 1 + rule.cooldown_tokens
    assert fired_and_cleared(run(rule, scores)) == expected


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("threshold", math.nan, "a finite number"),
        ("threshold", "2", "a finite number"),
        ("clear_threshold", -math.inf, "a finite number"),
        ("clear_threshold", True, "a finite number"),
        ("clear_threshold", 2.5, "at most threshold, which is 2.0"),
        ("window", 0, "a whole number of at least 1"),
        ("window", 1.0, "a whole number of at least 1"),
        ("window", True, "a whole number of at least 1"),
        ("min_tokens", 0, "a whole number of at least 1"),
        ("cooldown_tokens", -1, "a whole number of at least 0"),
        ("severity", "fatal", "one of info, warning, critical"),
    ],
)
def test_a_bad_rule_names_the_field_the_wanted_and_the_got(field: str, value: Any, wanted: str):
    with pytest.raises(MonitorError) as caught:
        replace(RULE, **{field: value})
    [problem] = caught.value.problems
    assert problem.field == field
    assert problem.wanted.startswith(wanted)
    assert problem.got == repr(value)
    assert str(caught.value) == f"{field}: wanted {problem.wanted}, got {value!r}"


def test_every_fault_of_a_rule_is_reported_at_once():
    with pytest.raises(MonitorError) as caught:
        replace(RULE, window=0, cooldown_tokens=-1)
    assert [problem.field for problem in caught.value.problems] == ["window", "cooldown_tokens"]
    assert len(str(caught.value).splitlines()) == 2


def test_equal_thresholds_and_the_smallest_counts_are_a_rule():
    rule = replace(RULE, clear_threshold=RULE.threshold, window=1, min_tokens=1, cooldown_tokens=0)
    assert rule.clear_threshold == rule.threshold
