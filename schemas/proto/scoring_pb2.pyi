from schemas.proto import events_pb2 as _events_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ScoreRequest(_message.Message):
    __slots__ = ("model", "request_id", "context", "item_id", "items")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    model: str
    request_id: str
    context: _containers.RepeatedCompositeFieldContainer[_events_pb2.Column]
    item_id: _containers.RepeatedScalarFieldContainer[str]
    items: _containers.RepeatedCompositeFieldContainer[_events_pb2.Column]
    def __init__(self, model: _Optional[str] = ..., request_id: _Optional[str] = ..., context: _Optional[_Iterable[_Union[_events_pb2.Column, _Mapping]]] = ..., item_id: _Optional[_Iterable[str]] = ..., items: _Optional[_Iterable[_Union[_events_pb2.Column, _Mapping]]] = ...) -> None: ...

class ScoreResponse(_message.Message):
    __slots__ = ("request_id", "model", "lineage", "version", "version_age_s", "items", "warnings")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LINEAGE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    VERSION_AGE_S_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    lineage: str
    version: int
    version_age_s: float
    items: _containers.RepeatedCompositeFieldContainer[ItemScore]
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., lineage: _Optional[str] = ..., version: _Optional[int] = ..., version_age_s: _Optional[float] = ..., items: _Optional[_Iterable[_Union[ItemScore, _Mapping]]] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

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
