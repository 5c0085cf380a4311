"""Linear layers whose weights bitsandbytes holds as nf4, multiplied by the kernel of `kernels.nf4`."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

BLOCK = 64
"""Weights that share a scale."""


def is_nf4(module: Any) -> bool:
    """Whether a module's weights are nf4 as `load_language_model` makes them on a GPU."""
    state = getattr(getattr(module, "weight", None), "quant_state", None)
    if state is None or state.quant_type != "nf4" or state.blocksize != BLOCK:
        return False
    return bool(module.compute_dtype == torch.bfloat16 and state.shape[1] % BLOCK == 0)


class Nf4Linear:
    """Layers that read the same input, as one.

    Their packed weights become views of one tensor. Scales, which are quantised themselves, are kept besides in fp32:
    4 bytes for 64 weights.
    """

    def __init__(self, modules: Sequence[Any]) -> None:
        from sae_runtime.kernels.nf4 import Tiles

        weights = [module.weight for module in modules]
        self.packed = weights[0].data.view(-1)
        if len(weights) > 1:
            self.packed = torch.cat([weight.data.view(-1) for weight in weights])
            parts = self.packed.split([weight.numel() for weight in weights])
            for weight, part in zip(weights, parts, strict=True):
                weight.data = part.view(weight.shape)
        self.absmax_NG = torch.cat([_absmax(weight.quant_state) for weight in weights])
        self.code = weights[0].quant_state.code.to(torch.float32)
        biases = [module.bias for module in modules]
        self.bias_N = None if biases[0] is None else torch.cat([bias.data for bias in biases])
        # One counter for each tile of outputs and each 64 rows.
        most = 16 * (len(self.absmax_NG) // Tiles.outputs + 1)
        self._arrived = torch.zeros(most, dtype=torch.int32, device=self.packed.device)

    @property
    def num_bytes(self) -> int:
        """Of what is kept besides the weights."""
        return self.absmax_NG.numel() * self.absmax_NG.element_size()

    def __call__(self, x_BD: Tensor) -> Tensor:
        from sae_runtime.kernels import nf4

        return nf4.multiply(x_BD, self.packed, self.absmax_NG, self.code, self.bias_N, self._arrived)


def _absmax(state: Any) -> Tensor:
    """[N, K / 64] in fp32."""
    from bitsandbytes.functional import dequantize_blockwise

    absmax = state.absmax
    if state.nested:
        absmax = dequantize_blockwise(absmax, state.state2) + state.offset
    return absmax.to(torch.float32).view(state.shape[0], -1)
