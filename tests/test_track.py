"""Scores and alerts of one track, against hand arithmetic and the whole-reply reference."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from statistics import fmean
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from monitors.combination import Cascade, Combination, Ensemble, Single
from monitors.components import Component, FeatureScore, Inputs, ProbeScore, WeightedFeature
from monitors.errors import MonitorError
from monitors.monitor_spec import MonitorSpec
from monitors.reference import max_rolling_mean, reply_scores, reply_statistic, token_scores
from monitors.thresholds import Levels, LevelThreshold, Stratum, Thresholds
from monitors.track import ComponentPart, MonitorUpdate, Track

values = st.floats(-1e6, 1e6)
windows = st.integers(1, 9)


def thresholds(
    warning: float | None = 2.0,
    critical: float | None = None,
    *,
    clear: float | None = None,
    offsets: Sequence[float] = (0.0,),
) -> Thresholds:
    """Strata of 4, 8, 12, ... tokens with these offsets."""
    bounds = tuple(4 * (i + 1) for i in range(len(offsets)))
    levels = [None if q is None else LevelThreshold(0.01, q, bounds) for q in (warning, critical)]
    lowest = min(q for q in (warning, critical) if q is not None)
    strata = tuple(Stratum(bound, offset) for bound, offset in zip(bounds, offsets, strict=True))
    return Thresholds(strata, Levels(*levels), lowest - 1 if clear is None else clear)


SPEC = MonitorSpec(
    name="lying",
    kind="probe",
    components=(Component(name="only", score=ProbeScore("p")),),
    combination=Single(),
    window=2,
    min_tokens=1,
    cooldown_tokens=0,
    thresholds=thresholds(),
)


def two_components(combination: Combination, **changes: Any) -> MonitorSpec:
    parts = (WeightedFeature(feature=3, weight=2.0, scale=4.0), WeightedFeature(feature=9, weight=-1.0, scale=0.5))
    fields: dict[str, Any] = {
        "kind": "cascade" if isinstance(combination, Cascade) else "ensemble",
        "combination": combination,
        "components": (
            Component(name="said", score=ProbeScore("p"), center=1.0, scale=2.0),
            Component(name="read", score=FeatureScore(parts, "log1p"), center=-0.5, scale=0.25),
        ),
    }
    return replace(SPEC, **(fields | changes))


def probe(value: float) -> Inputs:
    return Inputs({}, {"p": value})


def score(spec: MonitorSpec, reply: Sequence[Inputs], start: int = 1) -> tuple[Track, list[MonitorUpdate]]:
    track = Track(spec, "assistant")
    return track, [track.observe(i, inputs) for i, inputs in enumerate(reply, start)]


def exact_mean(values: Sequence[float]) -> float:
    """The mean in rational numbers, rounded where a correctly rounded sum and one division round."""
    return float(sum(map(Fraction, values))) / len(values)


# Scores


@given(st.lists(values, max_size=40), windows)
@example([1e6, 0.0, 0.0, 0.1], 2)
def test_score_is_the_mean_of_the_last_token_scores(reply, window):
    _, updates = score(replace(SPEC, window=window), list(map(probe, reply)))
    ends = range(1, len(reply) + 1)
    assert [update.score for update in updates] == [exact_mean(reply[max(0, end - window) : end]) for end in ends]


def test_rolling_mean_does_not_drift():
    """A running sum (add the new, subtract the old) keeps an error of about 1 for ever after the large score."""
    _, updates = score(SPEC, list(map(probe, [0.1, 1e16, 0.1, 0.1] + [0.1] * 1000)))
    assert updates[-1].score == 0.1


def test_components_are_averaged_then_standardised_then_combined():
    spec = two_components(Ensemble("sum", (1.0, 10.0)))
    reply = [Inputs({3: 4.0, 9: 0.0}, {"p": 3.0}), Inputs({3: 0.0, 9: 0.5}, {"p": 5.0})]
    _, updates = score(spec, reply)
    said = [(3.0 - 1.0) / 2.0, (4.0 - 1.0) / 2.0]
    token = [2.0 * math.log(2.0), -math.log(2.0)]
    read = [(token[0] + 0.5) / 0.25, ((token[0] + token[1]) / 2 + 0.5) / 0.25]
    assert [update.components for update in updates] == [pytest.approx(pair) for pair in zip(said, read, strict=True)]
    assert [update.score for update in updates] == pytest.approx([a + 10 * b for a, b in zip(said, read, strict=True)])


def test_a_cascade_is_shut_unless_the_second_agrees():
    spec = two_components(Cascade(gate_threshold=4.0, closed_score=-7.0), window=1)
    reply = [Inputs({3: 4.0, 9: 0.0}, {"p": 9.0}), Inputs({3: 0.0, 9: 0.5}, {"p": 9.0})]
    _, updates = score(spec, reply)
    assert [update.score for update in updates] == [4.0, -7.0]


# The reference

COMBINATIONS: list[Combination] = [
    Ensemble("mean", (1.0, 1.0)),
    Ensemble("sum", (2.0, -0.5)),
    Ensemble("min", (1.0, 1.0)),
    Ensemble("max", (1.0, 1.0)),
    Cascade(gate_threshold=1.0, closed_score=-3.0),
]
tokens = st.builds(lambda p, a, b: Inputs({3: a, 9: b}, {"p": p}), st.floats(-9, 9), st.floats(-2, 9), st.floats(-2, 9))


@given(
    st.lists(tokens, max_size=30),
    st.sampled_from(COMBINATIONS),
    windows,
    st.integers(1, 9),
    st.lists(st.floats(0, 3), min_size=1, max_size=4),
    st.floats(-5, 9),
    st.floats(0, 3),
)
def test_streaming_equals_the_whole_reply_reference(reply, combination, window, min_tokens, offsets, warning, above):
    """Scores, statistic, and what makes a threshold calibrated on whole replies mean the same online: a level is
    reached exactly if the statistic exceeds its offset."""
    limits = thresholds(warning, warning + above, offsets=sorted(offsets))
    spec = two_components(combination, window=window, min_tokens=min_tokens, thresholds=limits)
    track, updates = score(spec, reply)
    rows = token_scores(spec, reply)
    statistic = reply_statistic(spec, rows)
    summary = track.summary()
    assert [update.score for update in updates] == reply_scores(spec, rows)
    assert summary.max_statistic == statistic
    assert summary.max_score == max(reply_scores(spec, rows)[min_tokens - 1 :], default=None)
    assert (summary.level is not None) == (statistic is not None and statistic > warning)
    assert summary.beyond_calibration == (len(reply) > limits.max_tokens)
    alerts = [update.alert for update in updates if update.alert is not None and update.alert.state == "firing"]
    assert summary.num_fired == len(alerts)


@given(st.lists(values, min_size=1, max_size=30), st.floats(-100, 100), st.floats(0, 100))
def test_critical_is_reached_exactly_if_the_statistic_exceeds_it_and_nothing_cleared_before(reply, warning, above):
    limits = thresholds(warning, warning + above, clear=-1e9)
    track, _ = score(replace(SPEC, thresholds=limits), list(map(probe, reply)))
    statistic = reply_statistic(SPEC, [reply])
    assert (track.summary().level == "critical") == (statistic > warning + above)


@given(st.lists(values, max_size=40), windows, st.integers(1, 12))
@example([5.0, 1.0], 2, 3)
def test_of_one_component_the_statistic_is_the_largest_exact_mean(reply, window, min_tokens):
    means = [exact_mean(reply[: i + 1][-window:]) for i in range(len(reply)) if i + 1 >= min_tokens]
    largest = max(means, default=None)
    assert max_rolling_mean(reply, window, min_tokens) == largest
    assert reply_statistic(replace(SPEC, window=window, min_tokens=min_tokens), [reply]) == largest


def test_reference_by_hand():
    assert max_rolling_mean([4.0, 0.0, 3.0, 2.0], window=2, min_tokens=1) == 4.0
    assert max_rolling_mean([4.0, 0.0, 3.0, 2.0], window=2, min_tokens=2) == 2.5
    assert max_rolling_mean([4.0, 0.0, 3.0, 2.0], window=4, min_tokens=3) == 7 / 3
    assert max_rolling_mean([4.0, 0.0], window=2, min_tokens=3) is None
    assert max_rolling_mean([], window=1, min_tokens=1) is None
    spec = replace(SPEC, window=1, thresholds=thresholds(offsets=(0.0, 2.5)))
    assert reply_statistic(spec, [[1.0, 0.0, 0.0, 2.0, 4.0, 1.0]]) == 2.0


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


# Length


def test_the_profile_raises_the_threshold_with_length():
    spec = replace(SPEC, window=1, thresholds=thresholds(2.0, offsets=(0.0, 1.0)))
    _, updates = score(spec, [probe(0.0)] * 4 + [probe(2.5), probe(3.5)])
    assert [update.level for update in updates] == [None] * 5 + ["warning"]
    alert = updates[-1].alert
    assert alert is not None and (alert.score, alert.threshold) == (3.5, 3.0)


def test_beyond_the_last_stratum_its_thresholds_go_on_and_alerts_say_so():
    spec = replace(SPEC, window=1, thresholds=thresholds(2.0, offsets=(0.0, 1.0)))
    track, updates = score(spec, [probe(0.0)] * 8 + [probe(2.5), probe(3.5)])
    alert = updates[-1].alert
    assert alert is not None and alert.beyond_calibration and alert.threshold == 3.0
    assert updates[-2].alert is None
    assert track.summary().beyond_calibration
    assert not score(spec, [probe(0.0)] * 8)[0].summary().beyond_calibration


def test_where_no_level_stands_nothing_fires_and_the_summary_says_so():
    known = thresholds(2.0, offsets=(0.0, 1.0))
    silent = replace(known, levels=Levels(LevelThreshold(0.01, 2.0, (4,), (8,)), None))
    track, updates = score(replace(SPEC, window=1, thresholds=silent), [probe(0.0)] * 4 + [probe(9.0)])
    assert updates[-1].alert is None
    assert track.summary().beyond_calibration and not track.summary().num_fired


# Alerts and summary


def test_alerts_tell_where_and_why():
    parts = (WeightedFeature(feature=3, weight=1.0, scale=1.0), WeightedFeature(feature=9, weight=-2.0, scale=1.0))
    components = (Component(name="set", score=FeatureScore(parts, "linear")),)
    spec = replace(
        SPEC, kind="features", components=components, window=3, min_tokens=4, validated=True, pack_sha256="ab" * 32
    )
    stream = [(4.0, 0.0), (1.0, 0.0), (2.0, 0.5), (9.0, 1.0), (0.0, 0.0), (0.0, 1.0), (0.0, 0.0)]
    _, updates = score(spec, [Inputs({3: a, 9: b}) for a, b in stream], start=5)

    assert [update.firing for update in updates] == [False, False, False, True, True, True, False]
    fired = updates[3].alert
    assert fired is not None
    assert (fired.monitor, fired.state, fired.level, fired.validated) == ("lying", "firing", "warning", True)
    assert (fired.position, fired.span_start, fired.pack_sha256) == (8, 6, "ab" * 32)
    assert (fired.score, fired.threshold, fired.role) == (3.0, 2.0, "assistant")
    assert fired.components == (ComponentPart("set", 3.0, 3.0, ((3, 4.0), (9, -1.0))),)

    cleared = updates[6].alert
    assert cleared is not None
    assert (cleared.state, cleared.level, cleared.position, cleared.span_start) == ("cleared", "warning", 11, 9)
    assert cleared.threshold == 1.0
    assert cleared.score == pytest.approx(-2 / 3)
    assert [updates[i].alert for i in (0, 1, 2, 4, 5)] == [None] * 5


def test_a_rise_to_critical_is_an_alert_of_its_own():
    _, updates = score(replace(SPEC, window=1, thresholds=thresholds(2.0, 4.0)), list(map(probe, [3.0, 5.0, 0.0])))
    alerts = [update.alert for update in updates if update.alert is not None]
    assert [(a.state, a.level, a.threshold) for a in alerts] == [
        ("firing", "warning", 2.0),
        ("firing", "critical", 4.0),
        ("cleared", "critical", 1.0),
    ]


@given(st.lists(tokens, min_size=1, max_size=20), st.sampled_from(COMBINATIONS), windows)
def test_contributions_of_an_alert_sum_to_what_they_are_parts_of(reply, combination, window):
    low = thresholds(-1e9, clear=-1e9)
    spec = two_components(combination, window=window, min_tokens=len(reply), thresholds=low)
    _, updates = score(spec, reply)
    alert = updates[-1].alert
    assert alert is not None
    assert sum(part.contribution for part in alert.components) == pytest.approx(alert.score, rel=1e-9, abs=1e-6)
    said, read = alert.components
    assert said.features == ()
    rolling = sum(value for _, value in read.features)
    assert spec.components[1].standardised(rolling) == pytest.approx(read.score, rel=1e-9, abs=1e-6)
    assert [part.score for part in alert.components] == list(updates[-1].components)


def test_summary_counts_the_whole_request():
    track, _ = score(
        replace(SPEC, window=1, thresholds=thresholds(2.0, 6.0)), list(map(probe, [0.0, 3.0, 0.0, 7.0, 5.0]))
    )
    summary = track.summary()
    assert (summary.monitor, summary.role, summary.num_scored, summary.num_fired) == ("lying", "assistant", 5, 2)
    assert (summary.max_score, summary.max_statistic, summary.mean_score) == (7.0, 7.0, 3.0)
    assert (summary.level, summary.first_fired_position) == ("critical", 2)


def test_the_mean_of_several_components_is_their_means_combined():
    spec = two_components(Ensemble("sum", (1.0, 10.0)), window=1)
    track, _ = score(spec, [Inputs({3: 0.0, 9: 0.0}, {"p": value}) for value in (1.0, 2.0, 6.0)])
    assert track.summary().mean_score == (3.0 - 1.0) / 2.0 + 10 * 0.5 / 0.25


@pytest.mark.parametrize("window", [1, 2])
def test_the_mean_of_a_cascade_is_over_the_tokens_at_which_its_gate_was_open(window):
    """A gate that opens where a statement ends is closed in the mean."""
    spec = two_components(Cascade(0.0, -10.0), window=window)
    reply = [Inputs({3: 8.0 if i % 5 == 0 else 0.0, 9: 1.0}, {"p": float(i)}) for i in range(1, 23)]
    track, updates = score(spec, reply)
    heard = [update.score for update in updates if update.components[1] > 0]
    assert len(heard) == 4 * window
    assert track.summary().mean_score == pytest.approx(fmean(heard))
    closed, _ = score(spec, [Inputs({3: 0.0, 9: 1.0}, {"p": 3.0})] * 4)
    assert closed.summary().mean_score is None and closed.summary().num_scored == 4


def test_summary_of_nothing_scored():
    summary = Track(SPEC, "user").summary()
    assert (summary.max_score, summary.mean_score, summary.first_fired_position) == (None, None, None)
    assert (summary.num_scored, summary.num_fired, summary.level, summary.role) == (0, 0, None, "user")


def test_score_is_told_before_the_minimum_but_not_counted_as_maximum():
    spec = replace(SPEC, window=1, min_tokens=3)
    track, updates = score(spec, [probe(8.0), probe(9.0)])
    assert [update.score for update in updates] == [8.0, 9.0]
    assert track.summary().max_score is None
    track.observe(3, probe(1.0))
    assert track.summary().max_score == track.summary().max_statistic == 1.0


@pytest.mark.parametrize("bad", [Inputs({3: 1.0, 9: math.nan}, {"p": 1.0}), Inputs({3: 1.0, 9: 1.0}, {})])
def test_a_bad_input_is_refused_and_leaves_the_track_alone(bad):
    spec = two_components(Ensemble("mean", (1.0, 1.0)))
    good = Inputs({3: 1.0, 9: 1.0}, {"p": 1.0})
    (track, _), (untouched, _) = score(spec, [good]), score(spec, [good])
    with pytest.raises(MonitorError):
        track.observe(2, bad)
    assert track.summary() == untouched.summary()
    assert track.observe(2, good) == untouched.observe(2, good)


# Specs


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("name", {"name": "Lying"}),
        ("name", {"name": "lying\n"}),
        ("kind", {"kind": "oracle"}),
        ("kind", {"kind": "feature"}),
        ("kind", {"kind": "features"}),
        ("combination", {"kind": "ensemble"}),
        ("combination", {"combination": Ensemble("min", (1.0, 1.0))}),
        ("components", {"components": ()}),
        ("components", {"kind": "ensemble", "combination": Ensemble("min", (1.0, 1.0))}),
        ("components.1.name", {"components": SPEC.components * 2, "kind": "cascade", "combination": Cascade(0, 0)}),
        ("window", {"window": 0}),
        ("window", {"window": True}),
        ("min_tokens", {"min_tokens": 0}),
        ("cooldown_tokens", {"cooldown_tokens": -1}),
        ("roles", {"roles": ()}),
        ("roles.0", {"roles": ("narrator",)}),
        ("roles.1", {"roles": ("user", "user")}),
        ("validated", {"validated": "no"}),
    ],
)
def test_a_bad_spec_is_refused_by_field(field: str, changes: Mapping[str, Any]):
    with pytest.raises(MonitorError) as caught:
        replace(SPEC, **changes)
    assert field in [problem.field for problem in caught.value.problems]
    assert f"{field}: wanted " in str(caught.value)


def test_a_spec_says_what_it_reads():
    spec = two_components(Ensemble("min", (1.0, 1.0)))
    assert (spec.latents, spec.probes) == ((3, 9), ("p",))
    assert (SPEC.latents, SPEC.probes) == ((), ("p",))
