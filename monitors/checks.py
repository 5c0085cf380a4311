"""Checks of single values. Each returns the `Problem` found, or None; `refuse` raises all that were found.

The dataclasses of this package call them in `__post_init__`, so an invalid object cannot exist, however it was made.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence

from monitors.errors import MonitorError, Problem, shown

MAX_ABS_VALUE = 1e300
"""Largest size of a number that is summed here. Keeps a sum of 10^8 of them finite, so no window can overflow."""

_SLUG = re.compile(r"[a-z][a-z0-9_]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def refuse(*problems: Problem | None) -> None:
    """Raises `MonitorError` with every problem given, or returns if there is none."""
    found = [problem for problem in problems if problem is not None]
    if found:
        raise MonitorError(*found)


def is_summable(value: float) -> bool:
    """Whether a number is finite and at most `MAX_ABS_VALUE` in size."""
    return abs(value) <= MAX_ABS_VALUE  # false for NaN


def finite(field: str, value: object) -> Problem | None:
    """A real number that `is_summable`; True and False are not numbers."""
    if isinstance(value, int | float) and not isinstance(value, bool) and is_summable(value):
        return None
    return Problem(field, f"a finite number of at most {MAX_ABS_VALUE:g} in size", shown(value))


def positive(field: str, value: object) -> Problem | None:
    """A finite number above 0."""
    if isinstance(value, int | float) and finite(field, value) is None and value > 0:
        return None
    return Problem(field, "a finite number above 0", shown(value))


def count(field: str, value: object, *, at_least: int) -> Problem | None:
    """A whole number, `at_least` or more."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= at_least:
        return None
    return Problem(field, f"a whole number of at least {at_least}", shown(value))


def flag(field: str, value: object) -> Problem | None:
    """True or False, not something that merely counts as one of them."""
    return None if isinstance(value, bool) else Problem(field, "true or false", shown(value))


def choice(field: str, value: object, choices: Collection[str]) -> Problem | None:
    """One of a few words."""
    return None if value in choices else Problem(field, f"one of {', '.join(choices)}", shown(value))


def slug(field: str, value: object) -> Problem | None:
    """A name that can stand in metric labels and command lines as it is."""
    if isinstance(value, str) and _SLUG.fullmatch(value):
        return None
    return Problem(field, f"a name matching {_SLUG.pattern}", shown(value))


def sentence(field: str, value: object) -> Problem | None:
    """Text that says something."""
    if isinstance(value, str) and value.strip():
        return None
    return Problem(field, "a sentence", shown(value))


def sha256(field: str, value: object) -> Problem | None:
    """A sha256 as lower-case hex digits."""
    if isinstance(value, str) and _SHA256.fullmatch(value):
        return None
    return Problem(field, "a sha256 of 64 lower-case hex digits", shown(value))


def distinct(owner: str, field: str, values: Sequence[str | int]) -> Iterator[Problem]:
    """A problem for each of `owner`'s entries whose `field` an earlier one has."""
    for i, value in enumerate(values):
        if value in values[:i]:
            wanted = f"a value of its own, unlike {owner}.{values.index(value)}.{field}"
            yield Problem(f"{owner}.{i}.{field}", wanted, shown(value))


def json_object(field: str, value: object) -> Problem | None:
    """Free facts that can be written and read again."""
    try:
        json.dumps(value, allow_nan=False)
        is_object = isinstance(value, Mapping)
    except (TypeError, ValueError):
        is_object = False
    return None if is_object else Problem(field, "a JSON object without NaN or infinity", shown(value))
