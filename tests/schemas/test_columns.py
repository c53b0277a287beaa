"""Columns of many slates read at once: what a slate comes to does not depend on what it was read with."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from schemas.columns import from_packed
from schemas.errors import BadEvent
from schemas.events import Event, Impression, parse, parse_all
from schemas.proto import events_pb2

TIME_US = 1_795_168_800_123_000


def column(name: str, **parts: Any) -> bytes:
    return events_pb2.Column(field=name, **parts).SerializeToString()


def record(items: int, columns: list[bytes], context: list[bytes] | None = None, **more: Any) -> bytes:
    """A slate of so many items as it comes from Kafka."""
    shown = events_pb2.PackedImpression(
        impression_id="i", time_us=TIME_US, item_id=[str(n) for n in range(items)], items=columns, context=context or [], **more
    )
    return events_pb2.PackedEvent(impression=shown).SerializeToString()


@st.composite
def columns(draw: st.DrawFn, entries: int) -> bytes:
    """Nearly always right; else values of two kinds, too many or too few, cut off, twice over, or its name last."""
    flaw = draw(st.sampled_from(["", "", "", "", "", "", "", "one more", "one less", "two kinds", "cut", "twice", "name last"]))
    lengths = draw(st.one_of(st.none(), st.lists(st.integers(0, 3), min_size=entries, max_size=entries)))
    values = max((entries if lengths is None else sum(lengths)) + {"one more": 1, "one less": -1}.get(flaw, 0), 0)
    parts: dict[str, Any] = {"lengths": lengths or []}
    match draw(st.sampled_from(["strings", "strings", "numbers", "ids"])):
        case "strings":
            parts["strings"] = draw(st.lists(st.sampled_from(["", "a", "b", "é"]), min_size=values, max_size=values))
        case "numbers":
            numbers = st.sampled_from([0.0, 1.0, 2.5, -1e300, 1e308, float("nan")])
            parts["numbers"] = draw(st.lists(numbers, min_size=values, max_size=values))
        case "ids":
            parts["ids"] = draw(st.lists(st.sampled_from([0, 5, 2**63]), min_size=values, max_size=values))
    if flaw == "two kinds":
        parts |= {"strings": ["a"], "numbers": [1.0]}
    name = draw(st.sampled_from(["f", "f", "g", ""]))
    if flaw == "name last":
        return events_pb2.Column(**parts).SerializeToString() + column(name)
    whole = column(name, **parts)
    return whole[:-1] if flaw == "cut" else whole + whole if flaw == "twice" else whole


@st.composite
def records(draw: st.DrawFn) -> bytes:
    """A slate, mostly usable, in one of the two forms."""
    if draw(st.integers(0, 5)) == 0:
        return draw(st.sampled_from([
            b"", b"\xff", b'{"tick": "2026-11-20T10:00:00Z"}',
            b'{"impression_id": "a", "time": "2026-11-20T10:00:00Z", "context": {"f": 1}, "items": [{"id": "x"}, {"id": "y"}]}',
            b'{"impression_id": "b", "time": "2026-11-20T10:00:00Z", "items": [{"id": "x", "features": {"g": [1, "b"]}}]}',
        ]))
    items = draw(st.integers(1, 3))
    own = draw(st.lists(columns(items), max_size=2))
    return record(items, own, draw(st.lists(columns(1), max_size=2)), position=draw(st.sampled_from([[], [1] * items])))


def said(event: Event | BadEvent) -> Any:
    """What can be compared: of an impression its own part of what it was read with."""
    if isinstance(event, BadEvent):
        return event.reason, str(event)
    if not isinstance(event, Impression):
        return event
    slate = event.slate
    values = [(name, value, type(value)) for name, value in sorted(slate.context.items())]
    entries = [(name, value, type(value)) for name, column in sorted(slate.columns.items()) for value in column]
    positions = slate.positions if any(slate.positions or []) else None      # 0 = not given
    return event._replace(slates=None, place=0), slate.item_ids, positions, values, entries  # type: ignore[arg-type]


def alone(value: bytes) -> Any:
    try:
        return said(parse(value))
    except BadEvent as bad:
        return said(bad)


@given(st.lists(records(), max_size=12))
@example([record(2, [column("f", strings=["a", "b"])]), record(2, [column("f", numbers=[1, 2])])])
@example([record(1, [column("f", strings=["a"], lengths=[1])]), record(2, [column("f", strings=["a", "b"])])])
@example([record(2, [column("f", lengths=[0, 0])]), record(2, [column("f", lengths=[0, 0])])])
@example([record(2, [column("f", numbers=[1e308, 1e308])])] * 3)
def test_read_together_is_read_alone(values: list[bytes]) -> None:
    """Values, types and errors, whichever others there are: of other kinds, without some fields, or broken."""
    assert [said(event) for event in parse_all(values)] == [alone(value) for value in values]


@pytest.mark.parametrize("kind", ["strings", "numbers", "ids"])
def test_a_value_too_many_is_not_the_next_ones(kind: str) -> None:
    """Two columns with one value too many and one too few add up; both are refused, and nothing else is."""
    values: list[Any] = list("abc") if kind == "strings" else [1, 2, 3]
    sizes = [2, 3, 1, 2]
    found = parse_all([record(2, [column("f", **{kind: values[:size]})]) for size in sizes])
    assert [one.reason if isinstance(one, BadEvent) else "" for one in found] == ["", "ragged_columns", "ragged_columns", ""]


def test_a_column_cut_inside_a_value_does_not_swallow_the_next() -> None:
    """Laid end to end its last text would go on in what follows."""
    cut = column("f", strings=["a", "long enough"])[:-6]
    good = record(2, [column("f", strings=["a", "b"])])
    found = parse_all([good, record(2, [cut]), good])
    assert [one.reason if isinstance(one, BadEvent) else "" for one in found] == ["", "garbage", ""]


def test_slates_without_a_field_have_nothing_there() -> None:
    """None for each of their entries, in the place of those that have it."""
    packed = [[column("f", strings=["a", "b"])], [], [column("g", numbers=[1]), column("f", strings=["c"])]]
    assert from_packed(packed, [2, 2, 1]) == {"f": ["a", "b", None, None, "c"], "g": [None, None, None, None, 1.0]}
