"""What the engine published, told to the metrics, the guards and the log. On the event loop."""

import asyncio
import logging

from service.guard_metrics import GuardMetrics
from service.guards import Guards
from service.metrics import Metrics
from service.published import Published
from service.records import RequestRecord
from service.step_batch import LONGEST_SECONDS, StepBatch

logger = logging.getLogger(__name__)


class Bookkeeper:
    """Counts what has happened: requests, alerts and failures at once, steps many at a time."""

    def __init__(self, metrics: Metrics, guards: Guards, guard_metrics: GuardMetrics) -> None:
        self._metrics, self._guards, self._guard_metrics = metrics, guards, guard_metrics
        self._steps = StepBatch()
        self._counting: asyncio.TimerHandle | None = None

    def observe(self, published: Published) -> None:
        """Take what one step of the engine had to say."""
        if published.state is not None:
            self._metrics.observe_state(published.state)
        self._steps.add(published.steps)
        # When a request ends others may not follow, and who saw its end may look.
        if self._steps.is_full or published.requests:
            self._count_steps()
        elif self._counting is None:
            # By the clock and not by the next step, which may be long in coming.
            self._counting = asyncio.get_running_loop().call_later(LONGEST_SECONDS, self._count_steps)
        for failure in published.failures:
            self._metrics.observe_failure(failure)
        for event in published.alerts:
            if event.alert.state == "firing":
                self._metrics.observe_alert(event.alert.monitor, event.alert.level, event.alert.role)
        for record in published.requests:
            if not record.is_replay:
                self._metrics.observe_request(record)
                self._guard_metrics.observe_replies(self._guards.observe_request(record))
            _log_request(record)

    def _count_steps(self) -> None:
        if self._counting is not None:
            self._counting.cancel()
            self._counting = None
        for step in self._steps.take():
            self._metrics.observe_step(step)
            self._guards.observe_step(step)
            self._guard_metrics.observe_step(step)


def _log_request(record: RequestRecord) -> None:
    """One line per request, never with its text."""
    logger.info(
        "request %s ended: %s, %d prompt and %d generated tokens, %.3f s",
        record.request_id,
        record.outcome.value,
        record.prompt_tokens,
        record.completion_tokens,
        record.duration_seconds,
        extra={"request_id": record.request_id, "outcome": record.outcome.value},
    )
