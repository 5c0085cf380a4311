"""What tests of the native kernels need: the library where this machine can have it, and models of shapes it takes."""

import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny
import tools
import torch
from torch import nn

from sae_runtime.kernels import native
from sae_runtime.language_model import LanguageModel, load_language_model
from sae_runtime.packed_weights import GROUP, TILE, PackedWeight

D_MODEL, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, VOCAB_SIZE = 96, 6, 2, 32, 259
"""Three heads share keys and values; the vocabulary is no multiple of a tile."""
SHAPES = {
    "hidden_size": D_MODEL,
    "intermediate_size": 160,
    "num_hidden_layers": tiny.NUM_LAYERS,
    "num_attention_heads": NUM_HEADS,
    "num_key_value_heads": NUM_KV_HEADS,
    "head_dim": HEAD_DIM,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": tiny.NUM_POSITIONS,
    "initializer_range": 0.15,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
"""Settings of a config."""


@cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="telltale-kernels-"))


def drop_library() -> None:
    """Delete what `library` compiled, if anything: for the end of a session."""
    if _folder.cache_info().currsize:
        shutil.rmtree(_folder())
        _folder.cache_clear()


def library() -> Any:
    """The kernels. The test is skipped on a processor that can't run them."""
    try:
        native.check_processor()
    except native.NativeKernelsMissing as reason:
        pytest.skip(str(reason))
    if shutil.which("cc") is None:
        tools.missing("a C compiler, cc of gcc,")
    return native.load(_folder())


def save_model(
    folder: Path, *, architecture: str = "llama", dtype: torch.dtype = torch.bfloat16, **settings: Any
) -> None:
    """A random model of shapes that the kernels take, in transformers' layout. `settings` change its config."""
    config_class, model_class = tiny.ARCHITECTURES[architecture]
    tokenizer = tiny.byte_tokenizer()
    torch.manual_seed(0)
    model = model_class(config_class(**(SHAPES | settings))).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()  # they begin as 0, which would show nothing
    model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load(folder: Path, **settings: Any) -> LanguageModel:
    """Computed by the kernels unless `settings` say otherwise."""
    library()
    options = {"device": "cpu", "cache_dir": _folder(), "dtype": "bfloat16", "native_kernels": True}
    return load_language_model(str(folder), **(options | settings))


def q4_1(num_outputs: int, num_inputs: int, seed: int = 0) -> torch.Tensor:
    """Weights as they come out of a Q4_1 file."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num_outputs, num_inputs // GROUP)
    numbers = torch.randint(0, 16, (*shape, GROUP), generator=generator).to(torch.float32)
    numbers[..., 0], numbers[..., 7] = 0, 15  # both ends occur, as the file's maker sees to
    scale = (torch.rand(shape, generator=generator) * 0.02 + 0.001).half().float()
    least = (torch.randn(shape, generator=generator) * 0.1).half().float()
    return (numbers * scale[..., None] + least[..., None]).reshape(num_outputs, num_inputs)


def q8_0(num_outputs: int, num_inputs: int, seed: int = 0) -> torch.Tensor:
    """Weights as they come out of a Q8_0 file."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num_outputs, num_inputs // GROUP)
    numbers = torch.randint(-126, 127, (*shape, GROUP), generator=generator).to(torch.float32)
    numbers[..., 3] = torch.where(torch.rand(shape, generator=generator) < 0.5, 127.0, -127.0)
    scale = (torch.rand(shape, generator=generator) * 0.01 + 0.001).half().float()
    return (numbers * scale[..., None]).reshape(num_outputs, num_inputs)


def exact(packed: PackedWeight, x_MK: torch.Tensor) -> torch.Tensor:
    """The product with the weights that are packed, in doubles."""
    return nn.functional.linear(x_MK.double(), unpack(packed).double())


def unpack(packed: PackedWeight) -> torch.Tensor:
    """The weights that it holds, fp32 [N, K]."""
    split = 64 * packed.bits
    kept, halves = packed.blocks[..., :split].contiguous(), packed.blocks[..., split:].contiguous().view(torch.float16)
    if packed.bits == 4:
        # [J, G, 8, 16 outputs, 2 inputs] twice: two pairs of inputs lie in the halves of the same bytes.
        both = torch.stack([kept & 15, kept >> 4], dim=-1).view(*kept.shape[:2], 8, TILE, 2, 2)
        numbers = both.permute(0, 3, 1, 2, 5, 4)
    else:
        numbers = kept.view(torch.int8 if packed.bits == 8 else torch.bfloat16)
        numbers = numbers.view(*kept.shape[:2], GROUP // 2, TILE, 2).permute(0, 3, 1, 2, 4)
    weight = numbers.to(torch.float32).flatten(3)  # [J, 16, G, 32]
    if packed.bits < 16:
        weight = weight * halves[..., :TILE].transpose(1, 2)[..., None].to(torch.float32)
    if packed.bits == 4:
        weight = weight + halves[..., TILE:].transpose(1, 2)[..., None].to(torch.float32)
    return weight.reshape(packed.num_outputs, packed.num_inputs)
