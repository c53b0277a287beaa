"""The field schema: what a slate's values become, what is refused, and how two sides notice that they disagree."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.bags import Bags
from schemas.errors import BadEvent, SchemaError
from schemas.fields import Encoder, FieldSchema, ReadyId, Slate, aligned, load, log_bin, one_slate, parse, together
from schemas.hashing import canonical, hash_missing, hash_value


def field(name: str, number: int, kind: str = "categorical", side: str = "item", **more: Any) -> dict[str, Any]:
    return {"name": name, "number": number, "kind": kind, "side": side, **more}


def schema(*fields: dict[str, Any]) -> FieldSchema:
    return parse({"name": "test", "field": list(fields)}, "test.toml")


def ids_of(spec: FieldSchema, slate: Slate, training: bool = True) -> list[int]:
    return list(map(int, Encoder(spec, training).encode(slate)[0].ids))


def test_a_row_holds_its_fields_in_the_order_of_their_numbers() -> None:
    """Whatever order the file has, and with the context repeated for each item."""
    spec = schema(field("app", 2), field("country", 1, side="context"))
    slate = Slate(["a", "b"], {"country": "NO"}, {"app": ["x", None]})
    assert ids_of(spec, slate) == [hash_value(1, b"NO"), hash_value(2, b"x"), hash_value(1, b"NO"), hash_missing(2)]


def test_values_of_equal_dict_keys_stay_apart_or_together_by_meaning() -> None:
    """1, 1.0 and "1" are one value, True is another, though Python's dict calls 1 and True equal."""
    encoder = Encoder(schema(field("f", 1)), training=True)
    bags, _ = encoder.encode(Slate(list("abcd"), {}, {"f": [1, True, 1.0, "1"]}))
    one, true, real, text = bags.ids.tolist()
    assert one == real == text != true


def test_a_set_is_a_bag_of_distinct_ids() -> None:
    """Order and repetition do not matter to a set; an empty one is missing."""
    spec = schema(field("tags", 1, "set"), field("app", 2))
    slate = Slate(["a", "b", "c"], {}, {"tags": [["x", "y", "x"], [], "z"], "app": ["p", "q", "r"]})
    bags, _ = Encoder(spec, training=True).encode(slate)
    assert bags.all_lengths().tolist() == [2, 1, 1, 1, 1, 1]
    assert bags.ids.tolist()[:3] == [hash_value(1, b"x"), hash_value(1, b"y"), hash_value(2, b"p")]
    assert bags.ids.tolist()[3] == hash_missing(1)


def test_position_is_learnt_as_it_was_and_scored_as_the_schema_says() -> None:
    """A training-only field: the score must not know where the item will stand."""
    spec = schema(field("position", 1, training_only=True, served_value=1))
    slate = Slate(["a", "b"], {}, {}, positions=[3, 0])
    assert ids_of(spec, slate, training=True) == [hash_value(1, b"3"), hash_missing(1)]
    assert ids_of(spec, slate, training=False) == [hash_value(1, b"1")] * 2


@pytest.mark.parametrize(("value", "expected"), [
    (0, b"0"), (1, b"+0"), (2, b"+2"), (3, b"+3"), (4, b"+4"), (5, b"+4"), (6, b"+5"), (-1, b"-0"), (-3, b"-3"),
    (0.5, b"+-2"), ("7", b"+5"), (1e300, b"+1993"), (5e-324, b"+-2148"), (None, None), ("", None),
])
def test_numbers_fall_into_bins_by_magnitude(value: Any, expected: bytes | None) -> None:
    """floor(2·log2|v|) with the sign, worked out by hand; zero, tiny, huge and missing have bins too."""
    assert log_bin(value) == expected


@pytest.mark.parametrize(("transform", "value", "expected"), [
    ("raw", 2.5, 2.5), ("raw", -1e9, -1e6), ("raw", 1e9, 1e6),
    ("log", math.e - 1, 1.0), ("log", 1 - math.e, -1.0), ("log", 0, 0.0),
])
def test_real_numbers_multiply_one_row(transform: str, value: float, expected: float) -> None:
    """One id for the field, and the transformed number as its value."""
    spec = schema(field("price", 4, "numeric", transform=transform))
    bags, _ = Encoder(spec, training=True).encode(Slate(["a", "b"], {}, {"price": [value, None]}))
    assert bags.all_values().tolist() == pytest.approx([expected, 1.0])
    assert bags.ids.tolist() == [hash_value(4, b"value"), hash_missing(4)]


@pytest.mark.parametrize(("kind", "value", "reason"), [
    ("numeric", "cheap", "wrong_type"), ("numeric", True, "wrong_type"), ("numeric", math.nan, "not_finite"),
    ("categorical", {"a": 1}, "wrong_type"), ("categorical", ["a", "b"], "wrong_type"),
    ("set", [["a"]], "wrong_type"), ("set", ["x"] * 1001, "set_too_large"),
])
def test_a_value_its_field_cannot_take_names_the_field(kind: str, value: Any, reason: str) -> None:
    """The producer reads which field, and what was wrong."""
    with pytest.raises(BadEvent, match="field price") as caught:
        ids_of(schema(field("price", 1, kind)), Slate(["a"], {}, {"price": [value]}))
    assert caught.value.reason == reason


def test_unknown_fields_are_ignored_and_counted() -> None:
    """A producer may send a new field before the schema knows it."""
    encoder = Encoder(schema(field("app", 1)), training=True)
    _, strange = encoder.encode(Slate(["a"], {"planet": "mars"}, {"app": ["x"], "colour": ["red"]}))
    assert strange == ["planet", "colour"]
    assert encoder.unknown == {"planet": 1, "colour": 1}


def test_ready_ids_pass_as_they_are() -> None:
    """A producer that hashes by itself sends ids."""
    assert ids_of(schema(field("app", 1)), Slate(["a"], {}, {"app": [ReadyId(2**63 + 5)]})) == [2**63 + 5]


def test_rows_of_an_older_schema_are_aligned() -> None:
    """Columns by number: a new field is missing, a dropped one is ignored, sets keep their bags."""
    old = schema(field("app", 1), field("gone", 2), field("tags", 3, "set"))
    new = schema(field("tags", 3, "set"), field("app", 1), field("fresh", 9))
    slate = Slate(["a", "b"], {}, {"app": ["x", "y"], "gone": ["g", "g"], "tags": [["s", "t"], []], "fresh": ["f", "f"]})
    bags, _ = Encoder(old, training=True).encode(slate)
    found = aligned(new, bags, old.numbers, old.digests)
    known = {name: column for name, column in slate.columns.items() if name != "fresh"}
    expected, _ = Encoder(new, training=True).encode(Slate(["a", "b"], {}, known))
    assert found.ids.tolist() == expected.ids.tolist()
    assert found.all_lengths().tolist() == expected.all_lengths().tolist()


def test_a_changed_field_is_refused_with_both_digests() -> None:
    """Same number, other meaning: the rows learnt so far would be read as something else."""
    old, new = schema(field("price", 1)), schema(field("price", 1, "numeric"))
    bags, _ = Encoder(old, training=True).encode(Slate(["a"], {}, {"price": ["1"]}))
    with pytest.raises(SchemaError, match=f"{old.digests[0]:016x}.*{new.digests[0]:016x}"):
        aligned(new, bags, old.numbers, old.digests)


def test_a_rename_changes_nothing() -> None:
    """Ids and digests hang on the number."""
    assert schema(field("price", 1)).digest == schema(field("cost", 1)).digest


@pytest.mark.parametrize(("wrong", "message"), [
    (field("a", 1, "categorial"), "kind='categorial': one of categorical"),
    (field("a", 0), "number=0"), (field("a", 1, side="user"), "side='user'"),
    (field("a", 1, training_only=True), "served_value"), (field("a", 1, tranform="raw"), "did you mean transform"),
])
def test_a_wrong_schema_says_what_and_where(wrong: dict[str, Any], message: str) -> None:
    """With the file, the field and what it may be."""
    with pytest.raises(SchemaError, match=message):
        schema(wrong)


def test_numbers_are_used_once() -> None:
    """Two fields of one number would share their rows."""
    with pytest.raises(SchemaError, match="used twice"):
        schema(field("a", 1), field("b", 1))


@pytest.mark.parametrize(("name", "fields"), [("criteo", 39), ("appstore", 12)])
def test_bundled_schemas_load(name: str, fields: int) -> None:
    """Those that come with freshet are valid."""
    assert len(load(name).fields) >= fields


def test_encoding_is_the_same_with_a_warm_cache() -> None:
    """Ids are remembered per value; remembering changes none."""
    encoder = Encoder(load("criteo"), training=True)
    slate = Slate(["ad"], {}, {"I1": ["3"], "I2": [-1], "C1": ["05db9164"]})
    first, second = encoder.encode(slate)[0], encoder.encode(slate)[0]
    assert np.array_equal(first.ids, second.ids)


def test_a_number_can_be_a_category_and_stand_beside_it() -> None:
    """log_bins_and_log has the ids of log_bins, and sign(v)·ln(1+|v|) as its value; missing and hashed already are 0; in
    another schema's rows an absent one is 0 too."""
    kinds = {"log_bins", "log_bins_and_log"}
    bins, both = (schema(field("n", 1, "numeric", transform=kind), field("c", 2)) for kind in sorted(kinds))
    given = [3, "-7.5", None, 1e300, ReadyId(5), "", [2], 0]
    slate = Slate([str(n) for n in range(8)], {}, {"n": given, "c": list("abcdefgh")})
    assert ids_of(both, slate) == ids_of(bins, slate)
    values = Encoder(both, training=True).encode(slate)[0].all_values().reshape(8, 2)
    logs = [math.log(4), -math.log(8.5), 0, math.log1p(1e300), 0, 0, math.log(3), 0]
    np.testing.assert_allclose(values[:, 0], logs, rtol=1e-6)
    assert (values[:, 1] == 1).all()
    assert (both.logs, bins.logs) == ((0,), ())
    assert bins.digest != both.digest
    with pytest.raises(BadEvent, match="field n"):
        Encoder(both, training=True).encode(Slate(["a"], {}, {"n": ["many"], "c": ["a"]}))

    amount = field("amount", 3, "numeric", transform="raw")
    wider = schema(field("n", 1, "numeric", transform="log_bins_and_log"), field("c", 2), amount)
    older = schema(field("c", 2), amount)
    bags = Encoder(older, training=True).encode(Slate(["a"], {}, {"c": ["x"], "amount": [2.5]}))[0]
    assert aligned(wider, bags, older.numbers, older.digests).all_values().tolist() == [0, 1, 2.5]


def test_a_cross_knows_the_columns_of_its_sides() -> None:
    """In the order of the fields' numbers, whatever order the file has."""
    fields = [field("c", 9), field("a", 1), field("b", 4)]
    made = parse({"field": fields, "cross": [{"number": 20, "fields": ["c", "a"]}]}, "test")
    assert made.sides == ((2, 0),)


plain = st.one_of(st.none(), st.sampled_from(["", " a", "a", "é", "1", "true"]), st.sampled_from([0, 1, 7, 2**63]),
                  st.sampled_from([0.0, -0.0, 1.0, 2.5, 2.0**63]), st.booleans())
rows_of_two = st.lists(st.tuples(plain, st.one_of(plain, st.lists(plain, max_size=4))), min_size=1, max_size=4)


@given(slates=st.lists(rows_of_two, max_size=5))
def test_a_column_of_any_mixture_is_its_values_one_by_one(slates: list[list[tuple[Any, Any]]]) -> None:
    """Through one encoder that remembers values, sets and whole columns: each id is the hash of its value alone, a set's ids
    come once each in their order, and nothing given is the field's id for that."""
    def ids(number: int, values: list[Any]) -> list[int]:
        texts = [canonical(value) for value in values if value is not None and value != ""]
        return list(dict.fromkeys(hash_missing(number) if text is None else hash_value(number, text) for text in texts))

    encoder = Encoder(schema(field("one", 1), field("many", 2, "set"), field("user", 3, side="context")), training=True)
    for rows in slates:
        one, many = [row[0] for row in rows], [row[1] for row in rows]
        shown = Slate([str(n) for n in range(len(rows))], {"user": one[0]}, {"one": one, "many": many})
        bags, _ = encoder.encode(shown)
        expected = []
        for value, values in rows:
            for number, bag in ((1, [value]), (2, values if isinstance(values, list) else [values]), (3, [one[0]])):
                expected.append(ids(number, bag) or [hash_missing(number)])
        assert bags.ids.tolist() == [one for bag in expected for one in bag]
        assert bags.all_lengths().tolist() == [len(bag) for bag in expected]


def test_slates_encoded_together_are_those_encoded_alone() -> None:
    """Sets, amounts, positions and missing fields, of slates of several lengths; the one whose value its field cannot take is
    told apart, and its neighbours are what they were."""
    spec = schema(
        field("user", 1, side="context"), field("had", 2, "set", side="context"), field("app", 3), field("tags", 4, "set"),
        field("age", 5, "numeric", transform="raw"), field("bids", 6, "numeric", side="context", transform="log"),
        field("position", 7, training_only=True, served_value="1"),
    )
    shown = [
        Slate(["a", "b"], {"user": "u", "had": ("x", "y"), "bids": 3}, {"app": ["p", None], "tags": [["s", "t"], "s"]}, [2, 1]),
        Slate(["c"], {"user": 7}, {"age": [2.5], "planet": ["mars"]}),
        Slate(["d"], {"user": "u"}, {"age": ["many"]}, [4]),
        Slate(["e", "f", "g"], {"had": [], "bids": 1.5}, {"age": [1, None, "3"], "tags": [[], None, ("t", "t")]}, [1, 0, 3]),
    ]
    encoder = Encoder(spec, training=True)
    found = encoder.encode_all(together([one_slate(slate) for slate in shown]))
    assert encoder.unknown == {"planet": 1}
    for slate, bags in zip(shown, found, strict=True):
        if slate.item_ids == ["d"]:
            assert isinstance(bags, BadEvent)
            assert "field age" in str(bags)
            continue
        assert isinstance(bags, Bags)
        alone, _ = Encoder(spec, training=True).encode(slate)
        assert bags.ids.tolist() == alone.ids.tolist()
        assert bags.all_values().tolist() == alone.all_values().tolist()
        assert bags.all_lengths().tolist() == alone.all_lengths().tolist()
