"""Residuals out of the model: contexts in, [T, D] tensors out, batched by length.

Runs only the blocks up to the hook point.

Shape suffixes: B rows, T positions, D model width.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from discovery.corpus import Context
from discovery.errors import HarvestError
from sae_runtime.hook_point import HookPoint
from sae_runtime.language_model import LanguageModel
from sae_runtime.tap import Tap, decoder_layers


@contextmanager
def tapped(lm: LanguageModel, hook_point: HookPoint) -> Iterator[Tap]:
    """A tap on the model at `hook_point`, for the time of the block. TapError if the model has no such layer."""
    tap = Tap(lm.model, hook_point, lm.d_model)
    try:
        yield tap
    finally:
        tap.remove()


@contextmanager
def blocks_up_to(model: nn.Module, hook_point: HookPoint) -> Iterator[nn.Module]:
    """The model's decoder without the blocks behind `hook_point` and without lm_head, for the time of the block."""
    decoder = cast(Any, model).model
    layers = decoder_layers(model)
    decoder.layers = layers[: hook_point.layer + 1]
    try:
        yield decoder
    finally:
        decoder.layers = layers


@torch.inference_mode()
def read_residuals(lm: LanguageModel, tap: Tap, contexts: Sequence[Context]) -> list[Tensor]:
    """[T, D] residuals of each context, position 0 included. One forward pass for all of `contexts`.

    Rows are padded on the right: attention is causal, so padding changes nothing before it.
    """
    length = max(len(context.tokens) for context in contexts)
    token_ids_BT = torch.zeros(len(contexts), length, dtype=torch.long)
    for row, context in enumerate(contexts):
        token_ids_BT[row, : len(context.tokens)] = torch.tensor(context.tokens)
    with blocks_up_to(lm.model, tap.hook_point) as decoder, tap.step(token_ids_BT.numel()) as record:
        decoder(input_ids=token_ids_BT.to(lm.device), use_cache=False)
    resid_BTD = record.resid_BTD
    assert resid_BTD is not None
    return [resid_BTD[row, : len(context.tokens)] for row, context in enumerate(contexts)]


def read_in_batches(
    lm: LanguageModel, tap: Tap, contexts: Sequence[Context], batch_tokens: int
) -> Iterator[tuple[int, Tensor]]:
    """(index into `contexts`, [T, D] residuals), contexts of like length together so that little is padding."""
    by_length = sorted(range(len(contexts)), key=lambda index: len(contexts[index].tokens), reverse=True)
    while by_length:
        rows = max(1, batch_tokens // len(contexts[by_length[0]].tokens))
        batch, by_length = by_length[:rows], by_length[rows:]
        yield from zip(batch, read_residuals(lm, tap, [contexts[index] for index in batch]), strict=True)


def as_stored(resid_TD: Tensor, context: Context, where: str) -> Tensor:
    """[T-1, D] bf16 on the CPU: residuals as shards and buffers hold them. Position 0 is dropped here, for good.

    HarvestError if one of them is NaN or infinite; names the first.
    """
    stored_TD = resid_TD[1:].to("cpu", torch.bfloat16)
    bad_T = ~stored_TD.isfinite().all(-1)
    if bool(bad_T.any()):
        first = int(bad_T.nonzero()[0]) + 1
        raise HarvestError(
            f"residuals must be finite, got NaN or infinity {where}: at {int(bad_T.sum())} of {len(bad_T)} tokens of "
            f"document {context.document} ({context.source}), first at position {first}, token {context.tokens[first]}"
        )
    return stored_TD
