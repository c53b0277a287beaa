"""What orders lead to, and how they are written."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.control import ControlError, Order, Then, What, decode, encode
from schemas.snapshot import Manifest
from stream_trainer.publishing.control import Control, Given


def version(number: int, lineage: str = "a") -> Manifest:
    return Manifest(
        kind="version", lineage=lineage, number=number, parent=None, rotation=1, share=0, model={}, fields=(), chunks=(),
        rows=0, width=1, created_us=0, examples_learnt=0, batches_learnt=0,
    )


def told(offset: int, what: What, number: int, lineage: str = "a") -> Given:
    then: Then | None = "skip" if what == "rollback" else None
    return Given(offset, Order(what=what, model="m", lineage=lineage, version=number, then=then))


VERSIONS = {number: version(number) for number in range(5)}


@given(st.lists(st.tuples(st.sampled_from(["pin", "unpin"]), st.integers(0, 4)), max_size=12), st.integers(0, 12))
def test_pins_are_those_pinned_last_however_often_the_orders_are_read(orders: list[tuple[What, int]], killed: int) -> None:
    """A set that is added to and taken from; a trainer that comes back knows the first few and is told all."""
    wanted: set[int] = set()
    for what, number in orders:
        (wanted.add if what == "pin" else wanted.discard)(number)
    control = Control()
    for life in (orders[:killed], orders):
        for offset, (what, number) in enumerate(life):
            one = told(offset, what, number)
            if not control.knows(one):
                control = control.after(one, VERSIONS)
    assert control == Control(len(orders), frozenset(wanted))


def test_an_order_means_one_version_of_one_lineage() -> None:
    """Not what another store calls by the same number, nor what is not there; what is not obeyed is done with all the same."""
    with pytest.raises(ControlError, match="version 9 is not in the store"):
        Control().after(told(0, "pin", 9), VERSIONS)
    with pytest.raises(ControlError, match="is of lineage a, the order means b"):
        Control().after(told(0, "rollback", 2, "b"), VERSIONS)
    assert Control().past(told(7, "rollback", 2, "b")) == Control(8)


def test_an_order_comes_back_as_it_was_written() -> None:
    """All of it; and the key says which later orders make it obsolete."""
    order = Order(what="rollback", model="m", lineage="a", version=3, then="replay", ordered_us=5)
    assert decode(encode(order)) == order
    pin = Order(what="pin", model="m", lineage="a", version=3)
    assert pin.key == replace(pin, what="unpin").key != replace(pin, version=4).key
    assert order.key == replace(order, version=9).key != replace(order, model="n").key


@pytest.mark.parametrize("value", [
    None, b"", b"[]", b"{}", b"\x00\xff", b'{"what":"pin"}', b'{"what":"reset","model":"m","lineage":"a","version":1}',
    b'{"what":"rollback","model":"m","lineage":"a","version":1}', b'{"what":"pin","model":"m","lineage":"a","version":"x"}',
    b'{"what":"pin","model":"m","lineage":"a","version":1,"colour":"red"}',
])
def test_what_is_no_order_is_refused(value: bytes | None) -> None:
    """Whatever somebody writes into the topic."""
    with pytest.raises(ControlError):
        decode(value)
