"""What a request knows of its own alerts beyond the alert itself: what was read over the span, and what steered it.

One `AlertEvidence` per row. It remembers the tokens that an alert's span may still begin with, and no others, and the
steering that is in force. Plain data: what is kept of it is for `alert_records`.
"""

from array import array
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from monitors.time_ids import new_id
from sae_runtime.steering_spec import SteeringSpec
from service.request import AlertEvent, Request, TokenEvent


class InForce(NamedTuple):
    """Operations that were switched on together."""

    specs: tuple[SteeringSpec, ...]
    source: str
    """`request`, or `policy:NAME` for a policy's."""
    active_from: int
    """First position they may touch."""


class Trace(NamedTuple):
    """What was read at one token."""

    position: int
    readings: "array[float]"
    """Of the watched latents, in 32 bits, as they were read."""
    steered_readings: "array[float]"
    """The same after steering; empty where nothing was steered."""
    scores: Mapping[str, float]
    """Of the monitors that scored the token."""
    probes: Mapping[str, float]
    """Values of their probes."""


@dataclass(frozen=True, slots=True)
class Raised:
    """An alert, and all that is to be kept with it."""

    event: AlertEvent
    request: Request
    ids: tuple[int, ...]
    """Prompt and reply as far as the alert's position, that token included."""
    traces: tuple[Trace, ...]
    """Of every token of the span."""
    steering: tuple[InForce, ...]
    action: str
    """What the request's policies made of it."""
    cleared_id: str | None
    """For one that cleared, the id of the alert that it ends."""


class AlertEvidence:
    """A request's alerts with what they rest on, until somebody takes them to be kept."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._traces: deque[Trace] = deque()
        self._open: dict[tuple[str, str], str] = {}
        """Id of the last alert that fired, by monitor and role."""
        self._steering = [InForce(specs, source, start) for specs, source, start in request.all_steering if specs]
        self._raised: list[Raised] = []

    def observe(self, token: TokenEvent, span_start: int | None) -> None:
        """Remember a token. No alert will be about one before `span_start`; None if any alert begins later still."""
        scores = {score.monitor: score.value for score in token.scores}
        readings, steered = array("f", token.readings), array("f", token.steered_readings)
        self._traces.append(Trace(token.index, readings, steered, scores, token.probes))
        first = token.index + 1 if span_start is None else span_start
        while self._traces and self._traces[0].position < first:
            self._traces.popleft()

    def steer(self, policy: str, specs: tuple[SteeringSpec, ...], active_from: int) -> None:
        """A policy switched these on."""
        self._steering.append(InForce(specs, f"policy:{policy}", active_from))

    def add(self, event: AlertEvent, ids: Sequence[int], action: str) -> AlertEvent:
        """An alert at the token observed last; returns it with its id."""
        alert = event.alert
        event = replace(event, id=new_id())
        key = alert.monitor, alert.role
        cleared_id = None
        if alert.state == "firing":
            self._open[key] = event.id
        else:
            cleared_id = self._open.pop(key, None)
        traces = tuple(trace for trace in self._traces if trace.position >= alert.span_start)
        self._raised.append(Raised(event, self._request, tuple(ids), traces, tuple(self._steering), action, cleared_id))
        return event

    def take(self) -> list[Raised]:
        """What was raised since the last call."""
        raised, self._raised = self._raised, []
        return raised
