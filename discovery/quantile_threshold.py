"""A monitor's threshold as a plain quantile of its own statistic over benign replies.

The statistic is the one the monitor uses, `max_rolling_mean` over a whole reply, so that the quantile is a share of
*replies*. It is no validated calibration: one pooled sample, no strata of length, no interval.

Massive activations are left out (`usual_norm`), as the monitor leaves them out.

Shape suffixes: T scored tokens of a reply, W latents.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from discovery.corpus import Context
from discovery.residuals import read_in_batches
from discovery.search_items import Item
from discovery.usual_norm import of_usual_norm
from monitors.reference import max_rolling_mean
from sae_runtime.checkpoint import LoadedSAE
from sae_runtime.language_model import LanguageModel
from sae_runtime.tap import Tap


@dataclass(frozen=True, slots=True)
class QuantileThreshold:
    """Where a threshold comes from."""

    threshold: float
    quantile: float
    num_replies: int
    """Replies long enough to have a statistic."""
    max_statistic: float


@torch.inference_mode()
def read_replies(
    lm: LanguageModel, tap: Tap, sae: LoadedSAE, items: list[Item], latents: list[int], *, batch_tokens: int = 4096
) -> list[Tensor]:
    """[T, W] readings of each item at its scored tokens, massive activations left out."""
    readings: list[Tensor] = [torch.empty(0)] * len(items)
    contexts = [Context(item.tokens, 0, 0, item.name) for item in items]
    bar = tqdm(total=len(items), desc="replies", unit="reply", mininterval=5)
    for index, resid_TD in read_in_batches(lm, tap, contexts, batch_tokens):
        scored_TD = resid_TD[items[index].scored]
        readings[index] = sae.read(scored_TD[of_usual_norm(scored_TD, sae.manifest)].float(), latents)
        bar.update()
    bar.close()
    return readings


def reply_statistics(readings: list[Tensor], column: int, scale: float, window: int, min_tokens: int) -> list[float]:
    """`max_rolling_mean` of one latent over each reply that has `min_tokens` scored tokens."""
    statistics = (max_rolling_mean((reply_TW[:, column] / scale).tolist(), window, min_tokens) for reply_TW in readings)
    return [statistic for statistic in statistics if statistic is not None]


def quantile_threshold(statistics: list[float], quantile: float = 0.99) -> QuantileThreshold:
    """The ceil((n + 1) q)-th smallest statistic: exceeded by a further benign reply with chance 1 - q at most."""
    if not statistics:
        raise ValueError("a threshold needs at least one reply with a statistic")
    rank = min(len(statistics), math.ceil((len(statistics) + 1) * quantile))
    return QuantileThreshold(sorted(statistics)[rank - 1], quantile, len(statistics), max(statistics))
