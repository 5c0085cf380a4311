"""The second way to compute that blocks get for decoding on a GPU, with torch in place of its kernels."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from test_fixed_decode import assert_replies_are_those_of_eager_passes, model_on
from torch import nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import sae_runtime
from sae_runtime.fused_blocks import FusedBlocks


def rms_norm(x, weight_D, eps):
    return weight_D * (x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def silu_mul(gate_up_BI):
    gate_BI, up_BI = gate_up_BI.chunk(2, dim=-1)
    return nn.functional.silu(gate_BI) * up_BI


def rope_and_keep(qkv_BX, cos_Bd, sin_Bd, slots_B, positions_B, keys, values):
    num_heads, _, d = keys.shape[1:]
    heads = qkv_BX.view(len(qkv_BX), 1, -1, d).transpose(1, 2)
    query, key, value = heads.split([heads.shape[1] - 2 * num_heads, num_heads, num_heads], dim=1)
    query, key = apply_rotary_pos_emb(query, key, cos_Bd[:, None], sin_Bd[:, None])
    keys[slots_B, :, positions_B], values[slots_B, :, positions_B] = key[:, :, 0], value[:, :, 0]
    return query[:, :, 0]


def attend(query_BHd, keys, values, slots_B, lengths_B, scaling):
    out_BHd = torch.zeros_like(query_BHd)
    group = query_BHd.shape[1] // keys.shape[1]
    for b, (slot, length) in enumerate(zip(slots_B.tolist(), lengths_B.tolist(), strict=True)):
        if length:
            key, value = (t[slot, :, :length].repeat_interleave(group, 0) for t in (keys, values))
            weight = (query_BHd[b][:, None] @ key.transpose(1, 2) * scaling).softmax(-1)
            out_BHd[b] = (weight @ value)[:, 0]
    return out_BHd


@pytest.fixture
def kernels_of_torch(monkeypatch):
    """Neither triton nor a GPU is needed; steps are run as they are instead of being recorded."""
    kernels: Any = SimpleNamespace(
        elementwise=SimpleNamespace(rms_norm=rms_norm, silu_mul=silu_mul, rope_and_keep=rope_and_keep),
        attention=SimpleNamespace(attend=attend),
    )
    monkeypatch.setitem(sys.modules, "sae_runtime.kernels", kernels)
    monkeypatch.setattr(sae_runtime, "kernels", kernels, raising=False)
    monkeypatch.setattr(tiny, "Recorder", lambda _device: SimpleNamespace(record=None))


@pytest.mark.usefixtures("kernels_of_torch")
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_replies_are_those_of_transformers_blocks(architecture):
    assert_replies_are_those_of_eager_passes("topk", "cpu", architecture=architecture, recorded=True)


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_outside_of_decoding_the_model_computes_as_ever(architecture):
    made = model_on(architecture=architecture)
    before, size = tiny.logits(made.model), sum(p.untyped_storage().nbytes() for p in unique(made.model))
    FusedBlocks(made.model)
    assert torch.equal(tiny.logits(made.model), before)
    # Weights that are multiplied together lie together, and nowhere else.
    attention = made.model.model.layers[0].self_attn
    assert attention.q_proj.weight.untyped_storage().data_ptr() == attention.v_proj.weight.untyped_storage().data_ptr()
    assert sum(p.untyped_storage().nbytes() for p in unique(made.model)) == size


def unique(model):
    return {p.untyped_storage().data_ptr(): p for p in model.parameters()}.values()


def with_other_rope(model):
    model.model.rotary_emb.rope_type = "dynamic"


def with_sliding_window(model):
    model.model.layers[2].self_attn.sliding_window = 8


def with_another_activation(model):
    model.config.hidden_act = "gelu"


def with_another_block(model):
    class OwnMLP(type(model.model.layers[1].mlp)):
        pass

    model.model.layers[1].mlp.__class__ = OwnMLP


def with_another_linear_layer(model):
    class OwnLinear(nn.Linear):
        pass

    model.model.layers[3].mlp.down_proj.__class__ = OwnLinear


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (with_other_rope, "rotary embedding of type dynamic"),
        (with_sliding_window, "sliding window"),
        (with_another_activation, "activation is gelu"),
        (with_another_block, "no plain Llama or Qwen2"),
        (with_another_linear_layer, "neither nf4 nor plain: OwnLinear"),
    ],
)
def test_what_it_can_not_do_is_refused_by_name(change, reason):
    made = model_on()
    change(made.model)
    with pytest.raises(ValueError, match=reason):
        FusedBlocks(made.model)
