"""EleutherAI's sparsify (once `sae`): a folder per hook point with `cfg.json` and `sae.safetensors`.

    f = topk(relu((x - b_dec) @ encoder.weight^T + encoder.bias)),  x_hat = f @ W_dec + b_dec

`W_dec` [F, D] has a latent per row already; `encoder.weight` [F, D] is transposed. relu before topk or after it is the
same: only zeros are ranked differently. The folder's name is the hook point, `layers.16` the output of block 16; two
seeds of one run lie in `layers.16/seed0` and so on. `../config.json` names the model.
"""

import re
from pathlib import Path
from typing import Any

from sae_runtime.errors import CheckpointError
from sae_runtime.foreign import (
    Foreign,
    Layout,
    Stated,
    choice,
    read_json,
    read_safetensors,
    require,
    settle_scale,
    take,
    whole_k,
)
from sae_runtime.sae_parts import SAEParts

CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae.safetensors"
RUN_FILE = "config.json"

_LAYOUT: Layout = {
    "encoder.weight": ("W_enc", "FD"),
    "encoder.bias": ("b_enc", "F"),
    "W_dec": ("W_dec", "FD"),
    "b_dec": ("b_dec", "D"),
}
_HOOK_FOLDER = re.compile(r"(?:.*\.)?(?:layers|h)\.\d+(?:\..*)?|embed_tokens")


def read(folder: Path, stated: Stated) -> Foreign:
    """The sparse coder in `folder`. CheckpointError for transcoders, skip connections and groupmax."""
    path, weights_path = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    config = read_json(path)
    _refuse_unsupported(path, config)
    tensors = read_safetensors(weights_path)
    widths = _widths(path, config)
    parts = SAEParts(
        take(weights_path, tensors, _LAYOUT, widths),
        activation="topk",
        k=whole_k(path, config.get("k"), widths[1]),
        scale=settle_scale(path, stated.scale, 1.0),
    )
    hook_folder = folder.parent if re.fullmatch(r"seed\d+", folder.name) else folder
    run_path = hook_folder.parent / RUN_FILE
    run = read_json(run_path) if run_path.exists() else {}
    return Foreign(
        format="sparsify, topk",
        files=[path, weights_path],
        parts=parts,
        hook_name=hook_folder.name if _HOOK_FOLDER.fullmatch(hook_folder.name) else None,
        model_name=run.get("model"),
        expected_l0=parts.k,
        found={name: run[name] for name in ("dataset", "ctx_len") if name in run},
    )


def _refuse_unsupported(path: Path, config: dict[str, Any]) -> None:
    choice(path, "activation", config.get("activation") or "topk", ["topk"])
    for name, what in (
        ("transcode", "it predicts another layer's output, and is no autoencoder"),
        ("skip_connection", "a skip connection is no part of an autoencoder's maths here"),
        ("signed", "negative latents can't be expressed"),
    ):
        if config.get(name):
            raise CheckpointError(f"{path}: {name} must be false ({what}), got {config[name]!r}")


def _widths(path: Path, config: dict[str, Any]) -> tuple[int, int]:
    """(d_model, num_latents); 0 latents mean expansion_factor times the width."""
    d_model = require(config, path, "d_in", int)
    if config.get("num_latents"):
        return d_model, require(config, path, "num_latents", int)
    return d_model, d_model * require(config, path, "expansion_factor", int)
