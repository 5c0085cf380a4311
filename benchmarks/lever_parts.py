"""Parts of the levers: products of bf16 inputs with weights kept in several ways, and a step of torch's own operations.

Shape suffixes: B rows, D model width, K inputs and N outputs of a product, H heads, G heads of keys, d head width,
L live positions, V tokens.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sae_runtime.tap import decoder_layers

GROUP = 32
"""Weights that share a scale and an offset in Q4_1."""


class Linear(nn.Module):
    """Weights in bf16, through `torch.nn.functional.linear`. x [B, K] -> [B, N], as all products here."""

    weight_NK: Tensor

    def __init__(self, weight_NK: Tensor) -> None:
        """`weight_NK` is fp32, also for the others."""
        super().__init__()
        self.register_buffer("weight_NK", weight_NK.to(torch.bfloat16))

    def forward(self, x_BK: Tensor) -> Tensor:
        return F.linear(x_BK, self.weight_NK)


class Transposed(Linear):
    """The weights on the left, so that rows of the product are outputs."""

    def forward(self, x_BK: Tensor) -> Tensor:
        return torch.mm(self.weight_NK, x_BK.t()).t()


class Prepacked(nn.Module):
    """Weights in the order that oneDNN chooses for so many rows."""

    packed: Tensor

    def __init__(self, weight_NK: Tensor, num_rows: int) -> None:
        super().__init__()
        packed = torch.ops.mkldnn._reorder_linear_weight(weight_NK.to(torch.bfloat16), num_rows)
        self.register_buffer("packed", packed)

    def forward(self, x_BK: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x_BK, self.packed, None, "none", [], "")


class Quantised(NamedTuple):
    """w = scale * code + least, code in 0..15, for groups of `GROUP` weights: Q4_1."""

    codes_NK: Tensor
    scales_Ng: Tensor
    least_Ng: Tensor

    def weight_NK(self) -> Tensor:
        groups = self.codes_NK.unflatten(1, (-1, GROUP)).float() * self.scales_Ng[..., None] + self.least_Ng[..., None]
        return groups.flatten(1)


def quantised(weight_NK: Tensor) -> Quantised:
    """fp32 weights in Q4_1. Weights that were Q4_1 get their codes back, for groups that use codes 0 and 15."""
    groups_NgW = weight_NK.unflatten(1, (-1, GROUP))
    least_Ng, most_Ng = groups_NgW.aminmax(dim=-1)
    scales_Ng = (most_Ng - least_Ng) / 15
    codes = ((groups_NgW - least_Ng[..., None]) / scales_Ng[..., None].clamp_min(1e-12)).round()
    return Quantised(codes.flatten(1).to(torch.int32), scales_Ng, least_Ng)


class Int4(nn.Module):
    """Q4_1 in torch's kernel for 4-bit weights, which keeps scales and offsets in bf16."""

    packed: Tensor
    scales_and_zeros: Tensor

    def __init__(self, weight_NK: Tensor) -> None:
        super().__init__()
        self.num_outputs = len(weight_NK)
        # The kernel takes outputs by 16.
        codes_NK, scales_Ng, least_Ng = quantised(F.pad(weight_NK, (0, 0, 0, -self.num_outputs % 16)))
        self.register_buffer("packed", torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes_NK, 1))
        # The kernel takes codes less 8, and an offset where the code is 8.
        both_gN2 = torch.stack([scales_Ng, least_Ng + 8 * scales_Ng], -1).transpose(0, 1)
        self.register_buffer("scales_and_zeros", both_gN2.contiguous().to(torch.bfloat16))

    def forward(self, x_BK: Tensor) -> Tensor:
        made = torch.ops.aten._weight_int4pack_mm_for_cpu(x_BK, self.packed, GROUP, self.scales_and_zeros)
        return made if made.shape[1] == self.num_outputs else made[:, : self.num_outputs]


class Int8(nn.Module):
    """Eight bits and one scale for each output."""

    codes_NK: Tensor
    scales_N: Tensor

    def __init__(self, weight_NK: Tensor) -> None:
        super().__init__()
        scales_N = weight_NK.abs().amax(1) / 127
        self.register_buffer("codes_NK", (weight_NK / scales_N[:, None]).round().to(torch.int8))
        self.register_buffer("scales_N", scales_N.to(torch.bfloat16))

    def forward(self, x_BK: Tensor) -> Tensor:
        return torch.ops.aten._weight_int8pack_mm(x_BK, self.codes_NK, self.scales_N)


class Joined(nn.Module):
    """The first of linear layers that read the same input computes all; `Rest` hands out the others' parts."""

    def __init__(self, product: nn.Module, sizes: list[int]) -> None:
        super().__init__()
        self.product, self.sizes = product, sizes
        self.left: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        first, *self.left = self.product(x).split(self.sizes, -1)
        return first


class Rest(nn.Module):
    """The next part of what `joined` computed."""

    def __init__(self, joined: Joined) -> None:
        super().__init__()
        self._joined = [joined]  # in a list, so that it is no submodule twice

    def forward(self, _x: Tensor) -> Tensor:
        return self._joined[0].left.pop(0)


class HandWritten(nn.Module):
    """A Llama's step of one token per row in few operations, the tap inside.

    Rows are the cache's first slots. Queries of heads that share keys are folded into one head's rows, so that nothing
    is copied for them.
    """

    def __init__(self, exact: Any, block: type[nn.Module], head: type[nn.Module], tapped: int) -> None:
        """`exact` has fp32 weights; `tapped` is the block whose output is read and steered."""
        super().__init__()
        config = exact.config
        self.num_heads, self.num_key_heads = config.num_attention_heads, config.num_key_value_heads
        self.tapped, self.eps = tapped, config.rms_norm_eps
        bf16 = torch.bfloat16
        self.rotary = exact.model.rotary_emb
        self.register_buffer("embedding_VD", exact.get_input_embeddings().weight.to(bf16))
        self.register_buffer("last_norm_D", exact.model.norm.weight.to(bf16))
        self.head = head(exact.lm_head.weight)
        self.blocks = nn.ModuleList()
        layer: Any
        for layer in decoder_layers(exact):
            attention, mlp, made = layer.self_attn, layer.mlp, nn.Module()
            made.register_buffer("norm_D", layer.input_layernorm.weight.to(bf16))
            made.register_buffer("mlp_norm_D", layer.post_attention_layernorm.weight.to(bf16))
            made.qkv = block(torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]))
            made.output = block(attention.o_proj.weight)
            made.gate_up = block(torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]))
            made.down = block(mlp.down_proj.weight)
            self.blocks.append(made)

    def forward(
        self,
        ids_B: Tensor,
        positions_B: Tensor,
        mask_B11L: Tensor,
        keys: list[Tensor],
        values: list[Tensor],
        resid_BD: Tensor,
        steering_BD: Tensor,
    ) -> Tensor:
        """Logits [B, V]; writes `keys` and `values` at the rows' positions, and to `resid_BD` what the tap saw."""
        x_BD = F.embedding(ids_B, self.embedding_VD)
        cos_B1d, sin_B1d = (part.transpose(0, 1) for part in self.rotary(x_BD[None], positions_B[None]))
        rows_B = torch.arange(len(ids_B))
        block: Any
        for index, block in enumerate(self.blocks):
            kept = keys[index], values[index]
            seen_BD = self._attend(block, x_BD, cos_B1d, sin_B1d, rows_B, positions_B, mask_B11L, *kept)
            x_BD = x_BD + block.output(seen_BD)
            gate, up = block.gate_up(self._normed(x_BD, block.mlp_norm_D)).chunk(2, -1)
            x_BD = x_BD + block.down(F.silu(gate) * up)
            if index == self.tapped:
                resid_BD.copy_(x_BD)
                x_BD = x_BD + steering_BD
        return self.head(self._normed(x_BD, self.last_norm_D))

    def _normed(self, x_BD: Tensor, weight_D: Tensor) -> Tensor:
        return F.rms_norm(x_BD, weight_D.shape, weight_D, self.eps)

    def _attend(
        self, block: Any, x_BD: Tensor, cos_B1d: Tensor, sin_B1d: Tensor, rows_B: Tensor, positions_B: Tensor,
        mask_B11L: Tensor, keys_SGLd: Tensor, values_SGLd: Tensor,
    ) -> Tensor:  # fmt: skip
        num_rows, num_live, width = len(x_BD), mask_B11L.shape[-1], keys_SGLd.shape[-1]
        qkv_BHd = block.qkv(self._normed(x_BD, block.norm_D)).view(num_rows, -1, width)
        qk_BHd, value_BGd = qkv_BHd.split([self.num_heads + self.num_key_heads, self.num_key_heads], 1)
        half = width // 2
        turned_BHd = torch.cat((-qk_BHd[..., half:], qk_BHd[..., :half]), -1)
        qk_BHd = qk_BHd * cos_B1d + turned_BHd * sin_B1d
        keys_SGLd[rows_B, :, positions_B] = qk_BHd[:, self.num_heads :]
        values_SGLd[rows_B, :, positions_B] = value_BGd
        seen_BGHd = F.scaled_dot_product_attention(
            qk_BHd[:, : self.num_heads].reshape(num_rows, self.num_key_heads, -1, width),
            keys_SGLd[:num_rows, :, :num_live],
            values_SGLd[:num_rows, :, :num_live],
            attn_mask=mask_B11L,
        )
        return seen_BGHd.reshape(num_rows, -1)
