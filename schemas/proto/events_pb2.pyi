from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Event(_message.Message):
    __slots__ = ("impression", "action", "tick")
    IMPRESSION_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    TICK_FIELD_NUMBER: _ClassVar[int]
    impression: Impression
    action: Action
    tick: Tick
    def __init__(self, impression: _Optional[_Union[Impression, _Mapping]] = ..., action: _Optional[_Union[Action, _Mapping]] = ..., tick: _Optional[_Union[Tick, _Mapping]] = ...) -> None: ...

class Impression(_message.Message):
    __slots__ = ("impression_id", "time_us", "context", "item_id", "items", "position", "bid", "propensity", "served_probability", "echo", "model")
    IMPRESSION_ID_FIELD_NUMBER: _ClassVar[int]
    TIME_US_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    BID_FIELD_NUMBER: _ClassVar[int]
    PROPENSITY_FIELD_NUMBER: _ClassVar[int]
    SERVED_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    ECHO_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    impression_id: str
    time_us: int
    context: _containers.RepeatedCompositeFieldContainer[Column]
    item_id: _containers.RepeatedScalarFieldContainer[str]
    items: _containers.RepeatedCompositeFieldContainer[Column]
    position: _containers.RepeatedScalarFieldContainer[int]
    bid: _containers.RepeatedScalarFieldContainer[float]
    propensity: _containers.RepeatedScalarFieldContainer[float]
    served_probability: _containers.RepeatedScalarFieldContainer[float]
    echo: _containers.RepeatedScalarFieldContainer[bytes]
    model: ModelRef
    def __init__(self, impression_id: _Optional[str] = ..., time_us: _Optional[int] = ..., context: _Optional[_Iterable[_Union[Column, _Mapping]]] = ..., item_id: _Optional[_Iterable[str]] = ..., items: _Optional[_Iterable[_Union[Column, _Mapping]]] = ..., position: _Optional[_Iterable[int]] = ..., bid: _Optional[_Iterable[float]] = ..., propensity: _Optional[_Iterable[float]] = ..., served_probability: _Optional[_Iterable[float]] = ..., echo: _Optional[_Iterable[bytes]] = ..., model: _Optional[_Union[ModelRef, _Mapping]] = ...) -> None: ...

class PackedEvent(_message.Message):
    __slots__ = ("impression", "action", "tick")
    IMPRESSION_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    TICK_FIELD_NUMBER: _ClassVar[int]
    impression: PackedImpression
    action: Action
    tick: Tick
    def __init__(self, impression: _Optional[_Union[PackedImpression, _Mapping]] = ..., action: _Optional[_Union[Action, _Mapping]] = ..., tick: _Optional[_Union[Tick, _Mapping]] = ...) -> None: ...

class PackedImpression(_message.Message):
    __slots__ = ("impression_id", "time_us", "context", "item_id", "items", "position", "served_probability", "echo", "model")
    IMPRESSION_ID_FIELD_NUMBER: _ClassVar[int]
    TIME_US_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    SERVED_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    ECHO_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    impression_id: str
    time_us: int
    context: _containers.RepeatedScalarFieldContainer[bytes]
    item_id: _containers.RepeatedScalarFieldContainer[str]
    items: _containers.RepeatedScalarFieldContainer[bytes]
    position: _containers.RepeatedScalarFieldContainer[int]
    served_probability: _containers.RepeatedScalarFieldContainer[float]
    echo: _containers.RepeatedScalarFieldContainer[bytes]
    model: ModelRef
    def __init__(self, impression_id: _Optional[str] = ..., time_us: _Optional[int] = ..., context: _Optional[_Iterable[bytes]] = ..., item_id: _Optional[_Iterable[str]] = ..., items: _Optional[_Iterable[bytes]] = ..., position: _Optional[_Iterable[int]] = ..., served_probability: _Optional[_Iterable[float]] = ..., echo: _Optional[_Iterable[bytes]] = ..., model: _Optional[_Union[ModelRef, _Mapping]] = ...) -> None: ...

class Column(_message.Message):
    __slots__ = ("field", "strings", "numbers", "ids", "lengths")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    STRINGS_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    field: str
    strings: _containers.RepeatedScalarFieldContainer[str]
    numbers: _containers.RepeatedScalarFieldContainer[float]
    ids: _containers.RepeatedScalarFieldContainer[int]
    lengths: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, field: _Optional[str] = ..., strings: _Optional[_Iterable[str]] = ..., numbers: _Optional[_Iterable[float]] = ..., ids: _Optional[_Iterable[int]] = ..., lengths: _Optional[_Iterable[int]] = ...) -> None: ...

class Columns(_message.Message):
    __slots__ = ("field", "strings", "numbers", "ids", "lengths")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    STRINGS_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    field: _containers.RepeatedScalarFieldContainer[str]
    strings: _containers.RepeatedScalarFieldContainer[str]
    numbers: _containers.RepeatedScalarFieldContainer[float]
    ids: _containers.RepeatedScalarFieldContainer[int]
    lengths: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, field: _Optional[_Iterable[str]] = ..., strings: _Optional[_Iterable[str]] = ..., numbers: _Optional[_Iterable[float]] = ..., ids: _Optional[_Iterable[int]] = ..., lengths: _Optional[_Iterable[int]] = ...) -> None: ...

class ModelRef(_message.Message):
    __slots__ = ("name", "lineage", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LINEAGE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    lineage: str
    version: int
    def __init__(self, name: _Optional[str] = ..., lineage: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class Action(_message.Message):
    __slots__ = ("impression_id", "action", "item_id", "time_us", "value")
    IMPRESSION_ID_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    TIME_US_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    impression_id: str
    action: str
    item_id: str
    time_us: int
    value: float
    def __init__(self, impression_id: _Optional[str] = ..., action: _Optional[str] = ..., item_id: _Optional[str] = ..., time_us: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...

class Tick(_message.Message):
    __slots__ = ("time_us", "hold", "end")
    TIME_US_FIELD_NUMBER: _ClassVar[int]
    HOLD_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    time_us: int
    hold: bool
    end: bool
    def __init__(self, time_us: _Optional[int] = ..., hold: _Optional[bool] = ..., end: _Optional[bool] = ...) -> None: ...
