"""Attention of one token per row over its slot's live positions, read where they lie.

Heads that share keys are computed together. The live positions of a row are split among several programs, whose
results a second kernel combines; how many there are is told on the device, so that nothing depends on the host.

Shape suffixes: B rows, S slots, H heads, L positions, d head width, P parts.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_PROGRAMS = 264


@triton.jit
def _part_kernel(
    query_ptr,  # [B, Hq, d]
    key_ptr,  # [S, Hkv, L, d]
    value_ptr,
    slot_ptr,
    length_ptr,
    acc_ptr,  # fp32 [B, Hq, PARTS, d]
    max_ptr,  # fp32 [B, Hq, PARTS]
    sum_ptr,
    out_ptr,  # [B, Hq, d]
    num_heads,
    num_positions,
    d,
    scaling,
    GROUP: tl.constexpr,
    GROUP_PAD: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    part = tl.program_id(2)
    length = tl.load(length_ptr + b)
    slot = tl.load(slot_ptr + b)
    per_part = tl.cdiv(tl.cdiv(length, PARTS), BLOCK) * BLOCK
    start = part * per_part
    end = tl.minimum(start + per_part, length)
    g, c = tl.arange(0, GROUP_PAD), tl.arange(0, WIDTH)
    is_g, is_c = g < GROUP, c < d
    query_head = head * GROUP + g
    at_query = (b * num_heads * GROUP + query_head)[:, None] * d + c[None, :]
    is_query = is_g[:, None] & is_c[None, :]
    query = tl.load(query_ptr + at_query, mask=is_query, other=0.0)
    base = (slot * num_heads + head) * num_positions * d
    best = tl.full((GROUP_PAD,), float("-inf"), tl.float32)
    total = tl.zeros((GROUP_PAD,), tl.float32)
    acc = tl.zeros((GROUP_PAD, WIDTH), tl.float32)
    for first in range(start, end, BLOCK):
        position = first + tl.arange(0, BLOCK)
        is_live = position < end
        key = tl.load(
            key_ptr + base + position[None, :] * d + c[:, None], mask=is_live[None, :] & is_c[:, None], other=0.0
        )
        score = tl.dot(query, key, input_precision="ieee") * scaling
        score = tl.where(is_live[None, :], score, float("-inf"))
        new_best = tl.maximum(best, tl.max(score, axis=1))
        weight = tl.exp(score - new_best[:, None])
        shrink = tl.exp(best - new_best)
        total = total * shrink + tl.sum(weight, axis=1)
        value = tl.load(
            value_ptr + base + position[:, None] * d + c[None, :], mask=is_live[:, None] & is_c[None, :], other=0.0
        )
        acc = tl.dot(weight.to(value.dtype), value, acc * shrink[:, None], input_precision="ieee")
        best = new_best
    if PARTS == 1:
        # A row without live positions, which is padding, gives zeros.
        out = acc / tl.where(total == 0, 1.0, total)[:, None]
        tl.store(out_ptr + at_query, out.to(out_ptr.dtype.element_ty), mask=is_query)
    else:
        at_part = (b * num_heads * GROUP + query_head) * PARTS + part
        tl.store(acc_ptr + at_part[:, None] * d + c[None, :], acc, mask=is_query)
        tl.store(max_ptr + at_part, best, mask=is_g)
        tl.store(sum_ptr + at_part, total, mask=is_g)


@triton.jit
def _combine_kernel(acc_ptr, max_ptr, sum_ptr, out_ptr, d, PARTS: tl.constexpr, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    part, c = tl.arange(0, PARTS), tl.arange(0, WIDTH)
    is_c = c < d
    part_best = tl.load(max_ptr + row * PARTS + part)
    best = tl.max(part_best, axis=0)
    # Parts without a position hold -inf and 0; where all do, nothing may become NaN.
    shrink = tl.where(part_best == float("-inf"), 0.0, tl.exp(part_best - best))
    total = tl.sum(tl.load(sum_ptr + row * PARTS + part) * shrink, axis=0)
    acc = tl.load(acc_ptr + (row * PARTS + part)[:, None] * d + c[None, :], mask=is_c[None, :], other=0.0)
    out = tl.sum(acc * shrink[:, None], axis=0) / tl.where(total == 0, 1.0, total)
    tl.store(out_ptr + row * d + c, out.to(out_ptr.dtype.element_ty), mask=is_c)


def attend(
    query_BHd: Tensor, keys: Tensor, values: Tensor, slots_B: Tensor, lengths_B: Tensor, scaling: float
) -> Tensor:
    """[B, Hq, d], row b looking at the first `lengths_B[b]` positions of slot `slots_B[b]` of [S, Hkv, L, d]."""
    num_rows, num_query_heads, d = query_BHd.shape
    num_heads, num_positions = keys.shape[1:3]
    group = num_query_heads // num_heads
    parts = 1
    while parts < 16 and num_rows * num_heads * parts * 2 <= _PROGRAMS:
        parts *= 2
    out = torch.empty_like(query_BHd)
    scratch = query_BHd.new_empty((num_rows, num_query_heads, parts, d + 2), dtype=torch.float32)
    best = query_BHd.new_empty((2, num_rows, num_query_heads, parts), dtype=torch.float32)
    width = max(16, triton.next_power_of_2(d))
    _part_kernel[(num_rows, num_heads, parts)](
        query_BHd, keys, values, slots_B, lengths_B, scratch, best[0], best[1], out,
        num_heads, num_positions, d, scaling,
        GROUP=group, GROUP_PAD=max(16, triton.next_power_of_2(group)), WIDTH=width, BLOCK=64, PARTS=parts,
        num_warps=4, num_stages=2,
    )  # fmt: skip
    if parts > 1:
        _combine_kernel[(num_rows * num_query_heads,)](
            scratch, best[0], best[1], out, d, PARTS=parts, WIDTH=width, num_warps=1
        )
    return out
