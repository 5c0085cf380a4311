"""The parts of a monitor pack: what it is bound to, its components, and what its thresholds rest on."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from monitors import checks
from monitors.components import Component, FeatureScore, ProbeScore, Transform, WeightedFeature
from monitors.drift import Reference
from monitors.errors import MonitorError, Problem, shown

ProbeMethod = Literal["logistic_regression", "difference_of_means", "lda"]
CalibrationMethod = Literal["conformal_by_length", "plain_quantile", "by_hand"]

_HOOK_POINT = re.compile(r"layers\.\d+\.(input|output)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What is served, as far as a pack can be bound to it."""

    model_name: str
    model_sha256: str
    quantization: str
    dtype: str
    chat_template_sha256: str | None
    """None for a model without a template."""
    sae_sha256: str | None
    """None if there is no dictionary."""
    d_model: int
    num_layers: int
    num_latents: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Bindings:
    """What the monitor was fitted and calibrated on. Elsewhere its numbers mean something else, or nothing."""

    model_name: str
    """For people; the hash decides."""
    model_sha256: str
    quantization: str
    """gguf-<type>, nf4, int8 or none."""
    dtype: str | None = None
    """Number format of the computation; None if it was not held to matter."""
    chat_template_sha256: str | None = None
    """Of the template's text in UTF-8; None if no template was used, or none in particular."""
    temperatures: tuple[float, ...] = ()
    """Sampling temperatures of the replies that thresholds were calibrated on."""
    sae_sha256: str | None = None
    """Weights hash of the dictionary; None if no latent is read."""

    def __post_init__(self) -> None:
        hashes = {"chat_template_sha256": self.chat_template_sha256, "sae_sha256": self.sae_sha256}
        checks.refuse(
            checks.sentence("model_name", self.model_name),
            checks.sha256("model_sha256", self.model_sha256),
            checks.sentence("quantization", self.quantization),
            None if self.dtype is None else checks.sentence("dtype", self.dtype),
            *(checks.sha256(name, value) for name, value in hashes.items() if value is not None),
            *(_temperature(i, value) for i, value in enumerate(self.temperatures)),
        )

    def mismatches(self, served: Served) -> list[Problem]:
        """Where `served` is something else than what this is bound to."""
        names = ("model_sha256", "quantization", "dtype", "chat_template_sha256", "sae_sha256")
        pairs = [(name, getattr(served, name), getattr(self, name)) for name in names]
        return [
            Problem(f"bindings.{name}", f"{got!r}, which is served", shown(bound))
            for name, got, bound in pairs
            if bound is not None and bound != got
        ]


@dataclass(frozen=True, slots=True)
class PackProbe:
    """A linear probe."""

    method: ProbeMethod
    """How it was fitted."""
    direction: str
    """Name of a tensor of the pack, [D]; any standardisation of the residual is folded in."""
    bias: float
    largest_norm: float | None = None
    """Norm at its hook point above which a token is a massive activation and not scored. None, as in packs of before
    there was one: the dictionary says which are, and without a dictionary none is."""

    def __post_init__(self) -> None:
        checks.refuse(
            checks.choice("method", self.method, get_args(ProbeMethod)),
            checks.slug("direction", self.direction),
            checks.finite("bias", self.bias),
            None if self.largest_norm is None else checks.positive("largest_norm", self.largest_norm),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PackComponent:
    """A component: weighted latents, or a probe."""

    name: str
    reads: str
    """What it reads, in plain words."""
    hook_point: str | None = None
    """Where a probe reads, like layers.15.output; None for latents, which are read where the dictionary is."""
    features: tuple[WeightedFeature, ...] = ()
    transform: Transform | None = None
    """For latents."""
    probe: PackProbe | None = None
    center: float = 0.0
    scale: float = 1.0
    weight: float = 1.0
    """Its weight in a sum; 1 elsewhere."""

    def __post_init__(self) -> None:
        checks.refuse(
            checks.slug("name", self.name),
            checks.sentence("reads", self.reads),
            checks.finite("center", self.center),
            checks.positive("scale", self.scale),
            checks.finite("weight", self.weight),
            *(self._bad_probe() if self.probe is not None else self._bad_features()),
        )
        if self.transform is not None:
            FeatureScore(self.features, self.transform)  # finds the rest

    def as_json(self) -> dict[str, Any]:
        """Everything. A probe without a largest norm has no key for it: so the hashes of older packs stand."""
        facts = asdict(self)
        if self.probe is not None and self.probe.largest_norm is None:
            del facts["probe"]["largest_norm"]
        return facts

    def component(self, pack: str) -> Component:
        """As a monitor uses it; the probe of `deception`'s component `stance` is called `deception.stance`."""
        score: FeatureScore | ProbeScore
        if self.probe is not None:
            score = ProbeScore(probe_name(pack, self.name), self.probe.largest_norm)
        else:
            assert self.transform is not None
            score = FeatureScore(self.features, self.transform)
        return Component(name=self.name, score=score, center=self.center, scale=self.scale)

    def _bad_probe(self) -> Iterator[Problem]:
        if self.features or self.transform is not None:
            yield Problem("features", "none beside a probe", "both")
        if self.hook_point is None or not _HOOK_POINT.fullmatch(self.hook_point):
            yield Problem("hook_point", "a place like layers.15.output", shown(self.hook_point))

    def _bad_features(self) -> Iterator[Problem]:
        if not self.features:
            yield Problem("features", "features or a probe", "neither")
        if self.hook_point is not None:
            yield Problem("hook_point", "null for latents: the dictionary says where", shown(self.hook_point))
        if self.transform is None:
            yield Problem("transform", f"one of {', '.join(get_args(Transform))}", "nothing")


@dataclass(frozen=True, slots=True, kw_only=True)
class PackCalibration:
    """What the thresholds rest on."""

    method: CalibrationMethod
    """conformal_by_length is `monitors.conformal`; the others bound nothing."""
    source: str
    """In words, for whoever sees an alert."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """JSON object, free but for `reference` (see `monitors.drift`): replies by stratum, control sets with their rates
    and intervals, alerts per 1,000 replies."""

    def __post_init__(self) -> None:
        checks.refuse(
            checks.choice("method", self.method, get_args(CalibrationMethod)),
            checks.sentence("source", self.source),
            checks.json_object("figures", self.figures),
        )
        try:
            Reference.from_figures(self.figures)
        except MonitorError as error:
            raise MonitorError(*(problem.within("figures") for problem in error.problems)) from None

    @property
    def reference(self) -> Reference | None:
        """What live values are compared with; None if the calibration kept no histograms."""
        return Reference.from_figures(self.figures)


def probe_name(pack: str, component: str) -> str:
    """What a pack's probe is called among those of a server."""
    return f"{pack}.{component}"


def _temperature(index: int, value: float) -> Problem | None:
    if isinstance(value, int | float) and 0 <= value <= 100:
        return None
    return Problem(f"temperatures.{index}", "a temperature of 0 to 100", shown(value))
