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
from hypothesis import given, settings
from hypothesis import strategies as st

from monitors.combination import Single
from monitors.components import Component, Inputs, ProbeScore
from monitors.conformal import Calibration, Scores, calibrate, needed_replies, order_statistic, statistic
from monitors.errors import MonitorError
from monitors.monitor_spec import MonitorSpec
from monitors.reference import reply_scores, reply_statistic
from monitors.thresholds import Level, Levels, LevelThreshold, Stratum, Thresholds
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


def benign(rng: random.Random, number: int) -> list[Scores]:
    return [reply_scores(SPEC, [noise(rng, some_length(rng))]) for _ in range(number)]


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


@settings(deadline=None)
@given(st.lists(st.floats(-9, 9), max_size=80), st.lists(st.floats(0, 3), min_size=3, max_size=3), st.integers(1, 30))
def test_the_statistic_is_that_of_the_reference(scores, offsets, min_tokens):
    strata = tuple(Stratum(bound, offset) for bound, offset in zip((8, 24, 80), sorted(offsets), strict=True))
    levels = Levels(LevelThreshold(0.1, 0.0, (8, 24, 80)), None)
    spec = replace(SPEC, window=1, min_tokens=min_tokens, thresholds=Thresholds(strata, levels, 0.0))
    wanted = reply_statistic(spec, [scores])
    assert statistic(scores, strata, min_tokens) == (-math.inf if wanted is None else wanted)


def constant(value: float, length: int) -> Scores:
    return [value] * length


def rising(early: float, late: float, length: int = 20) -> Scores:
    """A reply of the second stratum."""
    return [early] * 8 + [late] * (length - 8)


def calibrated(replies: Sequence[Scores], warning: float = 0.1, critical: float = 0.05, bounds: Any = BOUNDS) -> Any:
    return calibrate(replies, min_tokens=3, bounds=bounds, alphas={"warning": warning, "critical": critical})


def firing(thresholds: Thresholds, level: str) -> list[float]:
    """What a score must exceed in each stratum."""
    offset = dict(thresholds.levels.named())[level].offset  # type: ignore[index]
    return [round(stratum.offset + offset, 12) for stratum in thresholds.strata]


def test_a_stratum_sets_its_threshold_by_what_ends_in_it_and_is_not_below_the_one_before():
    replies = [constant(float(i), 5) for i in range(9)]  # the largest: 8
    replies += [rising(-1.0, i + 0.5) for i in range(19)]  # none fires early; the largest but one of nineteen: 17.5
    replies += [constant(-1.0, 40)] * 12  # lower, but a threshold does not fall
    found = calibrated(replies, critical=0.01)
    # A further reply could make 16.5 the quantile, and the slack one less: 9 above the threshold before.
    assert firing(found.thresholds, "warning") == [9.0, 17.5, 17.5]
    assert [of.thresholds["warning"] for of in found.strata] == pytest.approx([9.0, 17.5, 17.5])
    assert [(of.max_tokens, of.num_replies) for of in found.strata] == [(8, 9), (24, 19), (72, 12)]
    warning = found.thresholds.levels.warning
    assert (warning.strata, warning.absent, found.thresholds.levels.critical) == ((8, 24, 72), (), None)
    assert [s.offset for s in found.thresholds.strata] == pytest.approx([0.0, 8.5, 8.5])
    assert found.statistics == tuple(statistic(reply, found.thresholds.strata, 3) for reply in replies)
    median = sorted(found.statistics)[20]
    assert found.thresholds.clear_offset == pytest.approx(9.0 - 0.2 * (9.0 - median))


def test_replies_that_fire_early_raise_the_threshold_before_by_what_is_too_much():
    """Of 39 at a tenth three may fire. Their 0.9 quantile late is 10, whoever else comes, their median early is below
    the threshold before: the slack is 10 - 1, and an early 5 weighs as a late 14."""
    short = [constant(1.0, 5)] * 9

    def found(early: int, late: int) -> list[float]:
        usual = [rising(0.0, 10.0)] * (39 - early - late)
        replies = [*short, *usual, *[rising(5.0, 0.0)] * early, *[rising(0.0, 12.0)] * late]
        return firing(calibrated(replies).thresholds, "warning")

    assert found(early=3, late=0) == [1.0, 10.0, 10.0]
    assert found(early=1, late=2) == [1.0, 10.0, 10.0]
    # One too many fires late: the late threshold rises, and the early one as far.
    assert found(early=1, late=3) == [3.0, 12.0, 12.0]
    # One too many fires early: both rise until it does not.
    assert found(early=4, late=0) == [5.0, 14.0, 14.0]


def test_a_gate_that_is_mostly_shut_early_does_not_put_the_later_threshold_out_of_reach():
    """Shut, it gives -10. The slack is from the threshold before then, 1, and not from -10: with that the later one
    would be at 14."""
    replies = [constant(1.0, 5)] * 9
    replies += [rising(-10.0, 2.0)] * 31 + [rising(2.0, 0.0)] * 8
    assert firing(calibrated(replies).thresholds, "warning") == [2.0, 3.0, 3.0]


def test_a_stratum_with_too_few_replies_is_absent_and_changes_nothing():
    replies = [constant(1.0, 5)] * 9 + [rising(7.0, 9.0)] * 8 + [constant(3.0, 40)] * 9
    found = calibrated(replies)
    warning = found.thresholds.levels.warning
    assert (warning.strata, warning.absent) == ((8, 72), (24,))
    assert [of.thresholds["warning"] for of in found.strata] == [3.0, None, 3.0]
    assert firing(found.thresholds, "warning") == [3.0, 3.0, 3.0]


def test_nothing_fires_where_a_level_is_absent():
    """So what long replies have there is none of their firings: it would raise what comes after."""
    replies = [constant(1.0, 5)] * 9 + [rising(0.0, 0.0)] * 8
    replies += [[0.0] * 8 + [9.0] * 16 + [2.0] * 16] * 19
    assert firing(calibrated(replies).thresholds, "warning") == [1.0, 1.0, 2.0]


def test_the_first_strata_may_be_absent():
    found = calibrated([constant(float(i), 40) for i in range(9)])
    warning = found.thresholds.levels.warning
    assert (warning.strata, warning.absent) == ((72,), (8, 24))
    assert firing(found.thresholds, "warning") == [8.0, 8.0, 8.0]


def test_critical_has_thresholds_of_its_own_above_the_same_profile():
    replies = [constant(float(i), 5) for i in range(19)] + [rising(-1.0, i // 2 + 20.0) for i in range(19)]
    found = calibrated(replies)
    # Of 19 one may reach a warning, none a critical alert; above the profile what is higher of both strata stands.
    assert firing(found.thresholds, "warning") == [17.0, 28.0, 28.0]
    assert [of.thresholds["critical"] for of in found.strata] == [pytest.approx(19.0), 29.0, None]
    assert firing(found.thresholds, "critical") == [19.0, 30.0, 30.0]


def test_critical_in_fewer_strata_does_not_fall_under_warning():
    found = calibrated([constant(1.0, 5)] * 20 + [constant(4.0, 20)] * 10)
    warning, critical = found.thresholds.levels.warning, found.thresholds.levels.critical
    assert firing(found.thresholds, "warning") == [4.0, 4.0, 4.0] == firing(found.thresholds, "critical")
    assert (warning.strata, critical.strata, critical.absent) == ((8, 24), (8,), (24, 72))


def test_where_any_score_may_fire_early_what_comes_after_is_still_in_reach():
    """Of seven short replies, five too short to fire, half may fire: whatever score does. There is nothing to measure
    a slack from then, so a score weighs the same early and late."""
    replies = [constant(9.0, 2)] * 5 + [constant(1.0, 5)] * 2 + [rising(1.0, float(i)) for i in range(9)]
    found = calibrated(replies, 0.5, 0.01)
    assert [of.num_replies for of in found.strata] == [7, 9, 0]
    assert firing(found.thresholds, "warning") == [4.0, 4.0, 4.0]


def test_replies_too_short_to_fire_count():
    replies = [constant(9.0, 2)] * 30 + [constant(5.0, 5)]
    with pytest.raises(MonitorError, match=r"^replies: wanted at least 49 in a stratum, .* or more, got 31 by"):
        calibrated(replies, 0.02, 0.01, (8,))
    counted = calibrated(replies, 1 / 32, 0.01, (8,))
    assert counted.strata[0].num_replies == 31
    assert counted.thresholds.levels.warning.offset == 5.0


def test_a_stratum_that_nobody_can_fire_in_has_no_part():
    replies = [constant(9.0, 5)] * 9 + [constant(float(i), 20) for i in range(9)]
    found = calibrate(replies, min_tokens=9, bounds=BOUNDS, alphas={"warning": 0.1, "critical": 0.05})
    assert firing(found.thresholds, "warning") == [8.0, 8.0, 8.0]
    assert found.thresholds.levels.warning is not None and found.thresholds.levels.warning.strata == (8, 24)


@pytest.mark.parametrize(
    ("replies", "bounds", "message"),
    [
        ([], (8, 8), r"^bounds: wanted rising whole numbers"),
        ([], (), r"^bounds: wanted rising whole numbers"),
        ([[0.0] * 9], (8,), r"^replies\.0: wanted at most 8 scored tokens, got 9$"),
        ([[0.0, math.nan]], (8,), r"^replies\.0\.1: wanted a finite number"),
        ([], (8,), r"^replies: wanted at least 9 in a stratum, .*, got 0 by stratum$"),
        ([[1.0]] * 60, (8,), r"^replies: wanted at least 9"),
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
    replies = [[float(i)] * 5 for i in range(200)]
    with pytest.raises(MonitorError, match=message):
        calibrate(replies, min_tokens=3, bounds=(8,), alphas={"warning": warning, "critical": critical})


# By leaving out each


def fires(thresholds: Thresholds, level: Level, scores: Scores, min_tokens: int) -> bool:
    """As the alarm has it: token by token, and not where the level is absent."""
    for t, score in enumerate(scores, 1):
        stretch = thresholds.stretch_at(t)
        mark = getattr(stretch.marks, level)
        if t >= min_tokens and mark is not None and score - stretch.profile > mark:
            return True
    return False


SMALL = (2, 4, 6)


def small_replies(rng: random.Random, alike: bool) -> list[Scores]:
    """Of few different scores, so that many are equal, which must not matter; later ones higher if not `alike`."""
    highest, lengths = rng.choice([2, 5, 30]), rng.choice([[2, 4], [2, 4, 6], [4], [1, 3, 5, 6]])
    rise = 0.0 if alike else 0.7 * highest
    lengths = [rng.choice(lengths) for _ in range(rng.randint(2, 36))]
    unit = rng.choice([1.0, 0.1, math.pi])  # sums and differences of the latter two are rounded
    return [[(rng.randint(0, highest) + rise * (t >= 2)) * unit for t in range(length)] for length in lengths]


def left_out(replies: Sequence[Scores], alphas: Any, min_tokens: int) -> dict[tuple[Level, int], list[bool]]:
    """Level and stratum -> of each reply that ends there whether it fires at thresholds of all the others."""
    fired: dict[tuple[Level, int], list[bool]] = {}
    for index, reply in enumerate(replies):
        others = [*replies[:index], *replies[index + 1 :]]
        try:
            thresholds = calibrate(others, min_tokens=min_tokens, bounds=SMALL, alphas=alphas).thresholds
        except MonitorError:
            continue
        stratum = next(bound for bound in SMALL if len(reply) <= bound)
        for level, found in thresholds.levels.named():
            if stratum in found.strata:
                fired.setdefault((level, stratum), []).append(fires(thresholds, level, reply, min_tokens))
    return fired


def test_of_replies_that_are_left_out_in_turn_no_more_fire_than_may():
    """What the bound says of exchangeable replies, without luck: of N that end in a stratum at most alpha N fire when
    each is held against thresholds of all the others."""
    rng, num_tight = random.Random(2), 0
    for i in range(2500):
        alpha = rng.choice([0.5, 0.34, 0.3, 0.2, 0.15, 0.1])
        alphas: dict[Level, float] = {"warning": alpha, "critical": alpha / 2}
        for (level, _), flags in left_out(small_replies(rng, i % 2 == 0), alphas, rng.randint(1, 3)).items():
            most = math.floor(alphas[level] * len(flags) + 1e-9)
            assert sum(flags) <= most
            num_tight += sum(flags) == most > 0
    assert num_tight > 300  # and it is used up


def test_a_score_that_is_no_higher_than_the_threshold_does_not_fire_for_rounding():
    """The second stratum's is 11.799999999999999, 7.899999999999999 above 3.9; and taken from it that leaves more."""
    replies = [
        [-3.9, -8.0, 1.0, 0.7], [2.7, 2.7, -1.0, 2.0, -4.4, 3.9], [-4.3, 0.1, 7.3, 0.0], [-2.4, -6.5], [-0.9, -1.7],
        [0.3, 2.8, -5.2, 1.2, 2.3, -2.2], [-4.4, -2.3], [1.0, 2.9, 1.6, 8.8, -0.2, 3.4], [1.3, -4.5, 1.3, 7.3],
        [-0.2, 2.4, -0.4, -3.0], [-2.9, 3.6, 2.3, -0.4],
    ]  # fmt: skip
    found = calibrate(replies, min_tokens=1, bounds=SMALL, alphas={"warning": 0.3, "critical": 0.1})
    threshold = found.strata[1].thresholds["warning"]
    assert threshold is not None
    assert not fires(found.thresholds, "warning", [0.0, 0.0, threshold], 1)
    assert fires(found.thresholds, "warning", [0.0, 0.0, threshold + 1e-14], 1)


# By simulation


def reached(thresholds: Thresholds, replies: Sequence[Scores], stratum: int) -> tuple[int, int, int]:
    """Replies that end in a stratum, and how many of them reach warning and critical."""
    inside = [r for r in replies if stratum_of(len(r)) == stratum]
    values = [statistic(r, thresholds.strata, MIN_TOKENS) for r in inside]
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
    # And the alarm is no dead one: it fires on benign replies, not many times less often than it may.
    assert every_token >= 0.4 * ALPHAS["warning"] * number


def test_a_threshold_per_token_breaks_it():
    """What others do: the 1 - alpha quantile of all token scores. Then most long replies fire."""
    replies = benign(random.Random(3), 900)
    tokens = sorted(s for r in replies for s in r[MIN_TOKENS - 1 :])
    per_token = tokens[math.ceil((1 - ALPHAS["warning"]) * len(tokens)) - 1]
    fresh = [r for r in benign(random.Random(4), 600) if stratum_of(len(r)) == 2]
    fired = sum(max(r[MIN_TOKENS - 1 :]) > per_token for r in fresh)
    assert fired > 5 * ALPHAS["warning"] * len(fresh)


def test_one_threshold_for_all_lengths_breaks_it_for_long_replies():
    """A pooled order statistic holds on average, and not for the long replies among them."""
    replies = benign(random.Random(5), 1800)
    pooled = order_statistic([max(r) for r in replies], ALPHAS["warning"])
    assert pooled is not None
    fresh = [r for r in benign(random.Random(6), 1500) if stratum_of(len(r)) == 2]
    fired = sum(max(r) > pooled for r in fresh)
    assert fired > at_most(ALPHAS["warning"], len(fresh))
