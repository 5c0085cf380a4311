"""Items as a dictionary reads them: one number per latent and item, in the dictionary's own scale.

Massive activations are not read, by the rule of `usual_norm`: what a dictionary makes of one dwarfs all other readings.

Shape suffixes: I items, T tokens, F latents, D model width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from discovery.corpus import Context
from discovery.errors import SearchError
from discovery.residuals import read_in_batches
from discovery.search_items import Item
from discovery.usual_norm import of_usual_norm
from monitors.components import OFF_SCALE_NORMS
from sae_runtime.checkpoint import LoadedSAE
from sae_runtime.language_model import LanguageModel
from sae_runtime.tap import Tap


class ItemReadings(NamedTuple):
    """What the dictionary says of each item."""

    mean_IF: Tensor
    """Mean over the scored tokens that are read, fp32; 0 if none is."""
    max_IF: Tensor
    num_massive: int
    """Scored tokens that are massive activations and not read."""


@torch.inference_mode()
def read_item_latents(
    lm: LanguageModel,
    tap: Tap,
    sae: LoadedSAE,
    items: list[Item],
    *,
    batch_tokens: int = 4096,
    precision: str = "highest",
) -> ItemReadings:
    """Mean and maximum of every latent over each item's scored tokens, massive activations left out.

    With `precision` "medium" the encoder's products may run in bf16: enough for ranking latents, and much faster on a
    processor that has instructions for it. SearchError if there is nothing but massive activations: the dictionary is
    of another place or scale.
    """
    mean_IF = torch.zeros(len(items), sae.num_latents)
    max_IF = torch.zeros(len(items), sae.num_latents)
    num_massive = 0
    contexts = [Context(item.tokens, 0, 0, item.name) for item in items]
    bar = tqdm(total=len(items), desc="reading", unit="item", mininterval=5)
    with bar, _matmul_precision(precision):
        for index, resid_TD in read_in_batches(lm, tap, contexts, batch_tokens):
            scored_TD = resid_TD[items[index].scored]
            read_TD = scored_TD[of_usual_norm(scored_TD, sae.manifest)]
            num_massive += len(scored_TD) - len(read_TD)
            if len(read_TD):
                f_TF = sae.encode(read_TD)
                mean_IF[index], max_IF[index] = f_TF.mean(0), f_TF.amax(0)
            bar.update()
    if num_massive and num_massive == sum(len(item.scored) for item in items):
        raise SearchError(
            f"scored tokens must have norms of at most {OFF_SCALE_NORMS:g} times the dictionary's resid_norm_mean "
            f"{sae.manifest.resid_norm_mean:g}, got none of {num_massive}"
        )
    return ItemReadings(mean_IF, max_IF, num_massive)


@contextmanager
def _matmul_precision(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
