"""Events as bytes → events as values. Two forms, told apart by the first byte: `{` is JSON, all else is protobuf.

Impressions that come together are read together: their features stand in columns over all of them (schemas/columns.py).
Every way in which an event can be unusable ends in a BadEvent with a reason that is counted and a text for a person.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any, NamedTuple

import orjson
from google.protobuf.message import DecodeError

from schemas.bags import Bags
from schemas.columns import from_packed
from schemas.errors import BadEvent
from schemas.fields import Slate, Slates, one_slate, together
from schemas.proto import events_pb2

MAX_ITEMS = 1000
MAX_BYTES = 4 << 20      # a slate of 1,000 items with 40 features each is about 1 MiB
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_US = timedelta(microseconds=1)
_TIME_LIMIT_US = 253_402_300_800_000_000  # the year 10000


class Impression(NamedTuple):
    """A slate that was shown. time_us: event time. slates: what it was read with, and place: which of them it is.
    served_probability, served_version: what ranked it, if told."""

    impression_id: str
    time_us: int
    item_ids: Sequence[str]
    slates: Slates
    place: int = 0
    served_probability: Sequence[float] | None = None  # one per item, NaN = not given
    served_version: int = 0                            # 0 = not given
    echo: Sequence[bytes] | None = None                # one per item, as Score returned it

    @property
    def slate(self) -> Slate:
        """It alone, as plain values."""
        return self.slates.slate(self.place)


class Action(NamedTuple):
    """Something a user did to an item of a slate, usually a click."""

    impression_id: str
    action: str
    item_id: str
    time_us: int
    value: float = 1.0


class Tick(NamedTuple):
    """Time in the log. hold: a replay has begun; end: it is over."""

    time_us: int
    hold: bool = False
    end: bool = False


Event = Impression | Action | Tick


def parse(record: bytes | None) -> Event:
    """One Kafka record's value. Raises BadEvent."""
    (event,) = parse_all([record])
    if isinstance(event, BadEvent):
        raise event
    return event


def parse_all(records: Sequence[bytes | None]) -> list[Event | BadEvent]:
    """The values of many records: of each its event, or what is wrong with it, whatever the others are."""
    opened = list(map(_opened, records))
    unpacked = iter(_unpacked([one for one in opened if isinstance(one, _Packed)]))
    plain = iter(_together([one for one in opened if isinstance(one, Impression)]))
    return [
        next(unpacked) if isinstance(one, _Packed) else next(plain) if isinstance(one, Impression) else one for one in opened
    ]


def _opened(record: bytes | None) -> Event | _Packed | BadEvent:
    """What can be said of a record by itself."""
    try:
        if not record:
            raise BadEvent("empty", "the record has no value")
        if len(record) > MAX_BYTES:
            raise BadEvent("too_large", f"{len(record):,} bytes, at most {MAX_BYTES:,}: send fewer items or features a slate")
        return _from_json(record) if record[0] == 0x7B else _from_protobuf(record)
    except BadEvent as bad:
        return bad


def encoded(shown: Sequence[Impression], encode: Callable[[Slates], Sequence[Bags | BadEvent]]) -> list[Bags | BadEvent]:
    """What `encode` makes of each impression; it is asked once for all that were read together."""
    made: dict[int, Sequence[Bags | BadEvent]] = {}
    for one in shown:
        if id(one.slates) not in made:
            made[id(one.slates)] = encode(one.slates)
    return [made[id(one.slates)][one.place] for one in shown]


# --- JSON ---------------------------------------------------------------------------------------------------------


def _from_json(record: bytes) -> Event:
    try:
        event = orjson.loads(record)
    except orjson.JSONDecodeError as wrong:
        raise BadEvent("bad_json", f"not JSON: {wrong}") from wrong
    if "tick" in event:
        return Tick(_json_time(event["tick"], "tick"), bool(event.get("hold")), bool(event.get("end")))
    impression_id = _text(event, "impression_id")
    time_us = _json_time(event.get("time"), "time")
    if "action" in event:
        value = event.get("value", 1.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise BadEvent("wrong_type", f"value: a number, got {value!r}")
        return Action(impression_id, _text(event, "action"), _text(event, "item"), time_us, float(value))
    return _impression_from_json(event, impression_id, time_us)


def _impression_from_json(event: dict[str, Any], impression_id: str, time_us: int) -> Impression:
    items = event.get("items")
    if items is None:
        raise BadEvent("missing_key", "needs items (an impression) or action (an action)")
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise BadEvent("wrong_type", "items: a list of objects")
    ids = [_text(item, "id") for item in items]
    context = event.get("context") or {}
    if not isinstance(context, dict):
        raise BadEvent("wrong_type", f"context: an object, got {type(context).__name__}")

    columns = columns_from_rows([item.get("features") or {} for item in items])
    positions = _optional(items, "position", int)
    probability = _optional(items, "served_probability", float)
    model = event.get("model") or {}
    version = model.get("version", 0) if isinstance(model, dict) else 0
    echo = None
    if any("echo" in item for item in items):
        try:
            echo = [base64.b64decode(item.get("echo") or "", validate=True) for item in items]
        except (binascii.Error, TypeError, ValueError) as wrong:
            raise BadEvent("bad_echo", f"echo: base64 text as Score returned it ({wrong})") from wrong
    _check(ids, positions, probability, echo)
    return Impression(
        impression_id, time_us, ids, one_slate(Slate(ids, context, columns, positions)), 0, probability,
        _version(version) if isinstance(version, int) else 0, echo,
    )


def _together(shown: list[Impression]) -> list[Impression]:
    """Impressions read one by one, as if they had been read at once."""
    if len(shown) < 2:
        return shown
    slates = together([one.slates for one in shown])
    return [one._replace(slates=slates, place=place) for place, one in enumerate(shown)]


def columns_from_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Features item by item → one list per field with an entry per item, None where an item lacks it."""
    columns: dict[str, list[Any]] = {}
    for place, features in enumerate(rows):
        if not isinstance(features, Mapping):
            raise BadEvent("wrong_type", f"features of item {place}: an object, got {type(features).__name__}")
        for name, value in features.items():
            column = columns.get(name)
            if column is None:
                column = columns[name] = [None] * len(rows)
            column[place] = value
    return columns


def _text(event: Mapping[str, Any], key: str) -> str:
    value = event.get(key)
    if value is None or value == "":
        raise BadEvent("missing_key", f"needs {key}")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise BadEvent("wrong_type", f"{key}: text, got {type(value).__name__}")
    return value


def _optional(items: Sequence[Mapping[str, Any]], key: str, kind: type[int] | type[float]) -> list[Any] | None:
    if not any(key in item for item in items):
        return None
    found: list[Any] = []
    for place, item in enumerate(items):
        value = item.get(key)
        if value is None:
            found.append(0 if kind is int else math.nan)
        elif isinstance(value, bool) or not isinstance(value, int | float) or (kind is int and value != int(value)):
            raise BadEvent("wrong_type", f"{key} of item {place}: a number, got {value!r}")
        else:
            found.append(kind(value))
    return found


def _json_time(value: Any, key: str) -> int:
    """ISO 8601 with a zone → microseconds since 1970."""
    if not isinstance(value, str):
        raise BadEvent("bad_time", f"{key}: text like 2026-11-20T10:00:00.123Z, got {value!r}")
    try:
        moment = datetime.fromisoformat(value)
    except ValueError as wrong:
        raise BadEvent("bad_time", f"{key}: {value!r} is no ISO 8601 time: {wrong}") from wrong
    if moment.tzinfo is None:
        raise BadEvent("bad_time", f"{key}: {value!r} has no time zone; end it with Z or +01:00")
    return _in_range((moment - _EPOCH) // _US, key)


def time_text(time_us: int) -> str:
    """Microseconds since 1970 → the text form of DESIGN's JSON events."""
    return (_EPOCH + timedelta(microseconds=time_us)).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _in_range(time_us: int, key: str) -> int:
    if not 0 < time_us < _TIME_LIMIT_US:
        raise BadEvent("bad_time", f"{key}: {time_us} µs since 1970 is no time of an event")
    return time_us


# --- protobuf -----------------------------------------------------------------------------------------------------


class _Packed(NamedTuple):
    """An impression whose columns are bytes."""

    impression_id: str
    time_us: int
    item_ids: list[str]
    context: Sequence[bytes]
    items: Sequence[bytes]
    positions: list[int] | None
    served_probability: list[float] | None
    served_version: int
    echo: list[bytes] | None


def _from_protobuf(record: bytes) -> Action | Tick | _Packed:
    try:
        event = events_pb2.PackedEvent.FromString(record)
    except DecodeError as wrong:
        raise BadEvent("garbage", "neither JSON (no { first) nor a freshet.events.v1.Event") from wrong
    body = event.WhichOneof("body")
    if body == "tick":
        return Tick(_in_range(event.tick.time_us, "time_us"), event.tick.hold, event.tick.end)
    if body == "action":
        action = event.action
        impression_id, name, item_id = action.impression_id, action.action, action.item_id
        value = action.value if action.HasField("value") else 1.0
        for key, text in (("impression_id", impression_id), ("action", name), ("item_id", item_id)):
            if not text:
                raise BadEvent("missing_key", f"needs {key}")
        if not math.isfinite(value):
            raise BadEvent("not_finite", f"value: a finite number, got {value}")
        return Action(impression_id, name, item_id, _in_range(action.time_us, "time_us"), value)
    if body != "impression":
        raise BadEvent("garbage", "an Event with no impression, action or tick in it")
    shown = event.impression
    impression_id = shown.impression_id
    if not impression_id:
        raise BadEvent("missing_key", "needs impression_id")
    found = _Packed(
        impression_id, _in_range(shown.time_us, "time_us"), shown.item_id[:], shown.context[:], shown.items[:],
        shown.position[:] or None, shown.served_probability[:] or None, _version(shown.model.version), shown.echo[:] or None,
    )
    _check(found.item_ids, found.positions, found.served_probability, found.echo)
    return found


def _unpacked(packed: Sequence[_Packed]) -> list[Impression | BadEvent]:
    """Their columns read together; where some cannot be used, by halves, until it is known which."""
    if not packed:
        return []
    try:
        slates = _slates(packed)
    except BadEvent as bad:
        half = len(packed) // 2
        return _unpacked(packed[:half]) + _unpacked(packed[half:]) if half else [bad]
    return [
        Impression(
            one.impression_id, one.time_us, one.item_ids, slates, place, one.served_probability, one.served_version, one.echo
        )
        for place, one in enumerate(packed)
    ]


def _slates(packed: Sequence[_Packed]) -> Slates:
    counts = [len(one.item_ids) for one in packed]
    positions: list[int] | None = None
    if any(one.positions for one in packed):
        positions = list(chain.from_iterable(one.positions or [0] * len(one.item_ids) for one in packed))
    return Slates(
        counts, list(chain.from_iterable(one.item_ids for one in packed)),
        from_packed([one.context for one in packed], [1] * len(packed)),
        from_packed([one.items for one in packed], counts), positions,
    )


# --- both ---------------------------------------------------------------------------------------------------------


def check_items(item_ids: Sequence[str]) -> None:
    """1 to 1,000 distinct items. Raises BadEvent."""
    if not item_ids:
        raise BadEvent("no_items", "a slate shows at least one item")
    if len(item_ids) > MAX_ITEMS:
        raise BadEvent("too_many_items", f"{len(item_ids):,} items, at most {MAX_ITEMS:,}")
    distinct = set(item_ids)
    if len(distinct) != len(item_ids):
        twice = sorted({one for one in item_ids if item_ids.count(one) > 1})
        raise BadEvent("item_twice", f"items of a slate are distinct; shown twice: {', '.join(twice[:3])}")
    if "" in distinct:
        raise BadEvent("missing_key", f"item {list(item_ids).index('')} has no id")


def _check(
    item_ids: Sequence[str], positions: list[int] | None, probability: list[float] | None, echo: list[bytes] | None
) -> None:
    """What an impression says of its items, each once. Raises BadEvent."""
    check_items(item_ids)
    items = len(item_ids)
    for name, column in (("position", positions), ("served_probability", probability), ("echo", echo)):
        if column is not None and len(column) != items:
            raise BadEvent("ragged_columns", f"{name}: {len(column)} entries for {items} items")
    if positions is not None and not (min(positions) >= 0 and max(positions) <= 65535):
        raise BadEvent("wrong_type", "position: from 1 (first place), 0 = not given")
    within = probability is None or (min(probability) >= 0 and max(probability) <= 1)   # not so where a NaN stands first
    if not within and any(one < 0 or one > 1 for one in probability or ()):
        raise BadEvent("wrong_type", "served_probability: from 0 to 1")


def _version(version: int) -> int:
    """0 where it is none."""
    return version if 0 <= version < 1 << 64 else 0


def tick_bytes(tick: Tick) -> bytes:
    """A tick as a record's value."""
    return events_pb2.Event(
        tick=events_pb2.Tick(time_us=tick.time_us, hold=tick.hold, end=tick.end)
    ).SerializeToString()
