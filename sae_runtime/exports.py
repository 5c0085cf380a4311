"""Our dictionaries in other libraries' formats: `export_sae(sae, folder, "saelens")`.

    saelens               OUTPUT/cfg.json, sae_weights.safetensors    every activation; batchtopk becomes jumprelu
    sparsify              OUTPUT/HOOKPOINT/cfg.json, sae.safetensors  topk
    dictionary_learning   OUTPUT/ae.pt, config.json                   every activation

What a format lacks is rewritten without changing a reading: `scale` is folded into the weights, `b_dec` is moved into
the encoder's bias or out of it (`sae_parts`). What can't be, per-token normalisation in the last two and other
activations than topk in sparsify, is refused by name. Weights are written in fp32, because SAELens rounds thresholds to
the dtype of the weights. Files appear whole or not at all, the configuration last; existing ones are not overwritten.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from sae_runtime import format_dictionary_learning, format_saelens, format_sparsify
from sae_runtime.checkpoint import LoadedSAE, Manifest, write_atomically
from sae_runtime.errors import CheckpointError, plain_reason
from sae_runtime.foreign import turned
from sae_runtime.hook_point import HookPoint
from sae_runtime.sae_parts import SAEParts
from sae_runtime.whole_files import whole_file

SAELENS_VERSION = "6.0.0"
"""Of the layout that is written, which SAELens tells from that of before 6 by this."""

_ARCHITECTURES = {"relu": "standard", "jumprelu": "jumprelu", "batchtopk": "jumprelu", "topk": "topk", "gated": "gated"}
_DICT_CLASSES = {
    "relu": "AutoEncoder",
    "jumprelu": "JumpReluAutoEncoder",
    "topk": "AutoEncoderTopK",
    "batchtopk": "BatchTopKSAE",
    "gated": "GatedAutoEncoder",
}
_APPLIES_B_DEC = {"AutoEncoder", "AutoEncoderTopK", "BatchTopKSAE", "GatedAutoEncoder"}


def export_sae(sae: LoadedSAE, folder: Path, format_name: str, *, k: int | None = None) -> list[Path]:
    """Write `sae` to `folder` in a format of `EXPORTERS`; returns the files.

    `k` is for BatchTopK in dictionary_learning, which keeps the number it trained with beside the threshold.

    Raises CheckpointError for an unknown format, files in the way, or a dictionary the format can't express.
    """
    if format_name not in EXPORTERS:
        raise CheckpointError(f"format must be one of {', '.join(EXPORTERS)}, got {format_name!r}")
    if sae.manifest.hook_point == "unknown":
        raise CheckpointError(f"hook point of {sae.manifest.name} must be known, got 'unknown'")
    parts = SAEParts.of(sae).fold_scale()
    if format_name != "saelens" and parts.normalization != "scalar":
        raise CheckpointError(f"{format_name} has no normalization {parts.normalization}: it can't be exported to it")
    return EXPORTERS[format_name](parts, sae.manifest, folder, k)


# --- SAELens ----------------------------------------------------------------------------------------------------------


def _export_saelens(parts: SAEParts, manifest: Manifest, folder: Path, _k: int | None) -> list[Path]:
    tensors = dict(parts.tensors)
    if parts.activation == "batchtopk":
        tensors["threshold"] = tensors["threshold"].expand(parts.num_latents)
    config: dict[str, Any] = {
        "architecture": _ARCHITECTURES[parts.activation],
        "d_in": parts.d_model,
        "d_sae": parts.num_latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": parts.apply_b_dec,
        "normalize_activations": "none" if parts.normalization == "scalar" else parts.normalization,
        "reshape_activations": "none",
        "metadata": _saelens_metadata(manifest),
    }
    if parts.activation == "topk":
        config |= {"k": parts.k, "rescale_acts_by_decoder_norm": False}
    weights, written = folder / format_saelens.WEIGHTS_FILE, folder / format_saelens.CONFIG_FILE
    return _write(weights, _save_safetensors(tensors), {written: config})


def _saelens_metadata(manifest: Manifest) -> dict[str, Any]:
    hook = manifest.hook
    side = "pre" if hook.side == "input" else "post"
    metadata: dict[str, Any] = {
        "sae_lens_version": SAELENS_VERSION,
        "model_name": manifest.model_name,
        "hook_name": f"blocks.{hook.layer}.hook_resid_{side}",
        "hf_hook_name": f"model.{_module(hook)}",
        "hook_head_index": None,
        "telltale": {
            "name": manifest.name,
            "sae_sha256": manifest.sae_sha256,
            "model_sha256": manifest.model_sha256,
            "quantization": manifest.quantization,
            "bos_policy": manifest.bos_policy,
            "folded_scale": manifest.scale,
        },
    }
    # "As the tokenizer does" has no word there; without the field SAELens does not guess either.
    if manifest.bos_policy in ("always", "never"):
        metadata["prepend_bos"] = manifest.bos_policy == "always"
    return metadata


def _module(hook: HookPoint) -> str:
    """The module of a Llama-like model whose output the residual is."""
    index = hook.hidden_state_index
    return f"layers.{index - 1}" if index else "embed_tokens"


# --- sparsify ---------------------------------------------------------------------------------------------------------


def _export_sparsify(parts: SAEParts, manifest: Manifest, folder: Path, _k: int | None) -> list[Path]:
    if parts.activation != "topk":
        raise CheckpointError(f"sparsify has topk only: {parts.activation} can't be exported to it")
    parts = parts.with_b_dec(True)
    module = _module(manifest.hook)
    tensors = {
        "encoder.weight": parts.tensors["W_enc"].T,
        "encoder.bias": parts.tensors["b_enc"],
        "W_dec": parts.tensors["W_dec"],
        "b_dec": parts.tensors["b_dec"],
    }
    config = {
        "activation": "topk",
        "expansion_factor": max(1, parts.num_latents // parts.d_model),
        "normalize_decoder": manifest.decoder_norms_folded,
        "num_latents": parts.num_latents,
        "k": parts.k,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": parts.d_model,
    }
    run: dict[str, Any] = {"model": manifest.model_name, "hookpoints": [module]}
    configs = {folder / format_sparsify.RUN_FILE: run, folder / module / format_sparsify.CONFIG_FILE: config}
    return _write(folder / module / format_sparsify.WEIGHTS_FILE, _save_safetensors(tensors), configs)


# --- dictionary_learning ----------------------------------------------------------------------------------------------


def _export_dictionary_learning(parts: SAEParts, manifest: Manifest, folder: Path, k: int | None) -> list[Path]:
    index = manifest.hook.hidden_state_index
    if index == 0:
        raise CheckpointError("dictionary_learning names layers by their outputs: the first layer's input has no name")
    dict_class = _DICT_CLASSES[parts.activation]
    if parts.activation == "relu" and not parts.apply_b_dec:
        dict_class = "AutoEncoderNew"
    parts = parts.with_b_dec(dict_class in _APPLIES_B_DEC)
    layout = format_dictionary_learning.CLASSES[dict_class].layout
    tensors = {name: turned(parts.tensors[ours], ours, axes) for name, (ours, axes) in layout.items()}
    config: dict[str, Any] = {
        "dict_class": dict_class,
        "activation_dim": parts.d_model,
        "dict_size": parts.num_latents,
        "layer": index - 1,
        "lm_name": manifest.model_name,
        "submodule_name": f"resid_post_layer_{index - 1}",
    }
    if parts.activation in ("topk", "batchtopk"):
        config["k"] = _nominal_k(parts, manifest, k)
        tensors["k"] = torch.tensor(config["k"], dtype=torch.int32)
        tensors.setdefault("threshold", torch.tensor(-1.0))  # what the library has for "not set"
    run = {"trainer": config, "buffer": {"d_submodule": parts.d_model, "io": "out"}}
    configs = {folder / format_dictionary_learning.CONFIG_FILE: run}
    return _write(folder / format_dictionary_learning.WEIGHTS_FILE, _save_torch(tensors), configs)


def _nominal_k(parts: SAEParts, manifest: Manifest, stated: int | None) -> int:
    """The k the dictionary was trained with. For BatchTopK it changes no reading, but the library wants one."""
    recipe = manifest.training.get("recipe")
    trained = recipe.get("k") if isinstance(recipe, dict) else None
    found = parts.k or stated or manifest.k or trained
    if not isinstance(found, int) or found <= 0:
        raise CheckpointError(
            f"k of {manifest.name} must be stated: its manifest does not say it, and the format has it"
        )
    return found


# --- files ------------------------------------------------------------------------------------------------------------


Save = Callable[[Path], None]


def _save_safetensors(tensors: dict[str, Tensor]) -> Save:
    return lambda path: save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def _save_torch(tensors: dict[str, Tensor]) -> Save:
    return lambda path: torch.save({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, path)


def _write(weights: Path, save: Save, configs: dict[Path, dict[str, Any]]) -> list[Path]:
    """Weights first, configurations after them, each written beside and renamed."""
    for path in (weights, *configs):
        if path.exists():
            raise CheckpointError(f"{path} is there already: an export overwrites nothing")
    try:
        weights.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(weights) as partial:
            save(partial)
        for path, config in configs.items():
            write_atomically(path, json.dumps(config, indent=1) + "\n")
    except (OSError, SafetensorError, RuntimeError) as error:  # the last two: a full disk, as the libraries say it
        raise CheckpointError(f"{weights.parent} can't be written: {plain_reason(error)}") from None
    return [weights, *configs]


EXPORTERS: dict[str, Callable[[SAEParts, Manifest, Path, int | None], list[Path]]] = {
    "saelens": _export_saelens,
    "sparsify": _export_sparsify,
    "dictionary_learning": _export_dictionary_learning,
}
