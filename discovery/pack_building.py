"""Frozen monitors from what was fitted: bindings, components, and packs of several packs' components."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from discovery.errors import MonitorLabError
from discovery.probe_fit import LinearProbe, Method
from discovery.reply_readings import ReplyReadings
from discovery.window_choice import Units
from monitors.combination import EnsembleRule
from monitors.components import OFF_SCALE_NORMS, WeightedFeature
from monitors.monitor_spec import Kind, Role
from monitors.pack import MonitorPack
from monitors.pack_parts import Bindings, PackComponent, PackProbe, Served
from monitors.pack_tensors import PackTensor
from sae_runtime.chat_template import template_sha256
from sae_runtime.checkpoint import LoadedSAE
from sae_runtime.hook_point import HookPoint
from sae_runtime.language_model import LanguageModel

NOT_EVALUATED = "Not evaluated yet."


def bindings_of(lm: LanguageModel, sae: LoadedSAE | None) -> Bindings:
    """What a monitor that is fitted now is bound to. The number format is not: readings hardly depend on it."""
    return Bindings(
        model_name=lm.identity.name,
        model_sha256=lm.identity.weights_sha256,
        quantization=lm.identity.quantization,
        chat_template_sha256=template_sha256(lm.tokenizer),
        sae_sha256=None if sae is None else sae.manifest.sae_sha256,
    )


def served_by(lm: LanguageModel, sae: LoadedSAE | None) -> Served:
    """A loaded model and dictionary, as a server would compare them with a pack's bindings."""
    return Served(
        model_name=lm.identity.name,
        model_sha256=lm.identity.weights_sha256,
        quantization=lm.identity.quantization,
        dtype=lm.identity.dtype,
        chat_template_sha256=template_sha256(lm.tokenizer),
        sae_sha256=None if sae is None else sae.manifest.sae_sha256,
        d_model=lm.d_model,
        num_layers=lm.num_layers,
        num_latents=0 if sae is None else sae.num_latents,
    )


def bound_to(pack: MonitorPack, lm: LanguageModel, sae: LoadedSAE | None, *, rebind: bool) -> MonitorPack:
    """The pack, if it is bound to what was loaded, or bound to it now.

    MonitorLabError names what is served and what the pack wants; what can't run there at all is refused in any case.
    """
    served = served_by(lm, sae)
    if problems := pack.misfits(served):
        raise MonitorLabError(f"pack {pack.name} can't run on {lm.identity.name}: {'; '.join(map(str, problems))}")
    if (problems := pack.mismatches(served)) and not rebind:
        raise MonitorLabError(
            f"pack {pack.name} must be bound to {lm.identity.name} as it is: {'; '.join(map(str, problems))} "
            "(--rebind binds it anew)"
        )
    if not rebind:
        return pack
    reads_latents = pack.bindings.sae_sha256 is not None
    return replace(pack, bindings=bindings_of(lm, sae if reads_latents else None))


def probe_parts(
    name: str, probe: LinearProbe, point: HookPoint, method: Method, reads: str
) -> tuple[PackComponent, dict[str, PackTensor]]:
    """A component that reads a probe, in the probe's own units, and its tensor."""
    component = PackComponent(name=name, reads=reads, hook_point=str(point), probe=PackProbe(method, name, probe.bias))
    return component, {name: PackTensor.of(probe.direction_D.tolist())}


def feature_parts(name: str, features: tuple[WeightedFeature, ...], reads: str) -> PackComponent:
    """A component that reads latents, in its own units."""
    return PackComponent(name=name, reads=reads, features=features, transform="log1p")


def with_largest_norms(pack: MonitorPack, readings: ReplyReadings) -> MonitorPack:
    """The pack, its probes knowing which residuals are massive activations, by the norms usual in `readings`.

    The median, since what it is to find would be part of a mean. `readings` has the pack's probes, in their order.
    """
    usual = iter(np.median(readings.norms_NP, axis=0).tolist())
    components = [
        component
        if component.probe is None
        else replace(component, probe=replace(component.probe, largest_norm=OFF_SCALE_NORMS * next(usual)))
        for component in pack.components
    ]
    return replace(pack, components=tuple(components))


def single_pack(
    name: str,
    component: PackComponent,
    tensors: dict[str, PackTensor],
    bindings: Bindings,
    *,
    units: Units,
    window: int,
    min_tokens: int,
    description: str,
    limits: str,
) -> MonitorPack:
    """A frozen monitor of one component."""
    num_features = len(component.features)
    kind: Kind = "probe" if component.probe is not None else "feature" if num_features == 1 else "features"
    return MonitorPack(
        name=name,
        version=1,
        kind=kind,
        description=description,
        limits=limits,
        validated=False,
        validated_reason=NOT_EVALUATED,
        bindings=bindings,
        components=(replace(component, center=units.center, scale=units.scale),),
        window=window,
        min_tokens=min_tokens,
        cooldown_tokens=window,
        tensors=tensors,
    )


def combined_pack(
    name: str,
    parts: Sequence[MonitorPack],
    *,
    rule: EnsembleRule | None = None,
    gate_threshold: float | None = None,
    closed_score: float | None = None,
    window: int | None = None,
    min_tokens: int | None = None,
    roles: tuple[Role, ...] | None = None,
    description: str,
    limits: str,
) -> MonitorPack:
    """One monitor of several frozen packs: an ensemble under `rule`; with `gate_threshold` a cascade, the gate last.

    MonitorLabError if a pack is a combination itself, or the packs are bound to different things, have components of
    one name, or different windows or roles with none given; MonitorError for what the pack itself refuses.
    """
    if len(parts) < 2:
        raise MonitorLabError(f"at least two packs must be given to be combined, got {len(parts)}")
    for part in parts:
        if len(part.components) > 1:  # its own rule would be lost
            raise MonitorLabError(f"packs must have one component each, got {len(part.components)} of {part.name}")
    components = [component for part in parts for component in part.components]
    names = [component.name for component in components]
    if twice := sorted({component for component in names if names.count(component) > 1}):
        raise MonitorLabError(f"components must have names of their own, got {', '.join(twice)} more than once")
    return MonitorPack(
        name=name,
        version=1,
        kind="ensemble" if gate_threshold is None else "cascade",
        description=description,
        limits=limits,
        validated=False,
        validated_reason=NOT_EVALUATED,
        bindings=_common_bindings(parts),
        components=tuple(components),
        rule=rule,
        gate_threshold=gate_threshold,
        closed_score=closed_score,
        window=_common("window", parts) if window is None else window,
        min_tokens=_common("min_tokens", parts) if min_tokens is None else min_tokens,
        cooldown_tokens=_common("window", parts) if window is None else window,
        roles=_common("roles", parts) if roles is None else roles,
        evidence={"fit": _combined_fit(parts)},
        tensors={name: tensor for part in parts for name, tensor in part.tensors.items()},
    )


def _common(field: str, parts: Sequence[MonitorPack]) -> Any:
    """What all parts have there. MonitorLabError, with each part's value as its flag takes it, if they differ."""
    values = [getattr(part, field) for part in parts]
    if len(set(values)) > 1:
        shown = [",".join(value) if isinstance(value, tuple) else str(value) for value in values]
        got = "; ".join(f"{part.name}: {words}" for part, words in zip(parts, shown, strict=True))
        raise MonitorLabError(f"packs must have the same {field}, got {got} (give --{field.replace('_', '-')})")
    return values[0]


def _common_bindings(parts: Sequence[MonitorPack]) -> Bindings:
    """The first's, which all others' must agree with; the dictionary's hash of whichever reads latents."""
    hashes = {part.bindings.sae_sha256 for part in parts} - {None}
    if len(hashes) > 1:
        raise MonitorLabError(
            f"packs must read the latents of one dictionary, got {', '.join(sorted(map(str, hashes)))}"
        )
    common = [replace(part.bindings, sae_sha256=None, temperatures=()) for part in parts]
    for part, bindings in zip(parts[1:], common[1:], strict=True):
        if bindings != common[0]:
            raise MonitorLabError(
                f"packs must be bound to the same model, got {common[0]} of {parts[0].name}, {bindings} of {part.name}"
            )
    return replace(common[0], sae_sha256=next(iter(hashes), None))


def _combined_fit(parts: Sequence[MonitorPack]) -> dict[str, Any]:
    """Where the components come from, and the groups that any of them has seen."""
    fits = [part.evidence.get("fit", {}) for part in parts]
    seen_arms = {arm for fit in fits for arm in fit.get("seen_arms", [])}
    held_out = {arm for fit in fits for arm in fit.get("held_out_arms", [])}
    return {
        "combined": [
            {"name": part.name, "version": part.version, "frozen_sha256": part.frozen_sha256} for part in parts
        ],
        "seen_groups": sorted({group for fit in fits for group in fit.get("seen_groups", [])}),
        "seen_texts": sorted({text for fit in fits for text in fit.get("seen_texts", [])}),
        # What one part was fitted on is not held out of the whole, whatever another part left out.
        "held_out_arms": sorted(held_out - seen_arms),
        "arms_not_held_out": sorted(held_out & seen_arms),
        "seen_arms": sorted(seen_arms),
    }
