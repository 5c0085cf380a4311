"""What a steered text is worth: how likely the unsteered model finds it, how it repeats itself, what it reads in it.

    perplexity    exp(-mean log p(token)) of the continuation, given the prompt, under the model without steering
    distinct_n    different n-grams / n-grams of the continuation
    repetition    1 - distinct_3 (the seq-rep-n of Welleck et al. 2020): 0 where no three tokens come twice
    reread        readings of the finished text in a pass without steering: what the words themselves say

A text that has really turned to a feature's topic makes the feature fire in the unsteered model. That is also what the
reading *before* steering shows while the text is written: the blocks up to the hook point see tokens, not the push.

Shape suffixes: B rows, T positions, V vocabulary.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from discovery.steered_generation import Reader
from discovery.steering_bench import Bench

REPETITION_N = 3
_ROWS_AT_ONCE = 8


class Reread(NamedTuple):
    """A continuation as the unsteered model reads it; one value for each of its tokens."""

    logprobs: list[float]
    readings: list[float]

    @property
    def perplexity(self) -> float | None:
        """None for an empty continuation."""
        return perplexity(self.logprobs)


@torch.inference_mode()
def reread(bench: Bench, prompt_ids: list[int], continuations: Sequence[list[int]], read: Reader) -> list[Reread]:
    """Read each of the continuations behind the prompt, without steering."""
    # Rows of like length together, so that little is padding. Padding on the right changes nothing before it.
    order = sorted(range(len(continuations)), key=lambda row: len(continuations[row]))
    found: dict[int, Reread] = {}
    for first in range(0, len(order), _ROWS_AT_ONCE):
        rows = order[first : first + _ROWS_AT_ONCE]
        texts = [[*prompt_ids, *continuations[row]] for row in rows]
        length = max(map(len, texts))
        ids_BT = torch.tensor([[*text, *[0] * (length - len(text))] for text in texts], device=bench.lm.device)
        with bench.tap.step(ids_BT.numel()) as record:
            # The last prompt token's logits are those of the first generated token.
            output = bench.lm.model(input_ids=ids_BT, use_cache=False, logits_to_keep=length - len(prompt_ids) + 1)
        assert record.resid_BTD is not None
        for b, row in enumerate(rows):
            ids_N = ids_BT[b, len(prompt_ids) : len(texts[b])]
            logprobs_NV = output.logits[b, : len(ids_N)].float().log_softmax(-1)
            logprobs = logprobs_NV.gather(1, ids_N[:, None])[:, 0].tolist()
            found[row] = Reread(logprobs, read(record.resid_BTD[b, len(prompt_ids) : len(texts[b])]).tolist())
    return [found[row] for row in range(len(continuations))]


def perplexity(logprobs: Sequence[float]) -> float | None:
    """exp(-mean log p); None if there is nothing to judge."""
    return math.exp(-math.fsum(logprobs) / len(logprobs)) if logprobs else None


def distinct(ids: Sequence[int], n: int) -> float | None:
    """Share of different n-grams among all; None for a text of fewer than n tokens."""
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def repetition(ids: Sequence[int]) -> float:
    """Share of n-grams that were there before; 0 for a text too short to repeat itself."""
    share = distinct(ids, REPETITION_N)
    return 0.0 if share is None else 1.0 - share
