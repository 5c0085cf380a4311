"""The door between the event loop and the engine thread: bounded places, an inbox, and a bell.

Places are checked and counted in one step before any work is done for a request, so a burst can't slip through.
"""

import threading
from collections import deque

from service.errors import NotReady, QueueFull
from service.records import Outcome
from service.request import Request
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

    def reserve(self, num_places: int = 1) -> None:
        """Take places; NotReady if the server is shutting down, QueueFull if there are not so many."""
        with self.bell:
            if self.is_draining:
                raise NotReady("The server is shutting down.")
            free_slots = self._num_slots - self._num_running
            if self.num_waiting + num_places > self._max_requests + free_slots:
                raise QueueFull(f"The queue is full: {self._max_requests} requests wait already.")
            self.num_waiting += num_places

    def unreserve(self, num_places: int = 1) -> None:
        """Give places back that nothing was submitted for."""
        with self.bell:
            self.num_waiting -= num_places

    def submit(self, request: Request) -> Submission:
        """Hand over a request whose place was reserved, or two places if it has a twin. They are given back if it can't
        be taken.

        QueueFull if its prompt is too much; NotReady if the engine has gone since.
        """
        submissions = Submission.of(request)
        num_tokens = len(request.prompt_ids) * len(submissions)
        with self.bell:
            if self._is_closed:
                self.num_waiting -= len(submissions)
                raise NotReady("The engine is not running.")
            # A prompt longer than the bound alone may still pass when nobody waits.
            if self._num_tokens and self._num_tokens + num_tokens > self._max_prompt_tokens:
                self.num_waiting -= len(submissions)
                most = self._max_prompt_tokens
                raise QueueFull(f"The queue is full: {self._num_tokens} of {most} prompt tokens wait already.")
            self._num_tokens += num_tokens
            self._inbox.extend(submissions)
            self.bell.notify()
        return submissions[0]

    def cancel(self, submission: Submission, outcome: Outcome = Outcome.CANCELLED) -> None:
        """The client is gone, or will get no answer. Harmless for a request that has ended; the first outcome holds."""
        submission.cancel(outcome)
        if submission.twin is not None:
            submission.twin.cancel(outcome)
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
