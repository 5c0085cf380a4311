import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from telltale.v1 import guard_pb2 as _guard_pb2
from telltale.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_EOS: _ClassVar[FinishReason]
    FINISH_REASON_STOP_SEQUENCE: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]
    FINISH_REASON_CONTEXT_LENGTH: _ClassVar[FinishReason]
    FINISH_REASON_ALERT_STOP: _ClassVar[FinishReason]
    FINISH_REASON_SHUTDOWN: _ClassVar[FinishReason]
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_EOS: FinishReason
FINISH_REASON_STOP_SEQUENCE: FinishReason
FINISH_REASON_LENGTH: FinishReason
FINISH_REASON_CONTEXT_LENGTH: FinishReason
FINISH_REASON_ALERT_STOP: FinishReason
FINISH_REASON_SHUTDOWN: FinishReason

class GenerateRequest(_message.Message):
    __slots__ = ("text", "chat", "token_ids", "sampling", "watch", "steering", "policies", "label", "baseline")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    CHAT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    WATCH_FIELD_NUMBER: _ClassVar[int]
    STEERING_FIELD_NUMBER: _ClassVar[int]
    POLICIES_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    BASELINE_FIELD_NUMBER: _ClassVar[int]
    text: str
    chat: _types_pb2.Chat
    token_ids: _types_pb2.TokenIds
    sampling: _types_pb2.SamplingParams
    watch: _types_pb2.Watch
    steering: _containers.RepeatedCompositeFieldContainer[_types_pb2.Steering]
    policies: _containers.RepeatedCompositeFieldContainer[_types_pb2.Policy]
    label: str
    baseline: bool
    def __init__(self, text: _Optional[str] = ..., chat: _Optional[_Union[_types_pb2.Chat, _Mapping]] = ..., token_ids: _Optional[_Union[_types_pb2.TokenIds, _Mapping]] = ..., sampling: _Optional[_Union[_types_pb2.SamplingParams, _Mapping]] = ..., watch: _Optional[_Union[_types_pb2.Watch, _Mapping]] = ..., steering: _Optional[_Iterable[_Union[_types_pb2.Steering, _Mapping]]] = ..., policies: _Optional[_Iterable[_Union[_types_pb2.Policy, _Mapping]]] = ..., label: _Optional[str] = ..., baseline: _Optional[bool] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("started", "tokens", "alert", "finished", "baseline")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    ALERT_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    BASELINE_FIELD_NUMBER: _ClassVar[int]
    started: Started
    tokens: _types_pb2.TokenChunk
    alert: _types_pb2.Alert
    finished: Finished
    baseline: BaselineEvent
    def __init__(self, started: _Optional[_Union[Started, _Mapping]] = ..., tokens: _Optional[_Union[_types_pb2.TokenChunk, _Mapping]] = ..., alert: _Optional[_Union[_types_pb2.Alert, _Mapping]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ..., baseline: _Optional[_Union[BaselineEvent, _Mapping]] = ...) -> None: ...

class Started(_message.Message):
    __slots__ = ("request_id", "seed", "prompt_tokens", "watched", "monitors", "model", "sae", "watch_generation", "last_prompt_token", "max_tokens", "hold_tokens", "reconstruction_guard")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    WATCHED_FIELD_NUMBER: _ClassVar[int]
    MONITORS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SAE_FIELD_NUMBER: _ClassVar[int]
    WATCH_GENERATION_FIELD_NUMBER: _ClassVar[int]
    LAST_PROMPT_TOKEN_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    HOLD_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RECONSTRUCTION_GUARD_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    seed: int
    prompt_tokens: int
    watched: _containers.RepeatedCompositeFieldContainer[_types_pb2.WatchedFeature]
    monitors: _containers.RepeatedCompositeFieldContainer[_types_pb2.Monitor]
    model: _types_pb2.ModelInfo
    sae: _types_pb2.SaeInfo
    watch_generation: int
    last_prompt_token: _types_pb2.Token
    max_tokens: int
    hold_tokens: int
    reconstruction_guard: _guard_pb2.ReconstructionGuard
    def __init__(self, request_id: _Optional[str] = ..., seed: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., watched: _Optional[_Iterable[_Union[_types_pb2.WatchedFeature, _Mapping]]] = ..., monitors: _Optional[_Iterable[_Union[_types_pb2.Monitor, _Mapping]]] = ..., model: _Optional[_Union[_types_pb2.ModelInfo, _Mapping]] = ..., sae: _Optional[_Union[_types_pb2.SaeInfo, _Mapping]] = ..., watch_generation: _Optional[int] = ..., last_prompt_token: _Optional[_Union[_types_pb2.Token, _Mapping]] = ..., max_tokens: _Optional[int] = ..., hold_tokens: _Optional[int] = ..., reconstruction_guard: _Optional[_Union[_guard_pb2.ReconstructionGuard, _Mapping]] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("prompt_tokens", "completion_tokens")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    completion_tokens: int
    def __init__(self, prompt_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("queue", "prefill", "decode", "time_to_first_token", "total")
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    TIME_TO_FIRST_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    queue: _duration_pb2.Duration
    prefill: _duration_pb2.Duration
    decode: _duration_pb2.Duration
    time_to_first_token: _duration_pb2.Duration
    total: _duration_pb2.Duration
    def __init__(self, queue: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., prefill: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., decode: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., time_to_first_token: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., total: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class SteeringReport(_message.Message):
    __slots__ = ("positions_changed", "mean_relative_norm", "max_relative_norm")
    POSITIONS_CHANGED_FIELD_NUMBER: _ClassVar[int]
    MEAN_RELATIVE_NORM_FIELD_NUMBER: _ClassVar[int]
    MAX_RELATIVE_NORM_FIELD_NUMBER: _ClassVar[int]
    positions_changed: int
    mean_relative_norm: float
    max_relative_norm: float
    def __init__(self, positions_changed: _Optional[int] = ..., mean_relative_norm: _Optional[float] = ..., max_relative_norm: _Optional[float] = ...) -> None: ...

class MonitorSummary(_message.Message):
    __slots__ = ("monitor", "max_score", "mean_score", "scored_tokens", "fired", "first_fired_position", "max_statistic", "level", "alerts", "role", "beyond_calibration", "off_distribution_tokens")
    MONITOR_FIELD_NUMBER: _ClassVar[int]
    MAX_SCORE_FIELD_NUMBER: _ClassVar[int]
    MEAN_SCORE_FIELD_NUMBER: _ClassVar[int]
    SCORED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FIRED_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIRED_POSITION_FIELD_NUMBER: _ClassVar[int]
    MAX_STATISTIC_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    ALERTS_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    BEYOND_CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    OFF_DISTRIBUTION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    monitor: str
    max_score: float
    mean_score: float
    scored_tokens: int
    fired: bool
    first_fired_position: int
    max_statistic: float
    level: _types_pb2.Severity
    alerts: int
    role: str
    beyond_calibration: bool
    off_distribution_tokens: int
    def __init__(self, monitor: _Optional[str] = ..., max_score: _Optional[float] = ..., mean_score: _Optional[float] = ..., scored_tokens: _Optional[int] = ..., fired: _Optional[bool] = ..., first_fired_position: _Optional[int] = ..., max_statistic: _Optional[float] = ..., level: _Optional[_Union[_types_pb2.Severity, str]] = ..., alerts: _Optional[int] = ..., role: _Optional[str] = ..., beyond_calibration: _Optional[bool] = ..., off_distribution_tokens: _Optional[int] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("reason", "matched_stop", "matched_token_id", "usage", "timings", "steering", "monitors", "tapped_tokens", "policies", "withheld_tokens", "twin", "off_distribution_tokens")
    REASON_FIELD_NUMBER: _ClassVar[int]
    MATCHED_STOP_FIELD_NUMBER: _ClassVar[int]
    MATCHED_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    STEERING_FIELD_NUMBER: _ClassVar[int]
    MONITORS_FIELD_NUMBER: _ClassVar[int]
    TAPPED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    POLICIES_FIELD_NUMBER: _ClassVar[int]
    WITHHELD_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TWIN_FIELD_NUMBER: _ClassVar[int]
    OFF_DISTRIBUTION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    reason: FinishReason
    matched_stop: str
    matched_token_id: int
    usage: Usage
    timings: Timings
    steering: SteeringReport
    monitors: _containers.RepeatedCompositeFieldContainer[MonitorSummary]
    tapped_tokens: int
    policies: _containers.RepeatedScalarFieldContainer[str]
    withheld_tokens: int
    twin: Twin
    off_distribution_tokens: int
    def __init__(self, reason: _Optional[_Union[FinishReason, str]] = ..., matched_stop: _Optional[str] = ..., matched_token_id: _Optional[int] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., steering: _Optional[_Union[SteeringReport, _Mapping]] = ..., monitors: _Optional[_Iterable[_Union[MonitorSummary, _Mapping]]] = ..., tapped_tokens: _Optional[int] = ..., policies: _Optional[_Iterable[str]] = ..., withheld_tokens: _Optional[int] = ..., twin: _Optional[_Union[Twin, _Mapping]] = ..., off_distribution_tokens: _Optional[int] = ...) -> None: ...

class ScoreRequest(_message.Message):
    __slots__ = ("text", "chat", "token_ids", "watch", "steering", "label")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    CHAT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    WATCH_FIELD_NUMBER: _ClassVar[int]
    STEERING_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    text: str
    chat: _types_pb2.Chat
    token_ids: _types_pb2.TokenIds
    watch: _types_pb2.Watch
    steering: _containers.RepeatedCompositeFieldContainer[_types_pb2.Steering]
    label: str
    def __init__(self, text: _Optional[str] = ..., chat: _Optional[_Union[_types_pb2.Chat, _Mapping]] = ..., token_ids: _Optional[_Union[_types_pb2.TokenIds, _Mapping]] = ..., watch: _Optional[_Union[_types_pb2.Watch, _Mapping]] = ..., steering: _Optional[_Iterable[_Union[_types_pb2.Steering, _Mapping]]] = ..., label: _Optional[str] = ...) -> None: ...

class ScoreResponse(_message.Message):
    __slots__ = ("request_id", "watched", "tokens", "monitors", "alerts", "usage", "steering", "model", "sae", "monitor_definitions", "reconstruction_guard", "off_distribution_tokens")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    WATCHED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    MONITORS_FIELD_NUMBER: _ClassVar[int]
    ALERTS_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    STEERING_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SAE_FIELD_NUMBER: _ClassVar[int]
    MONITOR_DEFINITIONS_FIELD_NUMBER: _ClassVar[int]
    RECONSTRUCTION_GUARD_FIELD_NUMBER: _ClassVar[int]
    OFF_DISTRIBUTION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    watched: _containers.RepeatedCompositeFieldContainer[_types_pb2.WatchedFeature]
    tokens: _containers.RepeatedCompositeFieldContainer[_types_pb2.Token]
    monitors: _containers.RepeatedCompositeFieldContainer[MonitorSummary]
    alerts: _containers.RepeatedCompositeFieldContainer[_types_pb2.Alert]
    usage: Usage
    steering: SteeringReport
    model: _types_pb2.ModelInfo
    sae: _types_pb2.SaeInfo
    monitor_definitions: _containers.RepeatedCompositeFieldContainer[_types_pb2.Monitor]
    reconstruction_guard: _guard_pb2.ReconstructionGuard
    off_distribution_tokens: int
    def __init__(self, request_id: _Optional[str] = ..., watched: _Optional[_Iterable[_Union[_types_pb2.WatchedFeature, _Mapping]]] = ..., tokens: _Optional[_Iterable[_Union[_types_pb2.Token, _Mapping]]] = ..., monitors: _Optional[_Iterable[_Union[MonitorSummary, _Mapping]]] = ..., alerts: _Optional[_Iterable[_Union[_types_pb2.Alert, _Mapping]]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., steering: _Optional[_Union[SteeringReport, _Mapping]] = ..., model: _Optional[_Union[_types_pb2.ModelInfo, _Mapping]] = ..., sae: _Optional[_Union[_types_pb2.SaeInfo, _Mapping]] = ..., monitor_definitions: _Optional[_Iterable[_Union[_types_pb2.Monitor, _Mapping]]] = ..., reconstruction_guard: _Optional[_Union[_guard_pb2.ReconstructionGuard, _Mapping]] = ..., off_distribution_tokens: _Optional[int] = ...) -> None: ...

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Limits(_message.Message):
    __slots__ = ("slots", "context_length", "max_queued_requests", "max_queued_prompt_tokens", "max_steering_relative_norm", "prefill_chunk_tokens", "max_top_features", "max_watched_features", "max_steering_operations", "max_stop_strings", "max_request_seconds", "max_policies", "max_hold_tokens")
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUED_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_STEERING_RELATIVE_NORM_FIELD_NUMBER: _ClassVar[int]
    PREFILL_CHUNK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOP_FEATURES_FIELD_NUMBER: _ClassVar[int]
    MAX_WATCHED_FEATURES_FIELD_NUMBER: _ClassVar[int]
    MAX_STEERING_OPERATIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_STOP_STRINGS_FIELD_NUMBER: _ClassVar[int]
    MAX_REQUEST_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MAX_POLICIES_FIELD_NUMBER: _ClassVar[int]
    MAX_HOLD_TOKENS_FIELD_NUMBER: _ClassVar[int]
    slots: int
    context_length: int
    max_queued_requests: int
    max_queued_prompt_tokens: int
    max_steering_relative_norm: float
    prefill_chunk_tokens: int
    max_top_features: int
    max_watched_features: int
    max_steering_operations: int
    max_stop_strings: int
    max_request_seconds: float
    max_policies: int
    max_hold_tokens: int
    def __init__(self, slots: _Optional[int] = ..., context_length: _Optional[int] = ..., max_queued_requests: _Optional[int] = ..., max_queued_prompt_tokens: _Optional[int] = ..., max_steering_relative_norm: _Optional[float] = ..., prefill_chunk_tokens: _Optional[int] = ..., max_top_features: _Optional[int] = ..., max_watched_features: _Optional[int] = ..., max_steering_operations: _Optional[int] = ..., max_stop_strings: _Optional[int] = ..., max_request_seconds: _Optional[float] = ..., max_policies: _Optional[int] = ..., max_hold_tokens: _Optional[int] = ...) -> None: ...

class GetServerInfoResponse(_message.Message):
    __slots__ = ("version", "model", "sae", "limits", "sampling_defaults", "default_watched", "default_monitors", "requests_running", "requests_waiting", "uptime_seconds", "watch_generation", "planned_memory_bytes", "passes", "steering_hook_point", "journal", "reconstruction_guard", "fidelity", "inputs")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SAE_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_DEFAULTS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_WATCHED_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_MONITORS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_RUNNING_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_WAITING_FIELD_NUMBER: _ClassVar[int]
    UPTIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    WATCH_GENERATION_FIELD_NUMBER: _ClassVar[int]
    PLANNED_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    PASSES_FIELD_NUMBER: _ClassVar[int]
    STEERING_HOOK_POINT_FIELD_NUMBER: _ClassVar[int]
    JOURNAL_FIELD_NUMBER: _ClassVar[int]
    RECONSTRUCTION_GUARD_FIELD_NUMBER: _ClassVar[int]
    FIDELITY_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    version: str
    model: _types_pb2.ModelInfo
    sae: _types_pb2.SaeInfo
    limits: Limits
    sampling_defaults: _types_pb2.SamplingParams
    default_watched: _containers.RepeatedCompositeFieldContainer[_types_pb2.WatchedFeature]
    default_monitors: _containers.RepeatedScalarFieldContainer[str]
    requests_running: int
    requests_waiting: int
    uptime_seconds: float
    watch_generation: int
    planned_memory_bytes: int
    passes: str
    steering_hook_point: str
    journal: JournalInfo
    reconstruction_guard: _guard_pb2.ReconstructionGuard
    fidelity: _containers.RepeatedCompositeFieldContainer[_guard_pb2.Fidelity]
    inputs: _containers.RepeatedCompositeFieldContainer[_guard_pb2.MonitorInput]
    def __init__(self, version: _Optional[str] = ..., model: _Optional[_Union[_types_pb2.ModelInfo, _Mapping]] = ..., sae: _Optional[_Union[_types_pb2.SaeInfo, _Mapping]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., sampling_defaults: _Optional[_Union[_types_pb2.SamplingParams, _Mapping]] = ..., default_watched: _Optional[_Iterable[_Union[_types_pb2.WatchedFeature, _Mapping]]] = ..., default_monitors: _Optional[_Iterable[str]] = ..., requests_running: _Optional[int] = ..., requests_waiting: _Optional[int] = ..., uptime_seconds: _Optional[float] = ..., watch_generation: _Optional[int] = ..., planned_memory_bytes: _Optional[int] = ..., passes: _Optional[str] = ..., steering_hook_point: _Optional[str] = ..., journal: _Optional[_Union[JournalInfo, _Mapping]] = ..., reconstruction_guard: _Optional[_Union[_guard_pb2.ReconstructionGuard, _Mapping]] = ..., fidelity: _Optional[_Iterable[_Union[_guard_pb2.Fidelity, _Mapping]]] = ..., inputs: _Optional[_Iterable[_Union[_guard_pb2.MonitorInput, _Mapping]]] = ...) -> None: ...

class JournalInfo(_message.Message):
    __slots__ = ("num_entries", "head_seq", "keeps_text", "is_writable", "num_write_failures", "write_error", "is_forwarded", "num_waiting", "lag_seconds", "forward_error")
    NUM_ENTRIES_FIELD_NUMBER: _ClassVar[int]
    HEAD_SEQ_FIELD_NUMBER: _ClassVar[int]
    KEEPS_TEXT_FIELD_NUMBER: _ClassVar[int]
    IS_WRITABLE_FIELD_NUMBER: _ClassVar[int]
    NUM_WRITE_FAILURES_FIELD_NUMBER: _ClassVar[int]
    WRITE_ERROR_FIELD_NUMBER: _ClassVar[int]
    IS_FORWARDED_FIELD_NUMBER: _ClassVar[int]
    NUM_WAITING_FIELD_NUMBER: _ClassVar[int]
    LAG_SECONDS_FIELD_NUMBER: _ClassVar[int]
    FORWARD_ERROR_FIELD_NUMBER: _ClassVar[int]
    num_entries: int
    head_seq: int
    keeps_text: bool
    is_writable: bool
    num_write_failures: int
    write_error: str
    is_forwarded: bool
    num_waiting: int
    lag_seconds: float
    forward_error: str
    def __init__(self, num_entries: _Optional[int] = ..., head_seq: _Optional[int] = ..., keeps_text: _Optional[bool] = ..., is_writable: _Optional[bool] = ..., num_write_failures: _Optional[int] = ..., write_error: _Optional[str] = ..., is_forwarded: _Optional[bool] = ..., num_waiting: _Optional[int] = ..., lag_seconds: _Optional[float] = ..., forward_error: _Optional[str] = ...) -> None: ...

class BaselineEvent(_message.Message):
    __slots__ = ("started", "tokens", "alert")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    ALERT_FIELD_NUMBER: _ClassVar[int]
    started: Started
    tokens: _types_pb2.TokenChunk
    alert: _types_pb2.Alert
    def __init__(self, started: _Optional[_Union[Started, _Mapping]] = ..., tokens: _Optional[_Union[_types_pb2.TokenChunk, _Mapping]] = ..., alert: _Optional[_Union[_types_pb2.Alert, _Mapping]] = ...) -> None: ...

class Twin(_message.Message):
    __slots__ = ("baseline", "features", "monitors", "first_difference_position", "text", "baseline_text")
    BASELINE_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    MONITORS_FIELD_NUMBER: _ClassVar[int]
    FIRST_DIFFERENCE_POSITION_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    BASELINE_TEXT_FIELD_NUMBER: _ClassVar[int]
    baseline: Finished
    features: _containers.RepeatedCompositeFieldContainer[FeatureDifference]
    monitors: _containers.RepeatedCompositeFieldContainer[MonitorDifference]
    first_difference_position: int
    text: str
    baseline_text: str
    def __init__(self, baseline: _Optional[_Union[Finished, _Mapping]] = ..., features: _Optional[_Iterable[_Union[FeatureDifference, _Mapping]]] = ..., monitors: _Optional[_Iterable[_Union[MonitorDifference, _Mapping]]] = ..., first_difference_position: _Optional[int] = ..., text: _Optional[str] = ..., baseline_text: _Optional[str] = ...) -> None: ...

class FeatureDifference(_message.Message):
    __slots__ = ("feature", "mean", "baseline_mean", "max", "baseline_max", "steered_mean", "steered_max")
    FEATURE_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    BASELINE_MEAN_FIELD_NUMBER: _ClassVar[int]
    MAX_FIELD_NUMBER: _ClassVar[int]
    BASELINE_MAX_FIELD_NUMBER: _ClassVar[int]
    STEERED_MEAN_FIELD_NUMBER: _ClassVar[int]
    STEERED_MAX_FIELD_NUMBER: _ClassVar[int]
    feature: int
    mean: float
    baseline_mean: float
    max: float
    baseline_max: float
    steered_mean: float
    steered_max: float
    def __init__(self, feature: _Optional[int] = ..., mean: _Optional[float] = ..., baseline_mean: _Optional[float] = ..., max: _Optional[float] = ..., baseline_max: _Optional[float] = ..., steered_mean: _Optional[float] = ..., steered_max: _Optional[float] = ...) -> None: ...

class MonitorDifference(_message.Message):
    __slots__ = ("monitor", "max_score", "baseline_max_score", "mean_score", "baseline_mean_score", "fired", "baseline_fired")
    MONITOR_FIELD_NUMBER: _ClassVar[int]
    MAX_SCORE_FIELD_NUMBER: _ClassVar[int]
    BASELINE_MAX_SCORE_FIELD_NUMBER: _ClassVar[int]
    MEAN_SCORE_FIELD_NUMBER: _ClassVar[int]
    BASELINE_MEAN_SCORE_FIELD_NUMBER: _ClassVar[int]
    FIRED_FIELD_NUMBER: _ClassVar[int]
    BASELINE_FIRED_FIELD_NUMBER: _ClassVar[int]
    monitor: str
    max_score: float
    baseline_max_score: float
    mean_score: float
    baseline_mean_score: float
    fired: bool
    baseline_fired: bool
    def __init__(self, monitor: _Optional[str] = ..., max_score: _Optional[float] = ..., baseline_max_score: _Optional[float] = ..., mean_score: _Optional[float] = ..., baseline_mean_score: _Optional[float] = ..., fired: _Optional[bool] = ..., baseline_fired: _Optional[bool] = ...) -> None: ...
