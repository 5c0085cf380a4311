"""Steps that levers are measured by: the baseline's, and those of levers that run as they are, without compiling.

A lever changes a copy of the model, or writes the step anew. See `benchmarks.levers`.

Shape suffixes: B rows, T tokens per row, D model width, L positions, V tokens.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.lever_parts import HandWritten, Int4, Int8, Joined, Linear, Prepacked, Rest, Transposed
from sae_runtime.cache_argument import cache_argument
from sae_runtime.language_model import LanguageModel
from sae_runtime.last_position import last_position
from sae_runtime.tap import decoder_layers
from service.slot_cache import SlotCache

NUM_LIVE = 128
NUM_POSITIONS = 512
Step = Callable[[], Tensor]
"""One decode step; logits [B, V]."""
MakeProduct = Callable[[Tensor], nn.Module]
"""Weights [N, K] in fp32 -> a module that multiplies [B, K] with them."""


class Bench:
    """A model, `num_rows` rows of text in a cache, and the baseline's step over them."""

    def __init__(
        self, made: LanguageModel, exact: Any, num_rows: int, *, text: str, num_positions: int = NUM_POSITIONS
    ) -> None:
        """`exact` is the same model with fp32 weights."""
        self.model, self.exact, self.num_rows = made.model, exact, num_rows
        ids = made.tokenizer(text)["input_ids"]
        # Each row has a text of its own; the step reads its last token.
        self.ids_BL = torch.tensor([ids[97 * b : 97 * b + NUM_LIVE] for b in range(num_rows)])
        self.tapped = len(decoder_layers(exact)) // 2
        self.cache = self.filled(self.model, num_positions)
        self.exact_BV = self.step(exact, self.filled(exact, num_positions))

    def filled(self, model: Any, num_positions: int) -> SlotCache:
        """A cache with all but the last token read."""
        config = model.config
        cache = SlotCache(
            num_layers=config.num_hidden_layers,
            num_slots=self.num_rows,
            num_heads=config.num_key_value_heads,
            num_positions=num_positions,
            head_dim=config.hidden_size // config.num_attention_heads,
            dtype=model.dtype,
            device=torch.device("cpu"),
        )
        positions_BT, mask_B1TL = cache.begin(list(range(self.num_rows)), [0] * self.num_rows, NUM_LIVE - 1)
        forward(model, cache, self.ids_BL[:, :-1], positions_BT, mask_B1TL)
        return cache

    def places(self, cache: SlotCache, num_live: int, *, over_all: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """The step's ids [B, 1] and positions [B, 1] on position `num_live` - 1, and its mask [B, 1, 1, L]."""
        ids_B1 = torch.tensor(self.ids_BL[:, -1].tolist())[:, None]
        if over_all:
            positions_B = torch.full((self.num_rows,), num_live - 1)
            mask_B11L = cache.begin_fixed(torch.arange(self.num_rows), positions_B)
            return ids_B1, positions_B[:, None], mask_B11L
        return ids_B1, *cache.begin(list(range(self.num_rows)), [num_live - 1] * self.num_rows, 1)

    def step(self, model: Any, cache: SlotCache, *, over_all: bool = False) -> Tensor:
        """The service's eager pass. Each writes the same position, so it can be repeated."""
        return forward(model, cache, *self.places(cache, NUM_LIVE, over_all=over_all))

    def baseline(self) -> Tensor:
        return self.step(self.model, self.cache)

    def difference(self, logits_BV: Tensor) -> float:
        """The largest of logits from those of fp32 weights."""
        return float((logits_BV.float() - self.exact_BV).abs().max())


def forward(model: Any, cache: SlotCache, ids_BT: Tensor, positions_BT: Tensor, mask_B1TL: Tensor) -> Tensor:
    """Logits [B, V] of the last token, as the service asks transformers' model for them."""
    with torch.inference_mode():
        return model(
            input_ids=ids_BT,
            position_ids=positions_BT,
            attention_mask=mask_B1TL,
            use_cache=True,
            logits_to_keep=last_position(ids_BT),
            **cache_argument(cache),
        ).logits[:, 0]


@dataclass(slots=True)
class Made:
    """A lever, ready to be timed."""

    step: Step
    facts: dict[str, Any] = field(default_factory=dict)
    """What there is to say of it besides its time."""
    tapped: "Tapped | None" = None
    """Where its tap writes, if it has one."""


def with_products(bench: Bench, blocks: MakeProduct | None, head: MakeProduct | None) -> Made:
    """Other products in place of linear layers' in a copy of the model. None leaves them."""
    model = copy.deepcopy(bench.model)
    for name, layer in list(bench.exact.named_modules()):
        make = head if name == "lm_head" else blocks
        if isinstance(layer, nn.Linear) and make is not None:
            model.set_submodule(name, OverRows(make(layer.weight)))
    return Made(partial(bench.step, model, bench.cache))


class OverRows(nn.Module):
    """[B, 1, K] through a product of [B, K]."""

    def __init__(self, product: nn.Module) -> None:
        super().__init__()
        self.product = product

    def forward(self, x_B1K: Tensor) -> Tensor:
        return self.product(x_B1K.flatten(0, 1))[:, None]


def int4_blocks(bench: Bench) -> Made:
    """The blocks' weights in torch's int4 kernel, exactly as the file has them."""
    return with_products(bench, Int4, None)


def int4_all(bench: Bench) -> Made:
    """The head's as well: the file has 8 bits there, 4 are fewer."""
    return with_products(bench, Int4, Int4)


def int4_int8_head(bench: Bench) -> Made:
    """The head's in torch's int8 kernel: one scale for each token instead of one for 32 weights."""
    return with_products(bench, Int4, Int8)


def transposed(bench: Bench) -> Made:
    """`torch.mm` with the weights on the left."""
    return with_products(bench, Transposed, Transposed)


def prepacked(bench: Bench) -> Made:
    """bf16 weights in oneDNN's order for that number of rows."""
    make = partial(Prepacked, num_rows=bench.num_rows)
    return with_products(bench, make, make)


def fused_products(bench: Bench) -> Made:
    """Queries, keys and values as one product, gate and up as one."""
    model = copy.deepcopy(bench.model)
    layer: Any
    for layer in decoder_layers(model):
        for part, names in (layer.self_attn, ("q_proj", "k_proj", "v_proj")), (layer.mlp, ("gate_proj", "up_proj")):
            weights = [getattr(part, name).weight for name in names]
            joined = Joined(Linear(torch.cat(weights)), [len(weight) for weight in weights])
            for name in names:
                setattr(part, name, joined if name == names[0] else Rest(joined))
    return Made(partial(bench.step, model, bench.cache))


def attention_over(bench: Bench, num_positions: int) -> Made:
    """Attention over whole slots of that many positions instead of live ones, as fixed shapes have it."""
    cache = bench.filled(bench.model, num_positions)
    return Made(partial(bench.step, bench.model, cache, over_all=True))


class Tapped:
    """What a step with the tap inside writes and is steered with, [B, D]."""

    def __init__(self, bench: Bench) -> None:
        shape = bench.num_rows, bench.model.config.hidden_size
        self.resid_BD = torch.zeros(shape, dtype=torch.bfloat16)
        self.steering_BD = torch.zeros(shape, dtype=torch.bfloat16)


def by_hand(
    bench: Bench,
    *,
    run: Callable[[Any], Any] = lambda step: step,
    blocks: MakeProduct = Linear,
    head: MakeProduct = Linear,
    over_all: bool = False,
) -> Made:
    """Fewer dispatches: a hand-written step, or what `run` makes of it."""
    called = run(HandWritten(bench.exact, blocks, head, bench.tapped))
    tapped, cache = Tapped(bench), bench.cache

    def step(num_live: int = NUM_LIVE) -> Tensor:
        ids_B1, positions_B1, mask_B11L = bench.places(cache, num_live, over_all=over_all)
        with torch.inference_mode():
            where = ids_B1[:, 0], positions_B1[:, 0], mask_B11L, cache.keys, cache.values
            return called(*where, tapped.resid_BD, tapped.steering_BD)

    return Made(step, tapped=tapped)


INT4 = {"blocks": Int4, "head": Int4}
STEPS: Mapping[str, Callable[[Bench], Made]] = {
    "int4_blocks": int4_blocks,
    "int4_all": int4_all,
    "int4_int8_head": int4_int8_head,
    "transposed": transposed,
    "prepacked": prepacked,
    "fused_products": fused_products,
    "attention_over_512": partial(attention_over, num_positions=512),
    "attention_over_2048": partial(attention_over, num_positions=2048),
    "hand_written": by_hand,
    "hand_written_int4": partial(by_hand, **INT4),
    "hand_written_int4_int8_head": partial(by_hand, blocks=Int4, head=Int8),
}
