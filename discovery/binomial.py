"""Shares with the interval that counts allow: Clopper and Pearson 1934, which holds at least as often as it says."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Share(NamedTuple):
    """`hits` of `num`, with the 95 % interval of the share behind it."""

    hits: int
    num: int
    low: float
    high: float

    @property
    def value(self) -> float | None:
        """The share; None of none."""
        return self.hits / self.num if self.num else None

    def as_json(self) -> dict[str, Any]:
        """For records."""
        value = self.value
        rounded = None if value is None else round(value, 6)
        return {"count": self.hits, "num": self.num, "share": rounded, "low": self.low, "high": self.high}


def share(count: int, num: int) -> Share:
    """Exact 95 % interval; 0 to 1 of none."""
    from scipy.stats import binomtest  # type: ignore[import-untyped]

    if not num:
        return Share(0, 0, 0.0, 1.0)
    interval = binomtest(count, num).proportion_ci(0.95, method="exact")
    return Share(count, num, round(float(interval.low), 6), round(float(interval.high), 6))


def share_words(found: Mapping[str, Any] | None) -> str:
    """A record's share with counts and interval; a dash for none."""
    if found is None or found["share"] is None:
        return "-"
    return f"{found['share']:.1%} ({found['count']} of {found['num']}; {found['low']:.1%} to {found['high']:.1%})"
