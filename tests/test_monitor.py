"""One monitor and a bank of them: scores against hand arithmetic and the offline reference, alerts, policies."""

import math
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from monitors.bank import MonitorBank, Policy, PolicyAction
from monitors.errors import MonitorError
from monitors.monitor import Monitor, MonitorSpec, MonitorUpdate, WeightedFeature, max_rolling_mean
from monitors.rules import Rule

RULE = Rule(threshold=2.0, clear_threshold=1.0, window=2, min_tokens=1, cooldown_tokens=0, severity="critical")
SPEC = MonitorSpec(
    name="lying",
    description="Says what it does not hold true.",
    features=(WeightedFeature(feature=7, weight=1.0, scale=1.0),),
    transform="linear",
    rule=RULE,
    threshold_source="Chosen by hand for these tests.",
    sae_sha256="ab" * 32,
)

readings = st.floats(-1e6, 1e6)
windows = st.integers(1, 9)


def spec_with(rule: Mapping[str, Any] | None = None, **changes: Any) -> MonitorSpec:
    return replace(SPEC, rule=replace(RULE, **(rule or {})), **changes)


def generate(monitor: Monitor, values: list[float]) -> list[MonitorUpdate]:
    """Generated tokens with these readings of latent 7, after a prompt of one token."""
    monitor.observe(0, {}, is_prompt=True)
    return [monitor.observe(i, {7: value}, is_prompt=False) for i, value in enumerate(values, start=1)]


def exact_mean(values: list[float]) -> float:
    """The mean in rational numbers, rounded where a correctly rounded sum and one division round."""
    return float(sum(map(Fraction, values))) / len(values)


# Scores


def test_linear_score_by_hand():
    parts = (WeightedFeature(feature=3, weight=2.0, scale=4.0), WeightedFeature(feature=9, weight=-1.0, scale=0.5))
    update = Monitor(spec_with(features=parts)).observe(1, {3: 6.0, 9: -1.0}, is_prompt=False)
    assert update.token_score == 2.0 * 6.0 / 4.0 + -1.0 * -1.0 / 0.5 == 5.0


def test_log1p_score_by_hand_takes_negative_readings_as_zero():
    parts = (WeightedFeature(feature=3, weight=2.0, scale=4.0), WeightedFeature(feature=9, weight=-1.0, scale=0.5))
    update = Monitor(spec_with(features=parts, transform="log1p")).observe(1, {3: 6.0, 9: -1.0}, is_prompt=False)
    assert update.token_score == pytest.approx(2.0 * math.log(1 + 1.5))


def test_position_0_is_never_scored():
    for is_prompt in (True, False):
        monitor = Monitor(spec_with(score_prompt=True))
        assert monitor.observe(0, {7: 1e9}, is_prompt) == MonitorUpdate(None, None, firing=False, alert=None)
        assert monitor.observe(1, {7: 0.5}, is_prompt).score == 0.5
        assert monitor.summary().num_scored == 1


def test_prompt_tokens_are_scored_only_if_the_spec_asks():
    skipping, scoring = Monitor(spec_with()), Monitor(spec_with(score_prompt=True))
    assert skipping.observe(1, {7: 9.0}, is_prompt=True) == MonitorUpdate(None, None, firing=False, alert=None)
    assert scoring.observe(1, {7: 9.0}, is_prompt=True).token_score == 9.0
    assert skipping.observe(2, {7: 1.0}, is_prompt=False).score == 1.0
    assert scoring.observe(2, {7: 1.0}, is_prompt=False).score == 5.0
    assert (skipping.summary().num_scored, scoring.summary().num_scored) == (1, 2)


def test_unscored_tokens_need_no_readings_and_may_have_broken_ones():
    monitor = Monitor(spec_with())
    monitor.observe(0, {7: math.inf}, is_prompt=True)
    monitor.observe(1, {}, is_prompt=True)
    assert monitor.observe(2, {7: 1.0}, is_prompt=False).score == 1.0


def test_an_alert_stays_open_over_unscored_tokens():
    monitor = Monitor(spec_with())
    monitor.observe(1, {7: 9.0}, is_prompt=False)
    assert monitor.observe(2, {7: 0.0}, is_prompt=True) == MonitorUpdate(None, None, firing=True, alert=None)


@given(st.lists(readings, max_size=40), windows)
@example([1e6, 0.0, 0.0, 0.1], 2)
def test_score_is_the_mean_of_the_last_scores(values, window):
    updates = generate(Monitor(spec_with({"window": window})), values)
    ends = range(1, len(values) + 1)
    assert [update.score for update in updates] == [exact_mean(values[max(0, end - window) : end]) for end in ends]


def test_rolling_mean_does_not_drift():
    """A running sum (add the new, subtract the old) keeps an error of about 1 for ever after the large score."""
    values = [0.1, 1e16, 0.1, 0.1] + [0.1] * 1000
    assert generate(Monitor(spec_with({"window": 2})), values)[-1].score == 0.1


# The statistic


@given(st.lists(readings, max_size=40), windows, st.integers(1, 12))
@example([5.0, 1.0], 2, 2)
@example([5.0, 1.0], 2, 3)
@example([-3.0], 1, 1)
def test_streaming_maximum_equals_the_offline_reference(values, window, min_tokens):
    monitor = Monitor(spec_with({"window": window, "min_tokens": min_tokens}))
    generate(monitor, values)
    assert monitor.summary().max_score == max_rolling_mean(values, window, min_tokens)


@given(st.lists(readings, max_size=40), windows, st.integers(1, 12))
def test_offline_reference_is_the_largest_exact_mean(values, window, min_tokens):
    means = [exact_mean(values[: i + 1][-window:]) for i in range(len(values)) if i + 1 >= min_tokens]
    assert max_rolling_mean(values, window, min_tokens) == max(means, default=None)


@given(st.lists(readings, max_size=40), windows, st.integers(1, 12), readings)
@example([5.0, 1.0], 2, 2, 3.0)
def test_fires_exactly_if_the_statistic_exceeds_the_threshold(values, window, min_tokens, threshold):
    """What makes a threshold calibrated on whole replies mean the same online."""
    rule = {"window": window, "min_tokens": min_tokens, "threshold": threshold, "clear_threshold": threshold}
    monitor = Monitor(spec_with(rule))
    generate(monitor, values)
    statistic = max_rolling_mean(values, window, min_tokens)
    assert (monitor.summary().num_fired > 0) == (statistic is not None and statistic > threshold)


def test_reference_by_hand():
    assert max_rolling_mean([4.0, 0.0, 3.0, 2.0], window=2, min_tokens=1) == 4.0
    assert max_rolling_mean([4.0, 0.0, 3.0, 2.0], window=2, min_tokens=2) == 2.5
    assert max_rolling_mean([4.0, 0.0, 3.0, 2.0], window=4, min_tokens=3) == 7 / 3
    assert max_rolling_mean([4.0, 0.0], window=2, min_tokens=3) is None
    assert max_rolling_mean([], window=1, min_tokens=1) is None


@pytest.mark.parametrize(
    ("scores", "window", "min_tokens", "field"),
    [
        ([1.0], 0, 1, "window"),
        ([1.0], 1, 0, "min_tokens"),
        ([2.0, math.nan], 1, 1, "token_scores.1"),
        ([math.inf], 1, 1, "token_scores.0"),
    ],
)
def test_reference_refuses_bad_input_by_name(scores, window, min_tokens, field):
    with pytest.raises(MonitorError) as caught:
        max_rolling_mean(scores, window, min_tokens)
    assert [problem.field for problem in caught.value.problems] == [field]


def test_score_is_told_before_the_minimum_but_not_counted_as_maximum():
    monitor = Monitor(spec_with({"window": 1, "min_tokens": 3}))
    assert [update.score for update in generate(monitor, [8.0, 9.0])] == [8.0, 9.0]
    assert monitor.summary().max_score is None
    monitor.observe(3, {7: 1.0}, is_prompt=False)
    assert monitor.summary().max_score == 1.0


# Alerts and summary


def test_alerts_tell_where_and_why():
    parts = (WeightedFeature(feature=3, weight=1.0, scale=1.0), WeightedFeature(feature=9, weight=-2.0, scale=1.0))
    monitor = Monitor(spec_with({"window": 3, "min_tokens": 4}, features=parts, validated=True))
    stream = [(4.0, 0.0), (1.0, 0.0), (2.0, 0.5), (9.0, 1.0), (0.0, 0.0), (0.0, 1.0)]
    updates = [monitor.observe(5 + i, {3: a, 9: b}, is_prompt=False) for i, (a, b) in enumerate(stream)]

    assert [update.firing for update in updates] == [False, False, False, True, True, True]
    fired = updates[3].alert
    assert fired is not None
    assert (fired.monitor, fired.state, fired.severity, fired.validated) == ("lying", "firing", "critical", True)
    assert (fired.position, fired.span_start) == (8, 6)
    assert (fired.score, fired.threshold) == (3.0, 2.0)
    assert fired.contributions == ((3, 4.0), (9, -1.0))

    cleared = monitor.observe(11, {3: 0.0, 9: 0.0}, is_prompt=False).alert
    assert cleared is not None
    assert (cleared.state, cleared.position, cleared.span_start) == ("cleared", 11, 9)
    assert cleared.threshold == 1.0
    assert cleared.score == pytest.approx(-2 / 3)
    assert [update.alert for update in updates[:3] + updates[4:]] == [None] * 5


def test_span_starts_at_the_first_scored_token_of_the_window():
    monitor = Monitor(spec_with({"window": 3}))
    updates = [monitor.observe(2, {7: 0.0}, is_prompt=False), monitor.observe(3, {}, is_prompt=True)]
    updates.append(monitor.observe(4, {7: 9.0}, is_prompt=False))
    alert = updates[-1].alert
    assert alert is not None and (alert.span_start, alert.position) == (2, 4)


def test_validated_is_false_unless_said():
    alert = Monitor(spec_with()).observe(1, {7: 9.0}, is_prompt=False).alert
    assert alert is not None and alert.validated is False


@given(st.lists(st.tuples(readings, readings), min_size=1, max_size=20), windows)
def test_contributions_of_an_alert_sum_to_its_score(stream, window):
    parts = (WeightedFeature(feature=0, weight=1.5, scale=3.0), WeightedFeature(feature=1, weight=-2.0, scale=0.1))
    low = {"threshold": -1e9, "clear_threshold": -1e9, "window": window, "min_tokens": len(stream)}
    monitor = Monitor(spec_with(low, features=parts))
    updates = [monitor.observe(i, {0: a, 1: b}, is_prompt=False) for i, (a, b) in enumerate(stream, start=1)]
    alert = updates[-1].alert
    assert alert is not None
    assert sum(value for _, value in alert.contributions) == pytest.approx(alert.score, rel=1e-9, abs=1e-6)


def test_summary_counts_the_whole_request():
    monitor = Monitor(spec_with({"window": 1}))
    generate(monitor, [0.0, 3.0, 0.0, 7.0, 5.0])
    summary = monitor.summary()
    assert (summary.monitor, summary.num_scored, summary.num_fired) == ("lying", 5, 2)
    assert (summary.max_score, summary.mean_score, summary.first_fired_position) == (7.0, 3.0, 2)


def test_summary_of_nothing_scored():
    monitor = Monitor(spec_with())
    monitor.observe(0, {}, is_prompt=True)
    summary = monitor.summary()
    assert (summary.max_score, summary.mean_score, summary.first_fired_position) == (None, None, None)
    assert (summary.num_scored, summary.num_fired) == (0, 0)


# Refusals


def test_a_missing_reading_is_refused():
    with pytest.raises(MonitorError, match=r"^readings\.7: wanted a reading, got nothing$"):
        Monitor(spec_with()).observe(1, {8: 1.0}, is_prompt=False)


@pytest.mark.parametrize("transform", ["linear", "log1p"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_non_finite_reading_is_refused_and_leaves_the_monitor_alone(transform, value):
    monitor, untouched = Monitor(spec_with(transform=transform)), Monitor(spec_with(transform=transform))
    for each in (monitor, untouched):
        each.observe(1, {7: 1.0}, is_prompt=False)
    with pytest.raises(MonitorError, match=rf"^readings\.7: wanted a finite number .*, got {value}$"):
        monitor.observe(2, {7: value}, is_prompt=False)
    assert monitor.summary() == untouched.summary()
    assert monitor.observe(2, {7: 2.0}, is_prompt=False) == untouched.observe(2, {7: 2.0}, is_prompt=False)


def test_a_summand_too_large_to_average_is_refused():
    monitor = Monitor(spec_with(features=(WeightedFeature(feature=7, weight=1e200, scale=1e-200),)))
    with pytest.raises(MonitorError, match=r"^contributions\.7: wanted a finite number .*, got inf$"):
        monitor.observe(1, {7: 1.0}, is_prompt=False)


@pytest.mark.parametrize("position", [3, 5])
@pytest.mark.parametrize("is_prompt", [True, False])
def test_a_token_seen_twice_or_missed_is_refused(position, is_prompt):
    monitor = Monitor(spec_with())
    monitor.observe(3, {7: 1.0}, is_prompt)
    before = monitor.summary()
    with pytest.raises(MonitorError, match=rf"^position: wanted 4, the one after the last, got {position}$"):
        monitor.observe(position, {7: 1.0}, is_prompt)
    assert monitor.summary() == before


@pytest.mark.parametrize("position", [-1, 1.0])
def test_a_position_is_a_whole_number(position):
    with pytest.raises(MonitorError, match=r"^position: wanted a whole number of at least 0"):
        Monitor(spec_with()).observe(position, {7: 1.0}, is_prompt=False)


def test_numpy_readings_give_plain_floats():
    parts = (WeightedFeature(feature=7, weight=1.0, scale=3.0),)
    update = Monitor(spec_with(features=parts)).observe(1, {7: np.float32(0.1)}, is_prompt=False)
    assert type(update.score) is float
    assert update.score == float(np.float32(0.1)) / 3.0


PART = SPEC.features[0]


@pytest.mark.parametrize(("thing", "field"), [(SPEC, "rule"), (RULE, "threshold"), (PART, "weight")])
def test_a_spec_cannot_change_under_a_running_monitor(thing, field):
    with pytest.raises(FrozenInstanceError):
        setattr(thing, field, None)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("name", {"name": "Lying"}),
        ("name", {"name": "lying\n"}),
        ("features", {"features": ()}),
        ("features.1.feature", {"features": (PART, replace(PART, weight=2.0))}),
        ("transform", {"transform": "square"}),
        ("score_prompt", {"score_prompt": 1}),
        ("validated", {"validated": "no"}),
        ("threshold_source", {"threshold_source": "  "}),
        ("sae_sha256", {"sae_sha256": "AB" * 32}),
        ("sae_sha256", {"sae_sha256": "ab" * 31}),
    ],
)
def test_a_bad_spec_is_refused_by_field(field, changes):
    with pytest.raises(MonitorError) as caught:
        replace(SPEC, **changes)
    assert [problem.field for problem in caught.value.problems] == [field]
    assert str(caught.value).startswith(f"{field}: wanted ")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("feature", -1),
        ("feature", 7.0),
        ("weight", math.nan),
        ("weight", 0.0),
        ("scale", 0.0),
        ("scale", -1.0),
        ("scale", math.inf),
        ("scale", "1"),
    ],
)
def test_a_bad_weighted_feature_is_refused_by_field(field, value):
    with pytest.raises(MonitorError) as caught:
        replace(PART, **{field: value})
    [problem] = caught.value.problems
    assert (problem.field, problem.got) == (field, repr(value))


# Banks


def named(name: str, feature: int, **rule: Any) -> MonitorSpec:
    return spec_with(rule, name=name, features=(WeightedFeature(feature=feature, weight=1.0, scale=1.0),))


SPECS = (named("a", 1), named("b", 2, window=3, min_tokens=2), named("c", 1, threshold=5.0, cooldown_tokens=2))


@given(st.permutations(SPECS), st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=30))
@example(list(SPECS), [(9, 9), (0, 0), (9, 9), (9, 9)])
def test_monitors_in_a_bank_behave_as_alone_in_any_order(specs, stream):
    bank, alone = MonitorBank(specs), {spec.name: Monitor(spec) for spec in specs}
    for position, (one, two) in enumerate(stream, start=1):
        token = {1: float(one), 2: float(two)}
        expected = [(spec.name, alone[spec.name].observe(position, token, is_prompt=False)) for spec in specs]
        assert bank.observe(position, token, is_prompt=False) == expected
    assert bank.summaries() == [alone[spec.name].summary() for spec in specs]


def test_a_bank_says_which_latents_it_needs():
    assert MonitorBank([named("a", 9), named("b", 2), named("c", 9)]).features == (2, 9)
    assert MonitorBank([]).features == ()


def test_policies_take_effect_when_their_monitor_fires_and_stay_in_effect():
    stop, steer = Policy("a", PolicyAction.STOP), Policy("b", PolicyAction.STEER)
    bank = MonitorBank([named("a", 1, window=1), named("b", 2, window=1)], [stop, steer])
    bank.observe(1, {1: 0.0, 2: 0.0}, is_prompt=False)
    assert (bank.stop_requested, bank.steer_requested, bank.triggered) == (False, False, ())
    bank.observe(2, {1: 0.0, 2: 9.0}, is_prompt=False)
    assert (bank.stop_requested, bank.steer_requested, bank.triggered) == (False, True, (steer,))
    bank.observe(3, {1: 9.0, 2: 0.0}, is_prompt=False)
    assert (bank.stop_requested, bank.steer_requested, bank.triggered) == (True, True, (steer, stop))
    bank.observe(4, {1: 0.0, 2: 9.0}, is_prompt=False)
    assert bank.triggered == (steer, stop)


def test_an_annotating_monitor_asks_for_nothing():
    for policies in ([], [Policy("a", PolicyAction.ANNOTATE)]):
        bank = MonitorBank([named("a", 1, window=1)], policies)
        [(name, update)] = bank.observe(1, {1: 9.0}, is_prompt=False)
        assert name == "a" and update.firing
        assert not bank.stop_requested
        assert not bank.steer_requested


def test_a_policy_given_as_plain_text_works():
    """A StrEnum equals its text, so text passes the check; it must then act, too."""
    bank = MonitorBank([named("a", 1, window=1)], [Policy("a", "stop")])  # type: ignore[arg-type]
    bank.observe(1, {1: 9.0}, is_prompt=False)
    assert bank.stop_requested


@pytest.mark.parametrize(
    ("specs", "policies", "message"),
    [
        ([named("a", 1), named("a", 2)], [], r"^monitors\.1\.name: wanted a monitor not in the bank yet, got 'a'$"),
        (
            [named("a", 1), named("b", 1)],
            [Policy("a", PolicyAction.STOP), Policy("x", PolicyAction.STOP)],
            r"^policies\.1\.monitor: wanted one of a, b, got 'x'$",
        ),
        (
            [named("a", 1)],
            [Policy("a", PolicyAction.STOP), Policy("a", PolicyAction.STEER)],
            r"^policies\.1\.monitor: wanted one policy per monitor, got a second one for 'a'$",
        ),
    ],
)
def test_a_bad_bank_is_refused_by_field(specs, policies, message):
    with pytest.raises(MonitorError, match=message):
        MonitorBank(specs, policies)


def test_an_unknown_action_is_refused():
    with pytest.raises(MonitorError, match=r"^action: wanted one of annotate, stop, steer, got 'shout'$"):
        Policy("a", "shout")  # type: ignore[arg-type]
