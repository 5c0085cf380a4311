"""Logits of one row -> its next token. Per row, with the row's own generator: no row's draw touches another's.

The filters are transformers' own processors, in the order `generate` applies them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from service.request import SamplingParams


@dataclass(slots=True)
class Sampler:
    """One request's way of drawing tokens."""

    params: SamplingParams
    processors: Any
    """transformers' LogitsProcessorList."""
    generator: torch.Generator | None
    """None for greedy."""

    @classmethod
    def build(cls, params: SamplingParams, device: torch.device) -> "Sampler":
        """A sampler seeded with `params.seed`."""
        from transformers.generation import logits_process as lp

        processors = lp.LogitsProcessorList()
        if params.repetition_penalty != 1:
            processors.append(lp.RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
        if params.temperature == 0:
            return cls(params, processors, None)
        if params.temperature != 1:
            processors.append(lp.TemperatureLogitsWarper(params.temperature))
        if params.top_k:
            processors.append(lp.TopKLogitsWarper(params.top_k))
        if params.top_p < 1:
            processors.append(lp.TopPLogitsWarper(params.top_p))
        if params.min_p > 0:
            processors.append(lp.MinPLogitsWarper(params.min_p))
        # Seeds are unsigned 64-bit on the wire; torch takes them modulo 2^64 as well.
        return cls(params, processors, torch.Generator(device).manual_seed(params.seed))

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is what it draws."""
        return self.generator is None and not self.processors

    def state(self) -> Tensor | None:
        """Where the generator stands."""
        return None if self.generator is None else self.generator.get_state()

    def restore(self, state: Tensor | None) -> None:
        """Put the generator back, as if nothing had been drawn since `state`."""
        if self.generator is not None and state is not None:
            self.generator.set_state(state)

    def draw(self, logits_V: Tensor, ids: list[int]) -> Tensor | None:
        """Next token [], long, from finite fp32 logits; None if the filters leave nothing to draw from.

        `ids` are all tokens so far, prompt included.
        """
        logits_1V = logits_V[None]
        if self.processors:
            ids_1T = torch.tensor([ids], device=logits_V.device)
            logits_1V = self.processors(ids_1T, logits_1V.clone())
        if self.generator is None:
            return logits_1V[0].argmax()
        probabilities_V = logits_1V[0].softmax(-1)
        # A tiny temperature or penalty can overflow what was finite; drawing from NaN would raise for the whole pass.
        if not probabilities_V.isfinite().all():
            return None
        return torch.multinomial(probabilities_V, 1, generator=self.generator)[0]


class Draw(NamedTuple):
    """What was drawn for B rows: tensors on the device, or arrays on the host."""

    tokens_B: Any
    logprobs_B: Any
    """Natural log-probabilities under the raw logits; zeros if nobody asked."""
    finite_B: Any
    """False for a row with nothing to draw from, its logits or probabilities not being finite: its token is void."""


def draw_rows(samplers: Sequence[Sampler], ids: Sequence[list[int]], logits_BV: Tensor, wants_logprobs: bool) -> Draw:
    """The next token of each row from its fp32 logits [B, V]; `ids` are each row's tokens so far."""
    finite_B = logits_BV.isfinite().all(-1)
    # A row that is not finite is failed later; until then its draw must not raise and take others with it.
    safe_BV = logits_BV if finite_B.all() else torch.nan_to_num(logits_BV)
    tokens_B = safe_BV.argmax(-1)
    for b, sampler in enumerate(samplers):
        if not sampler.is_greedy:
            token = sampler.draw(safe_BV[b], ids[b])
            if token is None:
                finite_B[b] = False
            else:
                tokens_B[b] = token
    logprobs_B = token_logprobs(safe_BV, tokens_B) if wants_logprobs else torch.zeros_like(safe_BV[:, 0])
    return Draw(tokens_B, logprobs_B, finite_B)


def draw_besides(greedy: Draw, samplers: Sequence[Sampler], ids: Sequence[list[int]], logits_BV: Tensor) -> Draw:
    """`draw_rows` where the most likely tokens are known already, on the host, with their log-probabilities: what rows
    get that take another one."""
    tokens_B, logprobs_B, finite_B = (part.copy() for part in greedy)
    with one_thread():
        for b, sampler in enumerate(samplers):
            if sampler.is_greedy or not finite_B[b]:
                continue
            token = sampler.draw(logits_BV[b], ids[b])
            if token is None:
                finite_B[b] = False
            else:
                tokens_B[b] = token
                logprobs_B[b] += float(logits_BV[b, token] - logits_BV[b, int(greedy.tokens_B[b])])
    return Draw(tokens_B, logprobs_B, finite_B)


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch's own threads asleep: for one line of logits they gain nothing, and woken they spin for a while and
    stand in the way of the native kernels' threads."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def token_logprobs(logits_NV: Tensor, tokens_N: Tensor) -> Tensor:
    """log softmax(logits)[token] of each line, [N]."""
    return logits_NV.gather(-1, tokens_N[:, None])[:, 0] - logits_NV.logsumexp(-1)
