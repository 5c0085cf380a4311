"""telltale.v1.AlertService: what the journal holds, what people say of it, and alerts done again.

Every look at the journal happens in a worker thread: the loop has streams to serve.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import replace
from typing import Any, TypeVar

from telltale.v1 import alert_pb2

from monitors.errors import JournalError
from monitors.journal import Receipt
from monitors.journal_reader import KeptAlert
from service import wire_alerts
from service.delivery import Delivery
from service.engine import Engine
from service.errors import NotFound, NotPossible, NotReady
from service.journal_keeper import JournalKeeper
from service.replay import ReplayHost, compared, plan
from service.request import Event, FinishedEvent, FinishReason, Request

T = TypeVar("T")

MAX_LOOKUPS = 2
"""At a time; others wait."""


class AlertServicer:
    """telltale.v1.AlertService. Without a journal every method is answered with NotPossible."""

    def __init__(
        self,
        journal: JournalKeeper | None,
        engine: Engine,
        delivery: Delivery,
        host: ReplayHost,
        *,
        max_request_seconds: float,
    ) -> None:
        self._journal = journal
        self._engine, self._delivery, self._host = engine, delivery, host
        self._max_request_seconds = max_request_seconds
        self._workers = ThreadPoolExecutor(MAX_LOOKUPS, "alerts")

    async def ListAlerts(self, message: Any, _context: Any) -> Any:
        filters, size = wire_alerts.read_list(message)
        reader = self._keeper.journal.reader
        page = await self._look_up(lambda: reader.alerts(filters, page_size=size, token=message.page_token))
        return alert_pb2.ListAlertsResponse(
            alerts=[wire_alerts.journal_alert(kept) for kept in page.alerts], next_page_token=page.next_token
        )

    async def GetAlert(self, message: Any, _context: Any) -> Any:
        kept = await self._find(wire_alerts.read_id(message))
        return alert_pb2.GetAlertResponse(alert=wire_alerts.journal_alert(kept, with_entry=True))

    async def AcknowledgeAlert(self, message: Any, _context: Any) -> Any:
        alert_id = wire_alerts.read_acknowledgement(message)
        await self._find(alert_id)
        journal = self._keeper.journal
        kept = await self._look_up(lambda: journal.acknowledge(alert_id, by=message.by, note=message.note))
        return alert_pb2.AcknowledgeAlertResponse(seq=kept.seq, hash=kept.hash)

    async def ReviewAlert(self, message: Any, _context: Any) -> Any:
        alert_id, verdict = wire_alerts.read_review(message)
        record = (await self._find(alert_id)).record
        if record.state != "firing":
            ended = f" It ends alert {record.cleared_id}." if record.cleared_id else ""
            raise NotPossible(f"Alert {alert_id} is one that cleared: only one that fired can be reviewed.{ended}")
        keeper = self._keeper

        def review() -> Receipt:
            kept = keeper.journal.review(alert_id, verdict=verdict, reviewer=message.reviewer, note=message.note)
            keeper.note_reviewed()
            return kept

        kept = await self._look_up(review)
        return alert_pb2.ReviewAlertResponse(seq=kept.seq, hash=kept.hash)

    async def GetPrecision(self, _message: Any, _context: Any) -> Any:
        return alert_pb2.GetPrecisionResponse(monitors=map(wire_alerts.precision, self._keeper.precisions))

    async def ReplayAlert(self, message: Any, context: Any) -> Any:
        alert_id, tolerance = wire_alerts.read_id(message), wire_alerts.read_tolerance(message)
        record = (await self._find(alert_id)).record
        requests = plan(record, self._host)
        remaining = context.time_remaining()
        seconds = self._max_request_seconds if remaining is None else min(remaining, self._max_request_seconds)
        deadline = time.monotonic() + seconds
        read = await self._run(replace(requests.read, deadline=deadline))
        generated = None
        if requests.generated is not None:
            generated = await self._run(replace(requests.generated, deadline=deadline))
        result = await asyncio.to_thread(compared, record, self._host, requests, read, generated, tolerance)
        return wire_alerts.replay(alert_id, result)

    @property
    def _keeper(self) -> JournalKeeper:
        if self._journal is None:
            raise NotPossible("This server keeps no alert journal.")
        return self._journal

    async def _find(self, alert_id: str) -> KeptAlert:
        reader = self._keeper.journal.reader
        kept = await self._look_up(lambda: reader.find(alert_id))
        if kept is None:
            raise NotFound(f"alert {alert_id!r}")
        return kept

    async def _look_up(self, answer: Callable[[], T]) -> T:
        """NotReady if the journal can't be used; why is in the server's log and status, and names its place."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._workers, answer)
        except JournalError as error:
            wanted = "; ".join(map(str, error.problems))
            raise NotReady(f"The alert journal can't be used: {wanted}.") from error

    async def _run(self, request: Request) -> list[Event]:
        """A request of our own through the engine. NotReady if the server's end cut it short: that shows nothing."""
        admission = self._engine.admission
        if not self._engine.is_healthy:
            raise NotReady("The engine is not running.")
        admission.reserve()
        submission = admission.submit(request)
        events: list[Event] = []
        try:
            async with aclosing(self._delivery.events(submission.mailbox)) as batches:
                async for batch in batches:
                    events += batch
                    match events[-1]:
                        case FinishedEvent(reason=FinishReason.SHUTDOWN):
                            raise NotReady("The server is shutting down.")
                        case FinishedEvent():
                            break
        finally:
            admission.cancel(submission)
        return events
