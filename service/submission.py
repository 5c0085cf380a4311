"""A request on its way through the server: handed over by the event loop, ended from outside by either side."""

import time
from dataclasses import dataclass

from service.errors import DeadlineExceeded, ServiceError, SlowConsumer
from service.records import Outcome
from service.request import Mailbox, Request


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
