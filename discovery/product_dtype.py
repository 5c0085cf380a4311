"""The number format of a training step's large products: what a recipe's `precision` means to torch.

bf16 is fast where the processor multiplies it (`sae_runtime.number_format`), and on a GPU. Elsewhere torch multiplies
it number by number: on an AVX2 processor the pre-activations of 1024 tokens and 8192 latents of width 576 took 21 s of
one core in bf16 and 0.15 s in fp32. `telltale lab train` asks for what is fast.
"""

import torch

from discovery.train_settings import Precision

_DTYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}


def product_dtype(precision: Precision) -> torch.dtype:
    """torch's name for it."""
    return _DTYPES[precision]
