"""Labelled examples as they travel from joiner to trainer: one record, many rows of one source partition, in columns.

A row is named by (trigger, impression, item): the offset of the record that made its label final, the offset of its
impression, its place in the slate. Rows ascend by name, and so do the ends that are no examples, so a reader needs one
cursor per source partition to learn each row once, whatever was written twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from schemas.bags import Bags
from schemas.errors import FreshetError, ShapeError
from schemas.proto import examples_pb2


class ExamplesError(FreshetError):
    """A record of `examples` cannot be read. The joiner that wrote it is at fault; reading it again does not help."""


class Cursor(NamedTuple):
    """A place in the order of names. Rows at the place itself lie behind the cursor."""

    trigger: int
    offset: int
    item: int


LAST_ITEM = 0xFFFF
LAST_OFFSET = (1 << 62) - 1


def after_all_of(trigger: int) -> Cursor:
    """The place behind everything that the record at this offset led to."""
    return Cursor(trigger, LAST_OFFSET, LAST_ITEM)


NOTHING = after_all_of(-1)  # the cursor of a partition of which nothing was read


class End(IntEnum):
    """How an event ends without becoming an example. Values are stored: never renumber."""

    LATE_IMPRESSION = 1        # its window was over on arrival
    DUPLICATE_IMPRESSION = 2   # the same id is open, or was so recently that we still know
    LATE_ACTION = 3            # came, by event time, after its impression's window
    DUPLICATE_ACTION = 4       # the item had its label already
    UNMATCHED_ACTION = 5       # no impression came within its window
    OTHER_ACTION = 6           # not the action that makes the label
    DEAD_LETTER = 7            # unusable; the topic dead-letters says why
    FLUSH = 8                  # no event: a replay ended here, the learner closes its batch
    SAMPLED_OUT = 9            # no event but an item without its action, left out at join.negative_rate
    SETTLED = 10               # no event: the window of an impression whose examples came at once is over
    SUSPECT = 11               # no event but an item, whose impression's labels had stopped coming: `freshet rejoin`
    SUSPECT_ACTION = 12        # came to an impression that was shown while labels had stopped


class Stage(IntEnum):
    """What an example's label is worth. Values are stored: never renumber.

    IMMEDIATE: a 0 that an action may follow, or that action, a 1. IMMEDIATE_BOTH: the action came before its impression, so
    that both are one example. OBSERVED: the first of two, what was seen within the window. TRUE: the second, which says
    the same; TRUE_LATE: the second, a 1 that was seen as a 0.
    """

    FINAL = 0
    IMMEDIATE = 1
    IMMEDIATE_BOTH = 2
    OBSERVED = 3
    TRUE = 4
    TRUE_LATE = 5


@dataclass(frozen=True, slots=True, eq=False)
class Ends:
    """E ends in ascending order of (trigger, offset).

    trigger, offset: (E,) i64. reason: (E,) u8 of End. item: (E,) u16, place of the item that met it in its impression,
    LAST_ITEM = the whole event; None = all are events.
    """

    trigger: NDArray[np.int64]
    offset: NDArray[np.int64]
    reason: NDArray[np.uint8]
    item: NDArray[np.uint16] | None = None

    def __len__(self) -> int:
        return len(self.trigger)


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """B examples and E ends of one source partition: all that its records in (after, through] led to.

    trigger, impression: (B,) i64. item: (B,) u16. label: (B,) f32, 0 or 1. weight: (B,) f32 or None = 1.
    served_probability: (B,) f32, NaN = not given, or None. served_version: (B,) u64 or None.
    at_once: (B,) u8, 1 = the label was final when its click came, or None = none was. stage: (B,) u8 of Stage, None = all
    FINAL. negative_rate: the rate at which negatives were kept that carry no weight for it; 0 = not so.
    event_time_us, click_time_us: (B,) i64, 0 = no click. bags: B rows of ids. field_numbers, field_digests: (F,).
    joined_us: wall clock of writing.
    """

    source_partition: int
    after: Cursor
    through: Cursor
    field_numbers: tuple[int, ...]
    field_digests: tuple[int, ...]
    trigger: NDArray[np.int64]
    impression: NDArray[np.int64]
    item: NDArray[np.uint16]
    label: NDArray[np.float32]
    event_time_us: NDArray[np.int64]
    click_time_us: NDArray[np.int64]
    bags: Bags
    ends: Ends
    joined_us: int = 0
    weight: NDArray[np.float32] | None = None
    served_probability: NDArray[np.float32] | None = None
    served_version: NDArray[np.uint64] | None = None
    at_once: NDArray[np.uint8] | None = None
    stage: NDArray[np.uint8] | None = None
    negative_rate: float = 0.0

    def __len__(self) -> int:
        return len(self.trigger)

    def first_after(self, cursor: Cursor) -> int:
        """Number of leading rows at or behind the cursor: already learnt."""
        return _behind(cursor, self.trigger, self.impression, self.item)

    def first_end_after(self, cursor: Cursor) -> int:
        """Number of leading ends at or behind the cursor. An end's item is the last one of its offset."""
        return _behind(cursor, self.ends.trigger, self.ends.offset, None)

    def name(self, row: int) -> Cursor:
        """The name of one example."""
        return Cursor(int(self.trigger[row]), int(self.impression[row]), int(self.item[row]))


def _behind(
    cursor: Cursor, trigger: NDArray[np.int64], offset: NDArray[np.int64], item: NDArray[np.uint16] | None
) -> int:
    low, high = np.searchsorted(trigger, cursor.trigger, "left"), np.searchsorted(trigger, cursor.trigger, "right")
    start = int(low)
    low = start + np.searchsorted(offset[start:high], cursor.offset, "left")
    high = start + np.searchsorted(offset[start:high], cursor.offset, "right")
    if item is None:
        return int(high if cursor.item >= LAST_ITEM else low)
    return int(low + np.searchsorted(item[low:high], cursor.item, "right"))


def empty_ends() -> Ends:
    """No ends."""
    return Ends(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint8))


_COLUMNS = (  # record field, attribute, dtype; "ends." and "bags." are their parts
    ("trigger", "trigger", "<i8"), ("impression", "impression", "<i8"), ("item", "item", "<u2"),
    ("label", "label", "<f4"), ("event_time_us", "event_time_us", "<i8"), ("click_time_us", "click_time_us", "<i8"),
)
_OPTIONAL = (
    ("weight", "weight", "<f4"), ("served_probability", "served_probability", "<f4"),
    ("served_version", "served_version", "<u8"), ("at_once", "at_once", "u1"), ("stage", "stage", "u1"),
)


def encode(examples: Examples) -> bytes:
    """The record's value."""
    record = examples_pb2.Examples(
        source_partition=examples.source_partition,
        after=_cursor_out(examples.after), through=_cursor_out(examples.through),
        field=examples.field_numbers, field_digest=examples.field_digests, joined_us=examples.joined_us,
        end_trigger=examples.ends.trigger.astype("<i8", copy=False).tobytes(),
        end_offset=examples.ends.offset.astype("<i8", copy=False).tobytes(),
        end_reason=examples.ends.reason.tobytes(),
        ids=examples.bags.ids.astype("<u8", copy=False).tobytes(), negative_rate=examples.negative_rate,
        end_item=b"" if examples.ends.item is None else examples.ends.item.astype("<u2", copy=False).tobytes(),
    )
    for name, attribute, dtype in _COLUMNS + _OPTIONAL:
        column = getattr(examples, attribute)
        if column is not None:
            setattr(record, name, column.astype(dtype, copy=False).tobytes())
    if examples.bags.values is not None:
        record.values = examples.bags.values.astype("<f4", copy=False).tobytes()
    if examples.bags.lengths is not None:
        record.lengths = examples.bags.lengths.astype("<u2", copy=False).tobytes()
    return record.SerializeToString()


def decode(value: bytes) -> Examples:
    """A record's value. Raises ExamplesError if it is not one, is cut, or its columns do not fit together."""
    try:
        record = examples_pb2.Examples.FromString(value)
    except DecodeError as wrong:
        raise ExamplesError(f"{len(value)} bytes that are no freshet.examples.v1.Examples") from wrong
    try:
        return _checked(record)
    except (ValueError, ShapeError) as wrong:
        raise ExamplesError(f"columns that do not fit together: {wrong}") from wrong


def _checked(record: examples_pb2.Examples) -> Examples:
    columns: dict[str, Any] = {
        attribute: np.frombuffer(getattr(record, name), dtype) for name, attribute, dtype in _COLUMNS
    }
    for name, attribute, dtype in _OPTIONAL:
        raw = getattr(record, name)
        columns[attribute] = np.frombuffer(raw, dtype) if raw else None
    rows = len(columns["trigger"])
    for attribute, column in columns.items():
        if column is not None and len(column) != rows:
            raise ValueError(f"{attribute} has {len(column)} entries for {rows} examples")
    ends = Ends(
        np.frombuffer(record.end_trigger, "<i8"), np.frombuffer(record.end_offset, "<i8"),
        np.frombuffer(record.end_reason, "u1"), np.frombuffer(record.end_item, "<u2") if record.end_item else None,
    )
    if not len(ends.trigger) == len(ends.offset) == len(ends.reason) == len(ends.reason if ends.item is None else ends.item):
        raise ValueError("the columns of ends differ in length")
    bags = Bags(
        max(len(record.field), 1), np.frombuffer(record.ids, "<u8"),
        np.frombuffer(record.values, "<f4") if record.values else None,
        np.frombuffer(record.lengths, "<u2") if record.lengths else None,
    )
    if len(bags) != rows or len(record.field) != len(record.field_digest):
        raise ValueError(f"{len(bags)} rows of ids for {rows} examples, {len(record.field_digest)} digests for "
                         f"{len(record.field)} fields")
    return Examples(
        source_partition=record.source_partition, after=_cursor_in(record.after), through=_cursor_in(record.through),
        field_numbers=tuple(record.field), field_digests=tuple(record.field_digest), bags=bags, ends=ends,
        joined_us=record.joined_us, negative_rate=record.negative_rate, **columns,
    )


def _cursor_out(cursor: Cursor) -> examples_pb2.Cursor:
    return examples_pb2.Cursor(trigger=cursor.trigger, offset=cursor.offset, item=cursor.item)


def _cursor_in(cursor: examples_pb2.Cursor) -> Cursor:
    return Cursor(cursor.trigger, cursor.offset, cursor.item)


def ends_from(rows: Sequence[tuple[int, int, int, Sequence[int]]]) -> Ends:
    """Ends from (trigger, offset, reason, places of the items that met it) in ascending order; no places = the event did."""
    if not rows:
        return empty_ends()
    trigger, offset, reason, places = zip(*rows, strict=True)
    ends = Ends(np.array(trigger, np.int64), np.array(offset, np.int64), np.array(reason, np.uint8))
    if not any(map(len, places)):
        return ends
    counts = [max(len(some), 1) for some in places]
    item = np.concatenate([np.array(some if len(some) else [LAST_ITEM], np.uint16) for some in places])
    return Ends(np.repeat(ends.trigger, counts), np.repeat(ends.offset, counts), np.repeat(ends.reason, counts), item)
