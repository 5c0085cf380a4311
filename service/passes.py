"""Passes over rows: what to read, the forward pass, a draw for each row, one copy to the host, a record.

Between `Row`, which knows one request, and `ModelRunner`, which knows tensors. Of what a pass read, rows keep nothing
here but their maxima for the metrics; the engine decides what becomes of the rest.
"""

import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.model_runner import ModelRunner
from service.pass_output import Fetched, PassOutput, RowInput
from service.read_plan import Columns, ReadPlan, Wants, plan_reading
from service.records import Phase, StepRecord
from service.row import Row
from service.sampling import Draw, draw_besides, draw_rows, token_logprobs


class PassResult(NamedTuple):
    """What a pass gave, on the host."""

    fetched: Fetched
    columns: list[Columns]
    """Where each row finds what it wants to read."""
    record: StepRecord
    drawn: Draw | None
    """The next token of each row; None after a piece of prompt that no token follows yet."""
    prompt_logprobs: list[float] | None
    """Of the successor of each prompt token, if they were asked for."""


class Passes:
    """Runs passes on a ModelRunner. Whatever the runner raises is passed on, and nothing was drawn from it then."""

    def __init__(
        self,
        runner: ModelRunner,
        server_watch: Sequence[int],
        *,
        guarded: Sequence[int] = (),
        max_fvu: float | None = None,
    ) -> None:
        """
        Args:
            server_watch: latents that the metrics follow in all requests.
            guarded: latents that are to be read in all requests, whether anybody asked or not.
            max_fvu: the FVU above which a token counts as off distribution; None for none.
        """
        self._runner = runner
        self._num_watched, self._max_fvu = len(server_watch), math.inf if max_fvu is None else max_fvu
        self._server_watch = (*server_watch, *guarded)
        self._planned: list[Wants] | None = None
        self._last_plan = plan_reading([], self._server_watch)
        self._probe_places = {name: place for place, name in enumerate(runner.probe_names)}

    def read_prompt(self, row: Row, num_tokens: int) -> PassResult:
        """Read the next piece of a row's prompt."""
        started, start, wants_logprobs = time.perf_counter(), row.num_read, row.request.include_logprobs
        plan = self._plan([row])
        row.num_written = start + num_tokens
        output = self._runner.forward(
            [RowInput(row.slot, start, row.ids[start : start + num_tokens], row.steering)],
            plan.latents,
            num_top=row.request.top_features,
            all_logits=wants_logprobs,
            with_probes=plan.with_probes,
            with_logprobs=wants_logprobs,
        )
        extra = []
        if wants_logprobs:
            # Of each token's successor; the last one of the prompt has none yet.
            successors = [*row.ids[start + 1 : start + num_tokens + 1], 0][:num_tokens]
            extra = [token_logprobs(output.logits_BTV[0], torch.tensor(successors, device=output.logits_BTV.device))]
        is_last = row.num_unread == num_tokens
        fetched, drawn = self._fetch([row], output, extra, draws=is_last and row.needs_draw)
        return PassResult(
            fetched,
            plan.columns,
            self._record(Phase.PREFILL, [row], plan, output, fetched, started),
            drawn,
            fetched.extra[0].tolist() if wants_logprobs else None,
        )

    def read_tokens(self, rows: list[Row]) -> PassResult:
        """Read the pending token of every row, and draw the next ones."""
        started = time.perf_counter()
        plan = self._plan(rows)
        inputs = []
        for row in rows:
            assert row.pending is not None
            row.num_written = row.num_read + 1
            inputs.append(RowInput(row.slot, row.num_read, [row.pending.id], row.steering))
        num_top = max(row.request.top_features for row in rows)
        output = self._runner.decode(
            inputs,
            plan.latents,
            num_top=num_top,
            with_probes=plan.with_probes,
            with_logprobs=any(row.request.include_logprobs for row in rows),
        )
        fetched, drawn = self._fetch(rows, output, [], draws=True)
        record = self._record(Phase.DECODE, rows, plan, output, fetched, started)
        return PassResult(fetched, plan.columns, record, drawn, None)

    def _plan(self, rows: list[Row]) -> ReadPlan:
        wants = [Wants(row.request.watched, row.bank.latents, row.bank.probes) for row in rows]
        if wants != self._planned:
            # Mostly the rows of the pass before: planning takes longer than to see that.
            self._planned, self._last_plan = wants, plan_reading(wants, self._server_watch, self._probe_places)
        return self._last_plan

    def _fetch(
        self, rows: list[Row], output: PassOutput, extra: list[Tensor], *, draws: bool
    ) -> tuple[Fetched, Draw | None]:
        """What a pass gave, and `extra`, on the host; and the next token of each row, if that is wanted.

        For a row that ends with this pass the draw is in vain, and cheaper than to leave it out.
        """
        samplers, greedy = [row.sampler for row in rows], output.greedy
        if not draws or (greedy is not None and all(sampler.is_greedy for sampler in samplers)):
            return self._runner.fetch(output, extra), greedy if draws else None
        ids, logits_BV = [row.ids for row in rows], output.logits_BTV[:, -1]
        with torch.inference_mode():
            if greedy is not None and logits_BV.device.type == "cpu":
                return self._runner.fetch(output, extra), draw_besides(greedy, samplers, ids, logits_BV)
            drawn = draw_rows(samplers, ids, logits_BV, any(row.request.include_logprobs for row in rows))
        fetched = self._runner.fetch(output, [*extra, *drawn])
        return fetched, Draw(*fetched.extra[len(extra) :])

    def _record(
        self, phase: Phase, rows: list[Row], plan: ReadPlan, output: PassOutput, fetched: Fetched, started: float
    ) -> StepRecord:
        now, stats = time.monotonic(), fetched.stats
        is_finite_N, is_replay_B = stats.finite_N.astype(bool), [row.request.replay is not None for row in rows]
        num_tokens, num_replayed = len(is_finite_N), 0
        counts_N = is_finite_N & (stats.off_scale_N == 0)
        if any(is_replay_B):
            is_replay_N = np.repeat(is_replay_B, num_tokens // len(rows))
            counts_N &= ~is_replay_N
            num_replayed = int(is_replay_N.sum())
        read_NX = stats.readings_NU[:, plan.server_watch]
        self._note_features(rows, read_NX[:, : self._num_watched], counts_N)
        read_NX = read_NX[counts_N]
        return StepRecord(
            phase=phase,
            num_rows=len(rows),
            num_tokens=num_tokens,
            num_tapped_tokens=output.num_tapped,
            step_seconds=time.perf_counter() - started,
            encode_seconds=output.encode_seconds,
            num_nonfinite_tokens=num_tokens - int(np.count_nonzero(is_finite_N)),
            readings_NW=read_NX[:, : self._num_watched],
            num_replayed_tokens=num_replayed,
            inter_token_seconds=[
                now - row.last_token_at
                for row, is_replay in zip(rows, is_replay_B, strict=True)
                if row.last_token_at is not None and not is_replay
            ],
            num_ordinary_tokens=len(read_NX),
            num_off_distribution=int(np.count_nonzero(stats.fvu_N[counts_N] > self._max_fvu)),
            inputs_NG=read_NX[:, self._num_watched :],
            probes_NP=stats.probes_NP[counts_N] if plan.with_probes else None,
        )

    def _note_features(self, rows: list[Row], readings_NW: NDArray[np.float32], counts_N: NDArray[np.bool_]) -> None:
        """Let each row keep the largest of its tokens that count."""
        if not self._num_watched:
            return
        num_each, all_count = len(counts_N) // len(rows), counts_N.all()
        for b, row in enumerate(rows):
            mine = slice(b * num_each, (b + 1) * num_each)
            row.note_features(readings_NW[mine] if all_count else readings_NW[mine][counts_N[mine]])
