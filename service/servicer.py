"""The RPCs, those about features aside (`feature_servicer`).

Each reads its message, hands a request to the engine, and writes back what comes.

Generation errors are exceptions of `service.errors`; `service.rpc` makes statuses of them.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from telltale.v1 import generation_pb2, monitor_pb2

from service import wire_guards, wire_monitors
from service.catalog import Catalog
from service.delivery import Delivery
from service.engine import Engine
from service.errors import AccessDenied, FieldViolation, InvalidRequest, NotReady, QueueFull, ServiceError
from service.guards import Guards
from service.metrics import Metrics
from service.records import Outcome
from service.request import Event, FinishedEvent, Request
from service.rpc import is_past_deadline
from service.submission import Submission
from service.twin_comparison import TwinComparison
from service.wire_requests import RequestReader
from service.wire_responses import ResponseWriter

REQUEST_ID_KEY = "telltale-request-id"


class GenerationServicer:
    """telltale.v1.GenerationService."""

    def __init__(
        self,
        engine: Engine,
        delivery: Delivery,
        reader: RequestReader,
        writer: ResponseWriter,
        metrics: Metrics,
        server_info: Callable[[], Any],
    ) -> None:
        self._engine, self._delivery = engine, delivery
        self._reader, self._writer = reader, writer
        self._metrics = metrics
        self._server_info = server_info

    async def Generate(self, message: Any, context: Any) -> AsyncIterator[Any]:
        submission = await self._submit(self._reader.read_generate, message, context)
        async with aclosing(self._events(submission, context)) as batches:
            async for events in batches:
                for response in self._write(events, submission):
                    yield response

    def _write(self, events: list[Event], submission: Submission) -> list[Any]:
        try:
            return self._writer.responses(events, submission.request)
        except Exception:
            # Our own fault: it must not pass for a client that left.
            self._engine.admission.cancel(submission, Outcome.ENGINE_ERROR)
            raise

    async def Score(self, message: Any, context: Any) -> Any:
        submission = await self._submit(self._reader.read_score, message, context)
        async with aclosing(self._events(submission, context)) as batches:
            events = [event async for batch in batches for event in batch]
        return await asyncio.to_thread(self._writer.score, events, submission.request)

    async def GetServerInfo(self, _message: Any, _context: Any) -> Any:
        return self._server_info()

    def count_refused(self, method: str, error: ServiceError) -> None:
        """Count an RPC that never came here: no key, or bytes that are no message."""
        if method in ("Generate", "Score"):
            self._metrics.count_outcome(_refusal(error))

    async def _submit(self, read: Callable[..., Request], message: Any, context: Any) -> Submission:
        """Take a place in the queue, then read the message: a burst is refused before it costs anything."""
        admission, num_places = self._engine.admission, self._reader.num_places(message)
        try:
            if not self._engine.is_healthy:
                raise NotReady("The engine is not running.")
            admission.reserve(num_places)
            try:
                # Tokenising a long text takes a while, and the loop has streams to serve.
                request = await asyncio.to_thread(read, message, time_remaining=context.time_remaining())
            except BaseException:
                admission.unreserve(num_places)
                raise
            context.set_trailing_metadata(((REQUEST_ID_KEY, request.request_id),))
            return admission.submit(request)
        except ServiceError as error:
            self._metrics.count_outcome(_refusal(error))
            raise
        except asyncio.CancelledError:
            self._metrics.count_outcome(_left_because(context))
            raise
        except Exception:
            self._metrics.count_outcome(Outcome.ENGINE_ERROR)
            raise

    async def _events(self, submission: Submission, context: Any) -> AsyncGenerator[list[Event], None]:
        comparison = TwinComparison(submission.request) if submission.request.with_baseline else None
        try:
            async with aclosing(self._delivery.events(submission.mailbox)) as batches:
                async for arrived in batches:
                    events = arrived if comparison is None else comparison.take(arrived)
                    if events:
                        yield events
                    if events and isinstance(events[-1], FinishedEvent):
                        return
        finally:
            # Whatever ended it: a cancel (seen here as GeneratorExit or CancelledError), an error, or the last event,
            # for which it does nothing any more.
            self._engine.admission.cancel(submission, _left_because(context))


def _left_because(context: Any) -> Outcome:
    """gRPC cancels a handler alike for a client that left and for a deadline that passed."""
    return Outcome.DEADLINE if is_past_deadline(context) else Outcome.CANCELLED


def _refusal(error: ServiceError) -> Outcome:
    match error:
        case QueueFull():
            return Outcome.REJECTED_QUEUE
        case NotReady():
            return Outcome.UNAVAILABLE
        case AccessDenied():
            return Outcome.UNAUTHENTICATED
        case _:
            return Outcome.INVALID


class MonitorServicer:
    """telltale.v1.MonitorService."""

    def __init__(self, catalog: Catalog, delivery: Delivery, guards: Guards) -> None:
        self._catalog, self._delivery, self._guards = catalog, delivery, guards

    async def ListMonitors(self, _message: Any, _context: Any) -> Any:
        monitors = [wire_monitors.watched_monitor(monitor, self._guards) for monitor in self._catalog.monitors]
        return monitor_pb2.ListMonitorsResponse(monitors=monitors)

    async def GetMonitor(self, message: Any, _context: Any) -> Any:
        found = self._catalog.monitor_by_name(message.name)
        message = wire_monitors.watched_monitor(found, self._guards, with_evidence=True)
        return monitor_pb2.GetMonitorResponse(monitor=message)

    async def WatchAlerts(self, message: Any, context: Any) -> AsyncIterator[Any]:
        known = self._catalog.monitors_by_name
        wanted = ", ".join(sorted(known)) or "none"
        wrong = [
            FieldViolation(f"monitors[{i}]", f"must be one of the server's: {wanted}. Got {name!r}.")
            for i, name in enumerate(message.monitors)
            if name not in known
        ]
        if wrong:
            raise InvalidRequest(wrong)
        async with aclosing(self._delivery.alerts(frozenset(message.monitors))) as alerts:
            # So that the client knows from when on it will miss nothing.
            await context.send_initial_metadata(())
            async for event in alerts:
                yield monitor_pb2.WatchAlertsResponse(alert=wire_monitors.alert(event, with_text=False))


def make_server_info(
    engine: Engine, catalog: Catalog, reader: RequestReader, writer: ResponseWriter, guards: Guards, *, version: str,
    limits: Any, planned_memory_bytes: int, passes: Callable[[], str], journal: Callable[[], Any] = lambda: None,
) -> Callable[[], Any]:  # fmt: skip
    """The answer to GetServerInfo, as a function of the moment. `limits` is a Limits message, `passes` says
    how passes are run now, `journal` gives a JournalInfo or None."""
    started = time.monotonic()

    def server_info() -> Any:
        info = generation_pb2.GetServerInfoResponse(
            version=version,
            model=writer.model(),
            sae=writer.sae(),
            limits=limits,
            default_watched=writer.watched(catalog.default_latents),
            default_monitors=[spec.name for spec in catalog.default_monitors],
            requests_running=engine.num_running,
            requests_waiting=engine.admission.num_waiting,
            uptime_seconds=time.monotonic() - started,
            watch_generation=catalog.generation,
            planned_memory_bytes=planned_memory_bytes,
            passes=passes(),
            steering_hook_point=catalog.steering_point or "",
            journal=journal(),
            reconstruction_guard=wire_guards.reconstruction_guard(guards.guarded.reconstruction),
            fidelity=map(wire_guards.fidelity, guards.guarded.fidelity),
            inputs=map(wire_guards.monitor_input, guards.inputs),
        )
        default = info.sampling_defaults
        default.temperature, default.top_p, default.min_p, default.repetition_penalty = 0, 1, 0, 1
        default.top_k, default.max_tokens, default.ignore_eos = 0, reader.limits.max_new_tokens_default, False
        return info

    return server_info
