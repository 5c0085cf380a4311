"""SAELens: a folder with `cfg.json` and `sae_weights.safetensors`, of releases before 6 (flat) and since.

Read are the inference architectures standard, jumprelu, topk and gated, and training checkpoints of these, of batchtopk
and of matryoshka_batchtopk: they become the inference model that SAELens itself would make of them. Its maths is ours;
what differs is kept to here:

    expected_average_only_in   is the identity at run time: the factor must come from `activation_scaler.json` or be
                               stated, and is then our `scale`
    rescale_acts_by_decoder_norm
                               latents are ranked, or measured against the threshold, times the norms of the decoder's
                               rows: folded, as SAELens does on export
    scaling_factor             an old finetuning factor on the way out: folded into the decoder

Before release 6 the version was not written; fields had other names, and defaults stood for what was left out.
"""

import re
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_runtime.errors import CheckpointError
from sae_runtime.foreign import (
    BosPolicy,
    Foreign,
    Layout,
    Stated,
    choice,
    positive,
    read_json,
    read_safetensors,
    require,
    settle_scale,
    take,
    whole_k,
)
from sae_runtime.sae import Activation, Normalization
from sae_runtime.sae_parts import SAEParts

CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"
SCALER_FILE = "activation_scaler.json"

_ACTIVATIONS: dict[str, Activation] = {
    "standard": "relu",
    "jumprelu": "jumprelu",
    "topk": "topk",
    "gated": "gated",
    "batchtopk": "batchtopk",
    "matryoshka_batchtopk": "batchtopk",
}
_NORMALIZATIONS: dict[str, Normalization] = {
    "none": "scalar",
    "expected_average_only_in": "scalar",
    "constant_norm_rescale": "constant_norm_rescale",
    "layer_norm": "layer_norm",
}
_OLD_NAMES = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
_KEPT = ("dataset_path", "context_size", "sae_lens_version", "sae_lens_training_version", "neuronpedia_id", "telltale")


def read(folder: Path, stated: Stated) -> Foreign:
    """The dictionary in `folder`. CheckpointError for what our maths can't express, by name."""
    path, weights_path = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    raw, assumed = read_json(path), list[str]()
    is_old = _is_before_6(raw)
    config = _modernized(raw, assumed) if is_old else raw
    metadata = config if is_old else _metadata(path, config)
    architecture = config.get("architecture")
    _refuse_unsupported(path, config, metadata)
    raw_tensors = read_safetensors(weights_path)
    widths = require(config, path, "d_in", int), require(config, path, "d_sae", int)
    tensors = take(weights_path, raw_tensors, _layout(str(architecture), raw_tensors), widths)
    parts = SAEParts(
        tensors=_canonical(weights_path, config, tensors),
        activation=_ACTIVATIONS[str(architecture)],
        k=whole_k(path, config.get("k"), config["d_sae"]) if architecture == "topk" else None,
        scale=_scale(folder, config, stated, assumed),
        apply_b_dec=bool(config.get("apply_b_dec_to_input", True)),
        normalization=_NORMALIZATIONS[config["normalize_activations"]],
    )
    # Training of batchtopk rescales unless it is told not to; inference of topk does if it is told to.
    rescaling = config.get("rescale_acts_by_decoder_norm", parts.activation == "batchtopk")
    if rescaling and parts.activation in ("topk", "batchtopk"):
        parts = _fold_rescaling(parts)
    return Foreign(
        format=f"SAELens before 6, {architecture}" if is_old else f"SAELens, {architecture}",
        files=[path, weights_path],
        parts=parts,
        hook_name=metadata.get("hook_name") or metadata.get("hf_hook_name"),
        model_name=metadata.get("model_name"),
        bos_policy=_bos_policy(metadata.get("prepend_bos")),
        expected_l0=config.get("k") if parts.activation in ("topk", "batchtopk") else None,
        found={name: metadata[name] for name in _KEPT if metadata.get(name) is not None},
        assumed=assumed,
    )


# --- the configuration ----------------------------------------------------------------------------------------------


def _is_before_6(config: dict[str, Any]) -> bool:
    metadata = config.get("metadata")
    version = config.get("sae_lens_version") or (
        metadata.get("sae_lens_version") if isinstance(metadata, dict) else None
    )
    match = re.match(r"(\d+)\.", str(version))
    return match is None or int(match[1]) < 6


def _metadata(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    metadata = config.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{path}: metadata must be an object, got {metadata!r}")
    return metadata


def _modernized(config: dict[str, Any], assumed: list[str]) -> dict[str, Any]:
    """A configuration of before 6 with today's names and the defaults of its time."""
    config = {_OLD_NAMES.get(name, name): value for name, value in config.items()}
    activation = config.get("activation_fn") or "relu"
    if activation == "topk":
        config["architecture"] = "topk"
        keywords = config.get("activation_fn_kwargs")
        config["k"] = keywords.get("k") if isinstance(keywords, dict) else None
    elif activation != "relu":
        config["architecture"] = f"standard with activation_fn {activation}"
    normalize = config.get("normalize_activations")
    if not isinstance(normalize, str):
        config["normalize_activations"] = "expected_average_only_in" if normalize else "none"
    defaults = {
        "architecture": "standard",
        "apply_b_dec_to_input": True,
        "prepend_bos": True,
        "reshape_activations": "hook_z" if "hook_z" in str(config.get("hook_name")) else "none",
    }
    missing = [f"{name} {value}" for name, value in defaults.items() if name not in config and value != "none"]
    if missing:
        assumed.append("defaults of SAELens before 6 for what cfg.json leaves out: " + ", ".join(missing))
    return defaults | config


def _refuse_unsupported(path: Path, config: dict[str, Any], metadata: dict[str, Any]) -> None:
    choice(path, "architecture", config.get("architecture"), _ACTIVATIONS)
    normalize = config.setdefault("normalize_activations", "none")
    choice(path, "normalize_activations", normalize, _NORMALIZATIONS)
    if (reshape := config.get("reshape_activations") or "none") != "none":
        raise CheckpointError(f"{path}: reshape_activations must be none (a residual has no heads), got {reshape!r}")
    if (head := metadata.get("hook_head_index")) is not None:
        raise CheckpointError(f"{path}: hook_head_index must be null (a residual has no heads), got {head!r}")


def _scale(folder: Path, config: dict[str, Any], stated: Stated, assumed: list[str]) -> float:
    path = folder / CONFIG_FILE
    if config["normalize_activations"] != "expected_average_only_in":
        return settle_scale(path, stated.scale, 1.0)
    scaler = folder / SCALER_FILE
    factor = read_json(scaler).get("scaling_factor") if scaler.exists() else None
    if factor is not None:
        return settle_scale(scaler, stated.scale, positive(scaler, "scaling_factor", factor))
    if stated.scale is None:
        raise CheckpointError(
            f"{path}: normalize_activations is expected_average_only_in, and there is no {SCALER_FILE} with a "
            "scaling_factor: scale (sqrt(d_in) / mean ||x|| of the training data) must be stated"
        )
    assumed.append(f"scale {stated.scale:.6g}, as stated: the factor of expected_average_only_in is not in the files")
    return stated.scale


def _bos_policy(prepend_bos: Any) -> BosPolicy:
    if not isinstance(prepend_bos, bool):
        return "unknown"
    return "always" if prepend_bos else "never"


# --- the tensors ----------------------------------------------------------------------------------------------------


def _layout(architecture: str, names: Collection[str]) -> Layout:
    """Tensors the architecture has, by their names on disk."""
    layout: Layout = {"W_enc": ("W_enc", "DF"), "W_dec": ("W_dec", "FD"), "b_dec": ("b_dec", "D")}
    vectors = ["b_gate", "b_mag", "r_mag"] if architecture == "gated" else ["b_enc"]
    if architecture == "jumprelu":
        vectors.append("log_threshold" if "log_threshold" in names else "threshold")
    if "scaling_factor" in names:
        vectors.append("scaling_factor")
    layout |= {name: (name, "F") for name in vectors}
    return layout | ({"topk_threshold": ("threshold", "")} if _ACTIVATIONS[architecture] == "batchtopk" else {})


def _canonical(path: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without what is SAELens's own: a logarithm is taken back, an old finetuning factor folded into the decoder."""
    if "log_threshold" in tensors:
        tensors["threshold"] = tensors.pop("log_threshold").exp()
    factor_F = tensors.pop("scaling_factor", None)
    if factor_F is not None and not torch.allclose(factor_F, torch.ones_like(factor_F)):
        if not config.get("finetuning_scaling_factor"):
            raise CheckpointError(
                f"{path}: scaling_factor must be all ones where finetuning_scaling_factor is false, got values from "
                f"{float(factor_F.min()):.4g} to {float(factor_F.max()):.4g}"
            )
        tensors["W_dec"] = tensors["W_dec"] * factor_F[:, None]
    return tensors


def _fold_rescaling(parts: SAEParts) -> SAEParts:
    """Latents in the units they are ranked in. SAELens folds the scale first, so that the norms are those of W_dec / s.

    What is relu'd, ranked or gated is `pre * norm`; so relu's maths is rescaled, and the choice made afterwards. A
    batchtopk threshold is in these units before the scale is folded, hence divided by it too.
    """
    scale = parts.scale
    tensors = {name: tensor for name, tensor in parts.tensors.items() if name != "threshold"}
    rescaled = replace(parts, tensors=tensors, activation="relu", k=None).fold_scale().fold_decoder_norms()
    if "threshold" not in parts.tensors:
        return replace(rescaled, activation=parts.activation, k=parts.k)
    threshold = parts.tensors["threshold"] / scale
    return rescaled.changed({"threshold": threshold}, activation=parts.activation)
