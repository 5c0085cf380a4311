"""A model's weights packed for the native kernels: made once of a folder in transformers' layout, kept in a file.

    blocks.{number}.qkv        queries, keys and values below each other
    blocks.{number}.output
    blocks.{number}.gate_up    a tile of each by turns
    blocks.{number}.down
    head                       that makes logits

What a model needs besides - embedding, norms, biases - is read from the folder itself.
"""

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from sae_runtime.errors import one_line, plain_reason
from sae_runtime.large_pages import side_by_side
from sae_runtime.native_blocks import head_dim
from sae_runtime.packed_weights import BITS_OF_BYTES, TILE, PackedWeight, by_turns, pack
from sae_runtime.whole_files import whole_file

logger = logging.getLogger(__name__)

_VERSION = 1
"""Of the order of numbers in the file."""

Read = Callable[[str], Tensor]
"""A tensor of a model by its name, fp32."""


def packed_shapes(config: Any) -> dict[str, tuple[int, int]]:
    """All matrices of a model, with outputs and inputs; of the head whole tiles of outputs."""
    d_model, d_mlp, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    width = head_dim(config)
    of_block = {
        "qkv": ((heads + 2 * config.num_key_value_heads) * width, d_model),
        "output": (d_model, heads * width),
        "gate_up": (2 * d_mlp, d_model),
        "down": (d_model, d_mlp),
    }
    blocks = range(config.num_hidden_layers)
    shapes = {f"blocks.{number}.{part}": shape for number in blocks for part, shape in of_block.items()}
    return shapes | {"head": (config.vocab_size + -config.vocab_size % TILE, d_model)}


def packing_bytes(config: Any) -> int:
    """Memory that packing takes at most beside the weights in bf16: a head that is tied to the embedding is held once
    more, and while the head is packed it is there in fp32 and twice in bf16."""
    numbers = config.vocab_size * config.hidden_size
    in_fp32 = 8 if config.vocab_size % TILE else 4  # filled up to whole tiles in a copy
    return numbers * (in_fp32 + 2 + (2 if config.tie_word_embeddings else 0))


def pack_matrix(name: str, read: Read, *, is_tied: bool) -> PackedWeight:
    """One of `packed_shapes`. ValueError for shapes that can't be packed."""
    if name == "head":
        weight_VD = read("model.embed_tokens.weight" if is_tied else "lm_head.weight")
        # Whole tiles: the logits of what is no token are cut off.
        missing = -len(weight_VD) % TILE
        return pack(nn.functional.pad(weight_VD, (0, 0, 0, missing)) if missing else weight_VD)
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
        keeps: look for them in a file in `folder`, and make it where it is missing or of no use. If it can't be
            written, the log says so, and the next start packs again.

    Raises:
        ValueError: weights that can't be packed, or have other shapes than `config` says, or a missing one.
    """
    blocks = {name: weight.blocks for name, weight in _kept_or_packed(folder, config, keeps, progress).items()}
    # Copies, of the kept ones too: what is read at every token should not be read from disk anew.
    return {name: PackedWeight(copy) for name, copy in side_by_side(blocks).items()}


def _kept_or_packed(folder: Path, config: Any, keeps: bool, progress: bool) -> dict[str, PackedWeight]:
    file, shapes = folder / f"packed-{_VERSION}.safetensors", packed_shapes(config)
    if keeps and file.is_file():
        try:
            return _kept(file, shapes)
        except (OSError, ValueError, SafetensorError) as error:
            logger.warning("packed weights %s can't be used, and are made anew: %s", file, plain_reason(error))
    packed = _packed(folder, config, shapes, progress=progress)
    if keeps:
        try:
            with whole_file(file) as partial:
                save_file({name: weight.blocks for name, weight in packed.items()}, partial)
        except (OSError, SafetensorError) as error:
            reason = plain_reason(error)
            logger.warning("packed weights can't be kept in %s, and every start makes them anew: %s", file, reason)
    return packed


def _kept(file: Path, shapes: Mapping[str, tuple[int, int]]) -> dict[str, PackedWeight]:
    packed = {}
    with safe_open(file, "pt") as stored:
        for name, shape in shapes.items():
            packed[name] = PackedWeight(stored.get_tensor(name))
            _check_shape(name, packed[name], shape)
    return packed


def _packed(
    folder: Path, config: Any, shapes: Mapping[str, tuple[int, int]], *, progress: bool
) -> dict[str, PackedWeight]:
    packed = {}
    with ExitStack() as stack:
        read = _reader(stack, folder)
        for name in tqdm(shapes, desc=f"packing {folder.name[:12]}", disable=not progress):
            try:
                packed[name] = pack_matrix(name, read, is_tied=config.tie_word_embeddings)
            except (RuntimeError, ValueError) as error:  # torch's of parts that don't fit together
                raise ValueError(f"{name}: {one_line(error)}") from error
            _check_shape(name, packed[name], shapes[name])
    return packed


def _check_shape(name: str, packed: PackedWeight, shape: tuple[int, int]) -> None:
    """ValueError for other bytes than `config` says: the kernels would read beyond them."""
    blocks = packed.blocks
    if blocks.dtype is not torch.uint8 or blocks.dim() != 3 or blocks.shape[2] not in BITS_OF_BYTES:
        kind = str(blocks.dtype).removeprefix("torch.")
        raise ValueError(f"{name} must hold bytes of tiles, got {kind} {list(blocks.shape)}")
    found = packed.num_outputs, packed.num_inputs
    if found != shape:
        raise ValueError(f"{name} must have shape {list(shape)}, got {list(found)}")


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
