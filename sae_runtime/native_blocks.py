"""A Llama or Qwen2 model on a processor, its blocks and its head in the C kernels, weights as a GGUF file has them.

Of transformers' model the modules remain: what has hooks on a block sees what it would see. Blocks without hooks run in
one call. What a token gets depends on nothing but the tokens before it in its slot: neither on how many are read at
once, nor on other rows, nor on the number of threads.

Shape suffixes: B rows, T tokens per row, M = B * T, D model width, N outputs, K inputs, V vocabulary, L positions, d
head width.
"""

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_runtime.fused_blocks import check_blocks
from sae_runtime.kernels import native
from sae_runtime.packed_weights import GROUP, PackedWeight
from sae_runtime.tap import decoder_layers

MOST_TOKENS = 64
"""Of a block at a time; as the C source has it."""
_WIDEST_HEAD, _MOST_SHARING = 256, 16


class Slots(Protocol):
    """Keys and values of all slots, as `service.slot_cache.SlotCache` has them."""

    keys: list[Tensor]
    """Per layer, [S, H, L, d], bf16."""
    values: list[Tensor]


class MostLikely(NamedTuple):
    """Of M lines of logits."""

    tokens_M: NDArray[np.int64]
    """The first of the largest."""
    logprobs_M: NDArray[np.float32]
    """log softmax(logits)[token]; zeros if nobody asked."""
    finite_M: NDArray[np.bool_]
    """Whether all logits are finite; else the others mean nothing."""


class NativeBlocks:
    """Computes a model's logits."""

    def __init__(self, model: Any, packed: Mapping[str, PackedWeight], library: Any) -> None:
        """
        Args:
            model: transformers'; from now on its blocks can be called by `logits` alone.
            packed: the weights by name, see `native_weights`.
            library: what `kernels.native.load` gave.

        Raises:
            ValueError: what about the model can't be computed so.
        """
        check(model)
        self._model, self.library = model, library
        self.packed_bytes = sum(weight.blocks.numel() for weight in packed.values())
        self._vocab_size, self._width = int(model.config.vocab_size), int(model.config.hidden_size)
        self._shape_BTD = (0, 0, self._width)
        """Of the residuals of the pass that runs."""
        self._kept: list[Tensor] = []
        """What the structures below point to."""
        self._layers = list(decoder_layers(model))
        self._blocks = (native.Block * len(self._layers))(
            *(self._block(number, layer, packed) for number, layer in enumerate(self._layers))
        )
        self._head = self._matrix(packed["head"], None)
        norm, embedding_VD = model.model.norm, model.model.embed_tokens.weight.data
        self._norm_weight, self._norm_eps = self._keep(norm.weight.data), float(norm.variance_epsilon)
        self._embedding_VD = _bits(embedding_VD)
        """numpy picks lines of it, and of rotations, since torch wakes its own threads for that."""
        self._pass = self._new_pass()
        self._cache: Slots | None = None
        self._rotation_2Ld: NDArray[np.int16] | None = None
        """Cosine and sine, bits of bf16."""
        for number, layer in enumerate(self._layers):
            layer.forward = self._forward_of(number)

    def logits(
        self, ids_BT: Tensor, cache: Slots, slots_B: Sequence[int], starts_B: Sequence[int], *, all_logits: bool = False
    ) -> Tensor:
        """Read T tokens of each row, row b's into slot `slots_B[b]` from position `starts_B[b]` on; what is before must
        be there.

        Returns:
            [B, T, V] in fp32, not rounded; T is 1 if the last token's are enough.
        """
        num_rows, num_tokens = ids_BT.shape
        self._point_to(cache)
        assert self._rotation_2Ld is not None
        slots_M, positions_M = np.array(slots_B, dtype=np.int64), np.array(starts_B, dtype=np.int64)
        if num_tokens > 1:
            slots_M = np.repeat(slots_M, num_tokens)
            positions_M = (positions_M[:, None] + np.arange(num_tokens)).ravel()
        # All of these are kept until the blocks have run, which get bare pointers.
        rotation_2Md = self._rotation_2Ld.take(positions_M, axis=1)
        p = self._pass
        p.slots, p.positions = slots_M.ctypes.data, positions_M.ctypes.data
        p.cos = rotation_2Md.ctypes.data
        p.sin = p.cos + rotation_2Md.nbytes // 2
        p.num_tokens, p.num_threads = len(slots_M), torch.get_num_threads()
        self._shape_BTD = num_rows, num_tokens, self._width
        x_BTD = self._through_blocks(_of_bits(self._embedding_VD[ids_BT.numpy()]))
        if num_tokens > 1 and not all_logits:
            x_BTD = x_BTD[:, -1:]
        return self._logits(x_BTD.contiguous())

    def most_likely(self, logits_MV: Tensor, *, with_logprobs: bool) -> MostLikely:
        """The largest of each line of fp32 logits. Its log-probability takes longer than to find it."""
        assert logits_MV.stride(1) == 1
        num = len(logits_MV)
        tokens_M, logprobs_M = np.empty(num, dtype=np.int64), np.zeros(num, dtype=np.float32)
        finite_M = np.empty(num, dtype=np.bool_)
        self.library.telltale_most_likely(
            logits_MV.data_ptr(), num, logits_MV.shape[1], logits_MV.stride(0), tokens_M.ctypes.data,
            logprobs_M.ctypes.data if with_logprobs else None, finite_M.ctypes.data, torch.get_num_threads(),
        )  # fmt: skip
        return MostLikely(tokens_M, logprobs_M, finite_M)

    def norms(self, x_MD: Tensor) -> NDArray[np.float64]:
        """||x|| of each line of bf16 residuals; not finite only where a number of the line is not."""
        x_MD = x_MD.contiguous()
        norms_M = np.empty(len(x_MD))
        self.library.telltale_norms(x_MD.data_ptr(), len(x_MD), x_MD.shape[1], norms_M.ctypes.data)
        return norms_M

    def moves(self, before_MD: Tensor, after_MD: Tensor) -> NDArray[np.float32]:
        """||after - before|| / ||before|| of each line of bf16 residuals."""
        before_MD, after_MD = before_MD.contiguous(), after_MD.contiguous()
        moves_M = np.empty(len(before_MD), dtype=np.float32)
        self.library.telltale_moves(before_MD.data_ptr(), after_MD.data_ptr(), *before_MD.shape, moves_M.ctypes.data)
        return moves_M

    def num_bytes(self, num_positions: int) -> int:
        """Of what is kept besides the weights, for slots of so many positions."""
        rotation = 2 * num_positions * head_dim(self._model.config) * torch.bfloat16.itemsize
        return rotation + self._scratch_bytes

    # --- what is computed ---

    def _through_blocks(self, x_BTD: Tensor) -> Tensor:
        begin = 0
        for number, layer in enumerate(self._layers):
            if layer._forward_hooks or layer._forward_pre_hooks:
                x_BTD = layer(self._run(begin, number - begin, x_BTD))
                begin = number + 1
        return self._run(begin, len(self._layers) - begin, x_BTD)

    def _forward_of(self, number: int) -> Callable[..., Tensor]:
        def forward(x_BTD: Tensor, *others: Any, **named: Any) -> Tensor:
            # The model's own forward gives its blocks masks and positions, too.
            if others or named:
                raise RuntimeError(
                    "this model is computed by native kernels, which NativeBlocks.logits runs: not by its own forward"
                )
            return self._run(number, 1, x_BTD)

        return forward

    def _run(self, first: int, count: int, x_BTD: Tensor) -> Tensor:
        """`count` blocks from block `first` on. ValueError for residuals that a hook made something else of: the
        kernels would take their bytes for bf16."""
        if x_BTD.dtype is not torch.bfloat16 or x_BTD.shape != self._shape_BTD:
            raise ValueError(
                f"residuals before block {first} must be {torch.bfloat16} of shape {self._shape_BTD}, "
                f"got {x_BTD.dtype} of {tuple(x_BTD.shape)}: did a hook change them?"
            )
        if not count:
            return x_BTD
        x_BTD = x_BTD.contiguous()
        out_BTD = torch.empty_like(x_BTD)
        blocks, p = ctypes.byref(self._blocks[first]), ctypes.byref(self._pass)
        self.library.telltale_blocks(blocks, count, p, x_BTD.data_ptr(), out_BTD.data_ptr())
        return out_BTD

    def _logits(self, x_BTD: Tensor) -> Tensor:
        """[B, T, V] of residuals behind the last block."""
        num_rows, num_tokens = x_BTD.shape[:2]
        logits_BTV = torch.empty(num_rows, num_tokens, self._head.num_outputs)
        self.library.telltale_logits(
            ctypes.byref(self._head), self._norm_weight, self._norm_eps, x_BTD.data_ptr(), num_rows * num_tokens,
            ctypes.byref(self._pass), logits_BTV.data_ptr(),
        )  # fmt: skip
        return logits_BTV if self._head.num_outputs == self._vocab_size else logits_BTV[..., : self._vocab_size]

    # --- how it is set up ---

    def _block(self, number: int, layer: Any, packed: Mapping[str, PackedWeight]) -> native.Block:
        attention, config = layer.self_attn, self._model.config
        biases = [attention.q_proj.bias, attention.k_proj.bias, attention.v_proj.bias]
        bias = None if biases[0] is None else torch.cat(biases).to(torch.float32)
        return native.Block(
            qkv=self._matrix(packed[f"blocks.{number}.qkv"], bias),
            output=self._matrix(packed[f"blocks.{number}.output"], None),
            gate_up=self._matrix(packed[f"blocks.{number}.gate_up"], None),
            down=self._matrix(packed[f"blocks.{number}.down"], None),
            input_norm=self._keep(layer.input_layernorm.weight.data),
            mlp_norm=self._keep(layer.post_attention_layernorm.weight.data),
            d_model=config.hidden_size,
            d_mlp=config.intermediate_size,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=head_dim(config),
            norm_eps=config.rms_norm_eps,
            scaling=attention.scaling,
        )

    def _matrix(self, packed: PackedWeight, bias: Tensor | None) -> native.Matrix:
        self._keep(packed.blocks)
        return matrix(packed, None if bias is None else self._keep(bias))

    def _keep(self, tensor: Tensor) -> int:
        assert tensor.is_contiguous()
        self._kept.append(tensor)
        return tensor.data_ptr()

    def _new_pass(self) -> native.Pass:
        config = self._model.config
        heads, key_heads = config.num_attention_heads, config.num_key_value_heads
        seen = heads * head_dim(config)
        widths = {
            "normed": config.hidden_size,
            "qkv": seen + 2 * key_heads * head_dim(config),
            "seen": seen,
            "middle": config.hidden_size,
            "inner": config.intermediate_size,
        }
        scratch = {name: torch.empty(MOST_TOKENS, width, dtype=torch.bfloat16) for name, width in widths.items()}
        sums = torch.empty(MOST_TOKENS, max(config.hidden_size, seen) // GROUP)
        scratch |= {"sums": sums, "inner_sums": torch.empty(MOST_TOKENS, config.intermediate_size // GROUP)}
        self._scratch_bytes = sum(t.numel() * t.element_size() for t in scratch.values())
        return native.Pass(**{name: self._keep(tensor) for name, tensor in scratch.items()})

    def _point_to(self, cache: Slots) -> None:
        if self._cache is cache:
            return
        keys_SHLd, config = cache.keys[0], self._model.config
        for number, (keys, values) in enumerate(zip(cache.keys, cache.values, strict=True)):
            _check_slots(number, keys, values, config.num_key_value_heads, head_dim(config))
        # Of the model's own rotary embedding, which takes longer than a block.
        positions_1L = torch.arange(keys_SHLd.shape[2])[None]
        cos_1Ld, sin_1Ld = self._model.model.rotary_emb(keys_SHLd, positions_1L)
        if cos_1Ld.shape[2] != head_dim(config):
            raise ValueError(
                f"the rotary embedding must turn all {head_dim(config)} numbers of a head, got {cos_1Ld.shape[2]}"
            )
        self._cache = cache
        self._rotation_2Ld = _bits(torch.cat([cos_1Ld, sin_1Ld]))
        for block, keys, values in zip(self._blocks, cache.keys, cache.values, strict=True):
            block.keys, block.values = keys.data_ptr(), values.data_ptr()
            block.slot_stride, block.head_stride = keys.stride(0), keys.stride(1)


def _bits(x: Tensor) -> NDArray[np.int16]:
    """Numbers in bf16 as numpy knows them."""
    assert x.dtype is torch.bfloat16
    return x.view(torch.int16).numpy()


def _of_bits(bits: NDArray[np.int16]) -> Tensor:
    return torch.from_numpy(bits).view(torch.bfloat16)


def _check_slots(number: int, keys_SHLd: Tensor, values_SHLd: Tensor, num_heads: int, width: int) -> None:
    """ValueError for keys and values of a layer that the kernels would read as something else."""
    for kind, slots in (("keys", keys_SHLd), ("values", values_SHLd)):
        if slots.dtype is not torch.bfloat16:
            raise ValueError(f"{kind} of layer {number} must be {torch.bfloat16}, got {slots.dtype}")
        if slots.dim() != 4 or (slots.shape[1], slots.shape[3]) != (num_heads, width):
            raise ValueError(
                f"{kind} of layer {number} must have shape [S, {num_heads}, L, {width}], got {list(slots.shape)}"
            )
    strides = keys_SHLd.stride()
    if strides[2:] != (width, 1):
        raise ValueError(
            f"positions of layer {number} must be {width} numbers apart, got {strides[2]} and {strides[3]}"
        )
    if values_SHLd.shape != keys_SHLd.shape or values_SHLd.stride() != strides:
        raise ValueError(
            f"values of layer {number} must lie as its keys do, {list(keys_SHLd.shape)} with strides {strides}, got "
            f"{list(values_SHLd.shape)} with {values_SHLd.stride()}"
        )


def matrix(packed: PackedWeight, bias: int | None = None) -> native.Matrix:
    """What C is told of a matrix; `packed`, and the fp32 bias [N] that `bias` points to, must outlive it."""
    return native.Matrix(packed.blocks.data_ptr(), bias, packed.bits, packed.num_outputs, packed.num_inputs)


def product(library: Any, weight: native.Matrix, x_MK: Tensor) -> Tensor:
    """x_MK, bf16, by a matrix [N, K]: fp32 [M, N]. ValueError for other inputs than K."""
    if x_MK.dim() != 2 or x_MK.shape[1] != weight.num_inputs:
        raise ValueError(f"inputs must have shape [M, {weight.num_inputs}], got {list(x_MK.shape)}")
    x_MK = x_MK.contiguous()
    out_MN, sums = torch.empty(len(x_MK), weight.num_outputs), torch.empty(MOST_TOKENS, weight.num_inputs // GROUP)
    library.telltale_product(
        ctypes.byref(weight), x_MK.data_ptr(), len(x_MK), sums.data_ptr(), out_MN.data_ptr(), torch.get_num_threads()
    )
    return out_MN


def head_dim(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def check(model: Any) -> None:
    """ValueError for a model that can't be computed so, and what about it."""
    check_blocks(model)
    config = model.config
    layer: Any
    for number, layer in enumerate(decoder_layers(model)):
        for owner, names in (("self_attn", ("o_proj",)), ("mlp", ("gate_proj", "up_proj", "down_proj"))):
            for name in names:
                if getattr(layer, owner).get_submodule(name).bias is not None:
                    raise ValueError(
                        f"only queries, keys and values may have biases, got one in {number}.{owner}.{name}"
                    )
    for name in ("hidden_size", "intermediate_size"):
        if getattr(config, name) % GROUP:
            raise ValueError(f"its {name} must be a multiple of {GROUP}, got {getattr(config, name)}")
    width, heads, key_heads = head_dim(config), config.num_attention_heads, config.num_key_value_heads
    if width % GROUP or width > _WIDEST_HEAD:
        raise ValueError(f"its heads must be a multiple of {GROUP} wide, {_WIDEST_HEAD} at most, got {width}")
    if heads % key_heads:
        raise ValueError(f"{heads} query heads can't share {key_heads} of keys and values evenly")
    if heads // key_heads > _MOST_SHARING:
        raise ValueError(f"up to {_MOST_SHARING} query heads may share keys and values, got {heads // key_heads}")
