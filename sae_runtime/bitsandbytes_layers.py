"""Weights that bitsandbytes quantises on loading: how it is asked to, and where on a CPU it would be wrong."""

import importlib.util
from typing import Any

import torch
from torch import nn

from sae_runtime.errors import ModelError


def bitsandbytes_config(quantization: str, dtype: torch.dtype) -> Any:
    """What transformers is to quantise by; None for `none`. ModelError where bitsandbytes is not installed."""
    if quantization == "none":
        return None
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(f"quantization {quantization} needs bitsandbytes: run `pip install telltale-llm[gpu]`")
    from transformers import BitsAndBytesConfig

    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_use_double_quant=True,
    )


def check_block_sizes(name: str, model: nn.Module, dtype: torch.dtype, device: str) -> None:
    """ModelError for layers that bitsandbytes gets wrong on CPUs.

    Where inputs don't come in whole quantisation blocks, its kernel for AVX-512 takes other blocks' scales, silently.
    Outputs that don't come in 32s it can't pack for its kernel for bf16.
    """
    if not device.startswith("cpu"):
        return
    for layer, module in model.named_modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is None:
            continue
        for what, size, divisor in (
            ("inputs", state.shape[1], state.blocksize),
            ("outputs", state.shape[0], 32 if dtype is torch.bfloat16 else 1),
        ):
            if size % divisor:
                raise ModelError(
                    f"quantization nf4 on a CPU needs layers whose {what} are a multiple of {divisor}, got {size} in "
                    f"{layer} of model {name}"
                )


def keep_to_dtype(model: nn.Module) -> None:
    """Turn off bitsandbytes' kernels for CPUs with bf16: they compute in it whatever they are given.

    On a layer 3072 x 8192 in fp32 that is an error of 3e-3 instead of 3e-7. Models in bf16 keep them: they are 2 to 50
    times faster than dequantising.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
