from google.protobuf import struct_pb2 as _struct_pb2
from telltale.v1 import guard_pb2 as _guard_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SteeringOp(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STEERING_OP_UNSPECIFIED: _ClassVar[SteeringOp]
    STEERING_OP_ADD: _ClassVar[SteeringOp]
    STEERING_OP_SCALE: _ClassVar[SteeringOp]
    STEERING_OP_SET: _ClassVar[SteeringOp]
    STEERING_OP_PROJECT_OUT: _ClassVar[SteeringOp]
    STEERING_OP_CAP: _ClassVar[SteeringOp]

class StrengthUnit(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STRENGTH_UNIT_UNSPECIFIED: _ClassVar[StrengthUnit]
    STRENGTH_UNIT_RAW: _ClassVar[StrengthUnit]
    STRENGTH_UNIT_RELATIVE: _ClassVar[StrengthUnit]

class PositionScope(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    POSITION_SCOPE_UNSPECIFIED: _ClassVar[PositionScope]
    POSITION_SCOPE_ALL: _ClassVar[PositionScope]
    POSITION_SCOPE_PROMPT: _ClassVar[PositionScope]
    POSITION_SCOPE_GENERATED: _ClassVar[PositionScope]

class PolicyAction(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    POLICY_ACTION_UNSPECIFIED: _ClassVar[PolicyAction]
    POLICY_ACTION_ANNOTATE: _ClassVar[PolicyAction]
    POLICY_ACTION_STOP: _ClassVar[PolicyAction]
    POLICY_ACTION_STEER: _ClassVar[PolicyAction]

class AlertState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ALERT_STATE_UNSPECIFIED: _ClassVar[AlertState]
    ALERT_STATE_FIRING: _ClassVar[AlertState]
    ALERT_STATE_CLEARED: _ClassVar[AlertState]

class Severity(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SEVERITY_UNSPECIFIED: _ClassVar[Severity]
    SEVERITY_INFO: _ClassVar[Severity]
    SEVERITY_WARNING: _ClassVar[Severity]
    SEVERITY_CRITICAL: _ClassVar[Severity]

class MonitorKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MONITOR_KIND_UNSPECIFIED: _ClassVar[MonitorKind]
    MONITOR_KIND_FEATURE: _ClassVar[MonitorKind]
    MONITOR_KIND_FEATURES: _ClassVar[MonitorKind]
    MONITOR_KIND_PROBE: _ClassVar[MonitorKind]
    MONITOR_KIND_ENSEMBLE: _ClassVar[MonitorKind]
    MONITOR_KIND_CASCADE: _ClassVar[MonitorKind]
STEERING_OP_UNSPECIFIED: SteeringOp
STEERING_OP_ADD: SteeringOp
STEERING_OP_SCALE: SteeringOp
STEERING_OP_SET: SteeringOp
STEERING_OP_PROJECT_OUT: SteeringOp
STEERING_OP_CAP: SteeringOp
STRENGTH_UNIT_UNSPECIFIED: StrengthUnit
STRENGTH_UNIT_RAW: StrengthUnit
STRENGTH_UNIT_RELATIVE: StrengthUnit
POSITION_SCOPE_UNSPECIFIED: PositionScope
POSITION_SCOPE_ALL: PositionScope
POSITION_SCOPE_PROMPT: PositionScope
POSITION_SCOPE_GENERATED: PositionScope
POLICY_ACTION_UNSPECIFIED: PolicyAction
POLICY_ACTION_ANNOTATE: PolicyAction
POLICY_ACTION_STOP: PolicyAction
POLICY_ACTION_STEER: PolicyAction
ALERT_STATE_UNSPECIFIED: AlertState
ALERT_STATE_FIRING: AlertState
ALERT_STATE_CLEARED: AlertState
SEVERITY_UNSPECIFIED: Severity
SEVERITY_INFO: Severity
SEVERITY_WARNING: Severity
SEVERITY_CRITICAL: Severity
MONITOR_KIND_UNSPECIFIED: MonitorKind
MONITOR_KIND_FEATURE: MonitorKind
MONITOR_KIND_FEATURES: MonitorKind
MONITOR_KIND_PROBE: MonitorKind
MONITOR_KIND_ENSEMBLE: MonitorKind
MONITOR_KIND_CASCADE: MonitorKind

class Message(_message.Message):
    __slots__ = ("role", "content")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    role: str
    content: str
    def __init__(self, role: _Optional[str] = ..., content: _Optional[str] = ...) -> None: ...

class Chat(_message.Message):
    __slots__ = ("messages",)
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[Message]
    def __init__(self, messages: _Optional[_Iterable[_Union[Message, _Mapping]]] = ...) -> None: ...

class TokenIds(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class SamplingParams(_message.Message):
    __slots__ = ("temperature", "top_p", "min_p", "repetition_penalty", "top_k", "max_tokens", "seed", "stop", "ignore_eos")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_p: float
    min_p: float
    repetition_penalty: float
    top_k: int
    max_tokens: int
    seed: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    ignore_eos: bool
    def __init__(self, temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., min_p: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., top_k: _Optional[int] = ..., max_tokens: _Optional[int] = ..., seed: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ..., ignore_eos: _Optional[bool] = ...) -> None: ...

class Watch(_message.Message):
    __slots__ = ("features", "monitors", "top_features", "include_prompt", "include_logprobs", "no_defaults")
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    MONITORS_FIELD_NUMBER: _ClassVar[int]
    TOP_FEATURES_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_PROMPT_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    NO_DEFAULTS_FIELD_NUMBER: _ClassVar[int]
    features: _containers.RepeatedScalarFieldContainer[int]
    monitors: _containers.RepeatedScalarFieldContainer[str]
    top_features: int
    include_prompt: bool
    include_logprobs: bool
    no_defaults: bool
    def __init__(self, features: _Optional[_Iterable[int]] = ..., monitors: _Optional[_Iterable[str]] = ..., top_features: _Optional[int] = ..., include_prompt: _Optional[bool] = ..., include_logprobs: _Optional[bool] = ..., no_defaults: _Optional[bool] = ...) -> None: ...

class Window(_message.Message):
    __slots__ = ("start", "end")
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    start: int
    end: int
    def __init__(self, start: _Optional[int] = ..., end: _Optional[int] = ...) -> None: ...

class Steering(_message.Message):
    __slots__ = ("feature", "vector", "name", "op", "strength", "unit", "scope", "window")
    FEATURE_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    OP_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    feature: int
    vector: bytes
    name: str
    op: SteeringOp
    strength: float
    unit: StrengthUnit
    scope: PositionScope
    window: Window
    def __init__(self, feature: _Optional[int] = ..., vector: _Optional[bytes] = ..., name: _Optional[str] = ..., op: _Optional[_Union[SteeringOp, str]] = ..., strength: _Optional[float] = ..., unit: _Optional[_Union[StrengthUnit, str]] = ..., scope: _Optional[_Union[PositionScope, str]] = ..., window: _Optional[_Union[Window, _Mapping]] = ...) -> None: ...

class Policy(_message.Message):
    __slots__ = ("monitor", "action", "steering", "condition", "name", "hold")
    MONITOR_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    STEERING_FIELD_NUMBER: _ClassVar[int]
    CONDITION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    HOLD_FIELD_NUMBER: _ClassVar[int]
    monitor: str
    action: PolicyAction
    steering: _containers.RepeatedCompositeFieldContainer[Steering]
    condition: Condition
    name: str
    hold: Hold
    def __init__(self, monitor: _Optional[str] = ..., action: _Optional[_Union[PolicyAction, str]] = ..., steering: _Optional[_Iterable[_Union[Steering, _Mapping]]] = ..., condition: _Optional[_Union[Condition, _Mapping]] = ..., name: _Optional[str] = ..., hold: _Optional[_Union[Hold, _Mapping]] = ...) -> None: ...

class Condition(_message.Message):
    __slots__ = ("alert", "all_of", "any_of")
    ALERT_FIELD_NUMBER: _ClassVar[int]
    ALL_OF_FIELD_NUMBER: _ClassVar[int]
    ANY_OF_FIELD_NUMBER: _ClassVar[int]
    alert: AlertCondition
    all_of: Conditions
    any_of: Conditions
    def __init__(self, alert: _Optional[_Union[AlertCondition, _Mapping]] = ..., all_of: _Optional[_Union[Conditions, _Mapping]] = ..., any_of: _Optional[_Union[Conditions, _Mapping]] = ...) -> None: ...

class Conditions(_message.Message):
    __slots__ = ("conditions",)
    CONDITIONS_FIELD_NUMBER: _ClassVar[int]
    conditions: _containers.RepeatedCompositeFieldContainer[Condition]
    def __init__(self, conditions: _Optional[_Iterable[_Union[Condition, _Mapping]]] = ...) -> None: ...

class AlertCondition(_message.Message):
    __slots__ = ("monitor", "level", "roles", "has_fired")
    MONITOR_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    ROLES_FIELD_NUMBER: _ClassVar[int]
    HAS_FIRED_FIELD_NUMBER: _ClassVar[int]
    monitor: str
    level: Severity
    roles: _containers.RepeatedScalarFieldContainer[str]
    has_fired: bool
    def __init__(self, monitor: _Optional[str] = ..., level: _Optional[_Union[Severity, str]] = ..., roles: _Optional[_Iterable[str]] = ..., has_fired: _Optional[bool] = ...) -> None: ...

class Hold(_message.Message):
    __slots__ = ("tokens", "reveal")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    REVEAL_FIELD_NUMBER: _ClassVar[int]
    tokens: int
    reveal: bool
    def __init__(self, tokens: _Optional[int] = ..., reveal: _Optional[bool] = ...) -> None: ...

class Withheld(_message.Message):
    __slots__ = ("first_position", "tokens", "text")
    FIRST_POSITION_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    first_position: int
    tokens: int
    text: str
    def __init__(self, first_position: _Optional[int] = ..., tokens: _Optional[int] = ..., text: _Optional[str] = ...) -> None: ...

class FeatureReading(_message.Message):
    __slots__ = ("feature", "value")
    FEATURE_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    feature: int
    value: float
    def __init__(self, feature: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...

class MonitorScore(_message.Message):
    __slots__ = ("monitor", "value", "firing", "components", "level")
    MONITOR_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    FIRING_FIELD_NUMBER: _ClassVar[int]
    COMPONENTS_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    monitor: str
    value: float
    firing: bool
    components: _containers.RepeatedScalarFieldContainer[float]
    level: Severity
    def __init__(self, monitor: _Optional[str] = ..., value: _Optional[float] = ..., firing: _Optional[bool] = ..., components: _Optional[_Iterable[float]] = ..., level: _Optional[_Union[Severity, str]] = ...) -> None: ...

class Token(_message.Message):
    __slots__ = ("index", "id", "text", "special", "is_prompt", "readings", "steered_readings", "top_features", "logprob", "scores", "fvu", "l0", "is_first_position", "off_scale", "role", "off_distribution")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    SPECIAL_FIELD_NUMBER: _ClassVar[int]
    IS_PROMPT_FIELD_NUMBER: _ClassVar[int]
    READINGS_FIELD_NUMBER: _ClassVar[int]
    STEERED_READINGS_FIELD_NUMBER: _ClassVar[int]
    TOP_FEATURES_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    FVU_FIELD_NUMBER: _ClassVar[int]
    L0_FIELD_NUMBER: _ClassVar[int]
    IS_FIRST_POSITION_FIELD_NUMBER: _ClassVar[int]
    OFF_SCALE_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    OFF_DISTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    index: int
    id: int
    text: str
    special: bool
    is_prompt: bool
    readings: _containers.RepeatedScalarFieldContainer[float]
    steered_readings: _containers.RepeatedScalarFieldContainer[float]
    top_features: _containers.RepeatedCompositeFieldContainer[FeatureReading]
    logprob: float
    scores: _containers.RepeatedCompositeFieldContainer[MonitorScore]
    fvu: float
    l0: int
    is_first_position: bool
    off_scale: bool
    role: str
    off_distribution: bool
    def __init__(self, index: _Optional[int] = ..., id: _Optional[int] = ..., text: _Optional[str] = ..., special: _Optional[bool] = ..., is_prompt: _Optional[bool] = ..., readings: _Optional[_Iterable[float]] = ..., steered_readings: _Optional[_Iterable[float]] = ..., top_features: _Optional[_Iterable[_Union[FeatureReading, _Mapping]]] = ..., logprob: _Optional[float] = ..., scores: _Optional[_Iterable[_Union[MonitorScore, _Mapping]]] = ..., fvu: _Optional[float] = ..., l0: _Optional[int] = ..., is_first_position: _Optional[bool] = ..., off_scale: _Optional[bool] = ..., role: _Optional[str] = ..., off_distribution: _Optional[bool] = ...) -> None: ...

class TokenChunk(_message.Message):
    __slots__ = ("tokens",)
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedCompositeFieldContainer[Token]
    def __init__(self, tokens: _Optional[_Iterable[_Union[Token, _Mapping]]] = ...) -> None: ...

class Contribution(_message.Message):
    __slots__ = ("feature", "value", "component")
    FEATURE_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    COMPONENT_FIELD_NUMBER: _ClassVar[int]
    feature: int
    value: float
    component: str
    def __init__(self, feature: _Optional[int] = ..., value: _Optional[float] = ..., component: _Optional[str] = ...) -> None: ...

class ComponentPart(_message.Message):
    __slots__ = ("component", "score", "contribution", "score_unknown")
    COMPONENT_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    SCORE_UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    component: str
    score: float
    contribution: float
    score_unknown: bool
    def __init__(self, component: _Optional[str] = ..., score: _Optional[float] = ..., contribution: _Optional[float] = ..., score_unknown: _Optional[bool] = ...) -> None: ...

class Alert(_message.Message):
    __slots__ = ("request_id", "label", "monitor", "state", "severity", "position", "span_start", "score", "threshold", "contributions", "validated", "time_seconds", "components", "role", "pack_sha256", "beyond_calibration", "policies", "withheld", "alert_id", "off_distribution_tokens")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    MONITOR_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SEVERITY_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    SPAN_START_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    VALIDATED_FIELD_NUMBER: _ClassVar[int]
    TIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    COMPONENTS_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    PACK_SHA256_FIELD_NUMBER: _ClassVar[int]
    BEYOND_CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    POLICIES_FIELD_NUMBER: _ClassVar[int]
    WITHHELD_FIELD_NUMBER: _ClassVar[int]
    ALERT_ID_FIELD_NUMBER: _ClassVar[int]
    OFF_DISTRIBUTION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    label: str
    monitor: str
    state: AlertState
    severity: Severity
    position: int
    span_start: int
    score: float
    threshold: float
    contributions: _containers.RepeatedCompositeFieldContainer[Contribution]
    validated: bool
    time_seconds: float
    components: _containers.RepeatedCompositeFieldContainer[ComponentPart]
    role: str
    pack_sha256: str
    beyond_calibration: bool
    policies: _containers.RepeatedScalarFieldContainer[str]
    withheld: Withheld
    alert_id: str
    off_distribution_tokens: int
    def __init__(self, request_id: _Optional[str] = ..., label: _Optional[str] = ..., monitor: _Optional[str] = ..., state: _Optional[_Union[AlertState, str]] = ..., severity: _Optional[_Union[Severity, str]] = ..., position: _Optional[int] = ..., span_start: _Optional[int] = ..., score: _Optional[float] = ..., threshold: _Optional[float] = ..., contributions: _Optional[_Iterable[_Union[Contribution, _Mapping]]] = ..., validated: _Optional[bool] = ..., time_seconds: _Optional[float] = ..., components: _Optional[_Iterable[_Union[ComponentPart, _Mapping]]] = ..., role: _Optional[str] = ..., pack_sha256: _Optional[str] = ..., beyond_calibration: _Optional[bool] = ..., policies: _Optional[_Iterable[str]] = ..., withheld: _Optional[_Union[Withheld, _Mapping]] = ..., alert_id: _Optional[str] = ..., off_distribution_tokens: _Optional[int] = ...) -> None: ...

class WatchedFeature(_message.Message):
    __slots__ = ("feature", "name", "reference_scale", "validated")
    FEATURE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_SCALE_FIELD_NUMBER: _ClassVar[int]
    VALIDATED_FIELD_NUMBER: _ClassVar[int]
    feature: int
    name: str
    reference_scale: float
    validated: bool
    def __init__(self, feature: _Optional[int] = ..., name: _Optional[str] = ..., reference_scale: _Optional[float] = ..., validated: _Optional[bool] = ...) -> None: ...

class MonitorComponent(_message.Message):
    __slots__ = ("name", "reads", "hook_point", "features", "method")
    NAME_FIELD_NUMBER: _ClassVar[int]
    READS_FIELD_NUMBER: _ClassVar[int]
    HOOK_POINT_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    name: str
    reads: str
    hook_point: str
    features: _containers.RepeatedScalarFieldContainer[int]
    method: str
    def __init__(self, name: _Optional[str] = ..., reads: _Optional[str] = ..., hook_point: _Optional[str] = ..., features: _Optional[_Iterable[int]] = ..., method: _Optional[str] = ...) -> None: ...

class MonitorLevel(_message.Message):
    __slots__ = ("severity", "alpha", "absent")
    SEVERITY_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    ABSENT_FIELD_NUMBER: _ClassVar[int]
    severity: Severity
    alpha: float
    absent: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, severity: _Optional[_Union[Severity, str]] = ..., alpha: _Optional[float] = ..., absent: _Optional[_Iterable[int]] = ...) -> None: ...

class MonitorStratum(_message.Message):
    __slots__ = ("max_tokens", "warning", "critical", "clear")
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    WARNING_FIELD_NUMBER: _ClassVar[int]
    CRITICAL_FIELD_NUMBER: _ClassVar[int]
    CLEAR_FIELD_NUMBER: _ClassVar[int]
    max_tokens: int
    warning: float
    critical: float
    clear: float
    def __init__(self, max_tokens: _Optional[int] = ..., warning: _Optional[float] = ..., critical: _Optional[float] = ..., clear: _Optional[float] = ...) -> None: ...

class Monitor(_message.Message):
    __slots__ = ("name", "description", "threshold", "clear_threshold", "window", "min_tokens", "cooldown_tokens", "severity", "threshold_source", "validated", "features", "scores_prompt", "kind", "version", "pack_sha256", "components", "combination", "levels", "strata", "roles", "calibration_method", "limits", "validated_reason", "mismatches", "temperatures", "cautions", "calibration", "evidence", "inputs", "drift")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    CLEAR_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    MIN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COOLDOWN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SEVERITY_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_SOURCE_FIELD_NUMBER: _ClassVar[int]
    VALIDATED_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    SCORES_PROMPT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PACK_SHA256_FIELD_NUMBER: _ClassVar[int]
    COMPONENTS_FIELD_NUMBER: _ClassVar[int]
    COMBINATION_FIELD_NUMBER: _ClassVar[int]
    LEVELS_FIELD_NUMBER: _ClassVar[int]
    STRATA_FIELD_NUMBER: _ClassVar[int]
    ROLES_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_METHOD_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    VALIDATED_REASON_FIELD_NUMBER: _ClassVar[int]
    MISMATCHES_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURES_FIELD_NUMBER: _ClassVar[int]
    CAUTIONS_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    DRIFT_FIELD_NUMBER: _ClassVar[int]
    name: str
    description: str
    threshold: float
    clear_threshold: float
    window: int
    min_tokens: int
    cooldown_tokens: int
    severity: Severity
    threshold_source: str
    validated: bool
    features: _containers.RepeatedScalarFieldContainer[int]
    scores_prompt: bool
    kind: MonitorKind
    version: int
    pack_sha256: str
    components: _containers.RepeatedCompositeFieldContainer[MonitorComponent]
    combination: str
    levels: _containers.RepeatedCompositeFieldContainer[MonitorLevel]
    strata: _containers.RepeatedCompositeFieldContainer[MonitorStratum]
    roles: _containers.RepeatedScalarFieldContainer[str]
    calibration_method: str
    limits: str
    validated_reason: str
    mismatches: _containers.RepeatedScalarFieldContainer[str]
    temperatures: _containers.RepeatedScalarFieldContainer[float]
    cautions: _containers.RepeatedScalarFieldContainer[str]
    calibration: _struct_pb2.Struct
    evidence: _struct_pb2.Struct
    inputs: _containers.RepeatedCompositeFieldContainer[_guard_pb2.MonitorInput]
    drift: _guard_pb2.MonitorDrift
    def __init__(self, name: _Optional[str] = ..., description: _Optional[str] = ..., threshold: _Optional[float] = ..., clear_threshold: _Optional[float] = ..., window: _Optional[int] = ..., min_tokens: _Optional[int] = ..., cooldown_tokens: _Optional[int] = ..., severity: _Optional[_Union[Severity, str]] = ..., threshold_source: _Optional[str] = ..., validated: _Optional[bool] = ..., features: _Optional[_Iterable[int]] = ..., scores_prompt: _Optional[bool] = ..., kind: _Optional[_Union[MonitorKind, str]] = ..., version: _Optional[int] = ..., pack_sha256: _Optional[str] = ..., components: _Optional[_Iterable[_Union[MonitorComponent, _Mapping]]] = ..., combination: _Optional[str] = ..., levels: _Optional[_Iterable[_Union[MonitorLevel, _Mapping]]] = ..., strata: _Optional[_Iterable[_Union[MonitorStratum, _Mapping]]] = ..., roles: _Optional[_Iterable[str]] = ..., calibration_method: _Optional[str] = ..., limits: _Optional[str] = ..., validated_reason: _Optional[str] = ..., mismatches: _Optional[_Iterable[str]] = ..., temperatures: _Optional[_Iterable[float]] = ..., cautions: _Optional[_Iterable[str]] = ..., calibration: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., evidence: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., inputs: _Optional[_Iterable[_Union[_guard_pb2.MonitorInput, _Mapping]]] = ..., drift: _Optional[_Union[_guard_pb2.MonitorDrift, _Mapping]] = ...) -> None: ...

class ModelInfo(_message.Message):
    __slots__ = ("name", "weights_sha256", "quantization", "dtype", "device", "num_layers", "d_model", "vocab_size", "context_length", "eos_token_ids")
    NAME_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_SHA256_FIELD_NUMBER: _ClassVar[int]
    QUANTIZATION_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    NUM_LAYERS_FIELD_NUMBER: _ClassVar[int]
    D_MODEL_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    EOS_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    name: str
    weights_sha256: str
    quantization: str
    dtype: str
    device: str
    num_layers: int
    d_model: int
    vocab_size: int
    context_length: int
    eos_token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., weights_sha256: _Optional[str] = ..., quantization: _Optional[str] = ..., dtype: _Optional[str] = ..., device: _Optional[str] = ..., num_layers: _Optional[int] = ..., d_model: _Optional[int] = ..., vocab_size: _Optional[int] = ..., context_length: _Optional[int] = ..., eos_token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class SaeInfo(_message.Message):
    __slots__ = ("name", "sha256", "hook_point", "num_latents", "activation", "verified", "mismatches", "resid_norm_mean")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    HOOK_POINT_FIELD_NUMBER: _ClassVar[int]
    NUM_LATENTS_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_FIELD_NUMBER: _ClassVar[int]
    VERIFIED_FIELD_NUMBER: _ClassVar[int]
    MISMATCHES_FIELD_NUMBER: _ClassVar[int]
    RESID_NORM_MEAN_FIELD_NUMBER: _ClassVar[int]
    name: str
    sha256: str
    hook_point: str
    num_latents: int
    activation: str
    verified: bool
    mismatches: _containers.RepeatedScalarFieldContainer[str]
    resid_norm_mean: float
    def __init__(self, name: _Optional[str] = ..., sha256: _Optional[str] = ..., hook_point: _Optional[str] = ..., num_latents: _Optional[int] = ..., activation: _Optional[str] = ..., verified: _Optional[bool] = ..., mismatches: _Optional[_Iterable[str]] = ..., resid_norm_mean: _Optional[float] = ...) -> None: ...
