"""How far live values have moved from those of a calibration: the population stability index of two histograms.

    PSI = sum over bins of (a_i - e_i) ln(a_i / e_i)        a_i live share, e_i reference share

It is the symmetrised Kullback-Leibler divergence of the binned distributions (Jeffreys, An Invariant Form for the Prior
Probability in Estimation Problems, 1946), known under this name from credit scoring (Siddiqi, Credit Risk Scorecards,
2006, chapter 9), where the usual reading comes from: below 0.1 nothing has moved, 0.1 to 0.2 look, above 0.2 the
population is another one. An empty bin would make it infinite, so each bin counts half a value more, on both sides: the
estimate of a share under Jeffreys' prior, (c_i + 1/2) / (n + B/2).

If nothing has moved, PSI / (1/n + 1/m) is nearly chi-square with B - 1 degrees of freedom (n live and m reference
values, independent; Yurdakul and Naranjo, Statistical properties of the population stability index, Journal of Risk
Model Validation 14, 2020), so that its mean is (B - 1)(1/n + 1/m) and not 0: with few values, 0.2 means nothing.
"""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

from monitors import checks
from monitors.errors import Problem, shown

NUM_BINS = 10
_SMOOTHING = 0.5


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts in bins that tile the whole line: below edges[0], from each edge to the next, from edges[-1] on."""

    edges: tuple[float, ...]
    """Inner edges, rising; a value that is one lies in the bin that begins there."""
    counts: tuple[int, ...]
    """One more than edges."""

    def __post_init__(self) -> None:
        edges, counts = self.edges, self.counts
        is_rising = all(left < right for left, right in pairwise(edges))
        checks.refuse(
            *(checks.finite(f"edges.{i}", edge) for i, edge in enumerate(edges)),
            *(checks.count(f"counts.{i}", count, at_least=0) for i, count in enumerate(counts)),
            None if edges and is_rising else Problem("edges", "one number or more, rising", shown(list(edges))),
            None if len(counts) == len(edges) + 1 else Problem("counts", f"{len(edges) + 1} counts", str(len(counts))),
            None if sum(counts) > 0 else Problem("counts", "a count above 0", shown(list(counts))),
        )

    @classmethod
    def of(cls, values: Sequence[float], num_bins: int = NUM_BINS) -> Self | None:
        """Bins of equally many values, as far as ties allow; None if the values are all the same, or none.

        Where nearly all of them are the lowest, as a cascade's while its gate is shut, two bins: the lowest, and more.
        """
        ordered = sorted(values)
        places = (i * len(ordered) // num_bins for i in range(1, num_bins))
        edges = tuple(dict.fromkeys(ordered[place] for place in places if ordered and ordered[place] > ordered[0]))
        edges = edges or tuple(value for value in ordered if value > ordered[0])[:1]
        return cls(edges, tuple(bin_counts(edges, ordered))) if edges else None

    @classmethod
    def from_json(cls, facts: object) -> Self:
        """As `as_json` gave it. MonitorError for anything else."""
        is_whole = isinstance(facts, Mapping) and set(facts) == {"edges", "counts"}
        lists = [facts[name] for name in ("edges", "counts")] if is_whole else []  # type: ignore[index]
        if not is_whole or not all(isinstance(part, list | tuple) for part in lists):
            checks.refuse(Problem("", "an object of two lists, edges and counts", shown(facts)))
        edges, counts = lists
        return cls(tuple(edges), tuple(counts))

    def as_json(self) -> dict[str, Any]:
        return {"edges": list(self.edges), "counts": list(self.counts)}

    @property
    def num_values(self) -> int:
        return sum(self.counts)

    @property
    def num_bins(self) -> int:
        return len(self.counts)


def bin_counts(edges: Sequence[float], values: Sequence[float]) -> list[int]:
    """How many of the values lie in each bin."""
    counts = [0] * (len(edges) + 1)
    for value in values:
        counts[bisect_right(edges, value)] += 1
    return counts


def stability_index(reference: Sequence[int], live: Sequence[int]) -> float:
    """PSI of two histograms over the same bins, from counts."""
    pairs = zip(_shares(reference), _shares(live), strict=True)
    return math.fsum((a - e) * math.log(a / e) for e, a in pairs)


def expected_index(num_bins: int, num_reference: int, num_live: int) -> float:
    """What PSI is on average if nothing has moved: (B - 1)(1/n + 1/m)."""
    return (num_bins - 1) * (1 / num_reference + 1 / num_live)


def _shares(counts: Sequence[int]) -> list[float]:
    total = sum(counts) + _SMOOTHING * len(counts)
    return [(count + _SMOOTHING) / total for count in counts]
