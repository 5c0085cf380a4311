"""When a score becomes an alert: a pure state machine, fed one excess per scored token.

    armed --over warning--> firing(warning) --over critical--> firing(critical)
    firing --under clear--> cleared --cooldown_tokens--> armed

From armed a token over critical goes straight to firing(critical). A level is never taken back before the alert clears.
An excess equal to a mark crosses neither way. The machine knows nothing of components, positions or requests: it counts
scored tokens and nothing else.
"""

import math
from enum import StrEnum
from typing import NamedTuple

from monitors import checks
from monitors.errors import Problem, shown
from monitors.thresholds import Level, Marks


class Phase(StrEnum):
    """Where an alarm stands."""

    ARMED = "armed"
    FIRING = "firing"
    CLEARED = "cleared"
    """Cooling down: no excess can fire it until `cooldown_tokens` tokens have passed."""


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
            cooldown_tokens: scored tokens after the clearing one that cannot fire.
        """
        self.phase = Phase.ARMED
        self.level: Level | None = None
        """Level of the open alert."""
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
                return self._raise(excess, marks) if self.num_scored >= self._min_tokens else None
            case Phase.FIRING:
                return self._clear(marks) if excess < marks.clear else self._raise(excess, marks)
            case Phase.CLEARED:
                self._cool_down()
                return None

    def _raise(self, excess: float, marks: Marks) -> Transition | None:
        """The highest level that is passed, unless the open alert has it already."""
        if self.level == "critical":
            return None
        if marks.critical is not None and excess > marks.critical:
            return self._open("critical", marks.critical)
        if self.level is None and marks.warning is not None and excess > marks.warning:
            return self._open("warning", marks.warning)
        return None

    def _open(self, level: Level, mark: float) -> Transition:
        self.phase, self.level = Phase.FIRING, level
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
