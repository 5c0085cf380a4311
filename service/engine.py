"""The engine: one thread that owns the model and moves all requests on, a pass at a time.

The event loop hands requests over through `admission`; the engine answers through mailboxes and one `publish` call per
step. A request that fails, or whose numbers are not finite, fails alone. Knows nothing of gRPC or Prometheus.
"""

import logging
import threading
import time
import uuid
from collections.abc import Callable, Collection, Sequence

import torch

from sae_runtime.steering_spec import SteeringLimits
from service.admission import Admission
from service.alert_evidence import Raised
from service.errors import EngineFailed, NotReady, QueueFull, ServiceError
from service.model_runner import ModelRunner
from service.passes import Passes
from service.prefill_pace import PrefillPace
from service.published import Published
from service.records import EngineState, Outcome, StepRecord
from service.request import FinishReason
from service.roster import Roster, engine_failed
from service.row import Row
from service.sampling import Draw
from service.scheduler import Chunk, Scheduler
from service.submission import Submission

logger = logging.getLogger(__name__)

# After so many passes in a row in which nobody came through, the engine calls itself broken.
_MAX_CONSECUTIVE_FAILURES = 3


class Engine:
    """Runs requests on a ModelRunner."""

    def __init__(
        self,
        runner: ModelRunner,
        scheduler: Scheduler[Submission],
        admission: Admission,
        *,
        steering_limits: SteeringLimits,
        server_watch: Sequence[int] = (),
        guarded: Sequence[int] = (),
        max_fvu: float | None = None,
        slow_consumer_seconds: float = 30.0,
        publish: Callable[[Published], None] = lambda _published: None,
        keep: Callable[[Sequence[Raised]], Collection[str]] | None = None,
    ) -> None:
        """
        Args:
            server_watch: latents that the metrics follow in all requests.
            guarded: latents that are read in all requests, so that it is known whether they fire at all.
            max_fvu: FVU above which a token is marked as off the dictionary's distribution; None marks none.
            slow_consumer_seconds: end a request whose events lie unread for longer.
            publish: called on the engine thread after every step that has something to say; must not block.
            keep: called with a step's alerts before anything of the step is published; ids of the requests whose alerts
                could not be kept. None keeps none.
        """
        self.runner = runner
        self.scheduler = scheduler
        self.admission = admission
        self._passes = Passes(runner, server_watch, guarded=guarded, max_fvu=max_fvu)
        self._pace = PrefillPace()
        self._max_fvu = max_fvu
        self._steering_limits = steering_limits
        self._publish_to = publish
        self._keep = keep
        self._roster = Roster(runner, scheduler, admission, self._make_row, slow_consumer_seconds=slow_consumer_seconds)
        self._is_stopping = False
        self._has_crashed = False
        self._consecutive_failures = 0
        self._last_step_unix = time.time()
        self._step_started: float | None = None
        self._warm = threading.Event()
        self._thread: threading.Thread | None = None

    # --- seen from the event loop ---

    @property
    def is_healthy(self) -> bool:
        """Whether the thread runs and passes succeed."""
        is_alive = self._thread is not None and self._thread.is_alive()
        return is_alive and not self._has_crashed and self._consecutive_failures < _MAX_CONSECUTIVE_FAILURES

    @property
    def num_running(self) -> int:
        return len(self._roster.rows)

    @property
    def num_active(self) -> int:
        """Requests that run or wait."""
        return len(self._roster.rows) + self.admission.num_waiting

    @property
    def is_idle(self) -> bool:
        """Whether nobody runs or waits, and all that was to be told is published."""
        # In this order: a request leaves its slot in the step that has yet to publish its end.
        return self.num_active == 0 and self._step_started is None

    def stalled_seconds(self) -> float:
        """How long the step in progress has been taking; 0 between steps."""
        started = self._step_started
        return 0.0 if started is None else time.monotonic() - started

    def start(self) -> None:
        """Start the engine thread. It warms the model up first; `wait_warm` waits for that."""
        self._thread = threading.Thread(target=self._run, name="engine")
        self._thread.start()

    def wait_warm(self) -> None:
        """Block until the model has run once, or failed to."""
        self._warm.wait()

    def finish_all(self) -> None:
        """End running requests with SHUTDOWN and refuse waiting ones, at the next step."""
        self.admission.is_draining = self._roster.is_finishing = True
        self.admission.ring()

    def stop(self, timeout_seconds: float = 10.0) -> bool:
        """Stop the thread; False if it did not end in time."""
        self._is_stopping = True
        self.admission.ring()
        if self._thread is not None:
            self._thread.join(timeout_seconds)
        return self._thread is None or not self._thread.is_alive()

    def state(self) -> EngineState:
        """Gauges, as of now."""
        return EngineState(
            requests_running=len(self._roster.rows),
            requests_waiting=self.admission.num_waiting,
            slots=self.scheduler.num_slots,
            kv_tokens_used=sum(row.num_read for row in self._roster.rows),
            kv_tokens_capacity=self.scheduler.num_slots * self.runner.cache.num_positions,
            last_step_timestamp_seconds=self._last_step_unix,
            is_up=self.is_healthy,
            is_draining=self.admission.is_draining,
        )

    # --- the thread ---

    def _run(self) -> None:
        try:
            self.runner.warm_up()
            self._warm.set()
            while not self._is_stopping:
                self._wait_for_work()
                self._step_started = time.monotonic()
                self.step()
                self._step_started = None
            self._end_everything(NotReady("The server is shutting down."), Outcome.SHUTDOWN)
        except BaseException:
            logger.exception("the engine crashed")
            self._has_crashed = True
            self._end_everything(EngineFailed(uuid.uuid4().hex[:12]), Outcome.ENGINE_ERROR)
        finally:
            self._step_started = None
            self._warm.set()

    def _wait_for_work(self) -> None:
        with self.admission.bell:
            # Those who wait count too: when all rows end in one step, nobody else need ring for them.
            if not (self.admission.has_mail() or self.scheduler.waiting or self._roster.rows or self._is_stopping):
                self.admission.bell.wait()

    def step(self) -> None:
        """One round."""
        self._roster.take_inbox()
        self._roster.drop_ended()
        self._prefill()
        self._decode()
        self._publish()

    def _make_row(self, submission: Submission, slot: int) -> Row:
        model = self.runner.language_model
        return Row(
            submission,
            slot,
            tokenizer=model.tokenizer,
            sae=self.runner.sae,
            limits=self._steering_limits,
            device=model.device,
            keeps_alerts=self._keep is not None,
            max_fvu=self._max_fvu,
        )

    # --- prompts: one bounded chunk after another ---

    def _prefill(self) -> None:
        self._roster.admit()
        reading, budget = self._roster.reading, self.scheduler.chunk_tokens
        if not reading:
            return
        if self.runner.reads_evenly:
            num_unread = sum(row.num_unread for row in reading)
            longest = max((row.num_generated for row in self._roster.writing), default=None)
            budget = self._pace.budget(budget, num_unread, longest)
        for chunk in self.scheduler.plan_prefill(reading, budget):
            try:
                self._prefill_chunk(chunk)
                self._consecutive_failures = 0
            except torch.OutOfMemoryError:
                logger.exception("out of memory while reading a prompt of %d tokens", chunk.row.num_prompt)
                self._roster.fail(chunk.row, Outcome.ENGINE_ERROR, QueueFull("Out of memory while reading the prompt."))
            except Exception as error:
                self._consecutive_failures += 1
                self._roster.fail(chunk.row, Outcome.ENGINE_ERROR, engine_failed(error), error)

    def _prefill_chunk(self, chunk: Chunk[Row]) -> None:
        row = chunk.row
        done = self._passes.read_prompt(row, chunk.num_tokens)
        self._note(done.record)
        if self._roster.drop_if_ended(row):
            return
        with self._roster.isolating(row):
            _require_finite(done.fetched.stats.finite_N.all(), "the residual or its readings")
            row.take_prompt(done.fetched, done.columns[0], done.prompt_logprobs)
            if done.drawn is not None:
                self._go_on(row, done.drawn, 0)

    # --- one token of everybody ---

    def _decode(self) -> None:
        rows = self._roster.writing
        if not rows:
            return
        generators = [row.sampler.state() for row in rows]
        try:
            self._decode_rows(rows)
            self._consecutive_failures = 0
        except Exception:
            # Nothing was taken from the failed pass, and repeating it writes the same keys and values again.
            logger.exception("a pass over %d rows failed; each is tried alone", len(rows))
            for row, state in zip(rows, generators, strict=True):
                row.sampler.restore(state)
            self._decode_alone(rows)

    def _decode_alone(self, rows: list[Row]) -> None:
        num_failed = 0
        for row in rows:
            try:
                self._decode_rows([row])
            except Exception as error:
                num_failed += 1
                self._roster.fail(row, Outcome.ENGINE_ERROR, engine_failed(error), error)
        self._consecutive_failures = self._consecutive_failures + 1 if num_failed == len(rows) else 0

    def _decode_rows(self, rows: list[Row]) -> None:
        done = self._passes.read_tokens(rows)
        self._note(done.record)
        for b, row in enumerate(rows):
            # Before anything is taken: a cancel that came during the pass wins over what the pass gave.
            if self._roster.drop_if_ended(row):
                continue
            with self._roster.isolating(row):
                _require_finite(done.fetched.stats.finite_N[b], "the residual or its readings")
                needs_draw = row.needs_draw
                row.take_token(done.fetched, done.columns[b], b)
                self._go_on(row, done.drawn if needs_draw else None, b)

    def _note(self, record: StepRecord) -> None:
        self._pace.observe(record)
        self._roster.out.steps.append(record)

    def _go_on(self, row: Row, drawn: Draw | None, b: int) -> None:
        """Stop where a monitor asked for it; else take what was drawn to come next, if anything was."""
        if row.bank.stop_requested:
            row.end(FinishReason.ALERT_STOP)
        elif drawn is not None:
            _require_finite(drawn.finite_B[b], "the logits")
            eos_ids = self.runner.language_model.eos_token_ids
            row.take_draw(int(drawn.tokens_B[b]), float(drawn.logprobs_B[b]), eos_ids)

    # --- the end of a step ---

    def _end_everything(self, failure: ServiceError, outcome: Outcome) -> None:
        self._roster.end_everything(failure, outcome)
        self._publish()

    def _publish(self) -> None:
        out = self._roster.publish(self._keep)
        if not out.is_empty:
            if out.steps:
                self._last_step_unix = time.time()
            out.state = self.state()
            self._publish_to(out)


def _require_finite(is_finite: object, what: str) -> None:
    if not is_finite:
        raise ArithmeticError(f"{what} hold NaN or infinity")
