"""Continuations of one prompt, each row steered in its own way: what the server does for a request, in lockstep.

A row's tokens are those that the server writes for the same prompt, operations, temperature and seed; its readings and
its report too: the last token is read as well, an end-of-sequence token is neither read nor counted. (In bf16, rows
computed side by side may round differently from a row alone, and a near-tie may then go the other way.)

Shape suffixes: B rows, T positions, D model width, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

from discovery.errors import SteerError
from discovery.steering_bench import Bench, edit_rows
from sae_runtime.cache_argument import cache_argument
from sae_runtime.last_position import last_position
from sae_runtime.steering import Steering, SteeringReport, relative_moves
from sae_runtime.steering_spec import SteeringSpec

Reader = Callable[[Tensor], Tensor]
"""[T, D] residuals -> [T] readings."""


class Row(NamedTuple):
    """One continuation to be written."""

    specs: tuple[SteeringSpec, ...] = ()
    seed: int | None = None
    """None: the likeliest token every time."""


class Continuation(NamedTuple):
    """One row, written and read."""

    ids: list[int]
    """Generated tokens, without the prompt's."""
    logprobs: list[float]
    """Of each, natural, under the model that wrote it: steered, temperature 1."""
    readings: list[float]
    """At every position, the prompt's first, before steering there."""
    steered_readings: list[float]
    """After it: what the following blocks saw."""
    report: SteeringReport
    is_ended: bool
    """Whether the model ended the text itself."""


class _Writer:
    """One row at work."""

    def __init__(self, bench: Bench, row: Row, num_prompt: int, temperature: float) -> None:
        self.steering: Steering | None = bench.steering(row.specs, num_prompt) if row.specs else None
        self._generator = None if row.seed is None else torch.Generator(bench.lm.device).manual_seed(row.seed)
        self._temperature = temperature
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.readings: list[float] = []
        self.steered_readings: list[float] = []
        self.is_ended = self.is_done = False

    def change(self, resid_TD: Tensor, start: int) -> Tensor:
        assert self.steering is not None
        return self.steering.apply(resid_TD, start)

    def note(self, before_TD: Tensor, after_TD: Tensor, read: Reader) -> None:
        """Take what a pass read at this row's tokens."""
        self.readings += read(before_TD).tolist()
        self.steered_readings += read(after_TD).tolist()
        if self.steering is not None:
            self.steering.account(relative_moves(before_TD, after_TD).tolist())

    def draw(self, logits_V: Tensor, eos_ids: frozenset[int]) -> None:
        """Take the next token from fp32 logits."""
        if not logits_V.isfinite().all():
            raise SteerError("logits must be finite, got NaN or infinity: the steering has broken the model's numbers")
        if self._generator is None:
            token = int(logits_V.argmax())
        else:
            probabilities_V = (logits_V / self._temperature).softmax(-1)
            token = int(torch.multinomial(probabilities_V, 1, generator=self._generator))
        if token in eos_ids:
            self.is_ended = self.is_done = True
            return
        self.ids.append(token)
        self.logprobs.append(float(logits_V[token] - logits_V.logsumexp(-1)))

    def finished(self) -> Continuation:
        report = self.steering.report() if self.steering else SteeringReport(0, 0.0, 0.0)
        return Continuation(
            self.ids, self.logprobs, self.readings, self.steered_readings, report, is_ended=self.is_ended
        )


@torch.inference_mode()
def continue_prompt(
    bench: Bench,
    prompt_ids: list[int],
    rows: Sequence[Row],
    *,
    max_tokens: int,
    read: Reader,
    temperature: float = 1.0,
) -> list[Continuation]:
    """Continue `prompt_ids` once per row, by at most `max_tokens` tokens. Rows with a seed draw at `temperature`.

    Raises:
        SteerError: prompt and continuation are longer than the model's context, or its logits are not finite.
        SteeringError: an operation that the server would refuse.
    """
    lm = bench.lm
    if not 1 <= max_tokens <= lm.context_length - len(prompt_ids):
        raise SteerError(
            f"tokens must lie in 1..{lm.context_length - len(prompt_ids)}, the context behind the prompt, "
            f"got {max_tokens}"
        )
    if not temperature > 0:
        raise SteerError(f"temperature must be above 0, got {temperature:g}")
    writers = [_Writer(bench, row, len(prompt_ids), temperature) for row in rows]
    feed, cache, start = [prompt_ids] * len(rows), DynamicCache(config=lm.model.config), 0
    while not all(writer.is_done for writer in writers):
        changes = [_change_at(writer, start) for writer in writers]
        with bench.tap.step(len(feed) * len(feed[0]), edit_rows(changes)) as record:
            ids_BT = torch.tensor(feed, device=lm.device)
            output = lm.model(
                input_ids=ids_BT,
                use_cache=True,
                logits_to_keep=last_position(ids_BT),
                **cache_argument(cache),
            )
        assert record.resid_BTD is not None
        after_BTD = record.resid_BTD if record.edited_BTD is None else record.edited_BTD
        for b, writer in enumerate(writers):
            if not writer.is_done:
                writer.note(record.resid_BTD[b], after_BTD[b], read)
                writer.is_done = len(writer.ids) == max_tokens
            if not writer.is_done:
                writer.draw(output.logits[b, -1].float(), lm.eos_token_ids)
        start += len(feed[0])
        # A row that has ended is fed something until the others have: it is not looked at.
        feed = [[0 if writer.is_done else writer.ids[-1]] for writer in writers]
    return [writer.finished() for writer in writers]


def _change_at(writer: _Writer, start: int) -> Callable[[Tensor], Tensor] | None:
    if writer.steering is None or writer.is_done:
        return None
    return lambda resid_TD: writer.change(resid_TD, start)
