"""The monitor pack: one file with everything that a monitor is, bound to the model it was made for.

`NAME.pack.yaml` holds components, tensors, thresholds with their calibration, evidence, limits in words, and the hash
of all that. `fit` writes a pack without thresholds, the *frozen* monitor; `calibrate` adds thresholds, `evaluate`
evidence.

    pack = MonitorPack.load(path)
    pack.misfits(served), pack.mismatches(served)
    MonitorBank([pack.spec()])
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import TypeAdapter, ValidationError

from monitors import checks
from monitors.combination import Cascade, Combination, Ensemble, EnsembleRule, Single
from monitors.errors import MonitorError, PackError, Problem, shown
from monitors.monitor_spec import Kind, MonitorSpec, Role
from monitors.pack_parts import Bindings, PackCalibration, PackComponent, Served, probe_name
from monitors.pack_tensors import PackTensor
from monitors.strict_files import STRICT, content_sha256, problems_of, read_yaml, to_yaml, write_whole
from monitors.thresholds import Levels, LevelThreshold, Stratum, Thresholds

PACK_SUFFIX = ".pack.yaml"
HASH_KEY = "content_sha256"


class LinearProbe(NamedTuple):
    """A probe as whoever holds the residual computes it."""

    name: str
    hook_point: str
    direction: tuple[float, ...]
    bias: float


@dataclass(frozen=True, kw_only=True)
class MonitorPack:
    """One monitor, as it is kept. MonitorError if it contradicts itself."""

    format_version: Literal[1] = 1
    name: str
    version: int
    """Counts up with each fit, calibration and evaluation, from 1."""
    kind: Kind
    description: str
    """What it is meant to show."""
    limits: str
    """What it does not show."""
    validated: bool
    """Whether evidence supports the name."""
    validated_reason: str
    """Why, or why not."""
    bindings: Bindings
    components: tuple[PackComponent, ...]
    rule: EnsembleRule | None = None
    """For an ensemble; for a cascade of more than two components that of all but the last."""
    gate_threshold: float | None = None
    """For a cascade: what the last component's standardised score must exceed."""
    closed_score: float | None = None
    """For a cascade: the score while it does not."""
    window: int
    min_tokens: int
    cooldown_tokens: int
    roles: tuple[Role, ...] = ("assistant",)
    thresholds: Thresholds | None = None
    """None for a frozen monitor that was not calibrated yet: it can't be served."""
    calibration: PackCalibration | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)
    """Free JSON object."""
    tensors: Mapping[str, PackTensor] = field(default_factory=dict)

    __pydantic_config__: ClassVar[Any] = STRICT

    def __post_init__(self) -> None:
        checks.refuse(
            checks.count("version", self.version, at_least=1),
            checks.sentence("description", self.description),
            checks.sentence("limits", self.limits),
            checks.sentence("validated_reason", self.validated_reason),
            checks.json_object("evidence", self.evidence),
            *self._bad_combination(),
            *self._bad_tensors(),
            *self._bad_claims(),
            *self._bad_thresholds(),
        )
        self._make_spec(self.thresholds or _NO_THRESHOLDS)  # finds the rest

    # --- files ---

    @classmethod
    def load(cls, path: Path) -> "MonitorPack":
        """Reads a pack. PackError naming every problem found, OSError if the file cannot be read."""
        text = path.read_bytes()
        try:
            facts = read_yaml(text)
            checks.refuse(checks.json_object("file", facts) if not isinstance(facts, dict) else None)
            signed = facts.pop(HASH_KEY, None)
            pack = _READER.validate_json(json.dumps(facts))
        except ValidationError as error:
            raise PackError(*problems_of(error), path=path) from error
        except MonitorError as error:
            raise PackError(*error.problems, path=path) from error
        if signed != pack.content_sha256:
            wanted = f"{pack.content_sha256!r}, the hash of what the file holds"
            raise PackError(Problem(HASH_KEY, wanted, shown(signed)), path=path)
        return pack

    def save(self, path: Path) -> None:
        """Writes the pack with its hash, whole or not at all."""
        write_whole(path, to_yaml(self.as_json() | {HASH_KEY: self.content_sha256}))

    def as_json(self) -> dict[str, Any]:
        """Everything but the hash."""
        return asdict(self) | {"components": tuple(component.as_json() for component in self.components)}

    @cached_property
    def content_sha256(self) -> str:
        """Over the canonical JSON of everything: the pack's signature."""
        return content_sha256(self.as_json())

    @cached_property
    def frozen_sha256(self) -> str:
        """Over what decides the score: thresholds and evidence may be added later without changing it."""
        facts = self.as_json()
        del facts["bindings"]["temperatures"]
        return content_sha256({key: facts[key] for key in _FROZEN_KEYS})

    # --- use ---

    def spec(self) -> MonitorSpec:
        """The monitor. PackError if it has no thresholds yet."""
        if self.thresholds is None:
            raise PackError(Problem("thresholds", "calibrated thresholds", "nothing"))
        return self._make_spec(self.thresholds, pack_sha256=self.content_sha256)

    def probes(self) -> list[LinearProbe]:
        """Its probes, under the names that `spec` knows them by."""
        return [
            LinearProbe(
                probe_name(self.name, component.name),
                component.hook_point or "",
                self.tensors[component.probe.direction].values,
                component.probe.bias,
            )
            for component in self.components
            if component.probe is not None
        ]

    def mismatches(self, served: Served) -> list[Problem]:
        """Why its numbers are not known to hold for what is served; empty if it was made for it."""
        return self.bindings.mismatches(served)

    def misfits(self, served: Served) -> list[Problem]:
        """Why it can't run at all on what is served: other latents, another width, too few layers."""
        if self._reads_latents and self.bindings.sae_sha256 != served.sae_sha256:
            wanted = f"{served.sae_sha256!r}, the dictionary's: latents mean nothing in another one"
            if served.sae_sha256 is None:
                wanted = "null, since there is no dictionary to read latents with"
            return [Problem("bindings.sae_sha256", wanted, shown(self.bindings.sae_sha256))]
        return [
            problem.within(f"components.{i}")
            for i, component in enumerate(self.components)
            for problem in self._misfits_of(component, served)
        ]

    # --- checks ---

    @property
    def _reads_latents(self) -> bool:
        return any(component.features for component in self.components)

    def _combination(self) -> Combination:
        if self.kind == "cascade" and self.gate_threshold is not None and self.closed_score is not None:
            return Cascade(self.gate_threshold, self.closed_score, self._under_rule(self.components[:-1]))
        return self._under_rule(self.components)

    def _under_rule(self, components: Sequence[PackComponent]) -> Single | Ensemble:
        if self.rule is None:
            return Single()
        return Ensemble(self.rule, tuple(component.weight for component in components))

    def _make_spec(self, thresholds: Thresholds, pack_sha256: str = "") -> MonitorSpec:
        return MonitorSpec(
            name=self.name,
            kind=self.kind,
            components=tuple(component.component(self.name) for component in self.components),
            combination=self._combination(),
            window=self.window,
            min_tokens=self.min_tokens,
            cooldown_tokens=self.cooldown_tokens,
            roles=self.roles,
            thresholds=thresholds,
            validated=self.validated,
            pack_sha256=pack_sha256,
        )

    def _bad_combination(self) -> Iterator[Problem]:
        given = {"rule": self.rule, "gate_threshold": self.gate_threshold, "closed_score": self.closed_score}
        gated, of_kind = ("gate_threshold", "closed_score"), f"kind {self.kind}"
        needed = {"ensemble": ("rule",), "cascade": gated}.get(self.kind, ())
        if self.kind == "cascade":
            of_kind = f"a cascade of {len(self.components)} components"
            needed = ("rule", *gated) if len(self.components) > 2 else gated
        for name, value in given.items():
            if value is None and name in needed:
                yield Problem(name, f"a value for {of_kind}", "nothing")
            elif value is not None and name not in needed:
                yield Problem(name, f"null for {of_kind}", shown(value))
        least = 2 if self.kind == "ensemble" else 1
        if len(self.components) < least:
            yield Problem("components", f"at least {least} for kind {self.kind}", str(len(self.components)))
        gate = len(self.components) - 1 if self.kind == "cascade" else None
        for i, component in enumerate(self.components):
            if self.rule == "sum" and i != gate and component.weight == 0:
                yield Problem(f"components.{i}.weight", "a number other than 0", shown(component.weight))
            elif (self.rule != "sum" or i == gate) and component.weight != 1:
                why = "a gate has no weight" if i == gate else "only the rule sum has weights"
                yield Problem(f"components.{i}.weight", f"1, since {why}", shown(component.weight))

    def _bad_tensors(self) -> Iterator[Problem]:
        named = [(i, c.probe.direction) for i, c in enumerate(self.components) if c.probe is not None]
        for i, name in named:
            if name not in self.tensors:
                known = ", ".join(self.tensors) or "none"
                yield Problem(f"components.{i}.probe.direction", f"one of the tensors ({known})", shown(name))
        widths = {tensor.shape for tensor in self.tensors.values()}
        for name, tensor in self.tensors.items():
            if name not in {used for _, used in named}:
                yield Problem(f"tensors.{name}", "a tensor that a component names", "one that none does")
            elif len(tensor.shape) != 1 or len(widths) > 1:
                yield Problem(f"tensors.{name}.shape", "one dimension, the same for all", shown(list(tensor.shape)))

    def _bad_claims(self) -> Iterator[Problem]:
        if (self.thresholds is None) != (self.calibration is None):
            missing, given = ("thresholds", "calibration") if self.thresholds is None else ("calibration", "thresholds")
            yield Problem(missing, f"a value, since there is one of {given}", "nothing")
        method = self.calibration.method if self.calibration else "missing"
        if self.validated and method != "conformal_by_length":
            yield Problem("validated", f"false while the calibration is {method}", "true")
        if self._reads_latents != (self.bindings.sae_sha256 is not None):
            wanted = "the hash of the dictionary" if self._reads_latents else "null, since no latent is read"
            yield Problem("bindings.sae_sha256", wanted, shown(self.bindings.sae_sha256))

    def _bad_thresholds(self) -> Iterator[Problem]:
        """Thresholds that could never be passed, or that a closed gate passes."""
        if self.thresholds is None or checks.count("min_tokens", self.min_tokens, at_least=1) is not None:
            return
        levels = [level for _, level in self.thresholds.levels.named()]
        last = max(bound for level in levels for bound in level.strata)
        if self.min_tokens > last:
            yield Problem("min_tokens", f"at most {last}, up to which a level stands", shown(self.min_tokens))
        if self.closed_score is None:
            return
        offset = min(level.offset for level in levels)
        for stretch in self.thresholds.stretches:
            can_fire = stretch.marks.can_fire and stretch.max_tokens >= self.min_tokens
            # As the alarm compares: a threshold that was calibrated on closed gates alone is passed by none.
            if can_fire and self.closed_score - stretch.profile > offset:
                wanted = f"at most {stretch.profile + offset:g}, above which an alert is raised"
                yield Problem("closed_score", wanted, shown(self.closed_score))
                return

    def _misfits_of(self, component: PackComponent, served: Served) -> Iterator[Problem]:
        for j, part in enumerate(component.features):
            if part.feature >= served.num_latents:
                yield Problem(f"features.{j}.feature", f"a latent below {served.num_latents}", shown(part.feature))
        if component.probe is None or component.hook_point is None:
            return
        if int(component.hook_point.split(".")[1]) >= served.num_layers:
            yield Problem("hook_point", f"one of {served.num_layers} layers", shown(component.hook_point))
        [width] = self.tensors[component.probe.direction].shape
        if width != served.d_model:
            wanted = f"a tensor of width {served.d_model}, the model's"
            yield Problem("probe.direction", wanted, f"{width}, of {self.bindings.model_name}")


_FROZEN_KEYS = (
    "kind", "bindings", "components", "rule", "gate_threshold", "closed_score", "window", "min_tokens",
    "cooldown_tokens", "roles", "tensors",
)  # fmt: skip
# Stands in for the thresholds of a frozen monitor while the rest is checked.
_NO_THRESHOLDS = Thresholds((Stratum(1, 0.0),), Levels(LevelThreshold(0.5, 0.0, (1,)), None), 0.0)
_READER = TypeAdapter(MonitorPack)
