"""The door between the event loop and the engine thread: bounded places, an inbox, and a bell.

Places are checked and counted in one step before any work is done for a request, so a burst can't slip through.
"""

import threading
import time
from collections import deque

from service.errors import NotReady, QueueFull
from service.records import Outcome
from service.request import Mailbox, Request
from service.submission import Submission


class Admission:
    """Counts who waits, and hands submissions over."""

    def __init__(self, *, num_slots: int, max_requests: int, max_prompt_tokens: int) -> None:
        """At most `max_requests` wait beside those that get a free slot at once; `max_prompt_tokens` among all."""
        self.bell = threading.Condition()
        """Rung whenever there is something new for the engine."""
        self.is_draining = False
        self._is_closed = False
        self.num_waiting = 0
        """Requests reserved or submitted that have no slot yet."""
        self._num_running = 0
        self._num_tokens = 0
        self._num_slots = num_slots
        self._max_requests = max_requests
        self._max_prompt_tokens = max_prompt_tokens
        self._inbox: deque[Submission] = deque()

    # --- event loop ---

    def reserve(self) -> None:
        """Take a place; NotReady if the server is shutting down, QueueFull if there is none."""
        with self.bell:
            if self.is_draining:
                raise NotReady("The server is shutting down.")
            free_slots = self._num_slots - self._num_running
            if self.num_waiting >= self._max_requests + free_slots:
                raise QueueFull(f"The queue is full: {self._max_requests} requests wait already.")
            self.num_waiting += 1

    def unreserve(self) -> None:
        """Give a place back that nothing was submitted for."""
        with self.bell:
            self.num_waiting -= 1

    def submit(self, request: Request) -> Submission:
        """Hand over a request whose place was reserved. Its place is given back if it can't be taken.

        QueueFull if its prompt is too much; NotReady if the engine has gone since.
        """
        num_tokens = len(request.prompt_ids)
        with self.bell:
            if self._is_closed:
                self.num_waiting -= 1
                raise NotReady("The engine is not running.")
            # A prompt longer than the bound alone may still pass when nobody waits.
            if self._num_tokens and self._num_tokens + num_tokens > self._max_prompt_tokens:
                self.num_waiting -= 1
                most = self._max_prompt_tokens
                raise QueueFull(f"The queue is full: {self._num_tokens} of {most} prompt tokens wait already.")
            self._num_tokens += num_tokens
            submission = Submission(request, Mailbox(), time.monotonic())
            self._inbox.append(submission)
            self.bell.notify()
        return submission

    def cancel(self, submission: Submission, outcome: Outcome = Outcome.CANCELLED) -> None:
        """The client is gone, or will get no answer. Harmless for a request that has ended; the first outcome holds."""
        if not submission.is_cancelled:
            submission.cancelled_as = outcome
        submission.is_cancelled = True
        self.ring()

    def ring(self) -> None:
        with self.bell:
            self.bell.notify()

    # --- engine ---

    def close(self) -> None:
        """Take nothing any more: there is no engine left to look at it."""
        with self.bell:
            self.is_draining = self._is_closed = True

    def has_mail(self) -> bool:
        return bool(self._inbox)

    def take(self) -> list[Submission]:
        """Everything that came in since the last call, oldest first."""
        with self.bell:
            taken = list(self._inbox)
            self._inbox.clear()
            return taken

    def left_queue(self, submission: Submission, *, to_slot: bool) -> None:
        """A submission got a slot, or was ended while it waited."""
        with self.bell:
            self.num_waiting -= 1
            self._num_tokens -= len(submission.request.prompt_ids)
            self._num_running += to_slot

    def left_slot(self) -> None:
        """A running request ended."""
        with self.bell:
            self._num_running -= 1
