"""Weights in one PyTorch file without a configuration; the tensors' names show whose they are.

    Goodfire         encoder_linear, decoder_linear        relu, b_dec not subtracted, no scale
    Goodfire R1      W, b_enc, b_dec (tied)                BatchTopK: k or a threshold must be stated
    seed             state_dict of encoder, decoder        relu, b_dec not subtracted; the scale must be stated
    qresearch        encoder, decoder                      relu, b_dec not subtracted, no scale

The last two have the same tensors; what tells them apart is Lightning's `state_dict` around them. Anything else of that
kind may have been trained on scaled residuals, so the scale must be stated. The seed is the Lightning checkpoint of the
project this one grew from: trained on `x * sqrt(3072) / 11.8886`, at the input of block 15.
"""

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from sae_runtime.errors import CheckpointError
from sae_runtime.foreign import (
    Foreign,
    Layout,
    Stated,
    bias_widths,
    linear_layout,
    read_torch,
    refuse_square,
    take,
    whole_k,
)
from sae_runtime.sae_parts import SAEParts

SEED_HOOK = "blocks.15.hook_resid_pre"

_TIED: Layout = {"W": ("W_enc", "DF"), "b_enc": ("b_enc", "F"), "b_dec": ("b_dec", "D")}

_LAYER = re.compile(r"(?:^|[-_.])l(?:ayer)?_?(\d+)(?=[-_.]|$)", re.IGNORECASE)
_PUBLISHED_NAME = re.compile(r".*-SAE-l\d+")
_PUBLISHED_MODELS = {
    "Llama-3.1-8B-Instruct-SAE-l19": "meta-llama/Llama-3.1-8B-Instruct",
    "Llama-3.3-70B-Instruct-SAE-l50": "meta-llama/Llama-3.3-70B-Instruct",
    "DeepSeek-R1-Distill-Llama-8B-SAE-l19": "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
    "DeepSeek-R1-SAE-l37": "deepseek-ai/DeepSeek-R1",
}


def read(path: Path, stated: Stated) -> Foreign:
    """The dictionary of the file at `path`. CheckpointError if its tensors are nobody's that is known."""
    content = read_torch(path)
    if isinstance(state := content.get("state_dict"), dict):
        return _seed(path, state, stated)
    if "encoder_linear.weight" in content:
        return _goodfire(path, content, stated)
    if "W" in content:
        return _tied(path, content, stated)
    if "encoder.weight" in content and "decoder.bias" in content:
        return _linear(path, content, stated)
    names = ", ".join(map(str, content)) or "nothing"
    raise CheckpointError(f"{path} must hold the tensors of a known format, got {names[:200]}")


def _seed(path: Path, state: dict[str, Any], stated: Stated) -> Foreign:
    if stated.scale is None:
        raise CheckpointError(
            f"{path}: a Lightning checkpoint does not hold the scale its residuals were multiplied by: scale must be "
            "stated (sqrt(d_model) / mean ||x|| of the training data; 4.6621 for Llama 3.2 3B at 65536 latents)"
        )
    tensors = {str(name).removeprefix("model."): tensor for name, tensor in state.items()}
    foreign = _of_linear("Lightning checkpoint, relu", path, tensors, scale=stated.scale)
    foreign.hook_name = None if stated.hook_point else SEED_HOOK
    foreign.assumed += [f"scale {stated.scale:.6g}, as stated", "latents are relu's, b_dec is not subtracted"]
    if not stated.hook_point:
        foreign.assumed.append(f"hook point {SEED_HOOK}, where the Llama 3.2 3B dictionary of this format was trained")
    return foreign


def _goodfire(path: Path, content: dict[str, Any], stated: Stated) -> Foreign:
    foreign = _of_linear("Goodfire, relu", path, content, scale=stated.scale, suffix="_linear")
    foreign.assumed.append("latents are relu's, b_dec is not subtracted: so Goodfire's dictionaries are")
    return _from_name(foreign, stated)


def _linear(path: Path, content: dict[str, Any], stated: Stated) -> Foreign:
    is_published = _PUBLISHED_NAME.fullmatch(path.stem) is not None
    if stated.scale is None and not is_published:
        raise CheckpointError(
            f"{path}: a bare encoder and decoder may have been trained on scaled residuals: scale must be stated "
            "(1 if they were not)"
        )
    kind = "qresearch, relu" if is_published else "bare encoder and decoder, relu"
    foreign = _of_linear(kind, path, content, scale=stated.scale)
    foreign.assumed.append("latents are relu's, b_dec is not subtracted")
    return _from_name(foreign, stated)


def _tied(path: Path, content: dict[str, Any], stated: Stated) -> Foreign:
    """Goodfire's BatchTopKTiedSAE. With k each token is a batch of its own."""
    widths = bias_widths(path, content, b_dec="b_dec", b_enc="b_enc")
    tensors = take(path, content, _TIED, widths)
    tensors["W_dec"] = tensors["W_enc"].T.contiguous()
    scale = stated.scale or 1.0
    if stated.threshold is not None and stated.k is not None:
        raise CheckpointError(
            f"{path}: either k or a threshold must be stated, got {stated.k} and {stated.threshold:g}"
        )
    if stated.threshold is not None:
        tensors["threshold"] = Tensor([stated.threshold])[0]
        parts = SAEParts(tensors, activation="batchtopk", scale=scale, apply_b_dec=False)
        how = f"a latent is active above {stated.threshold:g}, as stated"
    elif stated.k is not None:
        k = whole_k(path, stated.k, widths[1])
        parts = SAEParts(tensors, activation="topk", k=k, scale=scale, apply_b_dec=False)
        how = f"the {k} largest latents of each token are active, as stated; in training those of a whole batch were"
    else:
        raise CheckpointError(
            f"{path}: a BatchTopK dictionary of Goodfire's R1 kind holds neither k nor a threshold: one of them must "
            "be stated"
        )
    refuse_square(path, parts)
    foreign = Foreign("Goodfire R1, BatchTopK with tied weights", [path], parts, expected_l0=stated.k, assumed=[how])
    foreign.has_stated_activation = True
    return _from_name(foreign, stated)


def _of_linear(kind: str, path: Path, content: dict[str, Any], *, scale: float | None, suffix: str = "") -> Foreign:
    encoder, decoder = f"encoder{suffix}", f"decoder{suffix}"
    widths = bias_widths(path, content, b_dec=f"{decoder}.bias", b_enc=f"{encoder}.bias")
    tensors = take(path, content, linear_layout(encoder, decoder), widths)
    return Foreign(kind, [path], SAEParts(tensors, activation="relu", scale=scale or 1.0, apply_b_dec=False))


def _from_name(foreign: Foreign, stated: Stated) -> Foreign:
    """Layer and model, as far as the file's name shows them; whether residuals were scaled."""
    path = foreign.files[0]
    if stated.scale is None:
        foreign.assumed.append("residuals were not scaled: no scale is stated")
    else:
        foreign.assumed.append(f"scale {stated.scale:.6g}, as stated")
    foreign.model_name = _PUBLISHED_MODELS.get(path.stem)
    if stated.hook_point is None and (layer := _LAYER.search(path.stem)):
        foreign.hook_name = f"layers.{layer[1]}.output"
        foreign.assumed.append(f"hook point {foreign.hook_name}: the file's name says layer {layer[1]}")
    return foreign
