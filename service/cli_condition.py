"""Reads the conditions of `--policy`: alerts joined by `and`, `or` and brackets; `and` binds closer.

    deception and (stance:critical or ever disbelief@reasoning+assistant)

An alert is a monitor's name, with `:LEVEL` only from that level on, with `@ROLE+ROLE` only on those roles' words, with
`ever` before it also once it has cleared. Errors are argparse's, and name the place.
"""

import re
from argparse import ArgumentTypeError
from collections.abc import Callable
from typing import cast, get_args

from service.client_request import AlertCondition, AlertLevel, AllOf, AnyOf, Condition

_TOKEN = re.compile(r"\s*(?:([()])|([^\s()]+))")
_ALERT = re.compile(r"(?P<monitor>[^:@]+)(?::(?P<level>[^:@]*))?(?:@(?P<roles>[^:@]*))?")


def parse_condition(text: str) -> Condition:
    """The condition that `text` says. ArgumentTypeError if it says none."""
    words = [first or second for first, second in _TOKEN.findall(text)]
    parser = _Parser(words)
    condition = parser.any_of()
    if parser.left:
        raise ArgumentTypeError(f"when: must go on with `and` or `or` before {parser.left[0]!r}.")
    return condition


class _Parser:
    def __init__(self, words: list[str]) -> None:
        self.left = words

    def any_of(self) -> Condition:
        return self._joined("or", self._all_of, AnyOf)

    def _all_of(self) -> Condition:
        return self._joined("and", self._one, AllOf)

    def _joined(self, word: str, read: Callable[[], Condition], group: type[AllOf] | type[AnyOf]) -> Condition:
        parts = [read()]
        while self.left and self.left[0] == word:
            self.left.pop(0)
            parts.append(read())
        return parts[0] if len(parts) == 1 else group(parts)

    def _one(self) -> Condition:
        word = self._next("a monitor")
        if word == "(":
            inside = self.any_of()
            if self._next("`)`") != ")":
                raise ArgumentTypeError("when: must close its brackets.")
            return inside
        if word == "ever":
            return _alert(self._next("a monitor after `ever`"), has_fired=True)
        return _alert(word)

    def _next(self, wanted: str) -> str:
        if not self.left:
            raise ArgumentTypeError(f"when: must go on with {wanted}. Got its end.")
        return self.left.pop(0)


def _alert(word: str, *, has_fired: bool = False) -> AlertCondition:
    found = _ALERT.fullmatch(word)
    if found is None or word in ("and", "or", "ever", "(", ")"):
        raise ArgumentTypeError(f"when: must have a monitor's name, NAME:LEVEL or NAME@ROLE. Got {word!r}.")
    level, roles = found["level"], found["roles"]
    if level is not None and level not in get_args(AlertLevel)[1:]:
        raise ArgumentTypeError(f"when: level must be one of {', '.join(get_args(AlertLevel)[1:])}. Got {level!r}.")
    if roles is not None and not all(roles.split("+")):
        raise ArgumentTypeError(f"when: roles must be joined by +. Got {word!r}.")
    return AlertCondition(
        monitor=found["monitor"],
        level=cast(AlertLevel, level or "unspecified"),
        roles=tuple(roles.split("+")) if roles else (),
        has_fired=has_fired,
    )
