"""A frozen monitor of the tiny model, made without fitting anything: a fixed direction at a block's output."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import tiny

from discovery.pack_building import bindings_of, probe_parts, single_pack
from discovery.probe_fit import LinearProbe
from discovery.window_choice import Units
from monitors.pack import MonitorPack
from sae_runtime.hook_point import HookPoint
from sae_runtime.language_model import load_language_model


def options(model: Path) -> list[str]:
    """How commands are told to load the model."""
    return ["--model", str(model), "--dtype", "float32", "--device", "cpu"]


def frozen_pack(
    model: Path, *, name: str = "watcher", seed: int = 0, window: int = 4, min_tokens: int = 4
) -> MonitorPack:
    lm = load_language_model(str(model), dtype="float32", device="cpu")
    direction_D = np.random.default_rng(seed).normal(size=tiny.D_MODEL).astype(np.float32)
    component, tensors = probe_parts(name, LinearProbe(direction_D, 0.25), HookPoint(2), "lda", "A fixed direction.")
    pack = single_pack(
        name,
        component,
        tensors,
        bindings_of(lm, None),
        units=Units(0.5, 2.0),
        window=window,
        min_tokens=min_tokens,
        description="A monitor of a test.",
        limits="It shows nothing.",
    )
    return replace(pack, evidence={"fit": {"seen_groups": []}})
