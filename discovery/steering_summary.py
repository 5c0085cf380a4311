"""From continuations to verdicts: at which strengths a feature's steering works, and from where the model breaks.

A continuation is *broken* if
    the unsteered model's perplexity of it is more than `max_perplexity_ratio` times that of the unsteered continuation
    of the same prompt and seed, or
    its repetition exceeds that one's by more than `max_added_repetition`, or
    it is empty and that one is not.
It *expresses* the feature if the unsteered model, re-reading it, reads at least `min_expression` of the feature's
reference scale at some token of it.

A strength is `broken` if at least half of its continuations are; else it `works` if at least `min_share` of them
express the feature and the share is at least `min_gain` above that of the unsteered ones; else it is `no effect`.
Ratios and shares are over the same prompts and seeds, so that what differs is the steering alone.
"""

import math
import statistics
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

Verdict = Literal["unsteered", "works", "no effect", "broken", "unknown"]


class Criterion(NamedTuple):
    """What counts as broken, and as working."""

    max_perplexity_ratio: float = 5.0
    max_added_repetition: float = 0.3
    min_expression: float = 0.5
    """Of the reference scale."""
    min_share: float = 0.5
    min_gain: float = 0.25


class Point(NamedTuple):
    """All continuations of one strength; means over them."""

    strength: float | None
    """In the grid's unit; None is unsteered."""
    num: int
    verdict: Verdict
    """`unknown` where nobody has said what a large reading of the feature is."""
    perplexity: float | None
    """Geometric mean, under the unsteered model."""
    perplexity_ratio: float | None
    """Geometric mean of the ratios to the unsteered continuations."""
    steered_perplexity: float | None
    """Under the model that wrote them."""
    repetition: float
    distinct_1: float | None
    broken_ratio: float
    """Share of continuations that are broken."""
    expressed_ratio: float | None
    """Share that express the feature."""
    reading: float
    """Mean over generated positions, before steering there: what the text itself makes the model compute."""
    steered_reading: float
    """After it."""
    reread: float
    """Mean over generated positions of the finished text, without steering."""
    reread_max: float
    """Mean over continuations of the largest of them."""
    promoted_ratio: float
    """Share of the tokens that are among those the direction promotes most."""
    changed_ratio: float
    """Share of the positions read that steering changed."""
    relative_norm: float
    """Mean of ||delta|| / ||h|| over them."""
    max_relative_norm: float


def summarize(continuations: Sequence[dict[str, Any]], scale: float | None, criterion: Criterion) -> list[Point]:
    """One point per strength, the unsteered one first, then rising. `continuations` as the results file has them."""
    plain = {_key(record): record for record in continuations if record["strength"] is None}
    paired = [record for record in continuations if _key(record) in plain]
    by_strength: dict[float | None, list[dict[str, Any]]] = {}
    for record in paired:
        by_strength.setdefault(record["strength"], []).append(record)
    points: list[Point] = []
    for strength in sorted(by_strength, key=lambda s: -math.inf if s is None else s):
        points.append(_point(strength, by_strength[strength], plain, scale, criterion))
    baseline = next((point.expressed_ratio for point in points if point.strength is None), None)
    return [point._replace(verdict=_verdict(point, baseline, criterion)) for point in points]


def is_broken(record: dict[str, Any], plain: dict[str, Any], criterion: Criterion) -> bool:
    """Whether a continuation is broken, beside the unsteered one of the same prompt and seed."""
    if record["perplexity"] is None or plain["perplexity"] is None:
        return record["perplexity"] is None and plain["perplexity"] is not None
    is_unlikely = record["perplexity"] > criterion.max_perplexity_ratio * plain["perplexity"]
    return bool(is_unlikely or record["repetition"] > plain["repetition"] + criterion.max_added_repetition)


def expresses(record: dict[str, Any], scale: float, criterion: Criterion) -> bool:
    """Whether the text itself reads as the feature's."""
    return bool(record["reread"]) and max(record["reread"]) >= criterion.min_expression * scale


def _key(record: dict[str, Any]) -> tuple[int, int | None]:
    return record["prompt"], record["seed"]


def _verdict(point: Point, baseline: float | None, criterion: Criterion) -> Verdict:
    if point.strength is None:
        return "unsteered"
    if point.broken_ratio >= 0.5:
        return "broken"
    if point.expressed_ratio is None or baseline is None:
        return "unknown"
    works = point.expressed_ratio >= max(criterion.min_share, baseline + criterion.min_gain)
    return "works" if works else "no effect"


def _point(
    strength: float | None,
    records: list[dict[str, Any]],
    plain: dict[tuple[int, int | None], dict[str, Any]],
    scale: float | None,
    criterion: Criterion,
) -> Point:
    partners = [plain[_key(record)] for record in records]
    pairs = list(zip(records, partners, strict=True))
    ratios = [r["perplexity"] / p["perplexity"] for r, p in pairs if r["perplexity"] and p["perplexity"]]
    steered = [record["steering"] for record in records]
    rereadings = [reading for record in records for reading in record["reread"]]
    return Point(
        strength=strength,
        num=len(records),
        verdict="unknown",
        perplexity=_geometric(record["perplexity"] for record in records),
        perplexity_ratio=_geometric(ratios),
        steered_perplexity=_geometric(record["steered_perplexity"] for record in records),
        repetition=statistics.fmean(record["repetition"] for record in records),
        distinct_1=_mean(record["distinct_1"] for record in records if record["distinct_1"] is not None),
        broken_ratio=statistics.fmean(is_broken(record, partner, criterion) for record, partner in pairs),
        expressed_ratio=statistics.fmean(expresses(r, scale, criterion) for r in records) if scale else None,
        reading=_mean(reading for record in records for reading in record["readings"]) or 0.0,
        steered_reading=_mean(reading for record in records for reading in record["steered_readings"]) or 0.0,
        reread=_mean(rereadings) or 0.0,
        reread_max=statistics.fmean(max(record["reread"], default=0.0) for record in records),
        promoted_ratio=_mean(record["promoted_ratio"] for record in records) or 0.0,
        changed_ratio=sum(s["positions_changed"] for s in steered) / max(sum(s["positions"] for s in steered), 1),
        relative_norm=statistics.fmean(s["mean_relative_norm"] for s in steered),
        max_relative_norm=max(s["max_relative_norm"] for s in steered),
    )


def _mean(values: Any) -> float | None:
    values = list(values)
    return statistics.fmean(values) if values else None


def _geometric(values: Any) -> float | None:
    values = [value for value in values if value]
    return math.exp(statistics.fmean(map(math.log, values))) if values else None
