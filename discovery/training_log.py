"""Training curves out of a run's `log.csv`: every numeric column beside `step`."""

import csv
import math
from pathlib import Path
from typing import NamedTuple

from discovery.errors import PageError

_MOST_POINTS = 2000
_WINDOW_SHARE = 50


class Curve(NamedTuple):
    """One column."""

    name: str
    values: list[float | None]
    """None where the log has nothing, or nothing finite."""
    smooth: list[float | None]
    """Mean over the last few points."""


class TrainingRun(NamedTuple):
    """One log."""

    name: str
    steps: list[int]
    curves: list[Curve]


def read_log(path: Path) -> TrainingRun:
    """Read `log.csv`, or the one in a run's folder. Long logs are thinned evenly. PageError if it is no log."""
    path = path / "log.csv" if path.is_dir() else path
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PageError(f"training log {path} can't be read: {error}") from None
    if not rows or "step" not in rows[0]:
        got = ", ".join(rows[0]) if rows else "no row"
        raise PageError(f"training log {path} must have rows with a column 'step', got {got}")
    rows = rows[:: -(-len(rows) // _MOST_POINTS)]
    columns = {name: [_number(row[name]) for row in rows] for name in rows[0] if name}
    steps = columns.pop("step")
    if None in steps:
        raise PageError(f"training log {path} must have a number as 'step' in every row")
    curves = [
        Curve(name.replace("_", " "), values, running_mean(values, max(1, len(values) // _WINDOW_SHARE)))
        for name, values in columns.items()
        if any(value is not None for value in values)
    ]
    return TrainingRun(path.parent.name, [int(step) for step in steps if step is not None], curves)


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def running_mean(values: list[float | None], window: int) -> list[float | None]:
    """Mean of the numbers among the last `window` values."""
    means: list[float | None] = []
    for end in range(1, len(values) + 1):
        part = [value for value in values[max(0, end - window) : end] if value is not None]
        means.append(round(sum(part) / len(part), 6) if part else None)
    return means
