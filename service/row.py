"""One request at work: where it stands in its sequence, its text, its steering, what of it leaves, its times.

The engine moves it on; a row turns what a pass read into events (`token_observer`). No tensors of the model pass
through here.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sae_runtime.latent_reader import LatentReader
from sae_runtime.steering import Steering
from sae_runtime.steering_spec import SteeringLimits
from service.detokenizer import Detokenizer
from service.held_tokens import HeldTokens
from service.pass_output import Fetched
from service.read_plan import Columns
from service.records import Outcome, RequestRecord
from service.request import (
    Event,
    FinishedEvent,
    FinishReason,
    StartedEvent,
    Timings,
    TokenEvent,
    Withheld,
)
from service.sampling import Sampler
from service.submission import Submission
from service.token_observer import Place, TokenObserver

_WHOLE_REPLIES = {Outcome.EOS, Outcome.STOP_SEQUENCE, Outcome.LENGTH, Outcome.CONTEXT_LENGTH, Outcome.ALERT_STOP}


@dataclass(slots=True)
class Pending:
    """A token that was drawn and has not been read yet."""

    id: int
    text: str
    logprob: float | None


class Row:
    """A submission that has a slot."""

    def __init__(
        self,
        submission: Submission,
        slot: int,
        *,
        tokenizer: Any,
        sae: LatentReader,
        limits: SteeringLimits,
        device: torch.device,
        keeps_alerts: bool = False,
        max_fvu: float | None = None,
    ) -> None:
        """With `keeps_alerts` each alert comes with what is to be kept of it."""
        request = submission.request
        self.submission, self.request, self.slot = submission, request, slot
        self.admitted = time.monotonic()
        self.first_token_at: float | None = None
        self.last_token_at: float | None = None
        self.prompt_read_at: float | None = None
        self.ids = list(request.prompt_ids)
        """Prompt and generated tokens, the pending one included."""
        self.num_read = 0
        """Tokens read by the model: the next position to be read."""
        self.num_written = 0
        """Positions of the slot that may hold something."""
        self.feature_max_W: NDArray[np.float32] | None = None
        """Per server-watched latent, its largest reading so far, position 0 left out."""
        self.pending: Pending | None = None
        self.outbox: list[Event] = []
        self.held = HeldTokens()
        self.num_withheld = 0
        """Generated tokens that a policy kept from leaving."""
        self.finish: FinishReason | None = None
        """Set once it is known how the request ends; the pending token, if any, is the last."""
        self.matched_token_id: int | None = None
        self.sampler = Sampler.build(request.sampling, device)
        self.steering: Steering | None = None
        if request.policy_steering or any(specs for specs, _, _ in request.all_steering):
            self.steering = Steering(sae, request.num_prompt, limits)
            for specs, _, active_from in request.all_steering:
                self.steering.add(specs, active_from=active_from)
        self.observer = TokenObserver(
            request, tokenizer=tokenizer, steering=self.steering, keeps_alerts=keeps_alerts, max_fvu=max_fvu
        )
        self.bank = self.observer.bank
        self._text = Detokenizer(tokenizer, request.sampling.stop)
        self._prompt_text = Detokenizer(tokenizer)
        self._prompt_events: list[Event] = []
        self._last_prompt_event: TokenEvent | None = None
        self._next_prompt_logprob: float | None = None

    # --- where it stands ---

    @property
    def num_prompt(self) -> int:
        return len(self.request.prompt_ids)

    @property
    def num_unread(self) -> int:
        """Prompt tokens not yet read."""
        return max(self.num_prompt - self.num_read, 0)

    @property
    def num_generated(self) -> int:
        """Generated tokens that were read."""
        return max(self.num_read - self.num_prompt, 0)

    @property
    def needs_draw(self) -> bool:
        """Whether the pass that reads the next token has to produce another."""
        return self.finish is None and not self.request.score_only

    # --- what a pass did ---

    def note_features(self, readings_NW: NDArray[np.float32]) -> None:
        """Keep the largest server-watched readings; position 0 is not among them."""
        if len(readings_NW):
            # Of a decode pass it is one line, of which there is no maximum to be found.
            peak_W = readings_NW[0] if len(readings_NW) == 1 else readings_NW.max(axis=0)
            self.feature_max_W = peak_W if self.feature_max_W is None else np.maximum(self.feature_max_W, peak_W)

    def take_prompt(self, fetched: Fetched, columns: Columns, logprobs: Sequence[float] | None) -> None:
        """Take the readings of the next chunk of prompt. `logprobs[t]` is that of the token after the chunk's t-th."""
        self._account(fetched, 0)
        for t in range(len(fetched.stats.l0_N)):
            position = self.num_read
            event = self.observer.observe(fetched, columns, Place(t, 0, t), self.ids, position, is_prompt=True)
            event.text = self._prompt_text.push(event.id)
            if self.request.include_logprobs and position > 0:
                event.logprob = self._next_prompt_logprob
            self._next_prompt_logprob = logprobs[t] if logprobs is not None else None
            self.num_read += 1
            if self.request.include_prompt:
                self._prompt_events.append(event)
            self._prompt_events.extend(self.observer.alerts_at(event.index))
            self._last_prompt_event = event
        if self.num_unread == 0:
            self._start()

    def _start(self) -> None:
        self.prompt_read_at = time.monotonic()
        event = self._last_prompt_event
        assert event is not None
        event.text += self._prompt_text.flush()
        self.bank.end_prompt()
        self.outbox.append(StartedEvent(event, self.bank.policies.hold_tokens))
        self.outbox.extend(self._prompt_events)
        self._prompt_events = []
        if self.request.score_only:
            self.finish = FinishReason.SCORED

    def take_token(self, fetched: Fetched, columns: Columns, b: int) -> None:
        """Take the readings of the pending token, read as row `b` of a decode pass."""
        assert self.pending is not None
        self._account(fetched, b)
        event = self.observer.observe(fetched, columns, Place(b, b, 0), self.ids, self.num_read, is_prompt=False)
        event.text, event.logprob = self.pending.text, self.pending.logprob
        self.num_read += 1
        self.pending = None
        self.held.put(event, self.observer.alerts_at(event.index))
        if any(policy.hold_tokens for policy in self.bank.policies.latest):
            self._withhold()
        self._leave(self.bank.policies.hold_tokens)
        self.last_token_at = time.monotonic()

    def take_draw(self, token_id: int, logprob: float | None, eos_ids: frozenset[int]) -> None:
        """Take the token that was drawn to come next; it is read in the next pass, unless it ends the reply."""
        sampling = self.request.sampling
        if token_id in eos_ids and not sampling.ignore_eos:
            self.matched_token_id = token_id
            self.end(FinishReason.EOS)
            return
        self.ids.append(token_id)
        self.pending = Pending(token_id, self._text.push(token_id), logprob if self.request.include_logprobs else None)
        if self._text.matched_stop is not None:
            self.finish = FinishReason.STOP_SEQUENCE
        elif len(self.ids) - self.num_prompt >= sampling.max_tokens:
            self.end_after_pending(self.request.length_reason)

    def end_after_pending(self, reason: FinishReason) -> None:
        """Let the pending token be the last; it takes along what text is still held back."""
        assert self.pending is not None
        if self.finish is None:
            self.finish = reason
            self.pending.text += self._text.flush()

    def end(self, reason: FinishReason) -> None:
        """End with the token just taken. Text still held back goes to it, unless it was withheld with it."""
        self.finish = reason
        self.pending = None
        in_outbox = (e for e in reversed(self.outbox) if isinstance(e, TokenEvent) and not e.is_prompt)
        last = self.held.last or next(in_outbox, None)
        if last is not None:
            last.text += self._text.flush()

    # --- what leaves, and what does not ---

    def _leave(self, hold_tokens: int) -> None:
        """Let go of all tokens but the last `hold_tokens`."""
        events = self.held.release(hold_tokens)
        if self.first_token_at is None and any(isinstance(event, TokenEvent) for event in events):
            self.first_token_at = time.monotonic()
        self.outbox.extend(events)

    def _withhold(self) -> None:
        """Policies that hold back have come to apply: what their holds cover does not leave, but for the alerts."""
        holding = {policy.name: policy for policy in self.bank.policies.latest if policy.hold_tokens}
        tokens = self.held.withhold(1 + max(policy.hold_tokens for policy in holding.values()))
        text = "".join(token.text for token in tokens) + self._text.leave_out()
        reveals = any(policy.reveals for policy in holding.values())
        withheld = Withheld(tokens[0].index, len(tokens), text if reveals else None)
        self.num_withheld += len(tokens)
        self.held.tell(
            lambda alert: replace(alert, withheld=withheld) if holding.keys() & set(alert.policies) else alert
        )

    def abandon(self) -> None:
        """The request fails: what is held back does not leave, but for the alerts."""
        self.outbox.extend(self.held.abandon())

    def last_events(self) -> list[Event]:
        """The rest of the stream, once it is known how it ends."""
        self._leave(0)
        events, self.outbox = [*self.outbox, self.finished_event()], []
        return events

    # --- readings to events ---

    def _account(self, fetched: Fetched, b: int) -> None:
        if self.steering is not None and b in fetched.steered:
            self.steering.account(fetched.steered[b].relative_T.tolist())

    # --- the end ---

    def timings(self) -> Timings:
        now, arrived = time.monotonic(), self.submission.arrived
        read_at = self.prompt_read_at
        return Timings(
            queue_seconds=self.admitted - arrived,
            prefill_seconds=None if read_at is None else read_at - self.admitted,
            decode_seconds=None if read_at is None else now - read_at,
            time_to_first_token_seconds=None if self.first_token_at is None else self.first_token_at - arrived,
            total_seconds=now - arrived,
        )

    def finished_event(self) -> FinishedEvent:
        assert self.finish is not None
        return FinishedEvent(
            reason=self.finish,
            completion_tokens=self.num_generated,
            timings=self.timings(),
            monitors=self.bank.summaries(),
            tapped_tokens=self.num_read,
            steering=None if self.steering is None else self.steering.report(),
            # An alert may stop the reply at the token that completed a stop string: then that was not why.
            matched_stop=(self._text.matched_stop or "") if self.finish is FinishReason.STOP_SEQUENCE else "",
            matched_token_id=self.matched_token_id,
            policies=tuple(policy.name for policy in self.bank.triggered),
            num_withheld=self.num_withheld,
            off_distribution=self.observer.off_distribution.summary(),
        )

    def _is_ordinary_reply(self, outcome: Outcome) -> bool:
        """Whether it is a reply of the kind that thresholds are calibrated on: whole, generated, and not steered."""
        return outcome in _WHOLE_REPLIES and not (self.request.steering or self.bank.steer_requested)

    def record(self, outcome: Outcome) -> RequestRecord:
        timings = self.timings()
        return RequestRecord(
            outcome=outcome,
            prompt_tokens=min(self.num_read, self.num_prompt),
            completion_tokens=self.num_generated,
            duration_seconds=timings.total_seconds,
            queue_seconds=timings.queue_seconds,
            prefill_seconds=timings.prefill_seconds,
            decode_seconds=timings.decode_seconds,
            time_to_first_token_seconds=timings.time_to_first_token_seconds,
            feature_max_W=[] if self.feature_max_W is None else self.feature_max_W.tolist(),
            alerts=[(a.alert.monitor, a.alert.level) for a in self.observer.alerts if a.alert.state == "firing"],
            steering_ops=[spec.op.value for spec in self.request.steering],
            request_id=self.request.request_id,
            withheld_tokens=self.num_withheld,
            policy_actions=[policy.action.value for policy in self.bank.triggered],
            is_replay=self.request.replay is not None,
            monitored=self.observer.reply_scores.finished(self.bank.summaries())
            if self._is_ordinary_reply(outcome)
            else [],
        )
