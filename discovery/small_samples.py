"""Intervals that counts alone allow, for where resampling says nothing: of six lies that are all above all truths every
resample has AUROC 1, and of 23 that are all missed every resample has recall 0.

    AUROC    score interval on the variance of Hanley and McNeil 1982 (method 5 of Newcombe 2006)
    share    Clopper and Pearson 1934

A bootstrapped interval is widened to hold them where a label has fewer than 30 replies, or where it ends at the figure
itself. With more it is left alone: it knows what belongs together, and counts do not.
"""

import math

from discovery.binomial import share
from discovery.group_bootstrap import Estimate

_FEW = 30
_Z = 1.959964
"""Standard deviations of a normal distribution that hold 95 %."""


def auroc_by_counts(auroc: float, num_positive: int, num_negative: int) -> tuple[float, float]:
    """95 % interval of an AUROC in [0, 1] over so many independent replies, at least 1 of each."""
    return (
        _lower(auroc, num_positive, num_negative),
        1 - _lower(1 - auroc, num_positive, num_negative),
    )


def _lower(auroc: float, num_positive: int, num_negative: int) -> float:
    """The value below which `auroc` would be improbable: auroc - value = z * its standard error there."""
    from scipy.optimize import brentq  # type: ignore[import-untyped]

    def excess(value: float) -> float:
        return auroc - value - _Z * math.sqrt(_variance(value, num_positive, num_negative))

    # At 1 itself the variance is 0, and the equation has a second solution that says nothing.
    below = min(auroc, 1 - 1e-9)
    return 0.0 if auroc <= 0 or excess(below) >= 0 else float(brentq(excess, 0.0, below))


def _variance(auroc: float, num_positive: int, num_negative: int) -> float:
    """Hanley and McNeil's, of exponential scores, made the same for both labels by Newcombe."""
    others = (num_positive + num_negative) / 2 - 1
    spread = (1 - auroc) / (2 - auroc) + auroc / (1 + auroc)
    return max(0.0, auroc * (1 - auroc) * (1 + others * spread) / (num_positive * num_negative))


def widened_auroc(found: Estimate, num_positive: int, num_negative: int) -> Estimate:
    """`found`, of replies few or all alike at least as wide as counts demand."""
    if not _says_little(found, min(num_positive, num_negative)):
        return found
    low, high = auroc_by_counts(found.mean, num_positive, num_negative)
    return Estimate(found.mean, min(found.low, low), max(found.high, high))


def widened_share(found: Estimate, num: int) -> Estimate:
    """`found`, a share of `num`, of replies few or all alike at least as wide as counts demand."""
    if not _says_little(found, num):
        return found
    exact = share(round(found.mean * num), num)
    return Estimate(found.mean, min(found.low, exact.low), max(found.high, exact.high))


def _says_little(found: Estimate, num: int) -> bool:
    """NaN says nothing, and stays."""
    return math.isfinite(found.mean) and num > 0 and (num < _FEW or found.mean in (found.low, found.high))
