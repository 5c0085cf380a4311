"""How often a monitor's alerts were right, from what reviewers said.

    precision = true / (true + false)

An alert of which a reviewer is unsure counts as neither. What reviews can't show is what the monitor missed, and alerts
nobody reviewed may be of another kind than those somebody picked.
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from monitors.journal_entry import Review

_Z = 1.959963984540054
"""97.5 % quantile of the normal distribution: intervals are of 95 %."""


@dataclass(frozen=True, slots=True)
class Precision:
    """What reviews say of one monitor, as one pack defines it."""

    monitor: str
    pack_sha256: str | None
    """None for a monitor that no pack defines."""
    num_true: int
    num_false: int
    num_unsure: int

    @property
    def precision(self) -> float | None:
        """None if no verdict was true or false."""
        num = self.num_true + self.num_false
        return self.num_true / num if num else None

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval; 0 to 1 if there is nothing to go by."""
        return wilson_interval(self.num_true, self.num_true + self.num_false)


def precisions(reviews: Iterable[Review]) -> list[Precision]:
    """Of every monitor and pack, by name. `reviews` are given oldest first: of one alert the last one counts."""
    last = {review.alert_id: review for review in reviews}
    counts: dict[tuple[str, str], Counter[str]] = {}
    for review in last.values():
        counts.setdefault((review.monitor, review.pack_sha256 or ""), Counter())[review.verdict] += 1
    return [
        Precision(monitor, pack or None, count["true"], count["false"], count["unsure"])
        for (monitor, pack), count in sorted(counts.items())
    ]


def wilson_interval(num_true: int, num: int) -> tuple[float, float]:
    """Wilson's score interval at 95 % for a share (JASA 22, 1927, p. 209):

    (p + z^2/2n +- z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n)
    """
    if num == 0:
        return 0.0, 1.0
    share = num_true / num
    middle = share + _Z**2 / (2 * num)
    spread = _Z * math.sqrt(share * (1 - share) / num + _Z**2 / (4 * num**2))
    scale = 1 + _Z**2 / num
    # At 0 and at `num` one end is exactly 0 or 1, which rounding may miss.
    return max((middle - spread) / scale, 0.0), min((middle + spread) / scale, 1.0)
