"""What a replay found, in numbers: the replayed tokens and series against those of the record.

A series is reproduced if max |replayed - recorded| <= tolerance * max |recorded|, over the positions of the span that
both have. The scale is the series' own, since readings, probe values and scores have different units.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from monitors.alert_record import AlertRecord, KeptText, Series
from monitors.track import Alert
from service.request import TokenEvent

TOLERANCES = {"float32": 1e-3}
"""By number format: 32-bit sums in another order (a prompt is read many tokens at a time, a reply one by one, and
neighbours in a pass differ) move readings by parts in a hundred thousand or so; docs/alert-journal.md has figures."""
COARSE_TOLERANCE = 0.1
"""For 16-bit formats, whose rounding alone is 0.4 %: of alerts that transformers read again in bf16 the largest
difference was 7 % of a series' largest value for probes, and within this for 26 of 27 scores. Native kernels leave no
difference on one machine (`benchmarks/replays.py`), but another may round otherwise."""


@dataclass(frozen=True, slots=True)
class SeriesDifference:
    """A replayed series against the recorded one."""

    name: str
    kind: str
    """feature, probe or score; `feature, steered` for readings after steering."""
    num_compared: int
    largest_difference: float
    scale: float
    """The largest recorded value, by magnitude."""
    num_missing: int = 0
    """Positions at which only one of the two has a value."""

    def is_within(self, tolerance: float) -> bool:
        """Whether the series was reproduced."""
        return not self.num_missing and self.largest_difference <= tolerance * self.scale


@dataclass(frozen=True, slots=True)
class Comparison:
    """One replay against the record."""

    tolerance: float
    num_tokens: int
    """Tokens of the recorded reply."""
    first_difference: int | None
    """Position of the first token that is another; None if all are the same."""
    raised_again: bool
    series: tuple[SeriesDifference, ...]

    @property
    def reproduced(self) -> bool:
        """Whether everything is as recorded, within the tolerance."""
        is_same = self.first_difference is None and self.raised_again
        return is_same and all(each.is_within(self.tolerance) for each in self.series)


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """Both ways of doing an alert's request again."""

    differences: tuple[str, ...]
    """What is served now and was not then, in words."""
    read: Comparison
    """The recorded tokens read again."""
    generated: Comparison | None
    """The reply written again; None for an alert in text that the model did not write."""


@dataclass(slots=True)
class Replayed:
    """What a replay gave."""

    tokens: dict[int, TokenEvent] = field(default_factory=dict)
    """By position."""
    probes: dict[int, Mapping[str, float]] = field(default_factory=dict)
    """Values of probes, by position."""
    alerts: list[Alert] = field(default_factory=list)


def default_tolerance(record: AlertRecord) -> float:
    """What suits the number format that the record was made in."""
    return TOLERANCES.get(record.model.dtype, COARSE_TOLERANCE)


def compare(record: AlertRecord, replayed: Replayed, watched: Sequence[int], tolerance: float) -> Comparison:
    """Holds a replay against its record. `watched` are the latents that the replay read, in order."""
    assert isinstance(record.text, KeptText)
    recorded = (*record.text.prompt_ids, *record.text.reply_ids)
    first_difference = next(
        (
            position
            for position in range(len(record.text.prompt_ids), len(recorded))
            if position not in replayed.tokens or replayed.tokens[position].id != recorded[position]
        ),
        None,
    )
    # Behind another token everything else is another's too.
    end = record.position + 1 if first_difference is None else min(record.position + 1, first_difference)
    positions = range(record.span_start, end)
    return Comparison(
        tolerance=tolerance,
        num_tokens=len(record.text.reply_ids),
        first_difference=first_difference,
        raised_again=any(_is_same(record, alert) for alert in replayed.alerts),
        series=tuple(
            difference
            for series in record.readings
            for difference in _differences(record, series, replayed, watched, positions)
        ),
    )


def _is_same(record: AlertRecord, alert: Alert) -> bool:
    ours = record.monitor, record.state, record.level, record.position, record.role
    return ours == (alert.monitor, alert.state, alert.level, alert.position, alert.role)


def _differences(
    record: AlertRecord, series: Series, replayed: Replayed, watched: Sequence[int], positions: Sequence[int]
) -> list[SeriesDifference]:
    start = record.span_start

    def score(position: int) -> float | None:
        token = replayed.tokens.get(position)
        scores = () if token is None else token.scores
        return next((score.value for score in scores if score.monitor == record.monitor), None)

    def value(position: int) -> float | None:
        token = replayed.tokens.get(position)
        match series.kind:
            case "feature":
                return (
                    None if token is None or series.feature is None else token.readings[watched.index(series.feature)]
                )
            case "probe":
                return replayed.probes.get(position, {}).get(series.name)
            case _:
                return score(position)

    def steered(position: int) -> float | None:
        token = replayed.tokens.get(position)
        if token is None or series.feature is None or not token.steered_readings:
            return None
        return token.steered_readings[watched.index(series.feature)]

    if series.kind == "probe":
        # Its values are kept wherever any monitor of the request scored; the replay runs this one alone.
        recorded = next((each.values for each in record.readings if each.kind == "score"), ())
        positions = [p for p in positions if (recorded and recorded[p - start] is not None) or score(p) is not None]
    found = [_difference(series.name, series.kind, [(series.values[p - start], value(p)) for p in positions])]
    if series.steered_values:
        pairs = [(series.steered_values[p - start], steered(p)) for p in positions]
        found.append(_difference(series.name, f"{series.kind}, steered", pairs))
    return found


def _difference(name: str, kind: str, pairs: Sequence[tuple[float | None, float | None]]) -> SeriesDifference:
    both = [(was, now) for was, now in pairs if was is not None and now is not None]
    return SeriesDifference(
        name=name,
        kind=kind,
        num_compared=len(both),
        largest_difference=max((abs(now - was) for was, now in both), default=0.0),
        scale=max((abs(was) for was, _ in both), default=0.0),
        num_missing=sum((was is None) != (now is None) for was, now in pairs),
    )
