"""Gemma Scope: `params.npz` without a configuration, and Gemma Scope 2: `params.safetensors` with `config.json`.

    f = jumprelu(x @ W_enc + b_enc),  x_hat = f @ W_dec + b_dec

with no scale, and the decoder bias not subtracted from the input. Layer, site and model show in the path only
(`gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71/params.npz`); texts begin with BOS. The embedding
dictionaries were trained on embeddings that the model multiplies by sqrt(D) afterwards.
"""

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from sae_runtime.errors import CheckpointError
from sae_runtime.foreign import (
    PLAIN_LAYOUT,
    Foreign,
    Stated,
    bias_widths,
    choice,
    read_json,
    read_npz,
    read_safetensors,
    refuse_square,
    settle_scale,
    take,
)
from sae_runtime.sae_parts import SAEParts

WEIGHTS_FILE_1 = "params.npz"
WEIGHTS_FILE_2 = "params.safetensors"
CONFIG_FILE_2 = "config.json"

_REPOSITORY_1 = re.compile(r"gemma-scope-(2b|9b|27b)-(pt|it)-(res|att|mlp|transcoders)(?:-|$)")
_LAYER = re.compile(r"layer_(\d+)(?:_.*)?")
_L0 = re.compile(r"average_l0_(\d+)")
_SITES_2 = ("resid_post", "attn_out", "mlp_out", "transcoder", "clt")


def read_1(path: Path, stated: Stated) -> Foreign:
    """Gemma Scope: the npz file at `path`."""
    tensors = {_upper(name): tensor for name, tensor in read_npz(path).items()}
    parts = _parts(path, tensors, stated)
    refuse_square(path, parts)
    names = path.absolute().parts
    repository = next((match for name in names if (match := _REPOSITORY_1.search(name))), None)
    site = repository[3] if repository else None
    if site not in (None, "res"):
        raise CheckpointError(f"{path}: hook point must be a place in the residual stream, got Gemma Scope's {site!r}")
    hook_name = _hook_name(names)
    if "embedding" in names:
        hook_name, root = "hook_embed", parts.d_model**0.5
        rescaled = {"W_enc": parts.tensors["W_enc"] / root, "W_dec": parts.tensors["W_dec"] * root}
        parts = parts.changed(rescaled)
    l0 = next((match for name in names if (match := _L0.fullmatch(name))), None)
    suffix = "-it" if repository and repository[2] == "it" else ""
    foreign = Foreign(
        format="Gemma Scope, jumprelu",
        files=[path],
        parts=parts,
        hook_name=hook_name,
        model_name=f"gemma-2-{repository[1]}{suffix}" if repository else None,
        bos_policy="always",
        expected_l0=float(l0[1]) if l0 else None,
        assumed=["texts began with BOS and the decoder bias is not subtracted: so all of Gemma Scope was trained"],
    )
    if hook_name is not None and site is None:
        foreign.assumed.append("the dictionary is one for the residual: the path names a layer and no site")
    return foreign


def read_2(folder: Path, stated: Stated) -> Foreign:
    """Gemma Scope 2: the folder of `params.safetensors`."""
    path, config_path = folder / WEIGHTS_FILE_2, folder / CONFIG_FILE_2
    config = read_json(config_path) if config_path.exists() else {}
    _refuse_unsupported_2(config_path, config)
    tensors = {_upper(name): tensor for name, tensor in read_safetensors(path).items()}
    parts = _parts(path, tensors, stated)
    if not config:
        refuse_square(path, parts)
    names = folder.absolute().parts
    site = next((site for name in names for site in _SITES_2 if re.fullmatch(rf"{site}(?:_all)?", name)), None)
    hook_name = config.get("hf_hook_point_in")
    if hook_name is None and site is not None:
        hook_name = _hook_name(names) if site == "resid_post" else site
    return Foreign(
        format="Gemma Scope 2, jumprelu",
        files=[config_path, path] if config else [path],
        parts=parts,
        hook_name=hook_name,
        model_name=str(config["model_name"]).replace("-v3", "-3") if "model_name" in config else None,
        bos_policy="always",
        found={name: config[name] for name in ("width", "l0") if name in config},
        assumed=["texts began with BOS and the decoder bias is not subtracted: so all of Gemma Scope was trained"],
    )


def _refuse_unsupported_2(path: Path, config: dict[str, Any]) -> None:
    if config:
        choice(path, "architecture", config.get("architecture"), ["jump_relu"])
    where, to = config.get("hf_hook_point_in"), config.get("hf_hook_point_out")
    if to is not None and to != where:
        raise CheckpointError(f"{path}: a transcoder (from {where} to {to}) is no autoencoder and can't be expressed")


def _parts(path: Path, tensors: dict[str, Tensor], stated: Stated) -> SAEParts:
    if "affine_skip_connection" in tensors:
        raise CheckpointError(f"{path}: a transcoder with affine_skip_connection can't be expressed")
    widths = bias_widths(path, tensors, b_dec="b_dec", b_enc="b_enc")
    return SAEParts(
        take(path, tensors, PLAIN_LAYOUT | {"threshold": ("threshold", "F")}, widths),
        activation="jumprelu",
        scale=settle_scale(path, stated.scale, 1.0),
        apply_b_dec=False,
    )


def _upper(name: str) -> str:
    """`w_enc` as `W_enc`: both are published."""
    return "W_" + name[2:] if name.startswith("w_") else name


def _hook_name(names: tuple[str, ...]) -> str | None:
    """The hook point of a path's `layer_L`."""
    layer = next((match for name in reversed(names) if (match := _LAYER.fullmatch(name))), None)
    return f"layers.{layer[1]}.output" if layer else None
