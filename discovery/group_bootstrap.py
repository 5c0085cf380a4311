"""Intervals for means over texts: whole groups (documents, conversations) are drawn anew, not single tokens.

    mean        sum of values / number of values, so that every value counts the same
    interval    2.5th to 97.5th percentile of that ratio over resampled groups (percentile bootstrap)

Values of one document hang together; an interval over tokens would be far too narrow.

Shape suffixes: N values, G groups, R resamples.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 2000
_TAIL = 2.5


class Estimate(NamedTuple):
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float

    def rounded(self) -> dict[str, float]:
        """As results files have it."""
        return {name: round(value, 5) for name, value in self._asdict().items()}


class Grouped(NamedTuple):
    """Values summed by group."""

    sums_G: NDArray[np.float64]
    counts_G: NDArray[np.float64]

    @property
    def mean(self) -> float:
        return float(self.sums_G.sum() / self.counts_G.sum())

    def resampled(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """[R] means of groups drawn with replacement."""
        draws_RG = rng.integers(0, len(self.sums_G), (NUM_RESAMPLES, len(self.sums_G)))
        return self.sums_G[draws_RG].sum(1) / self.counts_G[draws_RG].sum(1)


def grouped(values: Sequence[float], groups: Sequence[str]) -> Grouped:
    """`values[i]` belongs to `groups[i]`."""
    names = {name: index for index, name in enumerate(dict.fromkeys(groups))}
    member_N = np.array([names[group] for group in groups], np.int64)
    sums_G, counts_G = np.zeros(len(names)), np.zeros(len(names))
    np.add.at(sums_G, member_N, np.asarray(values, np.float64))
    np.add.at(counts_G, member_N, 1.0)
    return Grouped(sums_G, counts_G)


def mean_interval(values: Sequence[float], groups: Sequence[str], seed: int = 0) -> Estimate:
    """The mean of `values`."""
    data = grouped(values, groups)
    return _estimate(data.mean, data.resampled(np.random.default_rng(seed)))


def difference_interval(
    first: tuple[Sequence[float], Sequence[str]], second: tuple[Sequence[float], Sequence[str]], seed: int = 0
) -> Estimate:
    """Mean of the first (values, groups) minus mean of the second, groups of each drawn for themselves."""
    rng = np.random.default_rng(seed)
    a, b = grouped(*first), grouped(*second)
    return _estimate(a.mean - b.mean, a.resampled(rng) - b.resampled(rng))


def _estimate(mean: float, resampled_R: NDArray[np.float64]) -> Estimate:
    low, high = np.percentile(resampled_R, [_TAIL, 100 - _TAIL])
    return Estimate(mean, float(low), float(high))
