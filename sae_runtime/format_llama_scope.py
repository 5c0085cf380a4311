"""OpenMOSS: Llama Scope (`hyperparams.json`), Llama Scope R1-Distill and Llamascopium (`config.json`).

    f = jumprelu(s * x @ W_enc + b_enc),  x_hat = (f @ W_dec + b_dec) / s,  s = sqrt(D) / mean ||x||

`mean ||x||` is one number of the data, stored as `dataset_average_activation_norm`; the decoder bias is not subtracted.
Llama Scope's one threshold is in units of the *unscaled* residual (its own inference mode divides `b_enc` by s and
leaves the threshold), so here it is `threshold * s`; the thresholds of the later files belong to the mode that
`norm_activation` names, and stay. With `sparsity_include_decoder_norm` it is `pre * ||W_dec row||` that is compared:
for jumprelu the threshold divided by the norm says the same; for topk the latents have to be rescaled.

Latents are those of SAELens; OpenMOSS's own inference mode has them divided by s.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_runtime.errors import CheckpointError
from sae_runtime.foreign import (
    Foreign,
    Layout,
    Stated,
    choice,
    linear_layout,
    positive,
    read_json,
    read_safetensors,
    read_torch,
    require,
    settle_scale,
    take,
    whole_k,
)
from sae_runtime.sae import Activation, Normalization
from sae_runtime.sae_parts import SAEParts

CONFIG_FILE_1 = "hyperparams.json"
WEIGHTS_FILE_1 = "checkpoints/final.safetensors"
CONFIG_FILE_2 = "config.json"
WEIGHTS_FILES_2 = tuple(
    f"{name}.{ending}"
    for name in ("sae_weights", "checkpoints/pruned", "checkpoints/final")
    for ending in ("safetensors", "pt", "dcp")
)
NORM_PREFIX = "dataset_average_activation_norm."

_ACTIVATIONS: dict[str, Activation] = {"relu": "relu", "jumprelu": "jumprelu", "topk": "topk"}
_PLAIN: Layout = {"W_E": ("W_enc", "DF"), "b_E": ("b_enc", "F"), "W_D": ("W_dec", "FD"), "b_D": ("b_dec", "D")}
_LOG_THRESHOLDS = ("log_jumprelu_threshold", "activation_function.log_jumprelu_threshold")


# --- Llama Scope ----------------------------------------------------------------------------------------------------


def read_1(folder: Path, stated: Stated) -> Foreign:
    """Llama Scope: the folder of `hyperparams.json`."""
    path, weights_path = folder / CONFIG_FILE_1, folder / WEIGHTS_FILE_1
    config = read_json(path)
    choice(path, "act_fn", _lower(config.get("act_fn", "jumprelu")), ["jumprelu"])
    _refuse_unsupported(path, config)
    widths = d_model, num_latents = require(config, path, "d_model", int), require(config, path, "d_sae", int)
    tensors = _take(weights_path, config, read_safetensors(weights_path), widths)
    scale = settle_scale(path, stated.scale, _scale_of_hyperparams(path, config, d_model))
    threshold = positive(path, "jump_relu_threshold", config.get("jump_relu_threshold"))
    tensors["threshold"] = torch.full((num_latents,), threshold * scale)
    parts = SAEParts(
        tensors,
        activation="jumprelu",
        scale=scale,
        apply_b_dec=bool(config.get("apply_decoder_bias_to_pre_encoder", False)),
    )
    return Foreign(
        format="Llama Scope, jumprelu",
        files=[path, weights_path],
        # Older releases than the flag had no such thing.
        parts=_measure_by_decoder_norms(parts) if config.get("sparsity_include_decoder_norm") else parts,
        hook_name=config.get("hook_point_in"),
        model_name="meta-llama/Llama-3.1-8B" if "Llama3_1-8B-Base" in str(folder.absolute()) else None,
        bos_policy="always",
        found={"jump_relu_threshold": threshold},
        assumed=["texts began with BOS: so Llama Scope was trained"],
    )


def _scale_of_hyperparams(path: Path, config: dict[str, Any], d_model: int) -> float:
    mode = config.get("norm_activation", "dataset-wise")
    if choice(path, "norm_activation", mode, ["dataset-wise", "inference"]) == "inference":
        return 1.0
    norms = require(config, path, "dataset_average_activation_norm", dict)
    norm_in = positive(path, "dataset_average_activation_norm.in", norms.get("in"))
    norm_out = positive(path, "dataset_average_activation_norm.out", norms.get("out", norm_in))
    _refuse_two_norms(path, norm_in, norm_out)
    return d_model**0.5 / norm_in


# --- R1-Distill and Llamascopium ------------------------------------------------------------------------------------


def read_2(folder: Path, stated: Stated) -> Foreign:
    """Llama Scope R1-Distill or Llamascopium: the folder of `config.json`."""
    path = folder / CONFIG_FILE_2
    weights_path = next(folder / name for name in WEIGHTS_FILES_2 if (folder / name).exists())
    config, assumed = read_json(path), list[str]()
    choice(path, "sae_type", config.get("sae_type", "sae"), ["sae"])
    act_fn = choice(path, "act_fn", _lower(config.get("act_fn", "jumprelu")), _ACTIVATIONS)
    _refuse_unsupported(path, config)
    d_model = require(config, path, "d_model", int)
    num_latents = int(d_model * positive(path, "expansion_factor", config.get("expansion_factor")))
    raw = _read_weights(weights_path)
    norms = {name.removeprefix(NORM_PREFIX): raw.pop(name) for name in list(raw) if name.startswith(NORM_PREFIX)}
    normalization, scale = _normalization(path, config, norms, d_model, stated, assumed)
    parts = SAEParts(
        _take(weights_path, config, raw, (d_model, num_latents), thresholds=act_fn == "jumprelu"),
        activation=_ACTIVATIONS[act_fn],
        k=whole_k(path, config.get("top_k"), num_latents) if act_fn == "topk" else None,
        scale=scale,
        apply_b_dec=False,
        normalization=normalization,
    )
    return Foreign(
        format=f"Llamascopium, {act_fn}",
        files=[path, weights_path],
        parts=_measure_by_decoder_norms(parts) if config.get("sparsity_include_decoder_norm", True) else parts,
        hook_name=config.get("hook_point_in"),
        expected_l0=config.get("top_k") if act_fn == "topk" else None,
        found={"norm_activation": config.get("norm_activation", "dataset-wise")},
        assumed=assumed,
    )


def _read_weights(path: Path) -> dict[str, Any]:
    if path.suffix == ".dcp":
        raise CheckpointError(f"{path} is a distributed checkpoint: only .safetensors and .pt are read")
    if path.suffix == ".safetensors":
        return dict(read_safetensors(path))
    content = read_torch(path)
    return require(content, path, "sae", dict)


def _normalization(
    path: Path, config: dict[str, Any], norms: dict[str, Any], d_model: int, stated: Stated, assumed: list[str]
) -> tuple[Normalization, float]:
    mode = config.get("norm_activation", "dataset-wise")
    choice(path, "norm_activation", mode, ["dataset-wise", "token-wise", "inference"])
    if mode != "dataset-wise":
        normalization: Normalization = "constant_norm_rescale" if mode == "token-wise" else "scalar"
        return normalization, settle_scale(path, stated.scale, 1.0)
    if not norms:
        if stated.scale is None:
            raise CheckpointError(
                f"{path}: norm_activation is dataset-wise, and the weights hold no {NORM_PREFIX}*: scale "
                "(sqrt(d_model) / mean ||x|| of the training data) must be stated"
            )
        assumed.append(f"scale {stated.scale:.6g}, as stated: the average norm of the activations is not in the files")
        return "scalar", stated.scale
    found = [positive(path, NORM_PREFIX + hook, float(norm)) for hook, norm in norms.items()]
    _refuse_two_norms(path, found[0], found[-1])
    return "scalar", settle_scale(path, stated.scale, d_model**0.5 / found[0])


# --- what both have -------------------------------------------------------------------------------------------------


def _refuse_unsupported(path: Path, config: dict[str, Any]) -> None:
    where, to = config.get("hook_point_in"), config.get("hook_point_out")
    if to is not None and to != where:
        raise CheckpointError(f"{path}: a transcoder (from {where} to {to}) is no autoencoder and can't be expressed")
    if config.get("use_glu_encoder"):
        raise CheckpointError(f"{path}: use_glu_encoder must be false: a gated linear encoder can't be expressed")


def _lower(name: Any) -> Any:
    return name.lower() if isinstance(name, str) else name


def _refuse_two_norms(path: Path, norm_in: float, norm_out: float) -> None:
    if abs(norm_in / norm_out - 1) > 1e-3:
        raise CheckpointError(
            f"{path}: dataset_average_activation_norm must be the same on the way in and out, got {norm_in:.6g} and "
            f"{norm_out:.6g}"
        )


def _take(
    path: Path, config: dict[str, Any], tensors: dict[str, Any], widths: tuple[int, int], *, thresholds: bool = False
) -> dict[str, Tensor]:
    """The tensors under our names, whatever generation the file is of."""
    layout = linear_layout() if "encoder.weight" in tensors else _PLAIN
    if not config.get("use_decoder_bias", True):
        layout = {name: place for name, place in layout.items() if place[0] != "b_dec"}
    if thresholds:
        log_threshold = next((name for name in _LOG_THRESHOLDS if name in tensors), _LOG_THRESHOLDS[-1])
        layout = layout | {log_threshold: ("threshold", "F")}
    taken = take(path, tensors, layout, widths)
    taken.setdefault("b_dec", torch.zeros(widths[0]))
    if thresholds:
        taken["threshold"] = taken["threshold"].exp()
    return taken


def _measure_by_decoder_norms(parts: SAEParts) -> SAEParts:
    """Latents pass if `pre * ||W_dec row||` does."""
    if parts.activation == "jumprelu":
        return parts.changed({"threshold": parts.tensors["threshold"].double() / parts.decoder_norms()})
    if parts.activation == "topk":
        return replace(replace(parts, activation="relu", k=None).fold_decoder_norms(), activation="topk", k=parts.k)
    return parts
