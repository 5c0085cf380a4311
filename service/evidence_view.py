"""Calibration and evidence of a monitor for people to read: shares and intervals on a line, in an order that stays.

As they come over the wire their keys have none. What no one reads one by one (hashes of groups) is counted; `--json`
has everything.
"""

from collections.abc import Mapping, Sequence
from typing import Any

LEVELS = ("warning", "critical")
_MOST_ITEMS = 24
_ESTIMATE, _SHARE = {"mean", "low", "high"}, {"share", "low", "high", "count", "num"}


def readable(facts: Any, levels: Sequence[str]) -> Any:
    """The same for YAML. A figure of a level that the monitor has not, `levels` being those it has, is null: nothing
    could reach it."""
    if isinstance(facts, Mapping):
        if facts.keys() >= _ESTIMATE and all(isinstance(facts[name], float | int) for name in _ESTIMATE):
            return _estimate(facts)
        if facts.keys() == _SHARE:
            return _share(facts)
        return {key: _of_key(key, facts[key], levels) for key in sorted(facts, key=_place)}
    if isinstance(facts, list | tuple):
        if len(facts) > _MOST_ITEMS:
            return f"{len(facts)} of them: see --json"
        return [readable(item, levels) for item in facts]
    return int(facts) if isinstance(facts, float) and facts.is_integer() else facts


def _of_key(key: str, value: Any, levels: Sequence[str]) -> Any:
    is_lacking = key in LEVELS and key not in levels and isinstance(value, Mapping)
    return None if is_lacking else readable(value, levels)


def _place(key: str) -> tuple[int, int, str]:
    """Levels as they rise, then numbers as such, then words."""
    if key in LEVELS:
        return 0, LEVELS.index(key), ""
    return (1, int(key), "") if key.isascii() and key.isdigit() else (2, 0, key)


def _estimate(found: Mapping[str, Any]) -> str:
    rest = "".join(f", {name} {found[name]:g}" for name in sorted(found.keys() - _ESTIMATE))
    return f"{found['mean']:.3f} [{found['low']:.3f}, {found['high']:.3f}]{rest}"


def _share(found: Mapping[str, Any]) -> str | None:
    if found["share"] is None:
        return None
    counts = f"{found['count']:.0f} of {found['num']:.0f}"
    return f"{found['share']:.2%} ({counts}; {found['low']:.2%} to {found['high']:.2%})"
