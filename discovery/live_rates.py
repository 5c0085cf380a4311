"""How often a running server's monitors fire on benign replies: its own alarms, counted reply by reply.

Nothing is scored again. A reply counts where it had tokens enough to fire (the server gives a statistic), by the level
that it reached; the denominator is replies, by how many tokens the monitor scored. A level that the monitor has not is
null; readings of before servers' levels were kept don't say, and count all.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from discovery.binomial import share
from monitors.thresholds import LEVELS

BOUNDS = (8, 64, 256, 1024)
"""Lengths by which replies are told apart: those of `telltale lab monitor calibrate`, and what is a short answer. No
monitor's strata need be these: those are its pack's."""


def live_rates(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Monitor -> length (`all`, `up to 8`, `up to 64`, ...) -> level -> share of benign replies that reached it.

    `rows` are labelled conversations with `meta.monitors`, a reading per monitor and role; those with another label
    than 0 are left out, and of a monitor that scores several roles a reply has the highest level of all.
    """
    readings: dict[str, list[tuple[int, int]]] = {}
    levels: dict[str, Sequence[str]] = {}
    for row in rows:
        if row["label"] != 0:
            continue
        of_reply: dict[str, tuple[int, int]] = {}
        for reading in row["meta"].get("monitors", ()):
            if reading["max_statistic"] is None:
                continue
            levels[reading["monitor"]] = reading.get("levels", LEVELS)
            scored, height = of_reply.get(reading["monitor"], (0, -1))
            reached = LEVELS.index(reading["level"]) if reading["level"] in LEVELS else -1
            of_reply[reading["monitor"]] = (scored + reading["scored_tokens"], max(height, reached))
        for name, found in of_reply.items():
            readings.setdefault(name, []).append(found)
    return {name: _by_length(found, levels[name]) for name, found in sorted(readings.items())}


def _by_length(found: Sequence[tuple[int, int]], levels: Sequence[str]) -> dict[str, Any]:
    low, rates = 0, {"all": _by_level([height for _scored, height in found], levels)}
    for high in BOUNDS:
        rates[f"up to {high}"] = _by_level([height for scored, height in found if low < scored <= high], levels)
        low = high
    return rates


def _by_level(heights: Sequence[int], levels: Sequence[str]) -> dict[str, Any]:
    return {
        level: share(sum(height >= place for height in heights), len(heights)).as_json() if level in levels else None
        for place, level in enumerate(LEVELS)
    }


def num_replies(by_level: Mapping[str, Any]) -> int:
    """Replies that the shares are of, whichever levels there are; at least one."""
    return int(next(rate["num"] for rate in by_level.values() if rate is not None))


def as_table(rates: Mapping[str, Any]) -> Table:
    """For a terminal."""
    table = Table("monitor", "scored tokens", "replies", *LEVELS, title="benign replies that fired")
    for monitor, strata in rates.items():
        for name, by_level in strata.items():
            cells = [_cell(rate) for rate in by_level.values()]
            table.add_row(monitor if name == "all" else "", name, f"{num_replies(by_level):,}", *cells)
    return table


def _cell(rate: Mapping[str, Any] | None) -> str:
    if rate is None or rate["share"] is None:
        return "-"
    return f"{rate['share']:.2%} [{rate['low']:.2%}, {rate['high']:.2%}]"
