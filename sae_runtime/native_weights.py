"""A model's weights packed for the native kernels: made once of a folder in transformers' layout, kept in a file.

    blocks.{number}.qkv        queries, keys and values below each other
    blocks.{number}.output
    blocks.{number}.gate_up    a tile of each by turns
    blocks.{number}.down
    head                       that makes logits

What a model needs besides - embedding, norms, biases - is read from the folder itself.
"""

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from sae_runtime.packed_weights import TILE, PackedWeight, by_turns, pack

_VERSION = 1
"""Of the order of numbers in the file."""

Read = Callable[[str], Tensor]
"""A tensor of a model by its name, fp32."""


def packed_names(num_layers: int) -> list[str]:
    """All matrices of a model of so many blocks."""
    parts = ("qkv", "output", "gate_up", "down")
    return [*(f"blocks.{number}.{part}" for number in range(num_layers) for part in parts), "head"]


def pack_matrix(name: str, read: Read, *, is_tied: bool) -> PackedWeight:
    """One of `packed_names`. ValueError for shapes that can't be packed."""
    if name == "head":
        weight_VD = read("model.embed_tokens.weight" if is_tied else "lm_head.weight")
        # Whole tiles: the logits of what is no token are cut off.
        return pack(nn.functional.pad(weight_VD, (0, 0, 0, -len(weight_VD) % TILE)))
    _, number, part = name.split(".")
    layer = f"model.layers.{number}"
    match part:
        case "qkv":
            weight_NK = torch.cat([read(f"{layer}.self_attn.{kind}_proj.weight") for kind in "qkv"])
        case "output":
            weight_NK = read(f"{layer}.self_attn.o_proj.weight")
        case "gate_up":
            weight_NK = by_turns(read(f"{layer}.mlp.gate_proj.weight"), read(f"{layer}.mlp.up_proj.weight"))
        case _:
            weight_NK = read(f"{layer}.mlp.down_proj.weight")
    return pack(weight_NK)


def packed_weights(folder: Path, config: Any, *, keeps: bool, progress: bool = False) -> dict[str, PackedWeight]:
    """The packed weights of the model in `folder`, a folder in transformers' layout with fp32 or bf16 weights.

    Args:
        keeps: look for them in a file in `folder`, and make it where it is missing.

    Raises:
        ValueError: weights that can't be packed, or a missing one.
        OSError: the file can't be written.
    """
    file, names = folder / f"packed-{_VERSION}.safetensors", packed_names(config.num_hidden_layers)
    if keeps and file.is_file():
        with safe_open(file, "pt") as stored:
            # Copies: what is read at every token should lie at a multiple of 64, and not be read from disk anew.
            return {name: PackedWeight(stored.get_tensor(name).clone()) for name in names}
    with ExitStack() as stack:
        read = _reader(stack, folder)
        progressing = tqdm(names, desc=f"packing {folder.name[:12]}", disable=not progress)
        packed = {name: pack_matrix(name, read, is_tied=config.tie_word_embeddings) for name in progressing}
    if keeps:
        partial = file.with_name(f"{file.name}.partial-{os.getpid()}")
        try:
            save_file({name: weight.blocks for name, weight in packed.items()}, partial)
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)
    return packed


def load_rest(model: nn.Module, folder: Path, dtype: torch.dtype) -> None:
    """Give `model`, which is on the meta device, what is not packed: embedding, norms and biases; the rest stays there,
    so that whoever would compute with it finds out."""
    with ExitStack() as stack:
        read = _reader(stack, folder)
        for name, parameter in list(model.named_parameters()):
            if parameter.dim() == 1 or name == "model.embed_tokens.weight":
                owner, _, last = name.rpartition(".")
                loaded = nn.Parameter(read(name).to(dtype), requires_grad=False)
                if loaded.shape != parameter.shape:
                    raise ValueError(f"tensor {name} must have shape {list(parameter.shape)}, got {list(loaded.shape)}")
                setattr(model.get_submodule(owner), last, loaded)


def _reader(stack: ExitStack, folder: Path) -> Read:
    files = [stack.enter_context(safe_open(file, "pt")) for file in sorted(folder.glob("model*.safetensors"))]
    place = {name: file for file in files for name in file.keys()}  # noqa: SIM118 (it is no dict)

    def read(name: str) -> Tensor:
        if name not in place:
            raise ValueError(f"missing tensor {name}")
        return place[name].get_tensor(name).to(torch.float32)

    return read
