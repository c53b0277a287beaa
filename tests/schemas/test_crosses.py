"""Crosses: their ids, where they stand, and what a model makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from schemas.bags import Bags
from schemas.config import ModelConfig
from schemas.crosses import _mixed, cross_ids, crossed
from schemas.errors import SchemaError
from schemas.fields import FieldSchema, parse
from schemas.models import MODELS, build

FIELDS: list[dict[str, Any]] = [
    {"name": "country", "number": 1, "kind": "categorical", "side": "context"},
    {"name": "tags", "number": 2, "kind": "set", "side": "item"},
    {"name": "category", "number": 3, "kind": "categorical", "side": "item"},
    {"name": "price", "number": 4, "kind": "numeric", "side": "item", "transform": "raw"},
    {"name": "hour", "number": 5, "kind": "numeric", "side": "context"},
]
CROSSES = [{"number": 41, "fields": ["hour", "category"]}, {"number": 40, "fields": ["country", "item.category"]}]


def a_schema(*crosses: dict[str, Any]) -> FieldSchema:
    return parse({"field": FIELDS, "cross": list(crosses)}, "test")


SCHEMA = a_schema(*CROSSES)
U64 = st.integers(0, 2**64 - 1)


def by_hand(number: int, left: int, right: int) -> int:
    """Python's own integers."""

    def mixed(z: int) -> int:
        z = (z + 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    return mixed(mixed(mixed(number) ^ left) ^ right)


def test_splitmix64_s_published_first_output() -> None:
    """State 0 gives e220a8397b1dcdaf (the reference implementation's first number); a cross, pinned: stores hold it."""
    assert int(_mixed(np.array([0], np.uint64))[0]) == 0xE220A8397B1DCDAF
    ids = np.array([1], np.uint64), np.array([2], np.uint64)
    assert int(cross_ids(40, *ids)[0]) == by_hand(40, 1, 2) == 0xCC262E5B8AEC5789


@given(st.integers(1, 65535), U64, U64)
def test_ids_are_what_whole_numbers_give(number: int, left: int, right: int) -> None:
    """And depend on the order of the two and on the cross's number."""
    found = int(cross_ids(number, np.array([left], np.uint64), np.array([right], np.uint64))[0])
    assert found == by_hand(number, left, right)
    assert found != by_hand(number + 1, left, right)
    assert left == right or found != by_hand(number, right, left)


@given(st.lists(st.tuples(U64, st.lists(U64, min_size=1, max_size=4), U64, U64, U64), max_size=5), st.booleans())
def test_each_row_gets_its_crosses_at_its_end(rows: list[tuple[Any, ...]], values: bool) -> None:
    """By number, whatever the lengths of the sets between; the rest stays as it was, values too."""
    ids, lengths, expected, longer = [], [], [], []
    for country, tags, category, price, hour in rows:
        ids += [country, *tags, category, price, hour]
        lengths += [1, len(tags), 1, 1, 1]
        expected += [country, *tags, category, price, hour, by_hand(40, country, category), by_hand(41, hour, category)]
        longer += [1, len(tags), 1, 1, 1, 1, 1]
    given_values = np.arange(len(ids), dtype=np.float32) if values else None
    found = crossed(Bags(5, np.array(ids, np.uint64), given_values, np.array(lengths, np.uint16)), SCHEMA)
    assert found.fields == 7
    assert found.ids.tolist() == expected
    assert found.lengths is not None
    assert found.lengths.tolist() == longer
    if all(length == 1 for length in lengths):
        plain = crossed(Bags(5, np.array(ids, np.uint64), given_values), SCHEMA)
        assert plain.lengths is None
        assert plain.ids.tolist() == expected
        assert (found.values is None) == (plain.values is None)
        assert found.values is None or (plain.values is not None and plain.values.tolist() == found.values.tolist())
    if values:
        assert found.values is not None
        made = np.isin(np.arange(len(expected)), [at + k for at in np.cumsum([sum(longer[7 * r : 7 * r + 7])
                       for r in range(len(rows))]) for k in (-2, -1)])
        assert (found.values[made] == 1).all()
        np.testing.assert_array_equal(found.values[~made], np.arange(len(ids)))


def test_rows_of_single_ids_stay_without_lengths() -> None:
    """As they are cheapest."""
    schema = parse({"field": [FIELDS[0], FIELDS[2]], "cross": [{"number": 9, "fields": ["category", "country"]}]}, "t")
    found = crossed(Bags(2, np.array([1, 2, 3, 4], np.uint64)), schema)
    assert (found.lengths, found.values) == (None, None)
    assert found.ids.tolist() == [1, 2, by_hand(9, 2, 1), 3, 4, by_hand(9, 4, 3)]
    bags = Bags(5, np.arange(5, dtype=np.uint64))
    assert crossed(bags, a_schema()) is bags


def test_a_schema_s_crosses_change_neither_its_events_nor_its_examples() -> None:
    """Digest, numbers and digests are the fields' alone; the model's columns and identity have the crosses, by number."""
    plain = a_schema()
    assert (SCHEMA.digest, SCHEMA.numbers, SCHEMA.digests) == (plain.digest, plain.numbers, plain.digests)
    assert [column.number for column in SCHEMA.columns] == [1, 2, 3, 4, 5, 40, 41]
    assert [column.name for column in SCHEMA.columns][5:] == ["country×category", "hour×category"]
    assert SCHEMA.identity[:5] == plain.identity
    turned = a_schema({"number": 40, "fields": ["category", "country"]})
    assert len({SCHEMA.identity[5], SCHEMA.identity[6], turned.identity[5]}) == 3


@pytest.mark.parametrize(
    ("cross", "text"),
    [
        ({"number": 40, "fields": ["county", "category"]}, "cross 40: no such field: county .nearest: country"),
        ({"number": 40, "fields": ["tags", "category"]}, "tags is a set or a real number"),
        ({"number": 40, "fields": ["country", "price"]}, "price is a set or a real number"),
        ({"number": 40, "fields": ["country", "country"]}, "two different fields"),
        ({"number": 40, "fields": ["country"]}, "names of two fields"),
        ({"number": 40, "fields": ["country", "category"], "pool": "sum"}, "takes number and fields.*pool"),
        ({"number": 0, "fields": ["country", "category"]}, "from 1 to 65535"),
        ({"number": 3, "fields": ["country", "category"]}, "number used twice: 3"),
    ],
)
def test_wrong_crosses_are_refused(cross: dict[str, Any], text: str) -> None:
    """With what was needed and what came."""
    with pytest.raises(SchemaError, match=text):
        a_schema(cross)


def test_a_name_that_both_sides_have_needs_its_side() -> None:
    """context.x or item.x."""
    fields = [FIELDS[0], FIELDS[2], {"name": "country", "number": 8, "kind": "categorical", "side": "item"}]
    cross = {"number": 40, "fields": ["country", "category"]}
    with pytest.raises(SchemaError, match=r"context\.country or item\.country\?"):
        parse({"field": fields, "cross": [cross]}, "test")
    cross["fields"] = ["context.country", "item.country"]
    made = parse({"field": fields, "cross": [cross]}, "test").crosses[0]
    assert (made.left.number, made.right.number) == (1, 8)


@pytest.mark.parametrize("architecture", MODELS)
def test_a_model_that_takes_crosses_adds_their_first_order_weights(architecture: str) -> None:
    """Wide&Deep and LR: the logit of the fields alone, and Σ w_c; the others do not have them at all."""
    config = ModelConfig(architecture=architecture, hidden=(4,), factors=2)
    plain, model = build(config, 5), build(config, 5, crosses=2)
    if architecture not in ("lr", "wide_deep"):
        assert model.crosses == 0
        return
    rows = torch.randn(3, 7, model.row_width, generator=torch.Generator().manual_seed(1))
    expected = plain(rows[:, :5], None) + rows[:, 5:, 0].sum(dim=1)
    torch.testing.assert_close(model(rows, None), expected)
    halves = torch.full((3, 7), 0.5)
    torch.testing.assert_close(model(rows, halves), plain(rows[:, :5], halves[:, :5]) + 0.5 * rows[:, 5:, 0].sum(dim=1))
