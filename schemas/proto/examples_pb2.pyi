from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Examples(_message.Message):
    __slots__ = ("source_partition", "after", "through", "field", "field_digest", "trigger", "impression", "item", "label", "weight", "served_probability", "served_version", "event_time_us", "click_time_us", "ids", "values", "lengths", "end_trigger", "end_offset", "end_reason", "at_once", "stage", "negative_rate", "end_item", "joined_us")
    SOURCE_PARTITION_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    THROUGH_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    FIELD_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TRIGGER_FIELD_NUMBER: _ClassVar[int]
    IMPRESSION_FIELD_NUMBER: _ClassVar[int]
    ITEM_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    SERVED_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    SERVED_VERSION_FIELD_NUMBER: _ClassVar[int]
    EVENT_TIME_US_FIELD_NUMBER: _ClassVar[int]
    CLICK_TIME_US_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    END_TRIGGER_FIELD_NUMBER: _ClassVar[int]
    END_OFFSET_FIELD_NUMBER: _ClassVar[int]
    END_REASON_FIELD_NUMBER: _ClassVar[int]
    AT_ONCE_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_RATE_FIELD_NUMBER: _ClassVar[int]
    END_ITEM_FIELD_NUMBER: _ClassVar[int]
    JOINED_US_FIELD_NUMBER: _ClassVar[int]
    source_partition: int
    after: Cursor
    through: Cursor
    field: _containers.RepeatedScalarFieldContainer[int]
    field_digest: _containers.RepeatedScalarFieldContainer[int]
    trigger: bytes
    impression: bytes
    item: bytes
    label: bytes
    weight: bytes
    served_probability: bytes
    served_version: bytes
    event_time_us: bytes
    click_time_us: bytes
    ids: bytes
    values: bytes
    lengths: bytes
    end_trigger: bytes
    end_offset: bytes
    end_reason: bytes
    at_once: bytes
    stage: bytes
    negative_rate: float
    end_item: bytes
    joined_us: int
    def __init__(self, source_partition: _Optional[int] = ..., after: _Optional[_Union[Cursor, _Mapping]] = ..., through: _Optional[_Union[Cursor, _Mapping]] = ..., field: _Optional[_Iterable[int]] = ..., field_digest: _Optional[_Iterable[int]] = ..., trigger: _Optional[bytes] = ..., impression: _Optional[bytes] = ..., item: _Optional[bytes] = ..., label: _Optional[bytes] = ..., weight: _Optional[bytes] = ..., served_probability: _Optional[bytes] = ..., served_version: _Optional[bytes] = ..., event_time_us: _Optional[bytes] = ..., click_time_us: _Optional[bytes] = ..., ids: _Optional[bytes] = ..., values: _Optional[bytes] = ..., lengths: _Optional[bytes] = ..., end_trigger: _Optional[bytes] = ..., end_offset: _Optional[bytes] = ..., end_reason: _Optional[bytes] = ..., at_once: _Optional[bytes] = ..., stage: _Optional[bytes] = ..., negative_rate: _Optional[float] = ..., end_item: _Optional[bytes] = ..., joined_us: _Optional[int] = ...) -> None: ...

class Cursor(_message.Message):
    __slots__ = ("trigger", "offset", "item")
    TRIGGER_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    ITEM_FIELD_NUMBER: _ClassVar[int]
    trigger: int
    offset: int
    item: int
    def __init__(self, trigger: _Optional[int] = ..., offset: _Optional[int] = ..., item: _Optional[int] = ...) -> None: ...
