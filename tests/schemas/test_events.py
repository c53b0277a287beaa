"""Events as bytes: both forms say the same, and whatever is unusable is refused with a reason a person understands."""

from __future__ import annotations

import contextlib

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import BadEvent
from schemas.events import Action, Impression, Tick, parse, tick_bytes, time_text
from schemas.fields import Encoder, load
from schemas.proto import events_pb2

TIME = "2026-11-20T10:00:00.123Z"
TIME_US = 1_795_168_800_123_000
SLATE = {
    "impression_id": "5f0c", "time": TIME, "context": {"user": "u17", "country": "NO", "hour": 10},
    "items": [
        {"id": "app42", "features": {"category": "games", "price": 0.99, "tags": ["puzzle", "free"]}, "position": 1,
         "bid": 1.2, "propensity": 0.1, "served_probability": 0.031},
        {"id": "app43", "features": {"category": "tools", "tags": []}, "position": 2, "served_probability": 0.02},
    ],
    "model": {"name": "appstore", "lineage": "ab", "version": 841},
}


def test_json_is_read_as_the_design_says() -> None:
    """The example of the documentation, value by value."""
    event = parse(orjson.dumps(SLATE))
    assert isinstance(event, Impression)
    assert (event.impression_id, event.time_us, event.served_version) == ("5f0c", TIME_US, 841)
    assert event.slate.context == {"user": "u17", "country": "NO", "hour": 10}
    assert event.slate.columns["price"] == [0.99, None]
    assert event.slate.positions == [1, 2]
    assert event.served_probability == [0.031, 0.02]
    clicked = {"impression_id": "5f0c", "action": "click", "item": "app42", "time": TIME, "value": 2}
    assert parse(orjson.dumps(clicked)) == Action("5f0c", "click", "app42", TIME_US, 2.0)


def test_protobuf_says_the_same_as_json() -> None:
    """One slate in both forms gives the same ids."""
    column = events_pb2.Column
    shown = events_pb2.Impression(
        impression_id="5f0c", time_us=TIME_US, item_id=["app42", "app43"], position=[1, 2],
        context=[column(field="user", strings=["u17"]), column(field="country", strings=["NO"]),
                 column(field="hour", numbers=[10])],
        items=[column(field="category", strings=["games", "tools"]), column(field="price", numbers=[0.99], lengths=[1, 0]),
               column(field="tags", strings=["puzzle", "free"], lengths=[2, 0])],
    )
    binary, text = parse(events_pb2.Event(impression=shown).SerializeToString()), parse(orjson.dumps(SLATE))
    assert isinstance(binary, Impression)
    assert isinstance(text, Impression)
    encoder = Encoder(load("appstore"), training=True)
    assert encoder.encode(binary.slate)[0].ids.tolist() == encoder.encode(text.slate)[0].ids.tolist()


def test_no_protobuf_event_begins_with_a_brace() -> None:
    """The first byte tells the forms apart: 0x7b would be field 15 as a group, and that number is never used."""
    assert 15 not in events_pb2.Event.DESCRIPTOR.fields_by_number
    assert ord("{") >> 3 == 15
    for event in (events_pb2.Event(tick=events_pb2.Tick(time_us=1)), events_pb2.Event(action=events_pb2.Action())):
        assert event.SerializeToString()[:1] != b"{"


@given(st.integers(1, 4_000_000_000_000_000))
def test_time_survives_its_text(time_us: int) -> None:
    """Microseconds are kept, and other zones mean the same moment."""
    text = time_text(time_us)
    event = parse(orjson.dumps({"impression_id": "a", "action": "click", "item": "b", "time": text}))
    assert isinstance(event, Action)
    assert event.time_us == time_us


def test_zones_are_understood() -> None:
    """A local time with its offset is the same moment."""
    text = "2026-11-20T11:00:00.123+01:00"
    event = parse(orjson.dumps({"impression_id": "a", "action": "click", "item": "b", "time": text}))
    assert isinstance(event, Action)
    assert event.time_us == TIME_US


def test_ticks_round_trip() -> None:
    """Time in the log is a record like any other."""
    assert parse(tick_bytes(Tick(TIME_US, hold=True))) == Tick(TIME_US, True, False)
    assert parse(tick_bytes(Tick(TIME_US, end=True))) == Tick(TIME_US, False, True)


def _broken(**changes: object) -> bytes:
    return orjson.dumps({key: value for key, value in (SLATE | changes).items() if value is not ...})


ITEM = SLATE["items"][0]  # type: ignore[index]


@pytest.mark.parametrize(("record", "reason"), [
    (None, "empty"), (b"", "empty"),
    (b"\xff\x00 garbage", "garbage"), (b"hello", "garbage"), (b"\x00", "garbage"),
    (b'{"impression_id": "a", ', "bad_json"), (b'{"value": NaN}', "bad_json"),
    (b"{" + b"x" * (5 << 20), "too_large"),
    (_broken(impression_id=...), "missing_key"), (_broken(impression_id=""), "missing_key"),
    (_broken(items=...), "missing_key"), (_broken(items=[]), "no_items"), (_broken(items="app"), "wrong_type"),
    (_broken(items=[ITEM, ITEM]), "item_twice"), (_broken(items=[{"id": str(n)} for n in range(1001)]), "too_many_items"),
    (_broken(items=[{"features": {}}]), "missing_key"), (_broken(items=[{"id": "a", "features": [1]}]), "wrong_type"),
    (_broken(time=...), "bad_time"), (_broken(time="yesterday"), "bad_time"), (_broken(time=1763632800), "bad_time"),
    (_broken(time="2026-11-20T10:00:00"), "bad_time"), (_broken(time="1900-01-01T00:00:00Z"), "bad_time"),
    (_broken(items=[{"id": "a", "served_probability": 1.5}]), "wrong_type"),
    (_broken(items=[{"id": "a", "position": "first"}]), "wrong_type"),
    (_broken(items=[{"id": "a", "echo": "no base64!"}]), "bad_echo"),
    (_broken(context=["NO"]), "wrong_type"),
    (orjson.dumps({"impression_id": "a", "action": "click", "time": TIME}), "missing_key"),
    (orjson.dumps({"impression_id": "a", "action": "click", "item": "b", "time": TIME, "value": "1"}), "wrong_type"),
])
def test_what_cannot_be_used_has_a_reason(record: bytes | None, reason: str) -> None:
    """A short word that is counted, and a text."""
    with pytest.raises(BadEvent) as caught:
        parse(record)
    assert caught.value.reason == reason
    assert str(caught.value)


def _column(times: int = 1, **parts: object) -> bytes:
    shown = events_pb2.Impression(
        impression_id="a", time_us=TIME_US, item_id=["x", "y"], items=[events_pb2.Column(field="f", **parts)] * times  # type: ignore[arg-type]
    )
    return events_pb2.Event(impression=shown).SerializeToString()


@pytest.mark.parametrize(("record", "reason"), [
    (_column(strings=["only one"]), "ragged_columns"), (_column(strings=["a"], lengths=[1]), "ragged_columns"),
    (_column(strings=["a", "b"], numbers=[1.0]), "wrong_type"), (_column(numbers=[1.0, float("nan")]), "not_finite"),
    (_column(numbers=[1.0], ids=[1]), "wrong_type"), (_column(strings=["a", "b"], times=2), "field_twice"),
    (events_pb2.Event().SerializeToString() or b"\x0a\x00", "missing_key"),
])
def test_columns_that_do_not_fit_are_refused(record: bytes, reason: str) -> None:
    """Ragged, doubly filled, not a number, or there already."""
    with pytest.raises(BadEvent) as caught:
        parse(record)
    assert caught.value.reason == reason


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_parser(record: bytes) -> None:
    """Anything is an event or a BadEvent."""
    with contextlib.suppress(BadEvent):
        parse(record)


def test_packed_columns_are_the_bytes_of_an_event() -> None:
    """A field of PackedImpression has the number and, but for columns, the type that Impression gives it; a column that is none
    is the event's fault, whether it holds one entry or several."""
    whole = events_pb2.Impression.DESCRIPTOR.fields_by_number
    for number, packed in events_pb2.PackedImpression.DESCRIPTOR.fields_by_number.items():
        assert packed.name == whole[number].name
        assert packed.type == (packed.TYPE_BYTES if packed.name in ("context", "items") else whole[number].type)
    for items in (["a"], ["a", "b"]):
        shown = events_pb2.PackedImpression(impression_id="i", time_us=TIME_US, item_id=items, items=[b"\xff\xff"])
        with pytest.raises(BadEvent) as caught:
            parse(events_pb2.PackedEvent(impression=shown).SerializeToString())
        assert caught.value.reason == "garbage"
