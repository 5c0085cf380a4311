"""What a monitor takes from one token: the readings of latents, or the value of a probe, as one token score.

    FeatureScore   s_t = sum_i w_i * g(f_i / scale_i),  g(x) = x (linear)  or  log(1 + max(x, 0)) (log1p)
    ProbeScore     s_t = resid_t . direction + bias, which whoever holds the residual has computed

A `Component` is one of them under a name, with the frozen `center` and `scale` that make it comparable with others:

    z_t = (mean of the last `window` token scores - center) / scale

Tokens that carry a massive activation are off scale and not scored. Where latents are read the dictionary says which
those are, by what is usual at its place; a probe may have a largest norm of its own, which makes its monitor the same
with any dictionary and with none.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from monitors import checks
from monitors.errors import Problem, shown

Transform = Literal["linear", "log1p"]

OFF_SCALE_NORMS = 5.0
"""A residual so many times as long as usual is a massive activation: they are about 100 times as long in the embedded
model, 25 times in Qwen2.5-Coder-1.5B, and all other tokens at most twice."""


class Inputs(NamedTuple):
    """What was read at one token."""

    readings: Mapping[int, float] = {}
    """Latent -> activation."""
    probes: Mapping[str, float] = {}
    """Probe -> value."""
    norms: Mapping[str, float] = {}
    """Probe -> norm of the residual that it was taken from."""
    off_scale: bool = False
    """Whether it is a massive activation by what the dictionary holds usual; False without one."""


@dataclass(frozen=True, slots=True)
class WeightedFeature:
    """One latent's part in a score."""

    feature: int
    """Index of the latent."""
    weight: float
    """Sign and strength, not 0: a monitor of zero weights would look quiet for ever."""
    scale: float
    """Reading that counts as 1, above 0."""

    def __post_init__(self) -> None:
        checks.refuse(
            checks.count("feature", self.feature, at_least=0),
            checks.finite("weight", self.weight),
            checks.positive("scale", self.scale),
        )
        if self.weight == 0:
            checks.refuse(Problem("weight", "a number other than 0", shown(self.weight)))

    def contribution(self, reading: float, transform: Transform) -> float:
        """This latent's summand in the token score."""
        if transform == "log1p":
            return self.weight * math.log1p(max(reading, 0.0) / self.scale)
        return self.weight * reading / self.scale


@dataclass(frozen=True, slots=True)
class FeatureScore:
    """A weighted sum of latents' readings."""

    features: tuple[WeightedFeature, ...]
    """At least one, no latent twice."""
    transform: Transform

    def __post_init__(self) -> None:
        indices = [part.feature for part in self.features]
        checks.refuse(
            None if indices else Problem("features", "at least one feature", "none"),
            *(
                Problem(f"features.{i}.feature", "a latent that the component does not use yet", shown(index))
                for i, index in enumerate(indices)
                if index in indices[:i]
            ),
            checks.choice("transform", self.transform, get_args(Transform)),
        )

    def is_off_scale(self, inputs: Inputs) -> bool:
        """Whether readings of this token mean nothing, as the dictionary says."""
        return inputs.off_scale

    def parts(self, inputs: Inputs) -> tuple[float, ...]:
        """Summands of one token's score, in the order of `features`; their `math.fsum` is the token score.

        Raises MonitorError if a reading is missing or not finite, or a summand too large to be averaged.
        """
        return tuple([self._part(part, inputs.readings) for part in self.features])

    def _part(self, part: WeightedFeature, readings: Mapping[int, float]) -> float:
        if part.feature not in readings:
            checks.refuse(Problem(f"readings.{part.feature}", "a reading", "nothing"))
        reading = float(readings[part.feature])  # arithmetic on a numpy float32 would stay float32
        if not checks.is_summable(reading):  # before max(reading, 0) can make a harmless 0 of a NaN
            checks.refuse(checks.finite(f"readings.{part.feature}", reading))
        contribution = part.contribution(reading, self.transform)
        if not checks.is_summable(contribution):
            checks.refuse(checks.finite(f"contributions.{part.feature}", contribution))
        return contribution


@dataclass(frozen=True, slots=True)
class ProbeScore:
    """A linear probe's value."""

    probe: str
    """Its name among `Inputs.probes`."""
    largest_norm: float | None = None
    """Longer residuals are off scale, above 0; None: as the dictionary says."""

    def __post_init__(self) -> None:
        checks.refuse(
            checks.sentence("probe", self.probe),
            None if self.largest_norm is None else checks.positive("largest_norm", self.largest_norm),
        )

    def is_off_scale(self, inputs: Inputs) -> bool:
        """Whether this token's value means nothing. MonitorError if its norm is missing."""
        if self.largest_norm is None:
            return inputs.off_scale
        if self.probe not in inputs.norms:
            checks.refuse(Problem(f"norms.{self.probe}", "a norm", "nothing"))
        return inputs.norms[self.probe] > self.largest_norm

    def parts(self, inputs: Inputs) -> tuple[float, ...]:
        """The value, as a sum of one. MonitorError if it is missing or not finite."""
        if self.probe not in inputs.probes:
            checks.refuse(Problem(f"probes.{self.probe}", "a value", "nothing"))
        value = float(inputs.probes[self.probe])
        if not checks.is_summable(value):
            checks.refuse(checks.finite(f"probes.{self.probe}", value))
        return (value,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """A token score under a name, and what makes its rolling mean comparable with those of others."""

    name: str
    score: FeatureScore | ProbeScore
    center: float = 0.0
    """Rolling mean that counts as 0; frozen before any threshold is set. In units of the token score."""
    scale: float = 1.0
    """Distance from the center that counts as 1, above 0. In units of the token score."""

    def __post_init__(self) -> None:
        checks.refuse(
            checks.slug("name", self.name),
            checks.finite("center", self.center),
            checks.positive("scale", self.scale),
        )

    def standardised(self, rolling_mean: float) -> float:
        """A rolling mean of token scores in standard units."""
        return (rolling_mean - self.center) / self.scale

    @property
    def latents(self) -> tuple[int, ...]:
        """Latents it reads, in the order of its parts; none for a probe."""
        return tuple(part.feature for part in self.score.features) if isinstance(self.score, FeatureScore) else ()
