"""When a score becomes an alert: a pure state machine, fed one rolling score per scored token.

    armed --score > threshold--> firing --score < clear_threshold--> cleared --cooldown_tokens--> armed

A score equal to a threshold crosses neither way. The machine knows nothing of features, positions or requests: it
counts scored tokens and nothing else. `Rule` is the configuration, `RuleState` one request's place in it.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, get_args

from monitors import checks
from monitors.errors import Problem, shown

Severity = Literal["info", "warning", "critical"]


class RulePhase(StrEnum):
    """Where a rule stands."""

    ARMED = "armed"
    FIRING = "firing"
    CLEARED = "cleared"
    """Cooling down: no score can fire it until `cooldown_tokens` tokens have passed."""


class Transition(StrEnum):
    """What one token changed."""

    FIRED = "fired"
    CLEARED = "cleared"


@dataclass(frozen=True, slots=True)
class Rule:
    """How scores are averaged and when the average fires."""

    threshold: float
    """Fires when the rolling score is strictly above. In units of the score."""
    clear_threshold: float
    """Clears when the rolling score is strictly below; at most `threshold`. The gap is the hysteresis."""
    window: int
    """Scored tokens in the rolling mean, 1 or more. Until there are so many, the mean is over those there are."""
    min_tokens: int
    """Fires at the `min_tokens`-th scored token at the earliest, 1 or more: early means are over few tokens."""
    cooldown_tokens: int
    """Scored tokens after the clearing one that cannot fire, 0 or more."""
    severity: Severity

    def __post_init__(self) -> None:
        checks.refuse(
            checks.finite("threshold", self.threshold),
            checks.finite("clear_threshold", self.clear_threshold),
            checks.count("window", self.window, at_least=1),
            checks.count("min_tokens", self.min_tokens, at_least=1),
            checks.count("cooldown_tokens", self.cooldown_tokens, at_least=0),
            checks.choice("severity", self.severity, get_args(Severity)),
        )
        if self.clear_threshold > self.threshold:
            wanted = f"at most threshold, which is {self.threshold}"
            checks.refuse(Problem("clear_threshold", wanted, shown(self.clear_threshold)))


class RuleState:
    """One request's run through a rule."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.phase = RulePhase.ARMED
        self._num_scored = 0
        self._cooldown_left = 0

    @property
    def firing(self) -> bool:
        """Whether an alert is open."""
        return self.phase is RulePhase.FIRING

    def step(self, score: float) -> Transition | None:
        """Takes the rolling score at the next scored token; tells what it changed.

        Raises MonitorError, and changes nothing, if the score is not finite: NaN compares false with everything,
        so letting it pass would look like a quiet monitor.
        """
        if not math.isfinite(score):
            checks.refuse(Problem("score", "a finite number", shown(score)))
        self._num_scored += 1
        match self.phase:
            case RulePhase.ARMED:
                return self._step_armed(score)
            case RulePhase.FIRING:
                return self._step_firing(score)
            case RulePhase.CLEARED:
                self._cool_down()
                return None

    def _step_armed(self, score: float) -> Transition | None:
        if self._num_scored < self.rule.min_tokens or score <= self.rule.threshold:
            return None
        self.phase = RulePhase.FIRING
        return Transition.FIRED

    def _step_firing(self, score: float) -> Transition | None:
        if score >= self.rule.clear_threshold:
            return None
        self._cooldown_left = self.rule.cooldown_tokens
        self.phase = RulePhase.CLEARED if self._cooldown_left else RulePhase.ARMED
        return Transition.CLEARED

    def _cool_down(self) -> None:
        self._cooldown_left -= 1
        if self._cooldown_left == 0:
            self.phase = RulePhase.ARMED
