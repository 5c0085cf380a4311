"""What stands between the products of a Llama block, each in one kernel where torch takes two to six.

All round where transformers' code rounds, so that results are the same but for the order of sums.

Shape suffixes: B rows, D model width, I width of the MLP, H heads, d head width.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _rms_norm_kernel(x_ptr, weight_ptr, out_ptr, width, eps, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, WIDTH)
    is_in = at < width
    x = tl.load(x_ptr + row * width + at, mask=is_in, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, axis=0) / width + eps)
    kind = out_ptr.dtype.element_ty
    weight = tl.load(weight_ptr + at, mask=is_in, other=0.0).to(tl.float32)
    out = weight * (x * scale).to(kind).to(tl.float32)
    tl.store(out_ptr + row * width + at, out.to(kind), mask=is_in)


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """As LlamaRMSNorm, over the last dimension."""
    x = x.contiguous()
    width = x.shape[-1]
    out = torch.empty_like(x)
    block = triton.next_power_of_2(width)
    _rms_norm_kernel[(x.numel() // width,)](x, weight_D, out, width, eps, WIDTH=block, num_warps=8)
    return out


@triton.jit
def _silu_mul_kernel(gate_up_ptr, out_ptr, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_in = at < width
    gate = tl.load(gate_up_ptr + row * 2 * width + at, mask=is_in, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * 2 * width + width + at, mask=is_in, other=0.0).to(tl.float32)
    kind = out_ptr.dtype.element_ty
    silu = (gate / (1 + tl.exp(-gate))).to(kind).to(tl.float32)
    tl.store(out_ptr + row * width + at, (silu * up).to(kind), mask=is_in)


def silu_mul(gate_up_BI: Tensor) -> Tensor:
    """silu(gate) * up, from rows that hold gate and up behind each other."""
    width = gate_up_BI.shape[-1] // 2
    out_BI = gate_up_BI.new_empty((*gate_up_BI.shape[:-1], width))
    grid = (out_BI.numel() // width, triton.cdiv(width, 1024))
    _silu_mul_kernel[grid](gate_up_BI, out_BI, width, BLOCK=1024, num_warps=4)
    return out_BI


@triton.jit
def _rope_and_keep_kernel(
    qkv_ptr,  # [B, (Hq + 2 Hkv) * d]
    cos_ptr,  # [B, d]
    sin_ptr,
    slot_ptr,
    position_ptr,
    query_ptr,  # [B, Hq, d]
    key_ptr,  # [S, Hkv, L, d]
    value_ptr,
    num_query_heads,
    num_heads,
    num_positions,
    d,
    HALF: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    at = tl.arange(0, HALF)
    half = d // 2
    is_in = at < half
    source = qkv_ptr + (b * (num_query_heads + 2 * num_heads) + head) * d
    first = tl.load(source + at, mask=is_in, other=0.0)
    second = tl.load(source + half + at, mask=is_in, other=0.0)
    kind = qkv_ptr.dtype.element_ty
    slot, position = tl.load(slot_ptr + b), tl.load(position_ptr + b)
    if head >= num_query_heads + num_heads:
        value_head = head - num_query_heads - num_heads
        target = value_ptr + ((slot * num_heads + value_head) * num_positions + position) * d
        tl.store(target + at, first, mask=is_in)
        tl.store(target + half + at, second, mask=is_in)
    else:
        a, z = first.to(tl.float32), second.to(tl.float32)
        cos_a = tl.load(cos_ptr + b * d + at, mask=is_in, other=0.0).to(tl.float32)
        cos_z = tl.load(cos_ptr + b * d + half + at, mask=is_in, other=0.0).to(tl.float32)
        sin_a = tl.load(sin_ptr + b * d + at, mask=is_in, other=0.0).to(tl.float32)
        sin_z = tl.load(sin_ptr + b * d + half + at, mask=is_in, other=0.0).to(tl.float32)
        turned_a = (a * cos_a).to(kind).to(tl.float32) + (-z * sin_a).to(kind).to(tl.float32)
        turned_z = (z * cos_z).to(kind).to(tl.float32) + (a * sin_z).to(kind).to(tl.float32)
        if head < num_query_heads:
            target = query_ptr + (b * num_query_heads + head) * d
        else:
            target = key_ptr + ((slot * num_heads + head - num_query_heads) * num_positions + position) * d
        tl.store(target + at, turned_a.to(kind), mask=is_in)
        tl.store(target + half + at, turned_z.to(kind), mask=is_in)


def rope_and_keep(
    qkv_BX: Tensor, cos_Bd: Tensor, sin_Bd: Tensor, slots_B: Tensor, positions_B: Tensor, keys: Tensor, values: Tensor
) -> Tensor:
    """Rotate queries and keys, put keys and values into their slots; the queries [B, Hq, d].

    `qkv_BX` holds each row's queries, keys and values, head behind head; `keys` and `values` are a layer's
    [S, Hkv, L, d].
    """
    num_heads, num_positions, d = keys.shape[1:]
    num_query_heads = qkv_BX.shape[-1] // d - 2 * num_heads
    query = qkv_BX.new_empty((len(qkv_BX), num_query_heads, d))
    grid = (len(qkv_BX), num_query_heads + 2 * num_heads)
    _rope_and_keep_kernel[grid](
        qkv_BX, cos_Bd, sin_Bd, slots_B, positions_B, query, keys, values,
        num_query_heads, num_heads, num_positions, d, HALF=triton.next_power_of_2(d // 2), num_warps=1,
    )  # fmt: skip
    return query
