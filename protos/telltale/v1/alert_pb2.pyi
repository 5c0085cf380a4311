import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from telltale.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Verdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VERDICT_UNSPECIFIED: _ClassVar[Verdict]
    VERDICT_TRUE: _ClassVar[Verdict]
    VERDICT_FALSE: _ClassVar[Verdict]
    VERDICT_UNSURE: _ClassVar[Verdict]
VERDICT_UNSPECIFIED: Verdict
VERDICT_TRUE: Verdict
VERDICT_FALSE: Verdict
VERDICT_UNSURE: Verdict

class Acknowledgement(_message.Message):
    __slots__ = ("by", "note", "time")
    BY_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    by: str
    note: str
    time: _timestamp_pb2.Timestamp
    def __init__(self, by: _Optional[str] = ..., note: _Optional[str] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Review(_message.Message):
    __slots__ = ("verdict", "reviewer", "note", "time")
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    REVIEWER_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    verdict: Verdict
    reviewer: str
    note: str
    time: _timestamp_pb2.Timestamp
    def __init__(self, verdict: _Optional[_Union[Verdict, str]] = ..., reviewer: _Optional[str] = ..., note: _Optional[str] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class JournalAlert(_message.Message):
    __slots__ = ("alert", "journal", "seq", "hash", "pack_version", "action", "cleared_id", "generated", "server_version", "has_text", "acknowledgements", "reviews", "entry")
    ALERT_FIELD_NUMBER: _ClassVar[int]
    JOURNAL_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    PACK_VERSION_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    CLEARED_ID_FIELD_NUMBER: _ClassVar[int]
    GENERATED_FIELD_NUMBER: _ClassVar[int]
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    HAS_TEXT_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGEMENTS_FIELD_NUMBER: _ClassVar[int]
    REVIEWS_FIELD_NUMBER: _ClassVar[int]
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    alert: _types_pb2.Alert
    journal: str
    seq: int
    hash: str
    pack_version: str
    action: str
    cleared_id: str
    generated: bool
    server_version: str
    has_text: bool
    acknowledgements: _containers.RepeatedCompositeFieldContainer[Acknowledgement]
    reviews: _containers.RepeatedCompositeFieldContainer[Review]
    entry: str
    def __init__(self, alert: _Optional[_Union[_types_pb2.Alert, _Mapping]] = ..., journal: _Optional[str] = ..., seq: _Optional[int] = ..., hash: _Optional[str] = ..., pack_version: _Optional[str] = ..., action: _Optional[str] = ..., cleared_id: _Optional[str] = ..., generated: _Optional[bool] = ..., server_version: _Optional[str] = ..., has_text: _Optional[bool] = ..., acknowledgements: _Optional[_Iterable[_Union[Acknowledgement, _Mapping]]] = ..., reviews: _Optional[_Iterable[_Union[Review, _Mapping]]] = ..., entry: _Optional[str] = ...) -> None: ...

class ListAlertsRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "monitors", "severities", "states", "since", "until", "request_id", "label", "reviewed", "acknowledged", "verdict")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    MONITORS_FIELD_NUMBER: _ClassVar[int]
    SEVERITIES_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    REVIEWED_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    monitors: _containers.RepeatedScalarFieldContainer[str]
    severities: _containers.RepeatedScalarFieldContainer[_types_pb2.Severity]
    states: _containers.RepeatedScalarFieldContainer[_types_pb2.AlertState]
    since: _timestamp_pb2.Timestamp
    until: _timestamp_pb2.Timestamp
    request_id: str
    label: str
    reviewed: bool
    acknowledged: bool
    verdict: Verdict
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., monitors: _Optional[_Iterable[str]] = ..., severities: _Optional[_Iterable[_Union[_types_pb2.Severity, str]]] = ..., states: _Optional[_Iterable[_Union[_types_pb2.AlertState, str]]] = ..., since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., until: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., request_id: _Optional[str] = ..., label: _Optional[str] = ..., reviewed: _Optional[bool] = ..., acknowledged: _Optional[bool] = ..., verdict: _Optional[_Union[Verdict, str]] = ...) -> None: ...

class ListAlertsResponse(_message.Message):
    __slots__ = ("alerts", "next_page_token")
    ALERTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    alerts: _containers.RepeatedCompositeFieldContainer[JournalAlert]
    next_page_token: str
    def __init__(self, alerts: _Optional[_Iterable[_Union[JournalAlert, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetAlertRequest(_message.Message):
    __slots__ = ("alert_id",)
    ALERT_ID_FIELD_NUMBER: _ClassVar[int]
    alert_id: str
    def __init__(self, alert_id: _Optional[str] = ...) -> None: ...

class GetAlertResponse(_message.Message):
    __slots__ = ("alert",)
    ALERT_FIELD_NUMBER: _ClassVar[int]
    alert: JournalAlert
    def __init__(self, alert: _Optional[_Union[JournalAlert, _Mapping]] = ...) -> None: ...

class AcknowledgeAlertRequest(_message.Message):
    __slots__ = ("alert_id", "by", "note")
    ALERT_ID_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    alert_id: str
    by: str
    note: str
    def __init__(self, alert_id: _Optional[str] = ..., by: _Optional[str] = ..., note: _Optional[str] = ...) -> None: ...

class AcknowledgeAlertResponse(_message.Message):
    __slots__ = ("seq", "hash")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    seq: int
    hash: str
    def __init__(self, seq: _Optional[int] = ..., hash: _Optional[str] = ...) -> None: ...

class ReviewAlertRequest(_message.Message):
    __slots__ = ("alert_id", "verdict", "reviewer", "note")
    ALERT_ID_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    REVIEWER_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    alert_id: str
    verdict: Verdict
    reviewer: str
    note: str
    def __init__(self, alert_id: _Optional[str] = ..., verdict: _Optional[_Union[Verdict, str]] = ..., reviewer: _Optional[str] = ..., note: _Optional[str] = ...) -> None: ...

class ReviewAlertResponse(_message.Message):
    __slots__ = ("seq", "hash")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    seq: int
    hash: str
    def __init__(self, seq: _Optional[int] = ..., hash: _Optional[str] = ...) -> None: ...

class GetPrecisionRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetPrecisionResponse(_message.Message):
    __slots__ = ("monitors",)
    MONITORS_FIELD_NUMBER: _ClassVar[int]
    monitors: _containers.RepeatedCompositeFieldContainer[MonitorPrecision]
    def __init__(self, monitors: _Optional[_Iterable[_Union[MonitorPrecision, _Mapping]]] = ...) -> None: ...

class MonitorPrecision(_message.Message):
    __slots__ = ("monitor", "pack_sha256", "num_true", "num_false", "num_unsure", "precision", "interval_low", "interval_high")
    MONITOR_FIELD_NUMBER: _ClassVar[int]
    PACK_SHA256_FIELD_NUMBER: _ClassVar[int]
    NUM_TRUE_FIELD_NUMBER: _ClassVar[int]
    NUM_FALSE_FIELD_NUMBER: _ClassVar[int]
    NUM_UNSURE_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_LOW_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_HIGH_FIELD_NUMBER: _ClassVar[int]
    monitor: str
    pack_sha256: str
    num_true: int
    num_false: int
    num_unsure: int
    precision: float
    interval_low: float
    interval_high: float
    def __init__(self, monitor: _Optional[str] = ..., pack_sha256: _Optional[str] = ..., num_true: _Optional[int] = ..., num_false: _Optional[int] = ..., num_unsure: _Optional[int] = ..., precision: _Optional[float] = ..., interval_low: _Optional[float] = ..., interval_high: _Optional[float] = ...) -> None: ...

class ReplayAlertRequest(_message.Message):
    __slots__ = ("alert_id", "tolerance")
    ALERT_ID_FIELD_NUMBER: _ClassVar[int]
    TOLERANCE_FIELD_NUMBER: _ClassVar[int]
    alert_id: str
    tolerance: float
    def __init__(self, alert_id: _Optional[str] = ..., tolerance: _Optional[float] = ...) -> None: ...

class ReplayAlertResponse(_message.Message):
    __slots__ = ("alert_id", "differences", "read", "generated")
    ALERT_ID_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCES_FIELD_NUMBER: _ClassVar[int]
    READ_FIELD_NUMBER: _ClassVar[int]
    GENERATED_FIELD_NUMBER: _ClassVar[int]
    alert_id: str
    differences: _containers.RepeatedScalarFieldContainer[str]
    read: ReplayComparison
    generated: ReplayComparison
    def __init__(self, alert_id: _Optional[str] = ..., differences: _Optional[_Iterable[str]] = ..., read: _Optional[_Union[ReplayComparison, _Mapping]] = ..., generated: _Optional[_Union[ReplayComparison, _Mapping]] = ...) -> None: ...

class ReplayComparison(_message.Message):
    __slots__ = ("reproduced", "tolerance", "num_tokens", "first_difference", "raised_again", "series")
    REPRODUCED_FIELD_NUMBER: _ClassVar[int]
    TOLERANCE_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FIRST_DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    RAISED_AGAIN_FIELD_NUMBER: _ClassVar[int]
    SERIES_FIELD_NUMBER: _ClassVar[int]
    reproduced: bool
    tolerance: float
    num_tokens: int
    first_difference: int
    raised_again: bool
    series: _containers.RepeatedCompositeFieldContainer[SeriesComparison]
    def __init__(self, reproduced: _Optional[bool] = ..., tolerance: _Optional[float] = ..., num_tokens: _Optional[int] = ..., first_difference: _Optional[int] = ..., raised_again: _Optional[bool] = ..., series: _Optional[_Iterable[_Union[SeriesComparison, _Mapping]]] = ...) -> None: ...

class SeriesComparison(_message.Message):
    __slots__ = ("name", "kind", "num_compared", "largest_difference", "scale", "within_tolerance", "num_missing")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    NUM_COMPARED_FIELD_NUMBER: _ClassVar[int]
    LARGEST_DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    WITHIN_TOLERANCE_FIELD_NUMBER: _ClassVar[int]
    NUM_MISSING_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: str
    num_compared: int
    largest_difference: float
    scale: float
    within_tolerance: bool
    num_missing: int
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[str] = ..., num_compared: _Optional[int] = ..., largest_difference: _Optional[float] = ..., scale: _Optional[float] = ..., within_tolerance: _Optional[bool] = ..., num_missing: _Optional[int] = ...) -> None: ...
