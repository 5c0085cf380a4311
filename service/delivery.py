"""From the engine thread to the event loop: wakes the handlers whose mailboxes have something new, fans out alerts.

The engine calls `publish` once per step; everything else happens on the loop.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection, Iterator
from contextlib import contextmanager, suppress

from service.errors import SlowConsumer
from service.published import Published
from service.request import AlertEvent, Event, Mailbox

# Alerts a watcher may fall behind by before it is let go.
MAX_UNREAD_ALERTS = 1024

Watcher = asyncio.Queue[AlertEvent | SlowConsumer | None]
"""Alerts one watcher has not read yet; an exception ends its stream with it, None ends it well."""


class Delivery:
    """One per server; made on the event loop that the handlers run on."""

    def __init__(self, on_published: Callable[[Published], None] = lambda _published: None) -> None:
        """`on_published` is called on the loop with all that a step published: for metrics."""
        self._loop = asyncio.get_running_loop()
        self._on_published = on_published
        self._wakers: dict[Mailbox, asyncio.Event] = {}
        self._watchers: set[Watcher] = set()

    def publish(self, published: Published) -> None:
        """Engine thread: hand over what a step has to say."""
        # RuntimeError: the loop is closed, and nobody listens any more.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._deliver, published)

    def _deliver(self, published: Published) -> None:
        for mailbox in published.mailboxes:
            waker = self._wakers.get(mailbox)
            if waker is not None:
                waker.set()
        for queue in self._watchers if published.alerts else ():
            for event in published.alerts:
                if queue.qsize() < MAX_UNREAD_ALERTS:
                    queue.put_nowait(event)
                elif queue.qsize() == MAX_UNREAD_ALERTS:
                    queue.put_nowait(SlowConsumer(f"The watcher fell behind by {MAX_UNREAD_ALERTS} alerts."))
        self._on_published(published)

    async def events(self, mailbox: Mailbox) -> AsyncGenerator[list[Event], None]:
        """Batches of events until the mailbox fails: its failure is raised. The caller stops at the last event."""
        waker = self._wakers.setdefault(mailbox, asyncio.Event())
        try:
            while True:
                waker.clear()
                events, failure = mailbox.take()
                if events:
                    yield events
                elif failure is not None:
                    raise failure
                else:
                    await waker.wait()
        finally:
            self._wakers.pop(mailbox, None)

    @contextmanager
    def _watcher(self) -> Iterator[Watcher]:
        queue: Watcher = asyncio.Queue()
        self._watchers.add(queue)
        try:
            yield queue
        finally:
            self._watchers.discard(queue)

    async def alerts(self, monitors: Collection[str]) -> AsyncGenerator[AlertEvent, None]:
        """Alerts of all requests from now on, of `monitors` or of all if it is empty; ends when `close` is called.

        SlowConsumer for a reader that has fallen behind.
        """
        with self._watcher() as queue:
            while True:
                event = await queue.get()
                if event is None:
                    return
                if isinstance(event, SlowConsumer):
                    raise event
                if not monitors or event.alert.monitor in monitors:
                    yield event

    def close_watchers(self) -> None:
        """End all alert streams, after what has been published so far: that may still wait for its turn on the loop."""
        self._loop.call_soon(self._close_watchers)

    def _close_watchers(self) -> None:
        for queue in self._watchers:
            queue.put_nowait(None)
