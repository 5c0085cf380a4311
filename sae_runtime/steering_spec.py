"""Steering as it is asked for: one operation in words, and what a dictionary and a model allow of it.

Plain numbers but for `SteeringLimits.of`. `sae_runtime.steering` changes residuals by these.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from sae_runtime.errors import SteeringError
from sae_runtime.sae import SAE

# Keeps products of strength, activation and direction far from the end of 32-bit floats.
_MAX_STRENGTH = 1e6
# Outside of these the squares of 32-bit floats under- or overflow, and the direction is lost.
_MIN_NORM, _MAX_NORM = 1e-12, 1e12


class SteeringOp(StrEnum):
    """Operations on the residual h; v is the direction, v^ its unit vector, d and f a feature's direction and value."""

    ADD = "add"
    """h += strength * v"""
    SCALE = "scale"
    """h += (strength - 1) * f * d"""
    SET = "set"
    """h += (strength - f) * d"""
    PROJECT_OUT = "project_out"
    """h -= (h . v^) v^"""
    CAP = "cap"
    """h -= max(h . v^ - strength, 0) v^"""


class StrengthUnit(StrEnum):
    """What a strength is measured in."""

    RAW = "raw"
    """ADD: multiples of v. SCALE: a factor. SET: the activation. CAP: residual units."""
    RELATIVE = "relative"
    """Multiples of ||h|| at that position, along v^. For ADD, SET and CAP."""


class PositionScope(StrEnum):
    """Which positions are steered."""

    ALL = "all"
    PROMPT = "prompt"
    GENERATED = "generated"


ALL_BUT_FIRST = (1, 2**31 - 1)
"""Window of all positions but the first, whose massive activation the model needs."""


@dataclass(frozen=True, slots=True)
class SteeringSpec:
    """One operation, as asked for. `direction` is a latent's index or a raw vector of D numbers."""

    direction: int | tuple[float, ...]
    op: SteeringOp
    strength: float = 0.0
    unit: StrengthUnit = StrengthUnit.RAW
    scope: PositionScope = PositionScope.ALL
    window: tuple[int, int] | None = None
    """Positions [start, end), on top of the scope."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.strength):
            raise SteeringError(f"strength must be finite, got {self.strength}")
        if self.unit is StrengthUnit.RELATIVE and self.op in (SteeringOp.SCALE, SteeringOp.PROJECT_OUT):
            raise SteeringError(f"unit must be raw for {self.op}, got relative")
        if self.op is SteeringOp.PROJECT_OUT and self.strength:
            raise SteeringError(f"strength must be 0 or unset for project_out, got {self.strength:g}")
        if abs(self.strength) > _MAX_STRENGTH:
            raise SteeringError(f"strength must lie within +-{_MAX_STRENGTH:g}, got {self.strength:g}")
        if self.window is not None and not 0 <= self.window[0] < self.window[1]:
            raise SteeringError(f"window must have 0 <= start < end, got [{self.window[0]}, {self.window[1]})")

    def covers(self, position: int, num_prompt_tokens: int) -> bool:
        """Whether `position` (0 is the first prompt token) is to be steered."""
        if self.window is not None and not self.window[0] <= position < self.window[1]:
            return False
        match self.scope:
            case PositionScope.ALL:
                return True
            case PositionScope.PROMPT:
                return position < num_prompt_tokens
            case PositionScope.GENERATED:
                return position >= num_prompt_tokens


@dataclass(frozen=True, slots=True)
class SteeringLimits:
    """What a spec may ask of one dictionary and model. Plain numbers: checking needs no tensors."""

    d_model: int
    direction_norms: Sequence[float]
    """Per latent, the norm of what one unit of its activation adds to the residual."""
    resid_norm_mean: float | None
    """Typical ||h||, to judge raw strengths by; None: they can't be judged beforehand."""
    max_relative_norm: float
    """Most that an operation may move the residual, as a multiple of its norm."""

    @classmethod
    def of(cls, sae: SAE, resid_norm_mean: float | None, max_relative_norm: float) -> "SteeringLimits":
        norms = (sae.W_dec.norm(dim=-1) / sae.scale).tolist()
        # With a scale per token, a raw strength means another length at every token.
        mean = resid_norm_mean if sae.normalization == "scalar" else None
        return cls(sae.d_model, norms, mean, max_relative_norm)

    @classmethod
    def without_dictionary(cls, d_model: int, max_relative_norm: float) -> "SteeringLimits":
        """No latent to steer along, and nothing known of what norm is usual."""
        return cls(d_model, (), None, max_relative_norm)

    def check(self, spec: SteeringSpec) -> None:
        """Raises SteeringError, its message beginning with the field's name."""
        length = self._length(spec)
        if not math.isfinite(length):
            raise SteeringError("vector must be finite, got NaN, infinity or a norm that overflows")
        if length == 0:
            raise SteeringError("direction must not be the zero vector")
        if not _MIN_NORM <= length <= _MAX_NORM:
            raise SteeringError(f"direction must have a norm of {_MIN_NORM:g} to {_MAX_NORM:g}, got {length:g}")
        if spec.op not in (SteeringOp.ADD, SteeringOp.SET):
            return
        if spec.unit is StrengthUnit.RELATIVE:
            relative = abs(spec.strength)
        elif self.resid_norm_mean is not None:
            # SET along a raw vector counts in residual units, whatever the vector's length.
            unit = 1.0 if spec.op is SteeringOp.SET and not isinstance(spec.direction, int) else length
            relative = abs(spec.strength) * unit / self.resid_norm_mean
        else:
            return
        if relative > self.max_relative_norm:
            largest = abs(spec.strength) * self.max_relative_norm / relative
            raise SteeringError(
                f"strength must move the residual by at most {self.max_relative_norm:g} times its norm, which is a "
                f"strength of {largest:.3g}, got {relative:.3g} times with {spec.strength:g}"
            )

    def _length(self, spec: SteeringSpec) -> float:
        if isinstance(spec.direction, int):
            if not self.direction_norms:
                raise SteeringError(f"feature must be unset, since there is no dictionary, got {spec.direction}")
            if not 0 <= spec.direction < len(self.direction_norms):
                raise SteeringError(
                    f"feature must be a latent in 0..{len(self.direction_norms) - 1}, got {spec.direction}"
                )
            return self.direction_norms[spec.direction]
        if len(spec.direction) != self.d_model:
            raise SteeringError(f"vector must hold {self.d_model} numbers, got {len(spec.direction)}")
        return math.sqrt(sum(x * x for x in spec.direction))
