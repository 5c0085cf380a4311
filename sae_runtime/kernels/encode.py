"""The dictionary's encoder with weights in bf16 and residuals in fp32: [B, D] @ [D, F] + b -> fp32 pre-activations.

Weights that are stored as bf16 lose nothing by staying so, and are half of what has to be read. A residual is taken as
the sum of two bf16 numbers, which leaves 2^-17 of it out, and two products on the tensor cores are summed in fp32. The
pre-activations of a token differ from those computed in fp32 by 1e-5 of their norm, most of which is how tensor cores
sum; a third number did not change that.

Shape suffixes: B rows, D model width, F latents.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _encode_kernel(
    high_ptr,  # bf16 [B, D]
    low_ptr,
    weight_ptr,  # bf16 [D, F]
    bias_ptr,
    out_ptr,
    num_rows,
    d_model,
    num_latents,
    ROWS: tl.constexpr,
    LATENTS: tl.constexpr,
    DEPTH: tl.constexpr,
    IS_WHOLE: tl.constexpr,  # D and F are multiples of DEPTH and LATENTS
):
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    depth = tl.arange(0, DEPTH)
    is_row = row < num_rows
    for tile in range(tl.program_id(0), tl.cdiv(num_latents, LATENTS), tl.num_programs(0)):
        latent = tile * LATENTS + tl.arange(0, LATENTS)
        is_latent = (latent < num_latents) | IS_WHOLE
        acc = tl.zeros((ROWS, LATENTS), tl.float32)
        x_at = row[:, None] * d_model + depth[None, :]
        weight_at = weight_ptr + depth.to(tl.int64)[:, None] * num_latents + latent[None, :]
        for first in range(0, d_model, DEPTH):
            is_in = (first + depth < d_model) | IS_WHOLE
            is_x = is_row[:, None] & is_in[None, :]
            weight = tl.load(weight_at, mask=is_in[:, None] & is_latent[None, :], other=0.0)
            acc = tl.dot(tl.load(low_ptr + x_at + first, mask=is_x, other=0.0), weight, acc)
            acc = tl.dot(tl.load(high_ptr + x_at + first, mask=is_x, other=0.0), weight, acc)
            weight_at += DEPTH * num_latents
        acc += tl.load(bias_ptr + latent, mask=is_latent, other=0.0)[None, :]
        out_at = row.to(tl.int64)[:, None] * num_latents + latent[None, :]
        tl.store(out_ptr + out_at, acc, mask=is_row[:, None] & is_latent[None, :])


class Tiles:
    """Sizes of the programs, by measurement on an H200."""

    latents, depth, num_warps, num_stages = 128, 32, 4, 5
    programs = 132
    """One for each of its multiprocessors, each taking several tiles: alone more of them are faster, but they slow the
    blocks down that run beside them, by 5.5 % instead of 4 for one row."""


def preactivate(x_BD: Tensor, weight_DF: Tensor, bias_F: Tensor) -> Tensor:
    """fp32 pre-activations of fp32 residuals that were normalised and centred."""
    num_rows, d_model = x_BD.shape
    num_latents = weight_DF.shape[1]
    out_BF = torch.empty((num_rows, num_latents), dtype=torch.float32, device=x_BD.device)
    rows = min(max(16, triton.next_power_of_2(num_rows)), 64)
    grid = (min(triton.cdiv(num_latents, Tiles.latents), Tiles.programs), triton.cdiv(num_rows, rows))
    high_BD = x_BD.to(torch.bfloat16)
    low_BD = (x_BD - high_BD).to(torch.bfloat16)
    _encode_kernel[grid](
        high_BD, low_BD, weight_DF, bias_F, out_BF, num_rows, d_model, num_latents,
        ROWS=rows, LATENTS=Tiles.latents, DEPTH=Tiles.depth,
        IS_WHOLE=num_latents % Tiles.latents == 0 and d_model % Tiles.depth == 0,
        num_warps=Tiles.num_warps, num_stages=Tiles.num_stages,
    )  # fmt: skip
    return out_BF
