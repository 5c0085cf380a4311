"""Small monitor packs for tests."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from monitors.components import WeightedFeature
from monitors.pack import MonitorPack
from monitors.pack_parts import Bindings, PackCalibration, PackComponent, PackProbe, Served
from monitors.pack_tensors import PackTensor
from monitors.thresholds import Levels, LevelThreshold, Stratum, Thresholds

BOUNDS = (64, 256, 1024)
SERVED = Served(
    model_name="tiny",
    model_sha256="0" * 64,
    quantization="none",
    dtype="float32",
    chat_template_sha256="c" * 64,
    sae_sha256="0" * 64,
    d_model=32,
    num_layers=4,
    num_latents=64,
)


def thresholds(
    warning: float | None, critical: float | None = None, *, clear: float | None = None, bounds: Sequence[int] = BOUNDS
) -> Thresholds:
    """The same at every length."""
    levels = [
        None if offset is None else LevelThreshold(alpha, offset, tuple(bounds))
        for alpha, offset in ((0.01, warning), (0.001, critical))
    ]
    lowest = min(offset for offset in (warning, critical) if offset is not None)
    strata = tuple(Stratum(bound, 0.0) for bound in bounds)
    return Thresholds(strata, Levels(*levels), lowest - abs(lowest) * 0.2 if clear is None else clear)


def feature_component(*features: int, name: str = "latents", **changes: Any) -> PackComponent:
    """A plain sum of latents."""
    parts = tuple(WeightedFeature(feature, 1.0, 1.0) for feature in features)
    return replace(PackComponent(name=name, reads="Latents of a test.", features=parts, transform="linear"), **changes)


def probe_component(
    name: str = "probe", *, hook_point: str = "layers.1.output", direction: str = "direction", **changes: Any
) -> PackComponent:
    """A probe."""
    probe = PackProbe("logistic_regression", direction, changes.pop("bias", 0.5), changes.pop("largest_norm", None))
    return replace(PackComponent(name=name, reads="A probe of a test.", hook_point=hook_point, probe=probe), **changes)


def pack(name: str = "watcher", components: Sequence[PackComponent] = (), **changes: Any) -> MonitorPack:
    """A calibrated pack of one latent, or of these components; probes read along [1, 0, 0, ...] unless told."""
    components = tuple(components) or (feature_component(3),)
    directions = {c.probe.direction for c in components if c.probe is not None}
    num_features = len(components[0].features)
    single = "probe" if directions else "feature" if num_features == 1 else "features"
    facts: dict[str, Any] = {
        "version": 1,
        "kind": single if len(components) == 1 else "ensemble",
        "rule": None if len(components) == 1 else "min",
        "description": "A monitor of a test.",
        "limits": "It shows nothing.",
        "validated": False,
        "validated_reason": "Made up by a test.",
        "bindings": Bindings(
            model_name="tiny",
            model_sha256="0" * 64,
            quantization="none",
            sae_sha256="0" * 64 if any(c.features for c in components) else None,
        ),
        "components": components,
        "window": 4,
        "min_tokens": 2,
        "cooldown_tokens": 4,
        "thresholds": thresholds(0.5),
        "calibration": PackCalibration(method="by_hand", source="Chosen by the test."),
        "tensors": {name: PackTensor.of([1.0] + [0.0] * 31) for name in sorted(directions)},
    }
    return MonitorPack(name=name, **(facts | changes))
