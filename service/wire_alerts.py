"""Requests about the alert journal -> what is asked, and what the journal holds -> wire messages."""

import re
from datetime import UTC, datetime
from typing import Any

from telltale.v1 import alert_pb2, generation_pb2, types_pb2

from monitors.alert_record import AlertRecord, AlertState, KeptText, Level, TimeId
from monitors.errors import JournalError
from monitors.journal_entry import Verdict
from monitors.journal_precision import Precision
from monitors.journal_query import Filters, read_page_token
from monitors.journal_reader import DEFAULT_PAGE, MAX_PAGE, KeptAlert
from service.errors import InvalidRequest
from service.journal_keeper import JournalStatus
from service.replay_result import Comparison, ReplayResult
from service.violations import Violations

MAX_NAME_CHARACTERS = 128
MAX_NOTE_CHARACTERS = 4096
MAX_MONITORS = 64
MAX_TOLERANCE = 1.0
_ALERT_ID = re.compile(TimeId.__metadata__[0].metadata[0].pattern)  # type: ignore[attr-defined]
_LAST_YEAR = datetime.max.replace(tzinfo=UTC).timestamp() - 86400

_LEVELS: dict[int, Level] = {
    types_pb2.SEVERITY_INFO: "info",
    types_pb2.SEVERITY_WARNING: "warning",
    types_pb2.SEVERITY_CRITICAL: "critical",
}
_STATES: dict[int, AlertState] = {
    types_pb2.ALERT_STATE_FIRING: "firing",
    types_pb2.ALERT_STATE_CLEARED: "cleared",
}
_VERDICTS: dict[int, Verdict] = {
    alert_pb2.VERDICT_TRUE: "true",
    alert_pb2.VERDICT_FALSE: "false",
    alert_pb2.VERDICT_UNSURE: "unsure",
}
_LEVEL_NUMBERS: dict[str, Any] = {level: number for number, level in _LEVELS.items()}
_STATE_NUMBERS: dict[str, Any] = {state: number for number, state in _STATES.items()}
_VERDICT_NUMBERS: dict[str, Any] = {verdict: number for number, verdict in _VERDICTS.items()}


# --- requests -------------------------------------------------------------------------------------------------------


def read_list(message: Any) -> tuple[Filters, int]:
    """(which alerts, how many on a page) of a ListAlertsRequest. InvalidRequest with every field that is wrong."""
    wrong = Violations()
    size = message.page_size
    wrong.require(size <= MAX_PAGE, "page_size", f"be at most {MAX_PAGE}", size)
    number = len(message.monitors)
    wrong.require(number <= MAX_MONITORS, "monitors", f"hold at most {MAX_MONITORS} names", number)
    filters = Filters(
        monitors=tuple(message.monitors),
        levels=_choices(wrong, "severities", _LEVELS, message.severities, types_pb2.Severity),
        states=_choices(wrong, "states", _STATES, message.states, types_pb2.AlertState),
        since=_time(wrong, message, "since"),
        until=_time(wrong, message, "until"),
        request_id=_given(message, "request_id"),
        label=_given(message, "label"),
        reviewed=_given(message, "reviewed"),
        acknowledged=_given(message, "acknowledged"),
        verdict=wrong.choice("verdict", _VERDICTS, message.verdict, alert_pb2.Verdict) if message.verdict else None,
    )
    wrong.raise_if_any()
    if message.page_token:
        _check_token(filters, message.page_token)
    return filters, size or DEFAULT_PAGE


def read_id(message: Any) -> str:
    """The alert that a request is about. InvalidRequest for what can't be an id."""
    if not _ALERT_ID.fullmatch(message.alert_id):
        raise InvalidRequest.field("alert_id", f"must be an alert's id. Got {message.alert_id[:64]!r}.")
    return str(message.alert_id)


def read_acknowledgement(message: Any) -> str:
    """The id of the alert; InvalidRequest with every field that is wrong."""
    return _read_said(message, "by", Violations())


def read_review(message: Any) -> tuple[str, Verdict]:
    """The id of the alert, and the verdict; InvalidRequest with every field that is wrong."""
    wrong = Violations()
    verdict = wrong.choice("verdict", _VERDICTS, message.verdict, alert_pb2.Verdict)
    return _read_said(message, "reviewer", wrong), verdict


def read_tolerance(message: Any) -> float | None:
    """How large a difference counts as none; None for what suits the record's number format."""
    tolerance = message.tolerance
    if not 0 <= tolerance <= MAX_TOLERANCE:
        raise InvalidRequest.field("tolerance", f"must lie in [0, {MAX_TOLERANCE:g}]. Got {tolerance:g}.")
    return tolerance or None


def _read_said(message: Any, who: str, wrong: Violations) -> str:
    name, note = getattr(message, who), message.note
    wrong.require(
        len(name.strip()) > 0 and len(name) <= MAX_NAME_CHARACTERS and name.isprintable(),
        who,
        f"have 1 to {MAX_NAME_CHARACTERS} printable characters",
        repr(name[:40]),
    )
    wrong.require(len(note) <= MAX_NOTE_CHARACTERS, "note", f"have at most {MAX_NOTE_CHARACTERS} characters", len(note))
    is_id = _ALERT_ID.fullmatch(message.alert_id)
    wrong.require(is_id is not None, "alert_id", "be an alert's id", repr(message.alert_id[:64]))
    wrong.raise_if_any()
    return str(message.alert_id)


def _choices(wrong: Violations, field: str, choices: Any, values: Any, enum: Any) -> Any:
    read = [wrong.choice(f"{field}[{i}]", choices, value, enum) for i, value in enumerate(values)]
    return tuple(dict.fromkeys(read))


def _given(message: Any, field: str) -> Any:
    return getattr(message, field) if message.HasField(field) else None


def _time(wrong: Violations, message: Any, field: str) -> datetime | None:
    if not message.HasField(field):
        return None
    time = getattr(message, field)
    if not 0 <= time.seconds < _LAST_YEAR or not 0 <= time.nanos < 10**9:
        wrong.add(field, f"must be a time from 1970 to 9999. Got {time.seconds} s and {time.nanos} ns.")
        return None
    return time.ToDatetime(tzinfo=UTC)


def _check_token(filters: Filters, token: str) -> None:
    try:
        read_page_token(filters, token)
    except JournalError as error:
        problem = error.problems[0]
        raise InvalidRequest.field("page_token", f"must be {problem.wanted}. Got {problem.got}.") from None


# --- answers --------------------------------------------------------------------------------------------------------


def journal_alert(kept: KeptAlert, *, with_entry: bool = False) -> Any:
    """An alert with its place in the journal; with all that is kept of it, if that is asked for."""
    record = kept.record
    message = alert_pb2.JournalAlert(
        alert=alert(record),
        journal=kept.journal,
        seq=kept.seq,
        hash=kept.hash,
        pack_version="" if record.pack is None else record.pack.version,
        action=record.action,
        cleared_id=record.cleared_id or "",
        generated=record.generated,
        server_version=record.server_version,
        has_text=isinstance(record.text, KeptText),
        entry=kept.line if with_entry else "",
    )
    for said in kept.acknowledgements:
        message.acknowledgements.add(by=said.by, note=said.note).time.FromDatetime(said.time)
    for review in kept.reviews:
        verdict = _VERDICT_NUMBERS[review.verdict]
        message.reviews.add(verdict=verdict, reviewer=review.reviewer, note=review.note).time.FromDatetime(review.time)
    return message


def alert(record: AlertRecord) -> Any:
    """An alert as it was told; which feature belongs to which component the journal does not keep."""
    return types_pb2.Alert(
        alert_id=record.id,
        request_id=record.request_id,
        label=record.label,
        monitor=record.monitor,
        state=_STATE_NUMBERS[record.state],
        severity=_LEVEL_NUMBERS[record.level],
        position=record.position,
        span_start=record.span_start,
        score=record.score,
        threshold=record.threshold,
        contributions=[types_pb2.Contribution(feature=f.feature, value=f.contribution) for f in record.features],
        validated=record.validated,
        time_seconds=record.time.timestamp(),
        components=[
            types_pb2.ComponentPart(
                component=part.name,
                score=part.score,
                contribution=part.contribution,
                score_unknown=part.score is None,
            )
            for part in record.components
        ],
        role=record.role,
        pack_sha256="" if record.pack is None else record.pack.sha256,
        beyond_calibration=record.beyond_calibration,
    )


def precision(of: Precision) -> Any:
    low, high = of.interval
    return alert_pb2.MonitorPrecision(
        monitor=of.monitor,
        pack_sha256=of.pack_sha256 or "",
        num_true=of.num_true,
        num_false=of.num_false,
        num_unsure=of.num_unsure,
        precision=of.precision,
        interval_low=low,
        interval_high=high,
    )


def journal_info(status: JournalStatus, *, keeps_text: bool) -> Any:
    """For GetServerInfo."""
    return generation_pb2.JournalInfo(
        num_entries=status.num_entries,
        head_seq=status.head_seq,
        keeps_text=keeps_text,
        is_writable=status.is_writable,
        num_write_failures=status.num_write_failures,
        # The journal's path, which errors name, is the operator's business.
        write_error=_without_place(status.write_error),
        is_forwarded=status.is_forwarded,
        num_waiting=status.num_waiting,
        lag_seconds=status.lag_seconds,
        forward_error=_without_place(status.forward_error),
    )


def replay(alert_id: str, result: ReplayResult) -> Any:
    return alert_pb2.ReplayAlertResponse(
        alert_id=alert_id,
        differences=result.differences,
        read=_comparison(result.read),
        generated=None if result.generated is None else _comparison(result.generated),
    )


def _comparison(of: Comparison) -> Any:
    return alert_pb2.ReplayComparison(
        reproduced=of.reproduced,
        tolerance=of.tolerance,
        num_tokens=of.num_tokens,
        first_difference=of.first_difference,
        raised_again=of.raised_again,
        series=[
            alert_pb2.SeriesComparison(
                name=each.name,
                kind=each.kind,
                num_compared=each.num_compared,
                largest_difference=each.largest_difference,
                scale=each.scale,
                within_tolerance=each.is_within(of.tolerance),
                num_missing=each.num_missing,
            )
            for each in of.series
        ],
    )


def _without_place(error: str) -> str:
    """What is wrong, without the line that names the journal."""
    return "; ".join(line for line in error.splitlines() if not line.startswith("cannot use alert journal"))
