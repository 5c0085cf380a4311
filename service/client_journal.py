"""The client's calls about the server's alert journal: `client.journal`.

    page = await client.journal.list_alerts(monitors=["deception"], reviewed=False)
    await client.journal.review(page.alerts[0].alert.alert_id, verdict="false", reviewer="ann", note="quotes a novel")
    replay = await client.journal.replay(page.alerts[0].alert.alert_id)

Raises what the client raises; NotPossible from a server that keeps no journal.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, TypedDict, Unpack, get_args

from telltale.v1 import alert_pb2, alert_pb2_grpc, types_pb2

from service.client_alerts import AlertPage, AlertReplay, JournalAlert, MonitorPrecision, Verdict
from service.client_events import AlertState
from service.client_lookup import MAX_PAGE, check_is_list
from service.client_monitors import Severity
from service.client_wire import decode
from service.errors import InvalidRequest

Call = Callable[..., Awaitable[Any]]


class AlertFilters(TypedDict, total=False):
    """Which alerts; what is not given is not asked."""

    monitors: Sequence[str]
    severities: Sequence[Severity]
    states: Sequence[AlertState]
    since: datetime
    """At this time or later; without an offset it is local time."""
    until: datetime
    request_id: str
    label: str
    reviewed: bool
    acknowledged: bool
    verdict: Verdict
    """What the last review says."""


class JournalCalls:
    """Calls of one client."""

    def __init__(self, channel: Any, call: Call) -> None:
        """`call` is `TelltaleClient.call`."""
        self.stub = alert_pb2_grpc.AlertServiceStub(channel)
        self._call = call

    async def list_alerts(
        self,
        *,
        page_size: int = 0,
        page_token: str = "",
        timeout_seconds: float | None = None,
        **filters: Unpack[AlertFilters],
    ) -> AlertPage:
        """A page of alerts, newest first, without their text; `get_alert` has it."""
        request = list_request(filters, page_size=page_size, page_token=page_token)
        return decode(AlertPage, await self._call(self.stub.ListAlerts, request, timeout_seconds=timeout_seconds))

    async def alerts(self, **filters: Unpack[AlertFilters]) -> AsyncGenerator[JournalAlert, None]:
        """All that fit, newest first, a page at a time."""
        token = ""
        while True:
            page = await self.list_alerts(page_size=MAX_PAGE, page_token=token, **filters)
            for alert in page.alerts:
                yield alert
            if not (token := page.next_page_token):
                return

    async def get_alert(self, alert_id: str, *, timeout_seconds: float | None = None) -> JournalAlert:
        """One alert in full. NotFound if there is none of that id."""
        request = alert_pb2.GetAlertRequest(alert_id=alert_id)
        response = await self._call(self.stub.GetAlert, request, timeout_seconds=timeout_seconds)
        return decode(JournalAlert, response.alert)

    async def acknowledge(
        self, alert_id: str, *, by: str, note: str = "", timeout_seconds: float | None = None
    ) -> None:
        """Keep that somebody takes care of an alert."""
        request = alert_pb2.AcknowledgeAlertRequest(alert_id=alert_id, by=by, note=note)
        await self._call(self.stub.AcknowledgeAlert, request, timeout_seconds=timeout_seconds)

    async def review(
        self, alert_id: str, *, verdict: Verdict, reviewer: str, note: str = "", timeout_seconds: float | None = None
    ) -> None:
        """Keep whether what the monitor's name claims was there. NotPossible for an alert that cleared."""
        number = _number(alert_pb2.Verdict, "VERDICT", verdict, Verdict, "verdict")
        request = alert_pb2.ReviewAlertRequest(alert_id=alert_id, verdict=number, reviewer=reviewer, note=note)
        await self._call(self.stub.ReviewAlert, request, timeout_seconds=timeout_seconds)

    async def precision(self, *, timeout_seconds: float | None = None) -> tuple[MonitorPrecision, ...]:
        """How often each monitor was right, by the reviews."""
        request = alert_pb2.GetPrecisionRequest()
        response = await self._call(self.stub.GetPrecision, request, timeout_seconds=timeout_seconds)
        return tuple(decode(MonitorPrecision, each) for each in response.monitors)

    async def replay(
        self, alert_id: str, *, tolerance: float = 0.0, timeout_seconds: float | None = None
    ) -> AlertReplay:
        """Do an alert's request again on the server, and compare. NotPossible if it can't be done there."""
        request = alert_pb2.ReplayAlertRequest(alert_id=alert_id, tolerance=tolerance)
        return decode(AlertReplay, await self._call(self.stub.ReplayAlert, request, timeout_seconds=timeout_seconds))


def list_request(filters: AlertFilters, *, page_size: int = 0, page_token: str = "") -> Any:
    """A ListAlertsRequest. InvalidRequest for a value that does not fit its field."""
    unknown = sorted(set(filters) - AlertFilters.__optional_keys__)
    if unknown:
        raise TypeError(f"unknown filters {', '.join(unknown)}.")
    for field in ("monitors", "severities", "states"):
        check_is_list(field, filters.get(field), "names")
    plain: dict[str, Any] = {
        name: value
        for name, value in filters.items()
        if name not in ("severities", "states", "verdict", "since", "until")
    }
    try:
        request = alert_pb2.ListAlertsRequest(page_size=page_size, page_token=page_token, **plain)
    except (TypeError, ValueError) as error:
        raise InvalidRequest.field("filters", f"can't be sent: {error}.") from None
    for severity in filters.get("severities", ()):
        request.severities.append(_number(types_pb2.Severity, "SEVERITY", severity, Severity, "severities"))
    for state in filters.get("states", ()):
        request.states.append(_number(types_pb2.AlertState, "ALERT_STATE", state, AlertState, "states"))
    if "verdict" in filters:
        request.verdict = _number(alert_pb2.Verdict, "VERDICT", filters["verdict"], Verdict, "verdict")
    for name in ("since", "until"):
        if name in filters:
            getattr(request, name).FromDatetime(filters[name].astimezone())
    return request


def _number(enum: Any, prefix: str, value: str, choices: Any, field: str) -> Any:
    if value not in get_args(choices):
        raise InvalidRequest.field(field, f"must be one of {', '.join(get_args(choices))}. Got {value!r}.")
    return enum.Value(f"{prefix}_{value.upper()}")
