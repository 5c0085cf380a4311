"""When a score becomes an alert: a pure state machine, fed one excess per scored token.

    armed --over warning--> firing(warning) --over critical--> firing(critical)
    firing --under clear--> cleared --cooldown_tokens--> armed
                            cleared --over critical, for the first time--> firing(critical)

From armed a token over critical goes straight to firing(critical). A level is never taken back before the alert clears.
Cooling down keeps what was told from being told again; a level that was not reached yet is news, and is told: so a run
reaches a level if any of its excesses from `min_tokens` on is over it, which is what thresholds are calibrated on.
An excess equal to a mark crosses neither way. The machine knows nothing of components, positions or requests: it counts
scored tokens and nothing else.
"""

import math
from enum import StrEnum
from typing import NamedTuple

from monitors import checks
from monitors.errors import Problem, shown
from monitors.thresholds import LEVELS, Level, Marks


class Phase(StrEnum):
    """Where an alarm stands."""

    ARMED = "armed"
    FIRING = "firing"
    CLEARED = "cleared"
    """Cooling down: until `cooldown_tokens` tokens have passed only a higher level than any before can fire."""


class Transition(NamedTuple):
    """What one token changed: an alert of `level` began (raised), or the one that was open ended."""

    raised: bool
    level: Level
    mark: float
    """The mark crossed."""


class Alarm:
    """One run of scores."""

    def __init__(self, min_tokens: int, cooldown_tokens: int) -> None:
        """
        Args:
            min_tokens: fires at the `min_tokens`-th scored token at the earliest: early means are over few tokens.
            cooldown_tokens: scored tokens after the clearing one that cannot fire at a level reached before.
        """
        self.phase = Phase.ARMED
        self.level: Level | None = None
        """Level of the open alert."""
        self.highest: Level | None = None
        """Highest level reached so far."""
        self.num_scored = 0
        self._min_tokens = min_tokens
        self._cooldown_tokens = cooldown_tokens
        self._cooldown_left = 0

    def step(self, excess: float, marks: Marks) -> Transition | None:
        """Takes the excess at the next scored token; tells what it changed.

        Raises MonitorError, and changes nothing, if the excess is not finite: NaN compares false with everything, so
        letting it pass would look like a quiet monitor.
        """
        if not math.isfinite(excess):
            checks.refuse(Problem("score", "a finite number", shown(excess)))
        self.num_scored += 1
        match self.phase:
            case Phase.ARMED:
                return self._raise(excess, marks, above=None) if self.num_scored >= self._min_tokens else None
            case Phase.FIRING:
                return self._clear(marks) if excess < marks.clear else self._raise(excess, marks, above=self.level)
            case Phase.CLEARED:
                self._cool_down()
                return self._raise(excess, marks, above=self.highest)

    def _raise(self, excess: float, marks: Marks, *, above: Level | None) -> Transition | None:
        """The highest level that is passed, if it is higher than `above`."""
        if above == "critical":
            return None
        if marks.critical is not None and excess > marks.critical:
            return self._open("critical", marks.critical)
        if above is None and marks.warning is not None and excess > marks.warning:
            return self._open("warning", marks.warning)
        return None

    def _open(self, level: Level, mark: float) -> Transition:
        self.phase, self.level = Phase.FIRING, level
        self.highest = level if self.highest is None else max(self.highest, level, key=LEVELS.index)
        return Transition(True, level, mark)

    def _clear(self, marks: Marks) -> Transition:
        assert self.level is not None
        transition = Transition(False, self.level, marks.clear)
        self.level = None
        self._cooldown_left = self._cooldown_tokens
        self.phase = Phase.CLEARED if self._cooldown_left else Phase.ARMED
        return transition

    def _cool_down(self) -> None:
        self._cooldown_left -= 1
        if self._cooldown_left == 0:
            self.phase = Phase.ARMED
