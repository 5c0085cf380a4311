"""Who is here: requests that wait for a slot, rows that have one, and how each of them ends.

Moves a request from the inbox to the queue, from there to a slot, and out again, and says what became of it in
`Published`. Runs no pass; `Engine` does, on the same thread.
"""

import logging
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

from service.admission import Admission
from service.alert_evidence import Raised
from service.errors import AlertNotKept, EngineFailed, NotReady, ServiceError
from service.model_runner import ModelRunner
from service.published import Published
from service.records import Outcome, Phase, RequestRecord, RowFailure
from service.request import FinishReason
from service.row import Row
from service.scheduler import Scheduler
from service.submission import Submission

logger = logging.getLogger(__name__)


class Roster:
    """Waiting requests and running rows."""

    def __init__(
        self,
        runner: ModelRunner,
        scheduler: Scheduler[Submission],
        admission: Admission,
        make_row: Callable[[Submission, int], Row],
        *,
        slow_consumer_seconds: float,
    ) -> None:
        """
        Args:
            make_row: a row of a submission and its slot; what it raises is that request's failure.
            slow_consumer_seconds: end a request whose events lie unread for longer.
        """
        self._runner, self._scheduler, self._admission = runner, scheduler, admission
        self._make_row = make_row
        self._slow_consumer_seconds = slow_consumer_seconds
        self.rows: list[Row] = []
        """In order of admission."""
        self.out = Published()
        """What the step in progress has to say."""
        self.is_finishing = False
        """Whether everybody is to be sent home at the next step."""

    @property
    def reading(self) -> list[Row]:
        """Rows with unread prompt, in order of admission."""
        return [row for row in self.rows if row.num_unread]

    @property
    def writing(self) -> list[Row]:
        """Rows whose next token is to be read, by slot."""
        return sorted((row for row in self.rows if row.pending is not None), key=lambda row: row.slot)

    # --- in ---

    def take_inbox(self) -> None:
        for submission in self._admission.take():
            self._scheduler.enqueue(submission)

    def admit(self) -> None:
        """Give slots to those who waited longest."""
        self._close_gaps()
        for slot, submission in self._scheduler.admit(lambda waiting: waiting.num_slots):
            try:
                row = self._make_row(submission, slot)
            except Exception as error:
                self._scheduler.release(slot)
                self._refuse(submission, Outcome.ENGINE_ERROR, engine_failed(error))
                continue
            # In this order: in between the request is counted twice, never not at all.
            self.rows.append(row)
            self._admission.left_queue(submission, to_slot=True)

    def _close_gaps(self) -> None:
        """Move rows that write into slots that were left below theirs, before others are given those.

        Only neighbours are read in place: one copy of one row here saves every later pass a copy of all.
        """
        for row in reversed(self.writing):
            slot = self._scheduler.lowered(row.slot)
            if slot == row.slot:
                return
            self._runner.move(row.slot, slot, row.num_written)
            row.slot = slot

    # --- out ---

    def drop_ended(self) -> None:
        """Cancelled and expired requests, those of slow readers, and everybody at shutdown."""
        for submission in list(self._scheduler.waiting):
            failure = self._reason_to_end(submission)
            if failure is not None:
                self._scheduler.waiting.remove(submission)
                self._refuse(submission, *failure)
        for row in list(self.rows):
            self.drop_if_ended(row)

    def drop_if_ended(self, row: Row) -> bool:
        """Whether a row was ended from outside, and so is gone."""
        failure = self._reason_to_end(row.submission)
        if failure is None:
            return False
        if failure[0] is Outcome.SHUTDOWN and row.pending is not None:
            row.end_after_pending(FinishReason.SHUTDOWN)
            return False
        self.fail(row, *failure)
        return True

    def _reason_to_end(self, submission: Submission) -> tuple[Outcome, ServiceError] | None:
        reason = submission.reason_to_end(self._slow_consumer_seconds)
        if reason is None and self.is_finishing:
            return Outcome.SHUTDOWN, NotReady("The server is shutting down.")
        return reason

    @contextmanager
    def isolating(self, row: Row) -> Iterator[None]:
        """What goes wrong inside is this row's own; what ends inside is finished."""
        try:
            yield
        except Exception as error:
            self.fail(row, Outcome.ENGINE_ERROR, engine_failed(error), error)
        else:
            if row.finish is not None and row.pending is None:
                row.outbox = row.last_events()
                self._retire(row, Outcome(row.finish.value))

    def fail(self, row: Row, outcome: Outcome, failure: Exception, cause: Exception | None = None) -> None:
        """End a row with an error; `cause` is what was raised, if that is another."""
        if outcome is Outcome.ENGINE_ERROR:
            phase = Phase.PREFILL if row.num_unread else Phase.DECODE
            self.out.failures.append(RowFailure.of(phase, cause))
        self._give_up(row, failure)
        row.submission.cancel_twin()
        self._retire(row, outcome)

    def _give_up(self, row: Row, failure: Exception) -> None:
        """Tell what is still to be told of a row that fails: its alerts, then the failure."""
        if row.prompt_read_at is None and row.request.replay is None:
            # The stream has not begun, so they can't be told there. A replay's are told to nobody.
            self.out.alerts.extend(row.observer.alerts)
        row.abandon()
        self._flush(row)
        self.out.fail(row.submission, failure)

    def _retire(self, row: Row, outcome: Outcome) -> None:
        self._flush(row)
        self.rows.remove(row)
        self._runner.release(row.slot, row.num_written)
        self._scheduler.release(row.slot)
        self._admission.left_slot()
        self._count(row.submission, row.record(outcome))

    def _refuse(self, submission: Submission, outcome: Outcome, failure: Exception) -> None:
        """End a request that never got a slot."""
        self._admission.left_queue(submission, to_slot=False)
        self.out.fail(submission, failure)
        submission.cancel_twin()
        waited = time.monotonic() - submission.arrived
        self._count(submission, RequestRecord.of_waiting(outcome, waited, submission.request.request_id))

    def end_everything(self, failure: ServiceError, outcome: Outcome) -> None:
        """The engine stops: end every request with an error, so that no client waits for ever."""
        self._admission.close()
        self.take_inbox()
        for submission in self._scheduler.waiting:
            self._refuse(submission, outcome, failure)
        for row in self.rows:
            self._give_up(row, failure)
            self._count(row.submission, row.record(outcome))
        self._scheduler.waiting.clear()
        self.rows.clear()

    # --- what is said of them ---

    def _count(self, submission: Submission, record: RequestRecord) -> None:
        joined = submission.joined(record)
        if joined is not None:
            self.out.requests.append(joined)

    def _flush(self, row: Row) -> None:
        if row.outbox:
            self.out.put(row.submission, row.outbox)
            row.outbox = []
        if row.observer.evidence is not None:
            self.out.raised.extend(row.observer.evidence.take())

    def publish(self, keep: Callable[[Sequence[Raised]], Collection[str]] | None) -> Published:
        """Deliver what the step had to say, its alerts kept before anybody is told; see `Engine` for `keep`."""
        for row in self.rows:
            self._flush(row)
        self._keep_alerts(keep)
        self.out.deliver()
        out, self.out = self.out, Published()
        return out

    def _keep_alerts(self, keep: Callable[[Sequence[Raised]], Collection[str]] | None) -> None:
        """On disk before anybody is told. Where that fails nothing of the step is told to the requests concerned."""
        raised, self.out.raised = self.out.raised, []
        lost = keep(raised) if keep is not None and raised else ()
        if lost:
            failure = AlertNotKept()
            for row in [row for row in self.rows if row.request.request_id in lost]:
                self.fail(row, Outcome.ALERT_NOT_KEPT, failure)
            lost_alerts = {each.event.id for each in raised if each.event.request_id in lost}
            self.out.withhold(lost, lost_alerts, Outcome.ALERT_NOT_KEPT, failure)


def engine_failed(error: Exception) -> EngineFailed:
    """An error to show to the client, under an id that finds `error` in the log."""
    failure = EngineFailed(uuid.uuid4().hex[:12])
    logger.error("request failed, error id %s", failure.error_id, exc_info=error)
    return failure
