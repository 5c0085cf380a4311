"""Which harvested contexts cross-entropy and KL are measured on: a draw from those of all lengths, in even batches.

Predictions of short texts differ from those of long ones, so contexts of one length would stand for that length alone.

Shape suffixes: B rows, T positions.
"""

import random
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from discovery.errors import HarvestError
from discovery.shards import load_token_ids

LEAST_TOKENS = 3
"""Position 0 is left alone, and what it predicts does not count."""
_LOGITS_PER_BATCH = 2**27
"""512 MiB in fp32; a handful of tensors of this size live at once."""


class ChosenContexts(NamedTuple):
    """Contexts as token ids, and how many there were to choose from."""

    contexts: list[list[int]]
    num_available: int
    """With `LEAST_TOKENS` tokens or more."""


def choose_contexts(shards: Sequence[Path], max_tokens: int, *, seed: int = 0) -> ChosenContexts:
    """The first contexts of a shuffle that hold `max_tokens` together, one at least: each length has its share.

    HarvestError if no context is long enough to predict anything.
    """
    contexts = [context for path in shards for context in load_token_ids(path)]
    available = [context for context in contexts if len(context) >= LEAST_TOKENS]
    if not available:
        longest = max(map(len, contexts), default=0)
        raise HarvestError(
            f"contexts of {shards[0].parent} must have {LEAST_TOKENS} tokens or more for predictions, got {longest}"
        )
    random.Random(seed).shuffle(available)
    chosen, num_tokens = available[:1], len(available[0])
    for context in available[1:]:
        num_tokens += len(context)
        if num_tokens > max_tokens:
            break
        chosen.append(context)
    return ChosenContexts(chosen, len(available))


def even_batches(contexts: Sequence[list[int]], batch_tokens: int) -> Iterator[Tensor]:
    """[B, T] token ids, the contexts of a batch having one length; a context above `batch_tokens` is alone."""
    for length, group in groupby(sorted(contexts, key=len, reverse=True), key=len):
        yield from torch.split(torch.tensor(list(group)), max(1, batch_tokens // length))


def usual_batch_tokens(num_vocabulary: int) -> int:
    """Tokens of a batch whose logits take 512 MiB."""
    return max(1, _LOGITS_PER_BATCH // num_vocabulary)
