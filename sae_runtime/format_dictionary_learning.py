"""saprmarks/dictionary_learning: `trainer_0/ae.pt` (or `checkpoints/ae_STEP.pt`) and `config.json`.

    class                            activation                         b_dec subtracted
    AutoEncoder                      relu                               yes (`bias`)
    AutoEncoderNew                   relu                               no
    GatedAutoEncoder                 gated                              yes (`decoder_bias`)
    JumpReluAutoEncoder              jumprelu                           no
    AutoEncoderTopK                  topk, after relu                   yes
    BatchTopKSAE,                    relu above one threshold: its      yes
    MatryoshkaBatchTopKSAE           form of inference

Saved files work on raw activations: biases were multiplied by the activations' norm on saving. Not so in the backups
that training writes over `ae.pt`, a nested dict with a `norm_factor`; they are here, as by the final save.
"""

from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from sae_runtime.errors import CheckpointError
from sae_runtime.foreign import (
    PLAIN_LAYOUT,
    Foreign,
    Layout,
    Stated,
    choice,
    linear_layout,
    positive,
    read_json,
    read_torch,
    require,
    settle_scale,
    take,
    whole_k,
)
from sae_runtime.sae import Activation
from sae_runtime.sae_parts import SAEParts

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "ae.pt"

_LINEAR = linear_layout()
_ENCODER: Layout = {name: place for name, place in _LINEAR.items() if name.startswith("encoder.")}
_MATRICES: Layout = {name: place for name, place in _LINEAR.items() if name.endswith(".weight")}
_THRESHOLD: Layout = {"threshold": ("threshold", "")}
_DECODER: Layout = {"decoder.weight": ("W_dec", "DF")}
_TOPK = _ENCODER | _DECODER | {"b_dec": ("b_dec", "D")}


class DictClass(NamedTuple):
    """A class of the library."""

    activation: Activation
    apply_b_dec: bool
    layout: Layout


CLASSES = {
    "AutoEncoder": DictClass("relu", True, _ENCODER | _DECODER | {"bias": ("b_dec", "D")}),
    "AutoEncoderNew": DictClass("relu", False, _LINEAR),
    "GatedAutoEncoder": DictClass(
        "gated",
        True,
        _MATRICES
        | {"decoder_bias": ("b_dec", "D")}
        | {"gate_bias": ("b_gate", "F"), "mag_bias": ("b_mag", "F"), "r_mag": ("r_mag", "F")},
    ),
    "JumpReluAutoEncoder": DictClass("jumprelu", False, PLAIN_LAYOUT | {"threshold": ("threshold", "F")}),
    "AutoEncoderTopK": DictClass("topk", True, _TOPK),
    "BatchTopKSAE": DictClass("batchtopk", True, _TOPK | _THRESHOLD),
    "MatryoshkaBatchTopKSAE": DictClass("batchtopk", True, _TOPK | _THRESHOLD),
}
_BIASES = ("b_enc", "b_dec", "b_gate", "b_mag", "threshold")
"""What `scale_biases` multiplies."""


def read(path: Path, stated: Stated) -> Foreign:
    """The dictionary of the file at `path`; `config.json` lies beside it, or beside its folder `checkpoints`."""
    config_path = find_config(path)
    if config_path is None:
        raise CheckpointError(f"{path}: there is no {CONFIG_FILE} beside it, which says what class of dictionary it is")
    config = read_json(config_path)
    trainer = require(config, config_path, "trainer", dict)
    dict_class = choice(config_path, "dict_class", trainer.get("dict_class"), CLASSES)
    assumed: list[str] = []
    content, factor = _unwrap(path, read_torch(path), assumed)
    widths = require(trainer, config_path, "activation_dim", int), require(trainer, config_path, "dict_size", int)
    activation, apply_b_dec, _ = CLASSES[dict_class]
    tensors = _tensors(path, dict_class, content, widths)
    tensors |= {name: tensors[name] * factor for name in _BIASES if name in tensors and factor != 1}
    k = _k(path, trainer, content, widths[1]) if activation in ("topk", "batchtopk") else None
    buffer = config.get("buffer") or {}
    return Foreign(
        format=f"dictionary_learning, {dict_class}",
        files=[config_path, path],
        parts=SAEParts(
            tensors,
            activation=activation,
            k=k if activation == "topk" else None,
            scale=settle_scale(path, stated.scale, 1.0),
            apply_b_dec=apply_b_dec,
        ),
        hook_name=_hook_name(trainer, assumed),
        model_name=trainer.get("lm_name"),
        expected_l0=k,
        found={"ctx_len": buffer["ctx_len"]} if isinstance(buffer, dict) and "ctx_len" in buffer else {},
        assumed=assumed,
    )


def find_config(path: Path) -> Path | None:
    """The `config.json` of a training run that belongs to a weights file."""
    folders = [path.parent, path.parent.parent] if path.parent.name == "checkpoints" else [path.parent]
    for folder in folders:
        candidate = folder / CONFIG_FILE
        if candidate.exists() and "trainer" in read_json(candidate):
            return candidate
    return None


def _tensors(path: Path, dict_class: str, content: dict[str, Any], widths: tuple[int, int]) -> dict[str, Tensor]:
    activation, _, layout = CLASSES[dict_class]
    if activation == "batchtopk" and "W_enc" in content:
        layout = PLAIN_LAYOUT | _THRESHOLD  # Matryoshka keeps its matrices without nn.Linear
    buffers = ("k", "threshold", "group_sizes") if activation in ("topk", "batchtopk") else ()
    tensors = take(path, content, layout, widths, ignored=buffers)
    if activation == "batchtopk" and tensors["threshold"] < 0:
        raise CheckpointError(
            f"{path}: threshold must be 0 or more, got {float(tensors['threshold']):g}: it was never set, and "
            "without it a batch decides which latents are active"
        )
    return tensors


def _unwrap(path: Path, content: dict[str, Any], assumed: list[str]) -> tuple[dict[str, Any], float]:
    """The tensors, and what their biases are to be multiplied by."""
    if not isinstance(content.get("ae"), dict):
        return content, 1.0
    if "norm_factor" not in content:
        raise CheckpointError(f"{path}: a backup of training must hold norm_factor, got {', '.join(map(str, content))}")
    if content["norm_factor"] is None:
        assumed.append("a backup of training without a norm_factor: its activations were not normalised")
        return content["ae"], 1.0
    factor = content["norm_factor"]
    if isinstance(factor, Tensor) and factor.numel() == 1:
        factor = factor.item()
    factor = positive(path, "norm_factor", factor)
    assumed.append(
        f"a backup of training: biases are multiplied by its norm_factor {factor:.6g}, as the final save does"
    )
    return content["ae"], factor


def _k(path: Path, trainer: dict[str, Any], content: dict[str, Any], num_latents: int) -> int:
    stored = content.get("k")
    k = int(stored) if isinstance(stored, Tensor) and stored.numel() == 1 else stored
    in_config = trainer.get("k")
    if k is not None and in_config is not None and k != in_config:
        raise CheckpointError(f"{path}: k must be {in_config}, as in {CONFIG_FILE}, got {k}")
    return whole_k(path, in_config if k is None else k, num_latents)


def _hook_name(trainer: dict[str, Any], assumed: list[str]) -> str | None:
    """`layer` is the residual's, unless `submodule_name` says otherwise."""
    layer, submodule = trainer.get("layer"), trainer.get("submodule_name")
    if submodule and not str(submodule).startswith("resid_post"):
        return str(submodule)
    if not isinstance(layer, int) or isinstance(layer, bool):
        return None
    if not submodule:
        assumed.append(f"layer {layer} means its output, the residual behind the block: no submodule_name is given")
    return f"layers.{layer}.output"
