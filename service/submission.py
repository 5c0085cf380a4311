"""A request on its way through the server: handed over by the event loop, ended from outside by either side."""

import time
from dataclasses import dataclass, field
from typing import Self

from service.errors import DeadlineExceeded, ServiceError, SlowConsumer
from service.records import Outcome, RequestRecord
from service.request import Mailbox, Request
from service.twin import BaselineMailbox, PairRecords, baseline_of


@dataclass(slots=True)
class Submission:
    """A request with its way back. The event loop sets `is_cancelled`; the engine looks at it between passes."""

    request: Request
    mailbox: Mailbox
    arrived: float
    """`time.monotonic()` at submission."""
    is_cancelled: bool = False
    cancelled_as: Outcome = Outcome.CANCELLED
    """What to count it as."""
    is_baseline: bool = False
    twin: "Submission | None" = None
    """The other of the two, where a steered request has an unsteered twin."""
    pair_records: PairRecords = field(default_factory=PairRecords)
    """Shared by the two."""

    @classmethod
    def of(cls, request: Request) -> list[Self]:
        """A request's submission, and its twin's if it asks for one, behind it."""
        arrived, mailbox = time.monotonic(), Mailbox()
        steered = cls(request, mailbox, arrived)
        if not request.with_baseline:
            return [steered]
        baseline = cls(baseline_of(request), BaselineMailbox(mailbox), arrived, is_baseline=True)
        steered.twin, baseline.twin = baseline, steered
        baseline.pair_records = steered.pair_records
        return [steered, baseline]

    @property
    def num_slots(self) -> int:
        """Slots that must be free for it to begin: with its twin right behind it, two."""
        return 2 if self.twin is not None and not self.is_baseline else 1

    def cancel(self, outcome: Outcome) -> None:
        """End it at the engine's next look. The first outcome holds."""
        if not self.is_cancelled:
            self.cancelled_as = outcome
        self.is_cancelled = True

    def cancel_twin(self, outcome: Outcome = Outcome.CANCELLED) -> None:
        """This one failed: the other alone is no answer."""
        if self.twin is not None:
            self.twin.cancel(outcome)

    def joined(self, record: RequestRecord) -> RequestRecord | None:
        """The record to count for one that has ended; None while its twin has not."""
        return record if self.twin is None else self.pair_records.join(record, is_baseline=self.is_baseline)

    def reason_to_end(self, slow_consumer_seconds: float) -> tuple[Outcome, ServiceError] | None:
        """Why to end it now, if there is a reason: cancelled, expired, or unread for longer than that."""
        now, deadline = time.monotonic(), self.request.deadline
        if self.is_cancelled:
            return self.cancelled_as, ServiceError("The request was cancelled.")
        if deadline is not None and now >= deadline:
            return Outcome.DEADLINE, DeadlineExceeded("The request's time was up.")
        if self.mailbox.unread_seconds(now) > slow_consumer_seconds:
            message = f"The stream was not read for {slow_consumer_seconds:g} seconds."
            return Outcome.SLOW_CONSUMER, SlowConsumer(message)
        return None
