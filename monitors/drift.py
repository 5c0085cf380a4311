"""A monitor's live values against those of its calibration, over the last replies.

Two of them, each with a population stability index (`monitors.stability`):

    statistic      one per reply, what thresholds were set on: whether alerts are as rare as they were meant to be
    token score    one per scored token from min_tokens on: the same earlier, as replies are few and tokens many

The bins are frozen in the pack, under `calibration.figures.reference`; a pack without them has no index. Tokens of a
reply are alike, so the mean of the second if nothing has moved lies above (B - 1)(1/n + 1/m) with tokens counted, and
well below the same with replies counted.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from monitors import checks
from monitors.errors import MonitorError, Problem, shown
from monitors.stability import Histogram, bin_counts, expected_index, stability_index

REFERENCE_KEY = "reference"
"""Under a calibration's figures."""
WINDOW_REPLIES = 1000
MIN_REPLIES = 200
"""Below it ten bins alone would make an index of 0.05 or more."""


class FinishedReply(NamedTuple):
    """What a monitor made of one reply."""

    monitor: str
    statistic: float
    scores: Sequence[float]
    """At its scored tokens, from min_tokens on."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A calibration's values, in bins."""

    statistic: Histogram
    token_score: Histogram

    @classmethod
    def of(cls, replies: Sequence[tuple[float, Sequence[float]]]) -> Self | None:
        """Of (statistic, scores) of each reply; None if either is the same throughout."""
        statistic = Histogram.of([value for value, _ in replies])
        token_score = Histogram.of([score for _, scores in replies for score in scores])
        return None if statistic is None or token_score is None else cls(statistic, token_score)

    @classmethod
    def from_figures(cls, figures: Mapping[str, Any]) -> Self | None:
        """Of a pack's calibration figures; None if they have none. MonitorError for one that is broken."""
        facts = figures.get(REFERENCE_KEY)
        if facts is None:
            return None
        names = ("statistic", "token_score")
        if not isinstance(facts, Mapping) or set(facts) != set(names):
            checks.refuse(Problem(REFERENCE_KEY, f"an object of {' and '.join(names)}", shown(facts)))
        return cls(*(_histogram(facts[name], f"{REFERENCE_KEY}.{name}") for name in names))

    def as_json(self) -> dict[str, Any]:
        return {"statistic": self.statistic.as_json(), "token_score": self.token_score.as_json()}


class Drift(NamedTuple):
    """How far values have moved."""

    num_replies: int
    """In the window."""
    statistic: float | None
    """PSI; None while there are fewer than MIN_REPLIES."""
    token_score: float | None
    expected: float | None
    """What the statistic's would be on average if nothing had moved."""


class DriftWindow:
    """The last replies of one monitor."""

    def __init__(self, reference: Reference, num_replies: int = WINDOW_REPLIES) -> None:
        self._reference = reference
        self._replies: deque[tuple[list[int], list[int]]] = deque()
        self._num_replies = num_replies
        self._sums = [[0] * reference.statistic.num_bins, [0] * reference.token_score.num_bins]

    def add(self, reply: FinishedReply) -> None:
        """Count a reply in, and the oldest out if there are too many."""
        counts = (
            bin_counts(self._reference.statistic.edges, [reply.statistic]),
            bin_counts(self._reference.token_score.edges, reply.scores),
        )
        self._replies.append(counts)
        self._count(counts, 1)
        if len(self._replies) > self._num_replies:
            self._count(self._replies.popleft(), -1)

    def drift(self) -> Drift:
        """As of now."""
        num_replies, reference = len(self._replies), self._reference
        if num_replies < MIN_REPLIES:
            return Drift(num_replies, None, None, None)
        of_replies, of_tokens = self._sums
        return Drift(
            num_replies,
            stability_index(reference.statistic.counts, of_replies),
            stability_index(reference.token_score.counts, of_tokens),
            expected_index(reference.statistic.num_bins, reference.statistic.num_values, num_replies),
        )

    def _count(self, counts: tuple[list[int], list[int]], sign: int) -> None:
        for sums, of_reply in zip(self._sums, counts, strict=True):
            for i, count in enumerate(of_reply):
                sums[i] += sign * count


def _histogram(facts: object, path: str) -> Histogram:
    try:
        return Histogram.from_json(facts)
    except MonitorError as error:
        raise MonitorError(*(problem.within(path) for problem in error.problems)) from None
