"""A row of a table → an impression of one item, and a click at the same moment where its label is 1.

Columns are matched to the schema's fields by name; a set is a list, or text with | between its values. Nothing given (an
empty cell, a null) is a missing value; a missing column is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

from ops.formats.common import START_US, BadRow, EventRecord, Options, place_of
from schemas.errors import BadEvent
from schemas.fields import Field, as_number
from schemas.proto import events_pb2

SET_SEPARATOR = "|"
LABELS = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}
ITEM = "ad"                          # what the one item is called where the schema has no field item_id
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_US = 253_402_300_800_000_000   # the year 10000: later is no time of an event
_MS_FROM, _US_FROM = 1e11, 1e14      # a number from here on counts ms, µs: as seconds it would lie beyond the year 5000


class Table:
    """Where the columns stand that the schema and the options name, and what a row of them says."""

    def __init__(self, options: Options, header: Sequence[str], unit: str = "line") -> None:
        """Raises ConfigError for a column that is missing or there twice."""
        self._options = options
        self._unit = unit
        schema = options.schema
        self._fields = [
            (spec, place_of(spec.name, header, f"schema {schema.name}, field")) for spec in schema.fields
        ]
        self._label = place_of(options.label or "label", header, "--label")
        self._time = None if options.time is None else place_of(options.time, header, "--time")
        self._group = None if options.group is None else place_of(options.group, header, "--group")

    @property
    def needed(self) -> list[int]:
        """Places of all columns that are read."""
        found = {place for _, place in self._fields} | {self._label}
        return sorted(found | {place for place in (self._time, self._group) if place is not None})

    def events(self, line: int, cells: Sequence[Any]) -> list[EventRecord | BadRow]:
        """What one row leads to."""
        options = self._options
        try:
            label = label_of(cells[self._label])
            time_us = START_US + line * options.row_interval_us if self._time is None else time_of(cells[self._time])
            values = [(spec, cells[place]) for spec, place in self._fields]
            group = None if self._group is None else group_of(cells[self._group])
            return [*impression_and_click(line, time_us, values, label, options.action, group)]
        except BadEvent as bad:
            return [BadRow(line, str(bad), self._unit)]


def impression_and_click(
    line: int, time_us: int, values: Iterable[tuple[Field, Any]], label: bool, action: str, group: str | None
) -> list[EventRecord]:
    """The events of one example. Raises BadEvent for a value that its field cannot take."""
    name = f"row{line}"
    item = ITEM
    context: list[events_pb2.Column] = []
    items: list[events_pb2.Column] = []
    for spec, value in values:
        column = _column(spec, value)
        if spec.name == "item_id" and spec.side == "item":
            if column is None:  # the encoder would take the item's own id instead
                column = events_pb2.Column(field="item_id", lengths=[0])
            elif column.strings:
                item = column.strings[0]
        if column is not None:
            (context if spec.side == "context" else items).append(column)
    shown = events_pb2.Impression(impression_id=name, time_us=time_us, item_id=[item], context=context, items=items)
    key = name.encode()
    found = [EventRecord(key, events_pb2.Event(impression=shown).SerializeToString(), time_us, line, group)]
    if label:
        clicked = events_pb2.Action(impression_id=name, action=action, item_id=item, time_us=time_us, value=1.0)
        found.append(EventRecord(key, events_pb2.Event(action=clicked).SerializeToString(), time_us, line, group))
    return found


def in_time_order(events: Iterable[EventRecord | BadRow]) -> Iterator[EventRecord | BadRow]:
    """Sorted by event time, rows of one moment in the file's order: a join closes a window once, and a file need not be
    sorted. Holds all events in memory (about 1 KB each); broken rows go through as they come."""
    kept = []
    for event in events:
        if isinstance(event, BadRow):
            yield event
        else:
            kept.append(event)
    kept.sort(key=lambda event: event.time_us)
    yield from kept


def label_of(value: Any) -> bool:
    """0 or 1 in any spelling. Raises BadEvent."""
    if isinstance(value, bool):
        return value
    found = LABELS.get(str(value).strip().lower())
    if found is None:
        raise BadEvent("bad_label", f"a label is 0 or 1, got {'nothing' if value in (None, '') else repr(value)[:40]}")
    return found


def time_of(value: Any) -> int:
    """µs since 1970. Text: ISO 8601 (without a zone it is taken as UTC) or a number; a number: seconds, ms or µs by its
    size. Raises BadEvent."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            try:
                value = datetime.fromisoformat(value.strip())
            except ValueError as wrong:
                raise BadEvent("bad_time", f"a time is ISO 8601 or unix seconds, got {value[:40]!r}") from wrong
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day, tzinfo=UTC)
    if isinstance(value, datetime):
        moment = value if value.tzinfo is not None else value.replace(tzinfo=UTC)
        time_us = (moment - _EPOCH) // timedelta(microseconds=1)
    elif isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf"):
        unit_us = 1 if value >= _US_FROM else 1_000 if value >= _MS_FROM else 1_000_000
        time_us = round(value * unit_us)
    else:
        raise BadEvent("bad_time", f"a time is ISO 8601 or unix seconds, got {value!r}")
    if not 0 < time_us < _LAST_US:
        raise BadEvent("bad_time", f"{time_us} µs since 1970 is no time of an event")
    return time_us


def group_of(value: Any) -> str | None:
    """The name of a row's group; None where the cell is empty."""
    return None if value is None or value == "" else str(value)


def _column(spec: Field, value: Any) -> events_pb2.Column | None:
    """One value as an event holds it; None where nothing is given. Raises BadEvent."""
    if spec.kind == "set":
        if isinstance(value, str):
            value = value.split(SET_SEPARATOR)
        parts = [_text(one) for one in (value if isinstance(value, list | tuple) else [value]) if one is not None and one != ""]
        return events_pb2.Column(field=spec.name, strings=parts, lengths=[len(parts)]) if parts else None
    if value is None or value == "":
        return None
    if spec.kind == "numeric":
        try:
            as_number(value)
        except BadEvent as bad:
            raise BadEvent(bad.reason, f"field {spec.name}: {bad}") from bad
        if isinstance(value, float):
            return events_pb2.Column(field=spec.name, numbers=[value])
    return events_pb2.Column(field=spec.name, strings=[_text(value)])


def _text(value: Any) -> str:
    """As schemas/hashing.py spells it, so that a Parquet file and its CSV mean the same."""
    if isinstance(value, str):
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as wrong:
                raise BadEvent("not_utf8", "not UTF-8") from wrong
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 2**63 else repr(value)
    if isinstance(value, list | tuple | dict | bytes):
        raise BadEvent("wrong_type", f"takes one value, got {type(value).__name__}")
    return str(value)
