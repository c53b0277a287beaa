"""Columns of many slates, read at once.

What is laid end to end protobuf reads as one message, its lists one after the other. So the columns that one field has in many
slates are read in one go, and Python sees a list per field where it saw several per slate: a fifth of the time. A mark after
each column, which nobody can guess, shows that it holds as many values as it says. Where anything is unlike the others they
are read by halves, in the end one by one: what a slate comes to does not depend on what it was read with.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any

from google.protobuf.message import DecodeError

from schemas.errors import BadEvent
from schemas.fields import ReadyId
from schemas.proto import events_pb2

_TEXT, _NUMBER, _ID, _LENGTH = secrets.token_hex(8), secrets.randbits(50) + 0.5, secrets.randbits(64), secrets.randbits(32)
_MARK = events_pb2.Column(strings=[_TEXT], numbers=[_NUMBER], ids=[_ID], lengths=[_LENGTH]).SerializeToString()


def from_packed(slates: Sequence[Sequence[bytes]], entries: Sequence[int]) -> dict[str, list[Any]]:
    """Packed columns of each slate → one list per field with the entries of all slates, None where a slate lacks the field.

    entries: of each slate. Raises BadEvent where the columns of any slate cannot be used; of a single slate it says why.
    """
    if len(slates) == 1:
        (own,), (count,) = slates, entries
        if count == 1:
            return _by_name([(name, [value]) for name, value in map(_one_entry, own)])
        return _by_name([_single(_message(column), count) for column in own])
    alike: dict[bytes, tuple[list[int], list[bytes]]] = {}   # by how they begin: with the name, as every writer has them
    for place, columns in enumerate(slates):
        for column in columns:
            start = column[: 2 + column[1]] if len(column) > 1 else column
            if start in alike:
                places, packed = alike[start]
                places.append(place)
                packed.append(column)
            else:
                alike[start] = [place], [column]
    found: dict[str, list[Any]] = {}
    everywhere = list(range(len(slates)))
    for places, packed in alike.values():
        whole = places == everywhere
        name, values = _read(packed, entries if whole else [entries[place] for place in places])
        if name in found or len(set(places)) < len(places):
            raise BadEvent("field_twice", f"column {name!r}: each field once, by name")
        found[name] = values if whole else _spread(values, places, entries)
    return found


def from_messages(columns: Iterable[events_pb2.Column], entries: int) -> dict[str, list[Any]]:
    """Columns of one slate → one list per field with so many entries: a value, None, or a tuple for a set. Raises BadEvent."""
    return _by_name([_single(column, entries) for column in columns])


def _by_name(columns: Sequence[tuple[str, list[Any]]]) -> dict[str, list[Any]]:
    found = dict(columns)
    if len(found) < len(columns):
        names = [name for name, _ in columns]
        raise BadEvent("field_twice", f"column {max(names, key=names.count)!r}: each field once, by name")
    return found


def _spread(values: list[Any], places: Sequence[int], entries: Sequence[int]) -> list[Any]:
    """Values of the slates at these places, with None for each entry of the others."""
    found: list[Any] = []
    start, own = 0, set(places)
    for place, count in enumerate(entries):
        if place in own:
            found += values[start : start + count]
            start += count
        else:
            found += [None] * count
    return found


def _read(columns: Sequence[bytes], entries: Sequence[int]) -> tuple[str, list[Any]]:
    """The name and all entries of columns that begin alike. Raises BadEvent."""
    if max(entries) == 1:
        named = list(map(_one_entry, columns))
        if len({name for name, _ in named}) == 1:
            return named[0][0], [value for _, value in named]
    elif len(columns) == 1:
        return _single(_message(columns[0]), entries[0])
    else:
        found = _at_once(columns, entries)
        if found is not None:
            return found
    half = len(columns) // 2
    name, values = _read(columns[:half], entries[:half])
    other, more = _read(columns[half:], entries[half:])
    if other != name:
        raise BadEvent("garbage", f"columns {name!r} and {other!r} begin alike")
    return name, values + more


@lru_cache(maxsize=1 << 16)   # about 30 MB
def _one_entry(column: bytes) -> tuple[str, Any]:
    """Name and value of a column of one entry. The same ones come again and again, and are remembered by their bytes."""
    name, values = _single(_message(column), 1)
    return name, values[0]


def _message(column: bytes) -> events_pb2.Column:
    try:
        return events_pb2.Column.FromString(column)
    except DecodeError as wrong:
        raise BadEvent("garbage", "a column that is no freshet.events.v1.Column") from wrong


def _at_once(columns: Sequence[bytes], entries: Sequence[int]) -> tuple[str, list[Any]] | None:
    """The same in one go; None where one of them is unlike the others, or wrong."""
    try:
        laid = events_pb2.Columns.FromString(_MARK.join((*columns, b"")))
    except DecodeError:
        return None
    many, names, lengths = len(columns), laid.field[:], laid.lengths[:]
    if len(names) != many or not names[0] or names.count(names[0]) != many:
        return None
    kinds: list[tuple[list[Any], Any]] = [(laid.strings[:], _TEXT), (laid.numbers[:], _NUMBER), (laid.ids[:], _ID)]
    filled = [(values, mark) for values, mark in kinds if values != [mark] * many] or kinds[:1]
    if len(filled) > 1:
        return None
    each: list[int] | None = None                                  # values of each entry; None = one
    sizes = entries
    if lengths != [_LENGTH] * many:
        told = _lengths(lengths, entries)
        if told is None:
            return None
        each, sizes = told
    values, mark = filled[0]
    found = _unmarked(values, mark, sizes)
    if found is None or (mark is _NUMBER and not math.isfinite(sum(found)) and not all(map(math.isfinite, found))):
        return None
    if mark is _ID:
        found = list(map(ReadyId, found))
    return names[0], found if each is None else _entries(found, each)


def _lengths(lengths: Sequence[int], entries: Sequence[int]) -> tuple[list[int], list[int]] | None:
    """Marked lengths → those of all entries, and their sum by slate; None where they do not fit."""
    each: list[int] = []
    sizes: list[int] = []
    at = 0
    for count in entries:
        if at < len(lengths) and lengths[at] == _LENGTH:           # none given: one each
            own = [1] * count
        else:
            own = list(lengths[at : at + count])
            at += count
        if at >= len(lengths) or lengths[at] != _LENGTH:
            return None
        at += 1
        each += own
        sizes.append(sum(own))
    return (each, sizes) if at == len(lengths) else None


def _unmarked(values: list[Any], mark: Any, sizes: Sequence[int]) -> list[Any] | None:
    """Values without the mark that follows so many of them each time; None where it does not."""
    many, size = len(sizes), sizes[0]
    if len(values) != sum(sizes) + many:
        return None
    if sizes.count(size) == many:
        if values[size :: size + 1] != [mark] * many:
            return None
        del values[size :: size + 1]
        return values
    found: list[Any] = []
    for count, end in zip(sizes, accumulate(count + 1 for count in sizes), strict=True):
        if values[end - 1] != mark:
            return None
        found += values[end - 1 - count : end - 1]
    return found


def _entries(values: Sequence[Any], lengths: Sequence[int]) -> list[Any]:
    """A value, None, or a tuple for a set."""
    found: list[Any] = []
    flat, start = tuple(values), 0
    for length in lengths:
        found.append(flat[start] if length == 1 else flat[start : start + length] or None)
        start += length
    return found


def _single(column: events_pb2.Column, entries: int) -> tuple[str, list[Any]]:
    """A column's name and entries."""
    name = column.field
    if not name:
        raise BadEvent("missing_key", "column '': each field once, by name")
    strings, numbers, ids, lengths = column.strings, column.numbers, column.ids, column.lengths[:]
    if bool(strings) + bool(numbers) + bool(ids) > 1:
        raise BadEvent("wrong_type", f"column {name}: fill one of strings, numbers and ids")
    values: list[Any] = strings[:] if strings else numbers[:] if numbers else list(map(ReadyId, ids))
    if numbers and not math.isfinite(sum(values)) and not all(map(math.isfinite, values)):  # a sum may overflow
        raise BadEvent("not_finite", f"column {name}: numbers must be finite; leave an entry out with lengths 0")
    if not lengths:
        if len(values) != entries:
            raise BadEvent("ragged_columns", f"column {name}: {len(values)} values for {entries} entries")
        return name, values
    if len(lengths) != entries or sum(lengths) != len(values):
        raise BadEvent(
            "ragged_columns",
            f"column {name}: {len(lengths)} lengths adding up to {sum(lengths)}, "
            f"for {entries} entries and {len(values)} values",
        )
    return name, _entries(values, lengths)
