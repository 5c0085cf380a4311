"""How the command line shows a steered reply and its unsteered twin: side by side, and where they differ.

All text passes `sanitize`.
"""

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from service import rendering
from service.client_events import Alert, Started, Twin
from service.rendering import sanitize


def baseline_alert(alert: Alert) -> Text:
    """An alert in the unsteered reply."""
    return Text("baseline: ").append_text(rendering.alert_line(alert))


def comparison(twin: Twin, started: Started) -> Iterator[Text | Table]:
    """Both texts, then the differences by feature and by monitor."""
    yield _texts(twin)
    yield Text(_first_difference(twin, started), style="dim")
    if twin.features:
        yield _features(twin, started)
    if twin.monitors:
        yield _monitors(twin)


def _texts(twin: Twin) -> Table:
    table = Table(expand=True, show_lines=False)
    for name, reason in (("steered", None), ("baseline", twin.baseline.reason)):
        table.add_column(name if reason is None else f"{name} ({reason})", ratio=1, overflow="fold")
    table.add_row(Text(sanitize(twin.text)), Text(sanitize(twin.baseline_text)))
    return table


def _first_difference(twin: Twin, started: Started) -> str:
    position = twin.first_difference_position
    if position is None:
        return "the two replies have the same tokens"
    return f"tokens differ from position {position} on, the reply's token {position - started.prompt_tokens + 1}"


def _features(twin: Twin, started: Started) -> Table:
    table = Table("feature")
    for name in ("mean", "baseline", "difference", "max", "baseline", "difference", "mean steered"):
        table.add_column(name, justify="right")
    names = {feature.feature: feature.label for feature in started.watched}
    for one in twin.features:
        table.add_row(
            sanitize(names.get(one.feature, str(one.feature))),
            *_pair(one.mean, one.baseline_mean),
            *_pair(one.max, one.baseline_max),
            _number(one.steered_mean),
        )
    return table


def _monitors(twin: Twin) -> Table:
    table = Table("monitor")
    for name in ("max score", "baseline", "difference", "mean", "baseline", "difference", "fired"):
        table.add_column(name, justify="right")
    fired = {(True, True): "both", (True, False): "steered", (False, True): "baseline", (False, False): "-"}
    for one in twin.monitors:
        table.add_row(
            sanitize(one.monitor),
            *_pair(one.max_score, one.baseline_max_score),
            *_pair(one.mean_score, one.baseline_mean_score),
            fired[one.fired, one.baseline_fired],
        )
    return table


def _pair(value: float | None, baseline: float | None) -> tuple[str, str, str]:
    difference = None if value is None or baseline is None else value - baseline
    return _number(value), _number(baseline), "-" if difference is None else f"{difference:+.3g}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
