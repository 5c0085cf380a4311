"""Thresholds from benign replies, with a bound on the share of benign replies that ever reach them.

A reply's statistic is the largest excess of its score over a length profile (`monitors.thresholds`). Benign replies are
split in halves, no group on both sides.

    shape half        Q_k = 99 % quantile of the plain largest score of replies that end in stratum k
                      g_k = the largest of Q_j - Q_first over strata j up to k: 0 in the first, never falling
    threshold half    T = max over t >= min_tokens of S_t - g(t)
                      q_k = the ceil((n_k + 1)(1 - alpha))-th smallest T of the n_k replies that end in stratum k
                      q   = the largest q_k

If a further benign reply of stratum k is exchangeable with those n_k, it exceeds q_k with chance alpha at most: the
order statistic of split conformal prediction (Vovk, Gammerman, Shafer, Algorithmic Learning in a Random World, 2005,
section 2.2; Lei et al., Distribution-Free Predictive Inference for Regression, 2018, section 2.2). So it reaches the
level with chance alpha at most, however often the score is looked at, since the statistic is over all looks, and at any
length at which the level stands. Where n_k is so small that the order statistic does not exist, the level is absent in
stratum k: it does not fire there, and nothing bounds how many replies that end there reached it before.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from monitors import checks
from monitors.errors import Problem
from monitors.thresholds import LEVELS, Level, Levels, LevelThreshold, Stratum, Thresholds

DEFAULT_BOUNDS = (64, 256, 1024)
DEFAULT_ALPHAS: Mapping[Level, float] = {"warning": 0.01, "critical": 0.001}
SHAPE_QUANTILE = 0.99
MIN_SHAPE_REPLIES = 20
"""A stratum with fewer in the shape half takes over the offset of the one before."""
HYSTERESIS = 0.2
"""An alert clears this share of the way down from the lowest level to the benign replies' median statistic."""


class BenignReply(NamedTuple):
    """One reply that ought not to fire anything."""

    scores: Sequence[float]
    """The monitor's score at each scored token, as `monitors.reference.reply_scores` gives it."""
    group: str
    """Replies that share a prompt, or anything else that makes them alike, share a group."""


@dataclass(frozen=True, slots=True)
class StratumFigures:
    """What one stratum's numbers rest on."""

    max_tokens: int
    num_shape: int
    """Replies in the shape half."""
    num_replies: int
    """n_k: replies in the threshold half."""
    order_statistics: Mapping[Level, float | None]
    """q_k of each level; None where it does not exist."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Thresholds, and what they rest on."""

    thresholds: Thresholds
    strata: tuple[StratumFigures, ...]
    statistics: tuple[float, ...]
    """T of each reply of the threshold half that has `min_tokens` scored tokens, in the order given."""


def order_statistic(values: Sequence[float], alpha: float) -> float | None:
    """The ceil((n + 1)(1 - alpha))-th smallest of n values; None if that is beyond the n-th."""
    # Rounded before the ceiling, since 1 - 0.001 is a little more than it should be: (n + 1) * 0.999 of 999 is 999.
    rank = math.ceil(round((len(values) + 1) * (1 - alpha), 9))
    return sorted(values)[rank - 1] if rank <= len(values) else None


def needed_replies(alpha: float) -> int:
    """The fewest values that an order statistic exists of: ceil(1 / alpha) - 1."""
    return math.ceil(round(1 / alpha, 9)) - 1


def in_shape_half(group: str, seed: str = "") -> bool:
    """Which half a group belongs to: the same for ever, and no matter who else is there."""
    # A group is any text of a JSON file, which can hold half of a surrogate pair.
    return hashlib.sha256(f"{seed}\0{group}".encode("utf-8", "surrogatepass")).digest()[0] % 2 == 0


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
    replies: Iterable[BenignReply],
    *,
    min_tokens: int,
    bounds: Sequence[int] = DEFAULT_BOUNDS,
    alphas: Mapping[Level, float] = DEFAULT_ALPHAS,
    seed: str = "",
) -> Calibration:
    """Thresholds of a frozen monitor.

    Args:
        replies: benign ones. A reply of fewer than `min_tokens` scored tokens counts: it can't fire.
        min_tokens: of the monitor.
        bounds: last scored token of each stratum, rising.
        alphas: share of benign replies that each level may reach, at most.
        seed: another seed, other halves.

    Raises:
        MonitorError: what `check_levels` refuses, a reply longer than the last bound, a score that is not finite, or
            too few replies for any level in any stratum.
    """
    check_levels(bounds, alphas)
    shape, rest = _halves(list(replies), bounds, seed)
    strata = _length_profile(shape, bounds, min_tokens)
    values = [[statistic(reply.scores, strata, min_tokens) for reply in group] for group in rest]
    found = {level: [order_statistic(group, alphas[level]) for group in values] for level in LEVELS}
    finite = tuple(value for group in values for value in group if math.isfinite(value))
    levels = _levels(found, alphas, bounds)
    lowest = [level.offset for _, level in levels.named()]
    if not lowest:
        least = needed_replies(max(alphas.values()))
        wanted = f"at least {least} in the threshold half of a stratum, some of them of {min_tokens} tokens or more"
        checks.refuse(Problem("replies", wanted, f"{', '.join(str(len(group)) for group in values)} by stratum"))
    figures = [
        StratumFigures(bound, len(shape[k]), len(rest[k]), {level: found[level][k] for level in LEVELS})
        for k, bound in enumerate(bounds)
    ]
    median = sorted(finite)[len(finite) // 2]
    clear = lowest[0] - HYSTERESIS * max(lowest[0] - median, 0.0)
    return Calibration(Thresholds(strata, levels, clear), tuple(figures), finite)


def statistic(scores: Sequence[float], strata: Sequence[Stratum], min_tokens: int) -> float:
    """A reply's largest excess over the profile; -inf if it has fewer than `min_tokens` scored tokens."""
    largest, start = -math.inf, min_tokens - 1
    for stratum in strata:
        inside = scores[start : stratum.max_tokens]
        if inside:
            largest = max(largest, max(inside) - stratum.offset)
        start = max(start, stratum.max_tokens)
    return largest


def _halves(
    replies: Sequence[BenignReply], bounds: Sequence[int], seed: str
) -> tuple[list[list[BenignReply]], list[list[BenignReply]]]:
    """The shape half and the threshold half, each by the stratum that a reply ends in."""
    _check(replies, bounds)
    halves: tuple[list[list[BenignReply]], ...] = ([[] for _ in bounds], [[] for _ in bounds])
    for reply in replies:
        stratum = next(k for k, bound in enumerate(bounds) if len(reply.scores) <= bound)
        halves[0 if in_shape_half(reply.group, seed) else 1][stratum].append(reply)
    return halves[0], halves[1]


def _check(replies: Sequence[BenignReply], bounds: Sequence[int]) -> None:
    for i, reply in enumerate(replies):
        if len(reply.scores) > bounds[-1]:
            checks.refuse(Problem(f"replies.{i}", f"at most {bounds[-1]} scored tokens", str(len(reply.scores))))
        if not all(map(checks.is_summable, reply.scores)):
            worst = next(t for t, score in enumerate(reply.scores) if not checks.is_summable(score))
            checks.refuse(checks.finite(f"replies.{i}.scores.{worst}", reply.scores[worst]))


def _length_profile(
    shape: Sequence[Sequence[BenignReply]], bounds: Sequence[int], min_tokens: int
) -> tuple[Stratum, ...]:
    strata: list[Stratum] = []
    first: float | None = None
    for bound, replies in zip(bounds, shape, strict=True):
        offset = strata[-1].offset if strata else 0.0
        largest = sorted(max(r.scores[min_tokens - 1 :]) for r in replies if len(r.scores) >= min_tokens)
        if len(largest) >= MIN_SHAPE_REPLIES:
            quantile = largest[math.ceil(SHAPE_QUANTILE * len(largest)) - 1]
            first = quantile if first is None else first
            offset = max(offset, quantile - first)
        strata.append(Stratum(bound, offset))
    return tuple(strata)


def _levels(
    found: Mapping[Level, Sequence[float | None]], alphas: Mapping[Level, float], bounds: Sequence[int]
) -> Levels:
    made: dict[Level, LevelThreshold | None] = {}
    below = -math.inf
    for level in LEVELS:
        statistics = {bound: q for bound, q in zip(bounds, found[level], strict=True) if q is not None}
        # Critical may stand in fewer strata than warning, and must not fall under it for that.
        offset = max([below, *statistics.values()])
        absent = tuple(bound for bound in bounds if bound not in statistics)
        is_there = bool(statistics) and math.isfinite(offset)
        made[level] = LevelThreshold(alphas[level], offset, tuple(statistics), absent) if is_there else None
        below = offset if is_there else below
    return Levels(made["warning"], made["critical"])
