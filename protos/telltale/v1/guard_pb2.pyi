from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class InputState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    INPUT_STATE_UNSPECIFIED: _ClassVar[InputState]
    INPUT_STATE_ALIVE: _ClassVar[InputState]
    INPUT_STATE_UNTESTED: _ClassVar[InputState]
    INPUT_STATE_SILENT: _ClassVar[InputState]
    INPUT_STATE_UNKNOWN: _ClassVar[InputState]
INPUT_STATE_UNSPECIFIED: InputState
INPUT_STATE_ALIVE: InputState
INPUT_STATE_UNTESTED: InputState
INPUT_STATE_SILENT: InputState
INPUT_STATE_UNKNOWN: InputState

class ReconstructionGuard(_message.Message):
    __slots__ = ("active", "max_fvu", "source", "usual_ratio")
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    MAX_FVU_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    USUAL_RATIO_FIELD_NUMBER: _ClassVar[int]
    active: bool
    max_fvu: float
    source: str
    usual_ratio: float
    def __init__(self, active: _Optional[bool] = ..., max_fvu: _Optional[float] = ..., source: _Optional[str] = ..., usual_ratio: _Optional[float] = ...) -> None: ...

class Fidelity(_message.Message):
    __slots__ = ("first", "against", "tokens", "residual_relative_error", "median_correlation", "flip_ratio", "first_l0", "against_l0", "first_variance_explained", "against_variance_explained", "may_be_served")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    AGAINST_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    RESIDUAL_RELATIVE_ERROR_FIELD_NUMBER: _ClassVar[int]
    MEDIAN_CORRELATION_FIELD_NUMBER: _ClassVar[int]
    FLIP_RATIO_FIELD_NUMBER: _ClassVar[int]
    FIRST_L0_FIELD_NUMBER: _ClassVar[int]
    AGAINST_L0_FIELD_NUMBER: _ClassVar[int]
    FIRST_VARIANCE_EXPLAINED_FIELD_NUMBER: _ClassVar[int]
    AGAINST_VARIANCE_EXPLAINED_FIELD_NUMBER: _ClassVar[int]
    MAY_BE_SERVED_FIELD_NUMBER: _ClassVar[int]
    first: str
    against: str
    tokens: int
    residual_relative_error: float
    median_correlation: float
    flip_ratio: float
    first_l0: float
    against_l0: float
    first_variance_explained: float
    against_variance_explained: float
    may_be_served: bool
    def __init__(self, first: _Optional[str] = ..., against: _Optional[str] = ..., tokens: _Optional[int] = ..., residual_relative_error: _Optional[float] = ..., median_correlation: _Optional[float] = ..., flip_ratio: _Optional[float] = ..., first_l0: _Optional[float] = ..., against_l0: _Optional[float] = ..., first_variance_explained: _Optional[float] = ..., against_variance_explained: _Optional[float] = ..., may_be_served: _Optional[bool] = ...) -> None: ...

class MonitorInput(_message.Message):
    __slots__ = ("name", "feature", "tokens", "active_tokens", "silent_tokens", "density_ratio", "silence_probability", "state")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FEATURE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SILENT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DENSITY_RATIO_FIELD_NUMBER: _ClassVar[int]
    SILENCE_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    name: str
    feature: int
    tokens: int
    active_tokens: int
    silent_tokens: int
    density_ratio: float
    silence_probability: float
    state: InputState
    def __init__(self, name: _Optional[str] = ..., feature: _Optional[int] = ..., tokens: _Optional[int] = ..., active_tokens: _Optional[int] = ..., silent_tokens: _Optional[int] = ..., density_ratio: _Optional[float] = ..., silence_probability: _Optional[float] = ..., state: _Optional[_Union[InputState, str]] = ...) -> None: ...

class MonitorDrift(_message.Message):
    __slots__ = ("has_reference", "replies", "statistic_psi", "token_score_psi", "expected_psi", "min_replies")
    HAS_REFERENCE_FIELD_NUMBER: _ClassVar[int]
    REPLIES_FIELD_NUMBER: _ClassVar[int]
    STATISTIC_PSI_FIELD_NUMBER: _ClassVar[int]
    TOKEN_SCORE_PSI_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_PSI_FIELD_NUMBER: _ClassVar[int]
    MIN_REPLIES_FIELD_NUMBER: _ClassVar[int]
    has_reference: bool
    replies: int
    statistic_psi: float
    token_score_psi: float
    expected_psi: float
    min_replies: int
    def __init__(self, has_reference: _Optional[bool] = ..., replies: _Optional[int] = ..., statistic_psi: _Optional[float] = ..., token_score_psi: _Optional[float] = ..., expected_psi: _Optional[float] = ..., min_replies: _Optional[int] = ...) -> None: ...
