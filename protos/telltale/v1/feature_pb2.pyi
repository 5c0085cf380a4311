from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FeatureOrder(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FEATURE_ORDER_UNSPECIFIED: _ClassVar[FeatureOrder]
    FEATURE_ORDER_INDEX: _ClassVar[FeatureOrder]
    FEATURE_ORDER_DENSITY: _ClassVar[FeatureOrder]
    FEATURE_ORDER_MAX_READING: _ClassVar[FeatureOrder]
    FEATURE_ORDER_DETECTION: _ClassVar[FeatureOrder]

class MatchedField(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MATCHED_FIELD_UNSPECIFIED: _ClassVar[MatchedField]
    MATCHED_FIELD_NAME: _ClassVar[MatchedField]
    MATCHED_FIELD_DESCRIPTION: _ClassVar[MatchedField]
    MATCHED_FIELD_TITLE: _ClassVar[MatchedField]
    MATCHED_FIELD_SUMMARY: _ClassVar[MatchedField]
    MATCHED_FIELD_DOMINANT_TOKENS: _ClassVar[MatchedField]
    MATCHED_FIELD_ACTIVE_TOKENS: _ClassVar[MatchedField]
    MATCHED_FIELD_CONTEXT: _ClassVar[MatchedField]
FEATURE_ORDER_UNSPECIFIED: FeatureOrder
FEATURE_ORDER_INDEX: FeatureOrder
FEATURE_ORDER_DENSITY: FeatureOrder
FEATURE_ORDER_MAX_READING: FeatureOrder
FEATURE_ORDER_DETECTION: FeatureOrder
MATCHED_FIELD_UNSPECIFIED: MatchedField
MATCHED_FIELD_NAME: MatchedField
MATCHED_FIELD_DESCRIPTION: MatchedField
MATCHED_FIELD_TITLE: MatchedField
MATCHED_FIELD_SUMMARY: MatchedField
MATCHED_FIELD_DOMINANT_TOKENS: MatchedField
MATCHED_FIELD_ACTIVE_TOKENS: MatchedField
MATCHED_FIELD_CONTEXT: MatchedField

class Feature(_message.Message):
    __slots__ = ("index", "name", "description", "reference_scale", "validated", "default_watched", "evidence", "decoder_norm", "statistics", "explanation", "examples", "promoted", "suppressed")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_SCALE_FIELD_NUMBER: _ClassVar[int]
    VALIDATED_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_WATCHED_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    DECODER_NORM_FIELD_NUMBER: _ClassVar[int]
    STATISTICS_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    PROMOTED_FIELD_NUMBER: _ClassVar[int]
    SUPPRESSED_FIELD_NUMBER: _ClassVar[int]
    index: int
    name: str
    description: str
    reference_scale: float
    validated: bool
    default_watched: bool
    evidence: _struct_pb2.Struct
    decoder_norm: float
    statistics: LatentStatistics
    explanation: Explanation
    examples: _containers.RepeatedCompositeFieldContainer[Example]
    promoted: _containers.RepeatedCompositeFieldContainer[TokenEffect]
    suppressed: _containers.RepeatedCompositeFieldContainer[TokenEffect]
    def __init__(self, index: _Optional[int] = ..., name: _Optional[str] = ..., description: _Optional[str] = ..., reference_scale: _Optional[float] = ..., validated: _Optional[bool] = ..., default_watched: _Optional[bool] = ..., evidence: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., decoder_norm: _Optional[float] = ..., statistics: _Optional[_Union[LatentStatistics, _Mapping]] = ..., explanation: _Optional[_Union[Explanation, _Mapping]] = ..., examples: _Optional[_Iterable[_Union[Example, _Mapping]]] = ..., promoted: _Optional[_Iterable[_Union[TokenEffect, _Mapping]]] = ..., suppressed: _Optional[_Iterable[_Union[TokenEffect, _Mapping]]] = ...) -> None: ...

class LatentStatistics(_message.Message):
    __slots__ = ("num_tokens", "num_active", "density_ratio", "max_reading", "mean_reading", "sources", "histogram")
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_ACTIVE_FIELD_NUMBER: _ClassVar[int]
    DENSITY_RATIO_FIELD_NUMBER: _ClassVar[int]
    MAX_READING_FIELD_NUMBER: _ClassVar[int]
    MEAN_READING_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    HISTOGRAM_FIELD_NUMBER: _ClassVar[int]
    num_tokens: int
    num_active: int
    density_ratio: float
    max_reading: float
    mean_reading: float
    sources: _containers.RepeatedCompositeFieldContainer[SourceShare]
    histogram: Histogram
    def __init__(self, num_tokens: _Optional[int] = ..., num_active: _Optional[int] = ..., density_ratio: _Optional[float] = ..., max_reading: _Optional[float] = ..., mean_reading: _Optional[float] = ..., sources: _Optional[_Iterable[_Union[SourceShare, _Mapping]]] = ..., histogram: _Optional[_Union[Histogram, _Mapping]] = ...) -> None: ...

class SourceShare(_message.Message):
    __slots__ = ("source", "share_ratio")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    SHARE_RATIO_FIELD_NUMBER: _ClassVar[int]
    source: str
    share_ratio: float
    def __init__(self, source: _Optional[str] = ..., share_ratio: _Optional[float] = ...) -> None: ...

class Histogram(_message.Message):
    __slots__ = ("edges", "counts")
    EDGES_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    edges: _containers.RepeatedScalarFieldContainer[float]
    counts: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, edges: _Optional[_Iterable[float]] = ..., counts: _Optional[_Iterable[int]] = ...) -> None: ...

class Explanation(_message.Message):
    __slots__ = ("title", "summary", "dominant_tokens", "explainer", "detection", "fuzzing")
    TITLE_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    DOMINANT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    EXPLAINER_FIELD_NUMBER: _ClassVar[int]
    DETECTION_FIELD_NUMBER: _ClassVar[int]
    FUZZING_FIELD_NUMBER: _ClassVar[int]
    title: str
    summary: str
    dominant_tokens: _containers.RepeatedScalarFieldContainer[str]
    explainer: str
    detection: ExplanationScore
    fuzzing: ExplanationScore
    def __init__(self, title: _Optional[str] = ..., summary: _Optional[str] = ..., dominant_tokens: _Optional[_Iterable[str]] = ..., explainer: _Optional[str] = ..., detection: _Optional[_Union[ExplanationScore, _Mapping]] = ..., fuzzing: _Optional[_Union[ExplanationScore, _Mapping]] = ...) -> None: ...

class ExplanationScore(_message.Message):
    __slots__ = ("balanced_accuracy", "num_windows")
    BALANCED_ACCURACY_FIELD_NUMBER: _ClassVar[int]
    NUM_WINDOWS_FIELD_NUMBER: _ClassVar[int]
    balanced_accuracy: float
    num_windows: int
    def __init__(self, balanced_accuracy: _Optional[float] = ..., num_windows: _Optional[int] = ...) -> None: ...

class Example(_message.Message):
    __slots__ = ("reading", "source", "focus", "tokens")
    READING_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    FOCUS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    reading: float
    source: str
    focus: int
    tokens: _containers.RepeatedCompositeFieldContainer[ExampleToken]
    def __init__(self, reading: _Optional[float] = ..., source: _Optional[str] = ..., focus: _Optional[int] = ..., tokens: _Optional[_Iterable[_Union[ExampleToken, _Mapping]]] = ...) -> None: ...

class ExampleToken(_message.Message):
    __slots__ = ("text", "reading", "id")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    READING_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    text: str
    reading: float
    id: int
    def __init__(self, text: _Optional[str] = ..., reading: _Optional[float] = ..., id: _Optional[int] = ...) -> None: ...

class TokenEffect(_message.Message):
    __slots__ = ("text", "logit", "id")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    LOGIT_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    text: str
    logit: float
    id: int
    def __init__(self, text: _Optional[str] = ..., logit: _Optional[float] = ..., id: _Optional[int] = ...) -> None: ...

class ListFeaturesRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "include_unnamed", "order")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_UNNAMED_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    include_unnamed: bool
    order: FeatureOrder
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., include_unnamed: _Optional[bool] = ..., order: _Optional[_Union[FeatureOrder, str]] = ...) -> None: ...

class ListFeaturesResponse(_message.Message):
    __slots__ = ("features", "next_page_token")
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    features: _containers.RepeatedCompositeFieldContainer[Feature]
    next_page_token: str
    def __init__(self, features: _Optional[_Iterable[_Union[Feature, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetFeatureRequest(_message.Message):
    __slots__ = ("index", "name")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    index: int
    name: str
    def __init__(self, index: _Optional[int] = ..., name: _Optional[str] = ...) -> None: ...

class GetFeatureResponse(_message.Message):
    __slots__ = ("feature",)
    FEATURE_FIELD_NUMBER: _ClassVar[int]
    feature: Feature
    def __init__(self, feature: _Optional[_Union[Feature, _Mapping]] = ...) -> None: ...

class SearchFeaturesRequest(_message.Message):
    __slots__ = ("text", "like_feature", "page_size", "page_token")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    LIKE_FEATURE_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    text: str
    like_feature: int
    page_size: int
    page_token: str
    def __init__(self, text: _Optional[str] = ..., like_feature: _Optional[int] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class SearchFeaturesResponse(_message.Message):
    __slots__ = ("matches", "next_page_token", "num_matches")
    MATCHES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    NUM_MATCHES_FIELD_NUMBER: _ClassVar[int]
    matches: _containers.RepeatedCompositeFieldContainer[FeatureMatch]
    next_page_token: str
    num_matches: int
    def __init__(self, matches: _Optional[_Iterable[_Union[FeatureMatch, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., num_matches: _Optional[int] = ...) -> None: ...

class FeatureMatch(_message.Message):
    __slots__ = ("feature", "score", "matched")
    FEATURE_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    MATCHED_FIELD_NUMBER: _ClassVar[int]
    feature: Feature
    score: float
    matched: _containers.RepeatedScalarFieldContainer[MatchedField]
    def __init__(self, feature: _Optional[_Union[Feature, _Mapping]] = ..., score: _Optional[float] = ..., matched: _Optional[_Iterable[_Union[MatchedField, str]]] = ...) -> None: ...
