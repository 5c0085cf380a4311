"""The rest of a forward pass, from residuals at the hook point on: many interventions share what comes before.

    resid   = first_half(ids)                  one pass through the blocks up to the hook point, without steering
    logits  = second_half(resid')              once per intervention

equals a whole pass in which the tap changes resid to resid', at about half the price, and with logits only where they
are wanted.

Some models scale what they take for embeddings (Granite): residuals are divided by that first. What else a decoder does
between its embeddings and its first block would be done again: `check_halves` tells.

Shape suffixes: B rows, T positions, D model width, P positions wanted, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from discovery.errors import SteerError
from discovery.residuals import blocks_up_to
from discovery.steering_bench import Bench
from sae_runtime.hook_point import HookPoint
from sae_runtime.tap import decoder_layers

_MAX_DIFFERENCE = 0.1
"""Nats. In bf16, rounding makes a few hundredths; a scale that is missed, whole nats."""


@contextmanager
def blocks_behind(model: Any, hook_point: HookPoint) -> Iterator[None]:
    """The model without the blocks up to `hook_point`, for the time of the block."""
    layers, config = decoder_layers(model), model.model.config
    # Some decoders look up by place which mask and which rotation a block gets: Gemma 3's are not all alike.
    kinds = getattr(config, "layer_types", None)
    first = hook_point.layer + (hook_point.side == "output")
    model.model.layers = layers[first:]
    if kinds is not None:
        config.layer_types = kinds[first:]
    try:
        yield
    finally:
        model.model.layers = layers
        if kinds is not None:
            config.layer_types = kinds


@torch.inference_mode()
def first_half(bench: Bench, ids: list[int]) -> Tensor:
    """[T, D] residuals of one text at the hook point, in the model's dtype."""
    ids_1T = torch.tensor([ids], device=bench.lm.device)
    with bench.tap.step(len(ids)) as record, blocks_up_to(bench.lm.model, bench.tap.hook_point) as decoder:
        decoder(input_ids=ids_1T, use_cache=False)
    assert record.resid_BTD is not None
    return record.resid_BTD[0]


@torch.inference_mode()
def second_half(bench: Bench, resid_BTD: Tensor, positions: list[int]) -> Tensor:
    """[B, P, V] fp32 log-probabilities of the token behind each of `positions`."""
    kept_P = torch.tensor(positions, device=resid_BTD.device)
    with blocks_behind(bench.lm.model, bench.tap.hook_point):
        output = bench.lm.model(
            inputs_embeds=resid_BTD / _multiplier(bench.lm.model), use_cache=False, logits_to_keep=kept_P
        )
    return output.logits.float().log_softmax(-1)


@torch.inference_mode()
def check_halves(bench: Bench, ids: list[int]) -> None:
    """SteerError if the two halves of a pass over `ids` don't come to what a whole pass does."""
    whole_TV = bench.lm.model(torch.tensor([ids], device=bench.lm.device), use_cache=False).logits[0].float()
    halves_TV = second_half(bench, first_half(bench, ids)[None], list(range(len(ids))))[0]
    difference = (halves_TV - whole_TV.log_softmax(-1)).abs().mean().item()
    if not difference <= _MAX_DIFFERENCE:
        raise SteerError(
            f"the model's pass can't be resumed at {bench.tap.hook_point}: log-probabilities must come within "
            f"{_MAX_DIFFERENCE} nats of a whole pass's, and differ by {difference:.3g} on average; causal tests "
            "don't know what this model does to its embeddings"
        )


def _multiplier(model: Any) -> float:
    """What the decoder multiplies `inputs_embeds` by; 1 in most models."""
    return float(getattr(model.model, "embedding_multiplier", 1.0))
