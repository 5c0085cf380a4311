"""Items as a dictionary reads them: one number per latent and item, in the dictionary's own scale.

Massive activations are not read, by the rule of `usual_norm`: what a dictionary makes of one dwarfs all other readings.
An item that has no other tokens was not read, and its zeros are no observation.

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
from discovery.usual_norm import largest_norm_among, largest_usual_norm
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
    is_read_I: Tensor
    """False where an item has no other scored tokens: to be left out."""

    def of_read(self, items: list[Item]) -> tuple["ItemReadings", list[Item]]:
        """Readings and items without those that were not read."""
        kept_I = self.is_read_I
        left = ItemReadings(self.mean_IF[kept_I], self.max_IF[kept_I], self.num_massive, kept_I[kept_I])
        return left, [item for item, is_read in zip(items, kept_I.tolist(), strict=True) if is_read]

    def left_out(self) -> str:
        """What was not read, in words; empty if everything was."""
        if not self.num_massive:
            return ""
        num = int((~self.is_read_I).sum())
        return f"left out: massive activations {self.num_massive}, items that have nothing else {num}"


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
    norms_I = [torch.empty(0)] * len(items)

    def read(rows: list[int], limit: float) -> None:
        contexts = [Context(items[row].tokens, 0, 0, items[row].name) for row in rows]
        with tqdm(total=len(rows), desc="reading", unit="item", mininterval=5) as bar:
            for index, resid_TD in read_in_batches(lm, tap, contexts, batch_tokens):
                row = rows[index]
                scored_TD = resid_TD[items[row].scored]
                norms_I[row] = scored_TD.float().norm(dim=-1).cpu()
                read_TD = scored_TD[(norms_I[row] <= limit).to(scored_TD.device)]
                f_TF = sae.encode(read_TD) if len(read_TD) else torch.zeros(1, sae.num_latents)
                mean_IF[row], max_IF[row] = f_TF.mean(0), f_TF.amax(0)
                bar.update()

    limit = largest_usual_norm(sae.manifest)
    with _matmul_precision(precision):
        read(list(range(len(items))), limit)
        if sae.manifest.resid_norm_mean is None:
            # What is usual is known only now; few items have something else.
            limit = largest_norm_among(norms_I)
            again = [row for row, norm_T in enumerate(norms_I) if bool((norm_T > limit).any())]
            if again:
                read(again, limit)
    is_read_I = torch.tensor([bool((norm_T <= limit).any()) for norm_T in norms_I])
    num_massive = sum(int((norm_T > limit).sum()) for norm_T in norms_I)
    if not is_read_I.any():
        raise SearchError(
            f"scored tokens must have norms of at most {OFF_SCALE_NORMS:g} times the dictionary's resid_norm_mean "
            f"{sae.manifest.resid_norm_mean:g}, got none of {num_massive}"
        )
    return ItemReadings(mean_IF, max_IF, num_massive, is_read_I)


@contextmanager
def _matmul_precision(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
