"""The blocks of a Llama or Qwen2 model, decoding one token per row on a GPU with few launches.

`FusedBlocks` gives the modules of transformers' model a second way to compute, used only inside `decoding`: products
that read the same input become one, nf4 weights are multiplied as they lie in memory, and norms, rotation, attention
over the slots and the MLP's activation take one kernel each. Outside of `decoding` the model computes as ever.

Shape suffixes: B rows, D model width, X outputs, d head width.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sae_runtime.nf4_linear import Nf4Linear, is_nf4
from sae_runtime.tap import decoder_layers


@dataclass(frozen=True, slots=True)
class Places:
    """Where the rows of a pass are in the cache."""

    keys: Sequence[Tensor]
    """Per layer, [S, H, L, d]."""
    values: Sequence[Tensor]
    slots_B: Tensor
    positions_B: Tensor
    lengths_B: Tensor
    """Positions that a row looks at, its own included; 0 for one that only pads the pass."""


class FusedBlocks:
    """A second way to compute, for all blocks of a model."""

    def __init__(self, model: Any) -> None:
        """Puts it on. ValueError says what about the model it can't do."""
        check_blocks(model)
        self._places: Places | None = None
        self.num_bytes = 0
        """Of what is kept besides the model."""
        layer: Any
        for layer in decoder_layers(model):
            qkv, output, gate_up, down = (self._side_by_side(group) for group in _groups(layer))
            self._add(layer.self_attn, partial(self._attend, layer.self_attn, qkv, output))
            self._add(layer.mlp, partial(self._mlp, gate_up, down))
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                self._add(norm, partial(self._norm, norm))
        self._add(model.model.norm, partial(self._norm, model.model.norm))

    @contextmanager
    def decoding(self, places: Places) -> Iterator[None]:
        """Inside, the model decodes one token per row at `places`."""
        self._places = places
        try:
            yield
        finally:
            self._places = None

    def _side_by_side(self, modules: Sequence[Any]) -> Callable[[Tensor], Tensor]:
        """One product for linear layers that read the same input; their weights become views of one tensor."""
        if is_nf4(modules[0]):
            nf4 = Nf4Linear(modules)
            self.num_bytes += nf4.num_bytes
            return nf4
        weight_XD = _joined([module.weight for module in modules])
        bias_X = None if modules[0].bias is None else _joined([module.bias for module in modules])

        def multiply(x_BD: Tensor) -> Tensor:
            return nn.functional.linear(x_BD, weight_XD, bias_X)

        return multiply

    def _add(self, module: nn.Module, fused: Callable[..., Any]) -> None:
        usual = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            return (usual if self._places is None else fused)(*args, **kwargs)

        module.forward = forward

    def _attend(
        self,
        attention: Any,
        qkv: Callable[[Tensor], Tensor],
        output: Callable[[Tensor], Tensor],
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        *_: Any,
        **__: Any,
    ) -> tuple[Tensor, None]:
        from sae_runtime.kernels import attention as attention_kernel
        from sae_runtime.kernels import elementwise

        places = self._places
        assert places is not None
        keys, values = places.keys[attention.layer_idx], places.values[attention.layer_idx]
        cos_Bd, sin_Bd = (part.expand(len(hidden_states), 1, -1).flatten(0, 1) for part in position_embeddings)
        query_BHd = elementwise.rope_and_keep(
            qkv(hidden_states.flatten(0, 1)), cos_Bd, sin_Bd, places.slots_B, places.positions_B, keys, values
        )
        seen_BHd = attention_kernel.attend(query_BHd, keys, values, places.slots_B, places.lengths_B, attention.scaling)
        return output(seen_BHd.flatten(1))[:, None], None

    @staticmethod
    def _mlp(gate_up: Callable[[Tensor], Tensor], down: Callable[[Tensor], Tensor], x_B1D: Tensor) -> Tensor:
        from sae_runtime.kernels import elementwise

        return down(elementwise.silu_mul(gate_up(x_B1D.flatten(0, 1))))[:, None]

    @staticmethod
    def _norm(norm: Any, hidden_states: Tensor) -> Tensor:
        from sae_runtime.kernels import elementwise

        return elementwise.rms_norm(hidden_states, norm.weight, norm.variance_epsilon)


def check_blocks(model: Any) -> None:
    """ValueError for a model whose blocks are no plain Llama or Qwen2 ones, and what about them; TapError for one
    without `model.layers`."""
    from transformers.models.llama import modeling_llama as llama
    from transformers.models.qwen2 import modeling_qwen2 as qwen2

    layers = decoder_layers(model)
    rope_type = getattr(getattr(model.model, "rotary_emb", None), "rope_type", None)
    if rope_type not in ("default", "linear", "llama3"):
        raise ValueError(f"its rotary embedding of type {rope_type} may depend on the longest row of a pass")
    layer: Any
    for layer in layers:
        # Others have other parts: Phi and Cohere have one norm per block, OLMo-2 none before the attention.
        of_layer = ("self_attn", "mlp", "input_layernorm", "post_attention_layernorm")
        parts = [*(getattr(layer, name, None) for name in of_layer), getattr(model.model, "norm", None)]
        for family in (llama.LlamaAttention, llama.LlamaMLP, llama.LlamaRMSNorm), (
            qwen2.Qwen2Attention, qwen2.Qwen2MLP, qwen2.Qwen2RMSNorm,
        ):  # fmt: skip
            wanted = (family[0], family[1], family[2], family[2], family[2])
            if all(type(part) is kind for part, kind in zip(parts, wanted, strict=True)):
                break
        else:
            raise ValueError(f"its blocks are no plain Llama or Qwen2 ones: {type(parts[0]).__name__}")
        if getattr(layer.self_attn, "sliding_window", None) is not None:
            raise ValueError("its attention has a sliding window")
        if model.config.hidden_act != "silu":
            raise ValueError(f"its MLP's activation is {model.config.hidden_act}, not silu")
        for group in _groups(layer):
            if not (all(is_nf4(module) for module in group) or all(type(module) is nn.Linear for module in group)):
                kinds = ", ".join(sorted({type(module).__name__ for module in group}))
                raise ValueError(f"its linear layers are neither nf4 nor plain: {kinds}")


def _groups(layer: Any) -> Iterator[list[Any]]:
    """Linear layers that read the same input."""
    attention, mlp = layer.self_attn, layer.mlp
    yield [attention.q_proj, attention.k_proj, attention.v_proj]
    yield [attention.o_proj]
    yield [mlp.gate_proj, mlp.up_proj]
    yield [mlp.down_proj]


def _joined(parameters: Sequence[nn.Parameter]) -> Tensor:
    if len(parameters) == 1:
        return parameters[0].data
    whole = torch.cat([parameter.data for parameter in parameters])
    for parameter, part in zip(parameters, torch.split(whole, [len(p) for p in parameters]), strict=True):
        parameter.data = part
    return whole
