from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import echo
from schemas.bags import Bags
from schemas.errors import BadEvent
from schemas.fields import Encoder, Field, FieldSchema, Slate, load, one_slate

APPSTORE = load("appstore")


@st.composite
def bags_of_any_form(draw: st.DrawFn) -> Bags:
    rows, fields = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    lengths = None
    if draw(st.booleans()):
        lengths = np.array(draw(st.lists(st.integers(1, 4), min_size=rows * fields, max_size=rows * fields)), np.uint16)
    n = rows * fields if lengths is None else int(lengths.sum())
    ids = np.array(draw(st.lists(st.integers(0, 2**64 - 1), min_size=n, max_size=n)), np.uint64)
    values = None
    if draw(st.booleans()):
        values = np.array(draw(st.lists(st.floats(-1e6, 1e6, width=32), min_size=n, max_size=n)), np.float32)
    return Bags(fields, ids, values, lengths)


def same(one: Bags, other: Bags) -> bool:
    return (
        one.fields == other.fields
        and np.array_equal(one.ids, other.ids)
        and np.array_equal(one.all_values(), other.all_values())
        and np.array_equal(one.all_lengths(), other.all_lengths())
    )


@given(bags_of_any_form(), st.integers(0, 2**64 - 1))
def test_an_echo_comes_back_as_the_row_it_was(bags, digest):
    """Row by row, whatever the form of the bags."""
    for row, one in enumerate(echo.encode(bags, digest)):
        assert echo.schema_digest(one) == digest
        came, back = echo.decode(one)
        assert came == digest
        assert same(back, bags.slice(row, row + 1))


@given(st.binary(max_size=200))
def test_garbage_is_refused_with_its_reason(data):
    """Any bytes: a BadEvent that is counted as bad_echo, never another error."""
    with pytest.raises(BadEvent) as bad:
        echo.decode(data)
    assert bad.value.reason == "bad_echo"


@settings(max_examples=300)
@given(st.data())
def test_a_changed_echo_is_refused(data):
    """One bit flipped, cut short, or grown: the checksum notices."""
    whole = echo.encode(data.draw(bags_of_any_form()), 5)[0]
    at = data.draw(st.integers(0, 8 * len(whole) - 1))
    flipped = bytearray(whole)
    flipped[at // 8] ^= 1 << at % 8
    cut = whole[: data.draw(st.integers(1, len(whole) - 1))]
    for changed in (bytes(flipped), cut, whole + b"\0"):
        with pytest.raises(BadEvent):
            echo.decode(changed)


def forged(body: bytes) -> bytes:
    """A body under a right checksum: what a broken or hostile client can make."""
    return body + echo._SUM.pack(echo._checksum(body))


@pytest.mark.parametrize(
    "body",
    [
        echo._HEAD.pack(2, 0, 1, 1) + bytes(8),                                 # a format of the future
        echo._HEAD.pack(1, 4, 1, 1) + bytes(8),                                 # a flag of the future
        echo._HEAD.pack(1, 0, 1, 0),                                            # no fields
        echo._HEAD.pack(1, 0, 1, 2) + bytes(8),                                 # two fields, one id
        echo._HEAD.pack(1, 0, 1, 1) + bytes(9),                                 # an id and a byte
        echo._HEAD.pack(1, 0, 1, 1) + bytes(16),                                # an id too many
        echo._HEAD.pack(1, 1, 1, 2) + b"\0\0\2\0" + bytes(16),                  # an empty bag
        echo._HEAD.pack(1, 1, 1, 2) + b"\2\0\2\0" + bytes(16),                  # lengths beyond the ids
        echo._HEAD.pack(1, 1, 1, 60000) + bytes(16),                            # fields beyond the bytes
        echo._HEAD.pack(1, 2, 1, 1) + bytes(8) + np.float32("nan").tobytes(),   # not a number
    ],
)
def test_bytes_that_only_look_right_are_refused(body):
    """A right checksum does not make a whole echo."""
    with pytest.raises(BadEvent) as bad:
        echo.decode(forged(body))
    assert bad.value.reason == "bad_echo"


def slate(items: int = 4) -> Slate:
    return Slate(
        [f"app{n}" for n in range(items)],
        {"user": "u1", "hour": 10, "installed": ["games", "food"]},
        {"category": ["a", "b"] * (items // 2), "price": [1.5] * items, "tags": [["x"] * n for n in range(items)]},
        positions=list(range(1, items + 1)),
    )


def test_a_slates_echoes_are_the_bags_that_scored_it():
    """All items together, in their order."""
    bags, _ = Encoder(APPSTORE, training=False).encode(slate())
    found = echo.to_bags(echo.encode(bags, APPSTORE.digest), APPSTORE)
    assert found is not None
    assert same(found, bags)


def test_echoes_of_another_schema_or_not_of_every_item_are_no_bags():
    """The features are encoded instead; that is no error of the producer."""
    bags, _ = Encoder(APPSTORE, training=False).encode(slate())
    echoes = echo.encode(bags, APPSTORE.digest)
    assert echo.to_bags(echo.encode(bags, APPSTORE.digest ^ 1), APPSTORE) is None
    assert echo.to_bags([*echoes[:2], b"", echoes[3]], APPSTORE) is None
    assert echo.to_bags([*echoes[:3], *echo.encode(bags, 1)[3:]], APPSTORE) is None
    assert echo.to_bags([], APPSTORE) is None
    with pytest.raises(BadEvent, match="too short"):
        echo.to_bags([*echoes[:3], b"x"], APPSTORE)


def test_what_was_scored_with_true_positions_is_what_encoding_for_training_gives():
    """echo, then the true values of training-only fields = the features encoded for training."""
    scored, _ = Encoder(APPSTORE, training=False).encode(slate())
    truth, _ = Encoder(APPSTORE, training=True).encode(slate())
    back = echo.to_bags(echo.encode(scored, APPSTORE.digest), APPSTORE)
    assert back is not None
    assert not same(back, truth)
    assert same(with_true(back, APPSTORE, slate()), truth)


PLAIN = FieldSchema(
    "plain",
    (
        Field(name="item_id", number=1, kind="categorical", side="item"),
        Field(name="position", number=2, kind="categorical", side="item", training_only=True, served_value="1"),
        Field(name="seen_s", number=3, kind="numeric", side="item", transform="raw", training_only=True, served_value="0"),
        Field(name="shown_with", number=4, kind="set", side="item", training_only=True, served_value="none"),
    ),
)


def with_true(bags: Bags, schema: FieldSchema, shown: Slate) -> Bags:
    """The training-only fields of a slate put in place."""
    fields = echo.TrainingFields(schema)
    (true,) = fields.of(one_slate(shown))
    assert isinstance(true, Bags)
    return fields.put(true, bags)


@pytest.mark.parametrize("kept", [1, 2, 3, 4])
def test_training_fields_of_every_kind_are_put_in_place(kept):
    """Single ids, amounts and sets, also where served bags have no lengths or values of their own."""
    schema = FieldSchema("some", PLAIN.fields[:kept])
    shown = Slate(
        ["a", "b", "c"], {}, {"seen_s": [2.5, None, 1.0], "shown_with": [["x", "y"], None, ["z"]]}, positions=[3, 1, 2]
    )
    scored, _ = Encoder(schema, training=False).encode(shown)
    truth, _ = Encoder(schema, training=True).encode(shown)
    assert same(with_true(scored, schema, shown), truth)


def test_a_bad_training_value_is_refused_with_its_field():
    """The joiner counts it like any other bad feature."""
    shown = Slate(["a"], {}, {"seen_s": ["soon"]}, positions=[1])
    (bad,) = echo.TrainingFields(PLAIN).of(one_slate(shown))
    assert isinstance(bad, BadEvent)
    assert "field seen_s" in str(bad)
