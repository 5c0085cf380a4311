"""How the standardised scores of a monitor's components become its one score.

    Single     score = z_0
    Ensemble   score = mean(z) | sum_k w_k z_k | min(z) (all must be high) | max(z) (one is enough)
    Cascade    score = that of all components but the last (z_0, or an ensemble of them) while the last one, the gate,
               is above gate_threshold; else closed_score

`contributions` says what each component gave; they sum to the score. Where one component decides (min, max, a closed
gate) it gave all of it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from monitors import checks
from monitors.errors import Problem, shown

EnsembleRule = Literal["mean", "sum", "min", "max"]


@dataclass(frozen=True, slots=True)
class Single:
    """One component alone."""

    num_components: int = 1

    def score(self, scores: Sequence[float]) -> float:
        return scores[0]

    def contributions(self, scores: Sequence[float]) -> tuple[float, ...]:
        return (scores[0],)


@dataclass(frozen=True, slots=True)
class Ensemble:
    """Several components under a stated rule."""

    rule: EnsembleRule
    weights: tuple[float, ...]
    """One per component, none 0; all 1 unless the rule is sum."""

    def __post_init__(self) -> None:
        checks.refuse(
            checks.choice("rule", self.rule, get_args(EnsembleRule)),
            *(_weight(i, weight, self.rule) for i, weight in enumerate(self.weights)),
        )
        if len(self.weights) < 2:
            checks.refuse(Problem("weights", "at least two, one per component", str(len(self.weights))))

    @property
    def num_components(self) -> int:
        return len(self.weights)

    def score(self, scores: Sequence[float]) -> float:
        match self.rule:
            case "mean":
                return math.fsum(scores) / len(scores)
            case "sum":
                return math.fsum([w * z for w, z in zip(self.weights, scores, strict=True)])
            case "min":
                return min(scores)
            case "max":
                return max(scores)

    def contributions(self, scores: Sequence[float]) -> tuple[float, ...]:
        match self.rule:
            case "mean":
                return tuple(z / len(scores) for z in scores)
            case "sum":
                return tuple(w * z for w, z in zip(self.weights, scores, strict=True))
            case _:
                deciding = scores.index(self.score(scores))
                return tuple(z if k == deciding else 0.0 for k, z in enumerate(scores))


@dataclass(frozen=True, slots=True)
class Cascade:
    """Components that are listened to only while the last one, the gate, agrees."""

    gate_threshold: float
    """The gate's standardised score must be strictly above."""
    closed_score: float
    """The score while it is not: frozen, and low."""
    listened: Single | Ensemble = Single()
    """What the components before the gate amount to."""

    def __post_init__(self) -> None:
        checks.refuse(
            checks.finite("gate_threshold", self.gate_threshold), checks.finite("closed_score", self.closed_score)
        )

    @property
    def num_components(self) -> int:
        return self.listened.num_components + 1

    def is_open(self, scores: Sequence[float]) -> bool:
        """Whether the gate lets the others be heard."""
        return scores[-1] > self.gate_threshold

    def score(self, scores: Sequence[float]) -> float:
        return self.listened.score(scores[:-1]) if self.is_open(scores) else self.closed_score

    def contributions(self, scores: Sequence[float]) -> tuple[float, ...]:
        if self.is_open(scores):
            return (*self.listened.contributions(scores[:-1]), 0.0)
        return (*(0.0 for _ in scores[:-1]), self.closed_score)


Combination = Single | Ensemble | Cascade


def _weight(index: int, weight: float, rule: str) -> Problem | None:
    field = f"weights.{index}"
    if rule == "sum" and weight == 0:
        return Problem(field, "a number other than 0", shown(weight))
    if rule != "sum" and weight != 1:
        return Problem(field, f"1, since only the rule sum has weights and this one is {rule}", shown(weight))
    return checks.finite(field, weight)
