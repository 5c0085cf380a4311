"""Thresholds from benign replies, with a bound on the share of benign replies that ever reach them.

A reply that ends in stratum k has passed the strata before, so it has a largest score M_j in each j up to k, and it
fires if any of them is above that stratum's threshold t_j. Strata are gone through from the first, at one share alpha;
replies that end in stratum k set t_k, and raise the earlier thresholds as far as they must:

    s_i = the largest of M_ik, and of M_ij + w_j for those j < k at which M_ij > t_j
    q   = the ceil((n_k + 1)(1 - alpha))-th smallest s_i of the n_k replies that end in stratum k
    t_k = q;  t_j becomes the larger of t_j and q - w_j

The slack w_j says how high a score in stratum j weighs: by how much the 1 - alpha quantile of M_k is above t_j, or
above the 1 - 5 alpha quantile of M_j if that is more. So t_j stays where few of these replies fire early, and t_k is
not put out of reach by those that do.

Why it holds: if a further reply of stratum k is exchangeable with those n_k, its s is above their q with chance alpha
at most, by the order statistic of split conformal prediction (Vovk, Gammerman, Shafer, Algorithmic Learning in a Random
World, 2005, section 2.2; Lei et al., Distribution-Free Predictive Inference for Regression, 2018, section 2.2), given
slacks that treat it as one of n_k + 1 like the others (full conformal prediction, ibid.). It moves a quantile by one
place at most; so s_i is taken with the largest slack that this allows, and q - w_j with the smallest, and what fires at
the thresholds is a part of what would. The t_j before are of other replies than these, and later strata only raise
them. So a benign reply reaches the level with chance alpha at most, however often the score is looked at, and whatever
its length as far as the level stands. Where n_k is so small that the order statistic does not exist, the level is
absent in stratum k: it does not fire there, and nothing bounds how many replies that end there reached it before.

A pack keeps one profile g for both levels, and an offset of each: g_k = t_k - t_1 of the warning, whose offset is t_1;
critical's is the largest t_k - g_k of its own thresholds, and not below the warning's.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from monitors import checks
from monitors.errors import MonitorError, Problem
from monitors.thresholds import LEVELS, Level, Levels, LevelThreshold, Stratum, Thresholds

DEFAULT_BOUNDS = (64, 256, 1024)
DEFAULT_ALPHAS: Mapping[Level, float] = {"warning": 0.01, "critical": 0.001}
EARLY_TAIL = 5
"""This many times alpha of the replies are above what an early score is measured from."""
HYSTERESIS = 0.2
"""An alert clears this share of the way down from the lowest level to the benign replies' median statistic."""

Scores = Sequence[float]
"""Of one benign reply at each scored token, as `monitors.reference.reply_scores` gives them."""


@dataclass(frozen=True, slots=True)
class StratumFigures:
    """What one stratum's numbers rest on."""

    max_tokens: int
    num_replies: int
    """n_k."""
    thresholds: Mapping[Level, float | None]
    """t_k of each level; None where it is absent."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Thresholds, and what they rest on."""

    thresholds: Thresholds
    strata: tuple[StratumFigures, ...]
    statistics: tuple[float, ...]
    """The statistic of each reply that has `min_tokens` scored tokens, in the order given."""


def order_statistic(values: Sequence[float], alpha: float) -> float | None:
    """The ceil((n + 1)(1 - alpha))-th smallest of n values; None if that is beyond the n-th."""
    rank = _rank(len(values), alpha)
    return sorted(values)[rank - 1] if rank <= len(values) else None


def _rank(num: int, alpha: float) -> int:
    # Rounded before the ceiling, since 1 - 0.001 is a little more than it should be: (n + 1) * 0.999 of 999 is 999.
    return math.ceil(round((num + 1) * (1 - alpha), 9))


def needed_replies(alpha: float) -> int:
    """The fewest values that an order statistic exists of: ceil(1 / alpha) - 1."""
    return math.ceil(round(1 / alpha, 9)) - 1


def check_levels(bounds: Sequence[int], alphas: Mapping[Level, float]) -> None:
    """MonitorError for bounds that do not rise, or shares that no level can have. Before replies are read, it is cheap.

    More benign replies may reach a warning than a critical alert: the other way round the names would be wrong.
    """
    shares = [
        Problem(f"alphas.{level}", "a share between 0 and 1", str(alphas[level]))
        for level in LEVELS
        if not 0 < alphas[level] < 1
    ]
    if not shares and alphas["critical"] > alphas["warning"]:
        shares = [Problem("alphas.critical", f"at most the warning's, {alphas['warning']}", str(alphas["critical"]))]
    is_rising = bool(bounds) and list(bounds) == sorted({*bounds}) and bounds[0] >= 1
    rising = None if is_rising else Problem("bounds", "rising whole numbers of at least 1", str(list(bounds)))
    checks.refuse(rising, *shares)


def calibrate(
    replies: Iterable[Scores],
    *,
    min_tokens: int,
    bounds: Sequence[int] = DEFAULT_BOUNDS,
    alphas: Mapping[Level, float] = DEFAULT_ALPHAS,
) -> Calibration:
    """Thresholds of a frozen monitor.

    Args:
        replies: benign ones. A reply of fewer than `min_tokens` scored tokens counts: it can't fire.
        min_tokens: of the monitor.
        bounds: last scored token of each stratum, rising.
        alphas: share of benign replies that each level may reach, at most.

    Raises:
        MonitorError: what `check_levels` refuses, a reply longer than the last bound, a score that is not finite, or
            too few replies for any level in any stratum.
    """
    check_levels(bounds, alphas)
    replies = list(replies)
    _check(replies, bounds)
    classes = _by_stratum(replies, bounds, min_tokens)
    found = {level: _level_thresholds(classes, alphas[level]) for level in LEVELS}
    lowest_level = next((found[level] for level in LEVELS if found[level].is_there), None)
    if lowest_level is None:
        least = needed_replies(max(alphas.values()))
        wanted = f"at least {least} in a stratum, some of them of {min_tokens} tokens or more"
        raise MonitorError(Problem("replies", wanted, f"{', '.join(str(len(of)) for of in classes)} by stratum"))
    profile = _profile(lowest_level)
    strata = tuple(Stratum(bound, offset) for bound, offset in zip(bounds, profile, strict=True))
    levels = _levels(found, profile, alphas, bounds)
    everything = (statistic(reply, strata, min_tokens) for reply in replies)
    finite = tuple(value for value in everything if math.isfinite(value))
    lowest = next(level.offset for _, level in levels.named())
    clear = lowest - HYSTERESIS * max(lowest - sorted(finite)[len(finite) // 2], 0.0)
    figures = [
        StratumFigures(bound, len(classes[k]), {name: _standing(of, k) for name, of in found.items()})
        for k, bound in enumerate(bounds)
    ]
    return Calibration(Thresholds(strata, levels, clear), tuple(figures), finite)


def statistic(scores: Scores, strata: Sequence[Stratum], min_tokens: int) -> float:
    """A reply's largest excess over the profile; -inf if it has fewer than `min_tokens` scored tokens."""
    largest = _largest(scores, [stratum.max_tokens for stratum in strata], min_tokens)
    return max(score - stratum.offset for score, stratum in zip(largest, strata, strict=False))


def _largest(scores: Scores, bounds: Sequence[int], min_tokens: int) -> list[float]:
    """M_j of each stratum up to the one that the reply ends in, or of all if it goes on; -inf where it has no token
    that counts."""
    largest, start = [], 0
    for bound in bounds:
        largest.append(max(scores[max(start, min_tokens - 1) : bound], default=-math.inf))
        if len(scores) <= bound:
            break
        start = bound
    return largest


def _check(replies: Sequence[Scores], bounds: Sequence[int]) -> None:
    for i, scores in enumerate(replies):
        if len(scores) > bounds[-1]:
            checks.refuse(Problem(f"replies.{i}", f"at most {bounds[-1]} scored tokens", str(len(scores))))
        if not all(map(checks.is_summable, scores)):
            worst = next(t for t, score in enumerate(scores) if not checks.is_summable(score))
            checks.refuse(checks.finite(f"replies.{i}.{worst}", scores[worst]))


def _by_stratum(replies: Sequence[Scores], bounds: Sequence[int], min_tokens: int) -> list[list[list[float]]]:
    """Of each stratum the replies that end in it, each as its M_j."""
    classes: list[list[list[float]]] = [[] for _ in bounds]
    for scores in replies:
        largest = _largest(scores, bounds, min_tokens)
        classes[len(largest) - 1].append(largest)
    return classes


# --- one level ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _LevelThresholds:
    values: Sequence[float]
    """t_k of every stratum, never falling; -inf as long as no reply that can fire has set one."""
    stands: Sequence[bool]
    """Whether there were replies enough in the stratum."""

    @property
    def is_there(self) -> bool:
        return math.isfinite(self.values[-1])


def _level_thresholds(classes: Sequence[Sequence[Sequence[float]]], alpha: float) -> _LevelThresholds:
    thresholds: list[float] = []
    stands: list[bool] = []
    for k, replies in enumerate(classes):
        slacks = [_slack(replies, j, k, threshold, alpha) for j, threshold in enumerate(thresholds)]
        q = order_statistic([_weighed(largest, thresholds, slacks, stands) for largest in replies], alpha)
        if q is not None:
            floors = [_without(q, smallest) for smallest, _ in slacks]
            raised = [floor if is_there else -math.inf for floor, is_there in zip(floors, stands, strict=True)]
            thresholds = list(map(max, thresholds, raised))
        thresholds = list(accumulate([*thresholds, -math.inf if q is None else q], max))
        stands.append(q is not None)
    # Strata before the first that stands get its threshold, at which nothing fires there.
    first = next(filter(math.isfinite, thresholds), -math.inf)
    return _LevelThresholds([max(first, threshold) for threshold in thresholds], stands)


def _without(q: float, slack: float) -> float:
    """q - slack, so rounded that a score which weighs no more than q with it is no higher."""
    return q if slack == 0 else q - slack + 2 * math.ulp(max(abs(q), slack))


def _weighed(
    largest: Sequence[float], thresholds: Sequence[float], slacks: Sequence[tuple[float, float]], stands: Sequence[bool]
) -> float:
    """s_i. Where the level is absent nothing fires."""
    early = zip(largest[:-1], thresholds, slacks, stands, strict=True)
    return max([largest[-1], *(score + slack for score, t, (_, slack), is_there in early if is_there and score > t)])


def _slack(
    replies: Sequence[Sequence[float]], early: int, late: int, threshold: float, alpha: float
) -> tuple[float, float]:
    """The smallest and the largest that w_early can be once a further reply is among these."""
    early_I, late_I = (sorted(largest[j] for largest in replies) for j in (early, late))
    late_rank, early_rank = (_rank(len(replies), tail) for tail in (alpha, EARLY_TAIL * alpha))
    # Without slack where there are too few replies to set a threshold, where none of them can fire early, and where
    # nothing is there to measure it from.
    is_bottomless = threshold == -math.inf and early_rank < 2
    if late_rank > len(replies) or early_I[-1] == -math.inf or is_bottomless:
        return 0.0, 0.0
    # Of these and a further one, the r-th smallest is between the r-1-th and the r-th of these.
    early_low, early_high = (max(_at(early_I, rank), threshold) for rank in (early_rank - 1, early_rank))
    late_low, late_high = _at(late_I, late_rank - 1), _at(late_I, late_rank)
    return max(late_low - early_high, 0.0), max(late_high - early_low, 0.0)


def _at(ordered: Sequence[float], rank: int) -> float:
    """The `rank`-th smallest; -inf below the first."""
    return ordered[rank - 1] if rank >= 1 else -math.inf


# --- both levels ----------------------------------------------------------------------------------------------------


def _standing(level: _LevelThresholds, stratum: int) -> float | None:
    return level.values[stratum] if level.is_there and level.stands[stratum] else None


def _profile(level: _LevelThresholds) -> list[float]:
    """g_k."""
    return [threshold - level.values[0] for threshold in level.values]


def _levels(
    found: Mapping[Level, _LevelThresholds],
    profile: Sequence[float],
    alphas: Mapping[Level, float],
    bounds: Sequence[int],
) -> Levels:
    made: dict[Level, LevelThreshold | None] = {}
    lowest = -math.inf
    for level in LEVELS:
        of_level, made[level] = found[level], None
        if of_level.is_there:
            # Also of the level that the profile is of: taken from t_k, a rounded g_k may leave more than t_1.
            lowest = max(lowest, *(t - g for t, g in zip(of_level.values, profile, strict=True)))
            standing = tuple(bound for bound, stands in zip(bounds, of_level.stands, strict=True) if stands)
            absent = tuple(bound for bound in bounds if bound not in standing)
            made[level] = LevelThreshold(alphas[level], lowest, standing, absent)
    return Levels(made["warning"], made["critical"])
