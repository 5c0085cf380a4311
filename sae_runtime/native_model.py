"""Loads a model that the native kernels compute: transformers' modules without the weights that are packed.

Whoever would run it without what computes it gets an error that says so, not wrong numbers.
"""

from pathlib import Path
from typing import Any

import torch

from sae_runtime.native_blocks import NativeBlocks, check
from sae_runtime.native_weights import load_rest, packed_weights, packing_bytes
from sae_runtime.weights import check_memory, resident_bytes


def load_natively(folder: Path, library: Any, *, keeps: bool, progress: bool = False) -> tuple[Any, NativeBlocks]:
    """The model in `folder`, in transformers' layout, in bf16 on the CPU, and what computes it.

    Args:
        library: what `kernels.native.load` gave.
        keeps: keep the packed weights in a file in `folder`, so that the next start need not pack them.

    Raises:
        ValueError: what about the model can't be computed so, or a missing or misshaped tensor.
        TapError: it is not Llama-like.
        ModelError: too little memory to pack its weights.
        OSError: no model there.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    check(model)
    needed = resident_bytes(folder, "none", torch.bfloat16) + packing_bytes(config)
    check_memory(needed, "cpu", "packing its weights")
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    # Its frequencies are computed, not stored.
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    load_rest(model, folder, torch.bfloat16)
    packed = packed_weights(folder, config, keeps=keeps, progress=progress)
    return model, NativeBlocks(model, packed, library)
