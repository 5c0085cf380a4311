"""Which number format a device computes in fastest.

Processors without bf16 instructions emulate them: on one with AVX2 alone a product of matrices took six times as long
in bf16 as in fp32, and a token four times.
"""

import torch


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether bf16 products run on instructions made for them. True where torch is too old to say."""
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return True
    capabilities = torch.cpu.get_capabilities()  # names of instruction sets, such as amx_bf16 and avx512_bf16
    return any(present for name, present in capabilities.items() if "bf16" in name)


def fastest_dtype(device: torch.device) -> torch.dtype:
    """bfloat16, or float32 where bfloat16 is emulated."""
    return torch.bfloat16 if has_fast_bfloat16(device) else torch.float32
