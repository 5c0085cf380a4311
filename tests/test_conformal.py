"""Calibration: the arithmetic by hand, and by simulation its bound per reply, for any length and at every look.

The simulated rates can be wrong by luck: each is compared with what the rule promises plus four standard errors, so a
right rule fails a comparison with chance 3e-5; seeds are fixed.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitors.combination import Single
from monitors.components import Component, Inputs, ProbeScore
from monitors.conformal import (
    BenignReply,
    Calibration,
    calibrate,
    in_shape_half,
    needed_replies,
    order_statistic,
    statistic,
)
from monitors.errors import MonitorError
from monitors.monitor_spec import MonitorSpec
from monitors.reference import reply_scores, reply_statistic
from monitors.thresholds import Levels, LevelThreshold, Stratum, Thresholds
from monitors.track import Track

BOUNDS = (8, 24, 72)
WINDOW, MIN_TOKENS = 4, 3
ALPHAS: Any = {"warning": 0.1, "critical": 0.02}
SPEC = MonitorSpec(
    name="noise",
    kind="probe",
    components=(Component(name="only", score=ProbeScore("p")),),
    combination=Single(),
    window=WINDOW,
    min_tokens=MIN_TOKENS,
    cooldown_tokens=0,
    thresholds=Thresholds((Stratum(72, 0.0),), Levels(LevelThreshold(0.1, 0.0, (72,)), None), 0.0),
)


def noise(rng: random.Random, length: int) -> list[float]:
    """Token scores that hang together and whose level differs from reply to reply, as real ones do."""
    level, value, scores = rng.gauss(0, 0.5), 0.0, []
    for _ in range(length):
        value = 0.7 * value + rng.gauss(0, 1)
        scores.append(level + value)
    return scores


def some_length(rng: random.Random) -> int:
    """About as many replies end in each stratum; a few are too short to fire at all."""
    low, high = rng.choice([(1, 8), (9, 24), (25, 72)])
    return rng.randint(low, high)


def benign(rng: random.Random, number: int) -> list[BenignReply]:
    replies = (noise(rng, some_length(rng)) for _ in range(number))
    return [BenignReply(reply_scores(SPEC, [scores]), str(i)) for i, scores in enumerate(replies)]


def made(number: int, seed: int) -> Calibration:
    return calibrate(benign(random.Random(seed), number), min_tokens=MIN_TOKENS, bounds=BOUNDS, alphas=ALPHAS)


def stratum_of(length: int) -> int:
    return next(k for k, bound in enumerate(BOUNDS) if length <= bound)


# By hand


def test_the_order_statistic_by_hand():
    assert order_statistic([3.0, 1.0, 2.0], 0.25) == 3.0
    assert order_statistic([3.0, 1.0, 2.0], 0.5) == 2.0
    assert order_statistic([3.0, 1.0, 2.0], 0.2) is None
    assert order_statistic([], 0.5) is None


@pytest.mark.parametrize(("alpha", "needed"), [(0.01, 99), (0.001, 999), (0.1, 9), (0.3, 3)])
def test_how_many_replies_a_level_needs(alpha, needed):
    """(99 + 1) * 0.99 and the like are whole numbers that floating point misses; off by one would lose a level."""
    assert needed_replies(alpha) == needed
    assert order_statistic([0.0] * needed, alpha) is not None
    assert order_statistic([0.0] * (needed - 1), alpha) is None


@given(st.lists(st.floats(-9, 9), max_size=80), st.lists(st.floats(0, 3), min_size=3, max_size=3), st.integers(1, 30))
def test_the_statistic_is_that_of_the_reference(scores, offsets, min_tokens):
    strata = tuple(Stratum(bound, offset) for bound, offset in zip((8, 24, 80), sorted(offsets), strict=True))
    levels = Levels(LevelThreshold(0.1, 0.0, (8, 24, 80)), None)
    spec = replace(SPEC, window=1, min_tokens=min_tokens, thresholds=Thresholds(strata, levels, 0.0))
    wanted = reply_statistic(spec, [scores])
    assert statistic(scores, strata, min_tokens) == (-math.inf if wanted is None else wanted)


def test_groups_are_never_on_both_sides():
    halves = {group: in_shape_half(group) for group in map(str, range(200))}
    assert 60 < sum(halves.values()) < 140
    assert {group: in_shape_half(group) for group in halves} == halves
    assert {group: in_shape_half(group, "other") for group in halves} != halves


def two_halves(number: int) -> tuple[list[str], list[str]]:
    """Names of groups in the shape half and in the other."""
    names = [str(i) for i in range(8 * number)]
    return [n for n in names if in_shape_half(n)][:number], [n for n in names if not in_shape_half(n)][:number]


def constant(value: float, length: int, group: str) -> BenignReply:
    return BenignReply([value] * length, group)


def test_profile_and_offsets_by_hand():
    shape, rest = two_halves(60)
    replies = [constant(1.0, 5, g) for g in shape[:20]] + [constant(1.5, 20, g) for g in shape[20:40]]
    replies += [constant(1.25, 40, g) for g in shape[40:60]]  # lower than before: the profile does not fall
    replies += [constant(float(i), 5, g) for i, g in enumerate(rest[:9])]
    replies += [constant(i + 0.5, 20, g) for i, g in enumerate(rest[9:20])]
    replies += [constant(7.0, 40, g) for g in rest[20:28]]  # one too few
    found = calibrate(replies, min_tokens=3, bounds=BOUNDS, alphas={"warning": 0.1, "critical": 0.05})
    thresholds = found.thresholds
    assert [(s.max_tokens, s.offset) for s in thresholds.strata] == [(8, 0.0), (24, 0.5), (72, 0.5)]
    # Nine replies of 0..8: the largest. Eleven of 0.5..10.5, whose first tokens stand under no offset: the largest.
    assert [figures.order_statistics["warning"] for figures in found.strata] == [8.0, 10.5, None]
    warning = thresholds.levels.warning
    assert warning is not None
    assert (warning.offset, warning.strata, warning.absent) == (10.5, (8, 24), (72,))
    assert thresholds.levels.critical is None
    assert [(figures.num_shape, figures.num_replies) for figures in found.strata] == [(20, 9), (20, 11), (20, 8)]
    median = sorted(found.statistics)[len(found.statistics) // 2]
    assert thresholds.clear_offset == pytest.approx(10.5 - 0.2 * (10.5 - median))


def test_a_thin_shape_half_takes_the_offset_of_the_stratum_before():
    shape, rest = two_halves(60)
    replies = [constant(1.0, 5, g) for g in shape[:20]] + [constant(3.0, 20, g) for g in shape[20:40]]
    replies += [constant(9.0, 40, g) for g in shape[40:59]]
    replies += [constant(0.0, 5, g) for g in rest[:9]]
    found = calibrate(replies, min_tokens=3, bounds=BOUNDS, alphas={"warning": 0.1, "critical": 0.05})
    assert [s.offset for s in found.thresholds.strata] == [0.0, 2.0, 2.0]


def test_critical_in_fewer_strata_does_not_fall_under_warning():
    _, rest = two_halves(60)
    replies = [constant(1.0, 5, g) for g in rest[:20]] + [constant(4.0, 20, g) for g in rest[20:30]]
    found = calibrate(replies, min_tokens=3, bounds=BOUNDS, alphas={"warning": 0.1, "critical": 0.05})
    warning, critical = found.thresholds.levels.warning, found.thresholds.levels.critical
    assert warning is not None and critical is not None
    assert (warning.offset, warning.strata) == (4.0, (8, 24))
    assert (critical.offset, critical.strata, critical.absent) == (4.0, (8,), (24, 72))


def test_replies_too_short_to_fire_count():
    _, rest = two_halves(40)
    replies = [constant(9.0, 2, g) for g in rest[:30]] + [constant(5.0, 5, g) for g in rest[30:31]]
    with pytest.raises(MonitorError, match=r"^replies: wanted at least 49 in the threshold half .* or more, got 31 by"):
        calibrate(replies, min_tokens=3, bounds=(8,), alphas={"warning": 0.02, "critical": 0.01})
    counted = calibrate(replies, min_tokens=3, bounds=(8,), alphas={"warning": 1 / 32, "critical": 0.01})
    assert counted.strata[0].num_replies == 31
    assert counted.thresholds.levels.warning is not None and counted.thresholds.levels.warning.offset == 5.0


@pytest.mark.parametrize(
    ("replies", "bounds", "message"),
    [
        ([], (8, 8), r"^bounds: wanted rising whole numbers"),
        ([], (), r"^bounds: wanted rising whole numbers"),
        ([BenignReply([0.0] * 9, "a")], (8,), r"^replies\.0: wanted at most 8 scored tokens, got 9$"),
        ([BenignReply([0.0, math.nan], "a")], (8,), r"^replies\.0\.scores\.1: wanted a finite number"),
        ([], (8,), r"^replies: wanted at least 9 in the threshold half of a stratum, .*, got 0 by stratum$"),
        ([BenignReply([1.0], g) for g in map(str, range(60))], (8,), r"^replies: wanted at least 9"),
    ],
)
def test_bad_replies_are_refused_by_name(replies, bounds, message):
    with pytest.raises(MonitorError, match=message):
        calibrate(replies, min_tokens=3, bounds=bounds, alphas={"warning": 0.1, "critical": 0.05})


@pytest.mark.parametrize(
    ("warning", "critical", "message"),
    [
        (1.5, 0.05, r"^alphas\.warning: wanted a share between 0 and 1, got 1\.5$"),
        (0.1, 0.0, r"^alphas\.critical: wanted a share between 0 and 1, got 0\.0$"),
        (math.nan, 0.05, r"^alphas\.warning: wanted a share between 0 and 1, got nan$"),
        (0.05, 0.1, r"^alphas\.critical: wanted at most the warning's, 0\.05, got 0\.1$"),
    ],
)
def test_shares_that_no_level_can_have_are_refused_by_name(warning, critical, message):
    replies = [BenignReply([float(i)] * 5, str(i)) for i in range(200)]
    with pytest.raises(MonitorError, match=message):
        calibrate(replies, min_tokens=3, bounds=(8,), alphas={"warning": warning, "critical": critical})


def test_any_text_of_a_file_may_name_a_group():
    replies = [BenignReply([float(i)] * 5, f"\ud800{i}") for i in range(60)]
    found = calibrate(replies, min_tokens=3, bounds=(8,), alphas={"warning": 0.1, "critical": 0.05})
    assert 10 < found.strata[0].num_replies < 50


# By simulation


def reached(thresholds: Thresholds, replies: Sequence[BenignReply], stratum: int) -> tuple[int, int, int]:
    """Replies that end in a stratum, and how many of them reach warning and critical."""
    inside = [r for r in replies if stratum_of(len(r.scores)) == stratum]
    values = [statistic(r.scores, thresholds.strata, MIN_TOKENS) for r in inside]
    warning, critical = thresholds.levels.warning, thresholds.levels.critical
    assert warning is not None and critical is not None
    return len(inside), sum(v > warning.offset for v in values), sum(v > critical.offset for v in values)


def simulate(num_calibrations: int, num_replies: int, num_fresh: int) -> dict[int, list[int]]:
    """Per stratum: fresh replies, and those that reached warning and critical, over calibrations of their own."""
    counts = {k: [0, 0, 0] for k in range(len(BOUNDS))}
    for seed in range(num_calibrations):
        thresholds = made(num_replies, seed).thresholds
        fresh = benign(random.Random(10_000 + seed), num_fresh)
        for k, count in counts.items():
            counts[k] = [a + b for a, b in zip(count, reached(thresholds, fresh, k), strict=True)]
    return counts


def at_most(rate: float, number: int) -> float:
    return rate * number + 4 * math.sqrt(rate * (1 - rate) * number)


def test_the_false_positive_rate_per_reply_holds_in_every_stratum():
    for number, warned, critical in simulate(40, 450, 150).values():
        assert number > 1500
        assert warned <= at_most(ALPHAS["warning"], number)
        assert critical <= at_most(ALPHAS["critical"], number)


def looked_at(scores: Sequence[float], profile: Callable[[int], float], look: Callable[[int], bool]) -> float:
    """The largest excess that somebody sees who looks at some tokens only."""
    seen = (s - profile(t) for t, s in enumerate(scores, 1) if t >= MIN_TOKENS and look(t))
    return max(seen, default=-math.inf)


def test_it_holds_however_often_the_score_is_looked_at():
    """Of one calibration on many replies, streamed by the monitor itself, which looks at every token; and for whoever
    looks less often, who sees a part of it."""
    thresholds = made(3000, 1).thresholds
    spec = replace(SPEC, thresholds=thresholds)
    warning = thresholds.levels.warning
    assert warning is not None
    rng, number = random.Random(77), 800
    every_token = every_fifth = at_the_end = 0
    for _ in range(number):
        token_scores = noise(rng, some_length(rng))
        track = Track(spec, "assistant")
        updates = [track.observe(i, Inputs({}, {"p": s})) for i, s in enumerate(token_scores, 1)]
        scores = [update.score for update in updates]
        every_token += track.summary().level is not None

        def profile(t: int) -> float:
            return thresholds.stretch_at(t).profile

        every_fifth += looked_at(scores, profile, lambda t: t % 5 == 0) > warning.offset
        at_the_end += looked_at(scores, profile, lambda t: t == len(scores)) > warning.offset  # noqa: B023
    assert at_the_end <= every_fifth <= every_token <= at_most(ALPHAS["warning"], number)
    # And the alarm is no dead one: with three strata under one offset it is cautious, but it fires on benign replies.
    assert every_token >= 0.2 * ALPHAS["warning"] * number


def test_a_threshold_per_token_breaks_it():
    """What others do: the 1 - alpha quantile of all token scores. Then most long replies fire."""
    replies = benign(random.Random(3), 900)
    tokens = sorted(s for r in replies for s in r.scores[MIN_TOKENS - 1 :])
    per_token = tokens[math.ceil((1 - ALPHAS["warning"]) * len(tokens)) - 1]
    fresh = [r for r in benign(random.Random(4), 600) if stratum_of(len(r.scores)) == 2]
    fired = sum(max(r.scores[MIN_TOKENS - 1 :]) > per_token for r in fresh)
    assert fired > 5 * ALPHAS["warning"] * len(fresh)


def test_one_threshold_for_all_lengths_breaks_it_for_long_replies():
    """A pooled order statistic holds on average, and not for the long replies among them."""
    replies = benign(random.Random(5), 1800)
    pooled = order_statistic([max(r.scores) for r in replies], ALPHAS["warning"])
    assert pooled is not None
    fresh = [r for r in benign(random.Random(6), 1500) if stratum_of(len(r.scores)) == 2]
    fired = sum(max(r.scores) > pooled for r in fresh)
    assert fired > at_most(ALPHAS["warning"], len(fresh))
