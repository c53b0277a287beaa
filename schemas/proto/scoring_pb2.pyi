from schemas.proto import events_pb2 as _events_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Objective(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CTR: _ClassVar[Objective]
    CTR_TIMES_BID: _ClassVar[Objective]
CTR: Objective
CTR_TIMES_BID: Objective

class ScoreRequest(_message.Message):
    __slots__ = ("model", "request_id", "context", "item_id", "items", "ready_context", "ready_items", "compact", "objective", "bid", "exclude", "top")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    READY_CONTEXT_FIELD_NUMBER: _ClassVar[int]
    READY_ITEMS_FIELD_NUMBER: _ClassVar[int]
    COMPACT_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    BID_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    model: str
    request_id: str
    context: _containers.RepeatedCompositeFieldContainer[_events_pb2.Column]
    item_id: _containers.RepeatedScalarFieldContainer[str]
    items: _containers.RepeatedCompositeFieldContainer[_events_pb2.Column]
    ready_context: ReadyIds
    ready_items: ReadyIds
    compact: bool
    objective: Objective
    bid: _containers.RepeatedScalarFieldContainer[float]
    exclude: _containers.RepeatedScalarFieldContainer[str]
    top: int
    def __init__(self, model: _Optional[str] = ..., request_id: _Optional[str] = ..., context: _Optional[_Iterable[_Union[_events_pb2.Column, _Mapping]]] = ..., item_id: _Optional[_Iterable[str]] = ..., items: _Optional[_Iterable[_Union[_events_pb2.Column, _Mapping]]] = ..., ready_context: _Optional[_Union[ReadyIds, _Mapping]] = ..., ready_items: _Optional[_Union[ReadyIds, _Mapping]] = ..., compact: _Optional[bool] = ..., objective: _Optional[_Union[Objective, str]] = ..., bid: _Optional[_Iterable[float]] = ..., exclude: _Optional[_Iterable[str]] = ..., top: _Optional[int] = ...) -> None: ...

class ReadyIds(_message.Message):
    __slots__ = ("field", "ids", "values")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    field: _containers.RepeatedScalarFieldContainer[int]
    ids: bytes
    values: bytes
    def __init__(self, field: _Optional[_Iterable[int]] = ..., ids: _Optional[bytes] = ..., values: _Optional[bytes] = ...) -> None: ...

class ScoreResponse(_message.Message):
    __slots__ = ("request_id", "model", "lineage", "version", "version_age_s", "items", "warnings", "probability", "logit", "rank", "item")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LINEAGE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    VERSION_AGE_S_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    LOGIT_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    ITEM_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    lineage: str
    version: int
    version_age_s: float
    items: _containers.RepeatedCompositeFieldContainer[ItemScore]
    warnings: _containers.RepeatedScalarFieldContainer[str]
    probability: _containers.RepeatedScalarFieldContainer[float]
    logit: _containers.RepeatedScalarFieldContainer[float]
    rank: _containers.RepeatedScalarFieldContainer[int]
    item: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., lineage: _Optional[str] = ..., version: _Optional[int] = ..., version_age_s: _Optional[float] = ..., items: _Optional[_Iterable[_Union[ItemScore, _Mapping]]] = ..., warnings: _Optional[_Iterable[str]] = ..., probability: _Optional[_Iterable[float]] = ..., logit: _Optional[_Iterable[float]] = ..., rank: _Optional[_Iterable[int]] = ..., item: _Optional[_Iterable[int]] = ...) -> None: ...

class ItemScore(_message.Message):
    __slots__ = ("item_id", "probability", "logit", "rank", "echo")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    LOGIT_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    ECHO_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    probability: float
    logit: float
    rank: int
    echo: bytes
    def __init__(self, item_id: _Optional[str] = ..., probability: _Optional[float] = ..., logit: _Optional[float] = ..., rank: _Optional[int] = ..., echo: _Optional[bytes] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("slate", "item_id")
    SLATE_FIELD_NUMBER: _ClassVar[int]
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    slate: ScoreRequest
    item_id: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, slate: _Optional[_Union[ScoreRequest, _Mapping]] = ..., item_id: _Optional[_Iterable[str]] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("request_id", "model", "lineage", "version", "version_age_s", "field", "items", "warnings")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LINEAGE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    VERSION_AGE_S_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    lineage: str
    version: int
    version_age_s: float
    field: _containers.RepeatedScalarFieldContainer[str]
    items: _containers.RepeatedCompositeFieldContainer[ItemExplained]
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., lineage: _Optional[str] = ..., version: _Optional[int] = ..., version_age_s: _Optional[float] = ..., field: _Optional[_Iterable[str]] = ..., items: _Optional[_Iterable[_Union[ItemExplained, _Mapping]]] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class ItemExplained(_message.Message):
    __slots__ = ("item_id", "logit", "base", "own", "without", "pair", "rest")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    LOGIT_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    OWN_FIELD_NUMBER: _ClassVar[int]
    WITHOUT_FIELD_NUMBER: _ClassVar[int]
    PAIR_FIELD_NUMBER: _ClassVar[int]
    REST_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    logit: float
    base: float
    own: _containers.RepeatedScalarFieldContainer[float]
    without: _containers.RepeatedScalarFieldContainer[float]
    pair: _containers.RepeatedScalarFieldContainer[float]
    rest: float
    def __init__(self, item_id: _Optional[str] = ..., logit: _Optional[float] = ..., base: _Optional[float] = ..., own: _Optional[_Iterable[float]] = ..., without: _Optional[_Iterable[float]] = ..., pair: _Optional[_Iterable[float]] = ..., rest: _Optional[float] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class StatusResponse(_message.Message):
    __slots__ = ("model", "lineage", "version", "version_age_s", "workers", "totals", "models")
    class TotalsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LINEAGE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    VERSION_AGE_S_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    TOTALS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    model: str
    lineage: str
    version: int
    version_age_s: float
    workers: _containers.RepeatedCompositeFieldContainer[Worker]
    totals: _containers.ScalarMap[str, int]
    models: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, model: _Optional[str] = ..., lineage: _Optional[str] = ..., version: _Optional[int] = ..., version_age_s: _Optional[float] = ..., workers: _Optional[_Iterable[_Union[Worker, _Mapping]]] = ..., totals: _Optional[_Mapping[str, int]] = ..., models: _Optional[_Iterable[str]] = ...) -> None: ...

class Worker(_message.Message):
    __slots__ = ("pid", "version")
    PID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    pid: int
    version: int
    def __init__(self, pid: _Optional[int] = ..., version: _Optional[int] = ...) -> None: ...
