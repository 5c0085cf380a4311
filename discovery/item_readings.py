"""Items as a dictionary reads them: one number per latent and item, in the dictionary's own scale.

Shape suffixes: I items, T tokens, F latents, D model width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from discovery.corpus import Context
from discovery.residuals import read_in_batches
from discovery.search_items import Item
from sae_runtime.language_model import LanguageModel
from sae_runtime.sae import SAE
from sae_runtime.tap import Tap


class ItemReadings(NamedTuple):
    """What the dictionary says of each item."""

    mean_IF: Tensor
    """Mean over the scored tokens, fp32."""
    max_IF: Tensor


@torch.inference_mode()
def read_item_latents(
    lm: LanguageModel, tap: Tap, sae: SAE, items: list[Item], *, batch_tokens: int = 4096, precision: str = "highest"
) -> ItemReadings:
    """Mean and maximum of every latent over each item's scored tokens.

    With `precision` "medium" the encoder's products may run in bf16: enough for ranking latents, and much faster on a
    processor that has instructions for it.
    """
    mean_IF = torch.zeros(len(items), sae.num_latents)
    max_IF = torch.zeros(len(items), sae.num_latents)
    contexts = [Context(item.tokens, 0, 0, item.name) for item in items]
    bar = tqdm(total=len(items), desc="reading", unit="item", mininterval=5)
    with bar, _matmul_precision(precision):
        for index, resid_TD in read_in_batches(lm, tap, contexts, batch_tokens):
            f_TF = sae.encode(resid_TD[items[index].scored])
            mean_IF[index], max_IF[index] = f_TF.mean(0), f_TF.amax(0)
            bar.update()
    return ItemReadings(mean_IF, max_IF)


@contextmanager
def _matmul_precision(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
