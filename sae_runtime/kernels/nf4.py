"""Products with bitsandbytes' nf4 weights as they lie in memory: out[M, N] = x[M, K] @ W[N, K]^T, read in one pass.

A byte of `packed` holds two neighbours of a row, the first in its high half; 64 neighbours share one fp32 `absmax`; a
weight is code[4 bits] * absmax. One row of x is multiplied in fp32 with the weights as they are. More rows go through
the tensor cores: the weights are rounded to bf16 as bitsandbytes' own `dequantize_4bit` rounds them, and products are
summed in fp32.

Shape suffixes: M rows of x, N outputs, K inputs.
"""

from typing import ClassVar

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _codes_of_lanes(code_ptr):
    """The 16 codes, one in each lane of a warp, twice: a register to look them up in. No two lanes hold the same of
    what looks like one number."""
    return tl.inline_asm_elementwise(
        """
        {
            .reg .b32 lane;
            .reg .b64 at;
            mov.u32 lane, %laneid;
            and.b32 lane, lane, 15;
            mad.wide.u32 at, lane, 4, $1;
            ld.global.nc.b32 $0, [at];
        }
        """,
        "=r,l",
        [code_ptr.to(tl.int64)],
        dtype=tl.int32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def _look_up(packed, codes):
    """fp32 codes of the high and the low halves of bytes. A lane asks the one that holds its code: the index is taken
    from the lowest 5 bits, and the fifth does not matter."""
    return tl.inline_asm_elementwise(
        """
        {
            .reg .b32 at;
            shfl.sync.idx.b32 $4, $9, $8, 31, 0xffffffff;
            shr.b32 at, $8, 4;
            shfl.sync.idx.b32 $0, $9, at, 31, 0xffffffff;
            shr.b32 at, $8, 8;
            shfl.sync.idx.b32 $5, $9, at, 31, 0xffffffff;
            shr.b32 at, $8, 12;
            shfl.sync.idx.b32 $1, $9, at, 31, 0xffffffff;
            shr.b32 at, $8, 16;
            shfl.sync.idx.b32 $6, $9, at, 31, 0xffffffff;
            shr.b32 at, $8, 20;
            shfl.sync.idx.b32 $2, $9, at, 31, 0xffffffff;
            shr.b32 at, $8, 24;
            shfl.sync.idx.b32 $7, $9, at, 31, 0xffffffff;
            shr.b32 at, $8, 28;
            shfl.sync.idx.b32 $3, $9, at, 31, 0xffffffff;
        }
        """,
        "=r,=r,=r,=r,=r,=r,=r,=r,r,r,r,r,r",
        [packed, codes],
        dtype=(tl.float32, tl.float32),
        is_pure=True,
        pack=4,
    )


@triton.jit
def _one_row_kernel(
    x_ptr,  # int32 [K / 2]: pairs of bf16
    packed_ptr,  # uint8 [N, K / 2]
    absmax_ptr,  # fp32 [N, K / 64]
    code_ptr,  # fp32 [16]
    bias_ptr,
    out_ptr,
    N,
    NUM_BLOCKS: tl.constexpr,  # K / 64
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
    STAGES: tl.constexpr,
):
    codes = _codes_of_lanes(code_ptr)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    is_row = row < N
    row64 = row.to(tl.int64)
    byte = tl.arange(0, 32)[None, None, :]
    acc = tl.zeros((ROWS, BLOCKS, 32), tl.float32)
    for first in tl.range(0, NUM_BLOCKS, BLOCKS, num_stages=STAGES):
        block = first + tl.arange(0, BLOCKS)
        is_block = block < NUM_BLOCKS
        is_here = is_row[:, None, None] & is_block[None, :, None]
        at = row64[:, None, None] * (NUM_BLOCKS * 32) + block[None, :, None] * 32 + byte
        packed = tl.load(packed_ptr + at, mask=is_here, other=0)
        scale = tl.load(absmax_ptr + row64[:, None, None] * NUM_BLOCKS + block[None, :, None], mask=is_here, other=0.0)
        pair = tl.load(x_ptr + block[None, :, None] * 32 + byte, mask=is_block[None, :, None], other=0)
        # A bf16 is the upper half of the fp32 of the same value.
        even = (pair << 16).to(tl.float32, bitcast=True)
        odd = (pair & -65536).to(tl.float32, bitcast=True)
        high, low = _look_up(packed, codes)
        acc += (high * even + low * odd) * scale
    out = tl.sum(tl.sum(acc, axis=2), axis=1)
    if HAS_BIAS:
        # The product is rounded first, as a product and a sum that follow each other are.
        out = out.to(out_ptr.dtype.element_ty).to(tl.float32)
        out += tl.load(bias_ptr + row, mask=is_row, other=0.0).to(tl.float32)
    tl.store(out_ptr + row, out.to(out_ptr.dtype.element_ty), mask=is_row)


@triton.jit
def _many_rows_kernel(
    x_ptr,  # int32 [M, K / 2]: pairs of bf16
    packed_ptr,
    absmax_ptr,
    code_ptr,
    bias_ptr,
    out_ptr,
    partial_ptr,  # fp32 [SPLITS, M, N]
    arrived_ptr,  # int32 [N / OUTPUTS, M / ROWS], zeros
    M,
    N,
    NUM_BLOCKS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    BLOCKS: tl.constexpr,
    SPLITS: tl.constexpr,
    PER_SPLIT: tl.constexpr,  # of the K / 64
):
    codes = _codes_of_lanes(code_ptr)
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    split = tl.program_id(1)
    m = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    is_output, is_m = output < N, m < M
    output64 = output.to(tl.int64)
    byte = tl.arange(0, 32)[None, None, :]
    pair_at = tl.arange(0, BLOCKS * 32)
    acc = tl.zeros((OUTPUTS, ROWS), tl.float32)
    for step in range(0, PER_SPLIT, BLOCKS):
        first = split * PER_SPLIT + step
        block = first + tl.arange(0, BLOCKS)
        is_here = is_output[:, None, None] & (block < NUM_BLOCKS)[None, :, None]
        at = output64[:, None, None] * (NUM_BLOCKS * 32) + block[None, :, None] * 32 + byte
        packed = tl.load(packed_ptr + at, mask=is_here, other=0)
        scale = tl.load(
            absmax_ptr + output64[:, None, None] * NUM_BLOCKS + block[None, :, None], mask=is_here, other=0.0
        )
        high, low = _look_up(packed, codes)
        high, low = (high * scale).to(tl.bfloat16), (low * scale).to(tl.bfloat16)
        at_pair = first * 32 + pair_at
        pair = tl.load(
            x_ptr + m[None, :] * (NUM_BLOCKS * 32) + at_pair[:, None],
            mask=is_m[None, :] & (at_pair < NUM_BLOCKS * 32)[:, None],
            other=0,
        )
        even = pair.to(tl.int16).to(tl.bfloat16, bitcast=True)
        odd = (pair >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
        # Even and odd inputs apart: their order within a sum is free, and nothing has to be interleaved.
        acc = tl.dot(tl.reshape(high, (OUTPUTS, BLOCKS * 32)), even, acc)
        acc = tl.dot(tl.reshape(low, (OUTPUTS, BLOCKS * 32)), odd, acc)
    is_out = is_output[:, None] & is_m[None, :]
    at_out = m[None, :] * N + output[:, None]
    if SPLITS > 1:
        tl.store(partial_ptr + split * M * N + at_out, acc, mask=is_out)
        tl.debug_barrier()
        tile = tl.program_id(0) * tl.num_programs(2) + tl.program_id(2)
        num_before = tl.atomic_add(arrived_ptr + tile, 1, sem="acq_rel")
        if num_before == SPLITS - 1:
            # The last to arrive sums what all have left, always in the same order.
            acc = tl.zeros((OUTPUTS, ROWS), tl.float32)
            for other in tl.static_range(SPLITS):
                acc += tl.load(partial_ptr + other * M * N + at_out, mask=is_out, other=0.0, cache_modifier=".cg")
            if HAS_BIAS:
                acc = acc.to(out_ptr.dtype.element_ty).to(tl.float32)
                acc += tl.load(bias_ptr + output, mask=is_output, other=0.0).to(tl.float32)[:, None]
            tl.store(out_ptr + at_out, acc.to(out_ptr.dtype.element_ty), mask=is_out)
            tl.store(arrived_ptr + tile, 0)
    else:
        if HAS_BIAS:
            acc = acc.to(out_ptr.dtype.element_ty).to(tl.float32)
            acc += tl.load(bias_ptr + output, mask=is_output, other=0.0).to(tl.float32)[:, None]
        tl.store(out_ptr + at_out, acc.to(out_ptr.dtype.element_ty), mask=is_out)


class Tiles:
    """Sizes of the programs, by measurement on an H200; any give the same numbers but for the order of sums."""

    one_row: ClassVar[dict[str, int]] = {"ROWS": 8, "BLOCKS": 16, "STAGES": 3, "num_warps": 4}
    outputs, blocks, num_warps, num_stages = 128, 1, 4, 4
    programs = 400


def multiply(
    x_MK: Tensor, packed: Tensor, absmax_NG: Tensor, code: Tensor, bias_N: Tensor | None, arrived: Tensor
) -> Tensor:
    """x @ W^T + bias in bf16. `arrived` are zeros, int32, one for each tile, and zeros again afterwards."""
    num_rows = len(x_MK)
    num_outputs, num_blocks = absmax_NG.shape
    out_MN = x_MK.new_empty((num_rows, num_outputs))
    pairs = x_MK.contiguous().view(torch.int32)
    bias = out_MN if bias_N is None else bias_N
    if num_rows == 1:
        tiles = Tiles.one_row
        _one_row_kernel[(triton.cdiv(num_outputs, tiles["ROWS"]),)](
            pairs, packed, absmax_NG, code, bias, out_MN, num_outputs,
            NUM_BLOCKS=num_blocks, HAS_BIAS=bias_N is not None, **tiles,
        )  # fmt: skip
        return out_MN
    rows = min(max(16, triton.next_power_of_2(num_rows)), 64)
    num_tiles, num_chunks = triton.cdiv(num_outputs, Tiles.outputs), triton.cdiv(num_rows, rows)
    splits = split_count(num_tiles * num_chunks, num_blocks)
    partial = x_MK.new_empty((splits, num_rows, num_outputs) if splits > 1 else (1,), dtype=torch.float32)
    _many_rows_kernel[(num_tiles, splits, num_chunks)](
        pairs, packed, absmax_NG, code, bias, out_MN, partial, arrived, num_rows, num_outputs,
        NUM_BLOCKS=num_blocks, HAS_BIAS=bias_N is not None, ROWS=rows, OUTPUTS=Tiles.outputs,
        BLOCKS=Tiles.blocks, SPLITS=splits,
        PER_SPLIT=triton.cdiv(triton.cdiv(num_blocks, Tiles.blocks), splits) * Tiles.blocks,
        num_warps=Tiles.num_warps, num_stages=Tiles.num_stages,
    )  # fmt: skip
    return out_MN


def split_count(num_tiles: int, num_blocks: int) -> int:
    """Into how many parts the inputs are split, so that there are enough programs for the device."""
    splits = 1
    while num_tiles * splits * 2 <= Tiles.programs and num_blocks >= splits * 2 * Tiles.blocks * 4:
        splits *= 2
    return splits
