"""Bags of ids: cut and joined like the lists they stand for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.bags import Bags, concat, taken
from schemas.errors import ShapeError

Nested = list[list[list[int]]]   # rows of fields of ids


@st.composite
def nested(draw: st.DrawFn, single: bool = False, fields: int | None = None) -> Nested:
    fields = fields or draw(st.integers(1, 4))
    bag = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=1 if single else 3)
    return draw(st.lists(st.lists(bag, min_size=fields, max_size=fields), min_size=1, max_size=5))


def made(rows: Nested, lengths: bool = True) -> Bags:
    flat = [bag for row in rows for bag in row]
    ids = np.array([one for bag in flat for one in bag], np.uint64)
    values = (ids % np.uint64(7)).astype(np.float32)
    return Bags(len(rows[0]), ids, values, np.array([len(bag) for bag in flat], np.uint16) if lengths else None)


def unmade(bags: Bags) -> Nested:
    ids, flat = bags.ids.tolist(), []
    for length in bags.all_lengths().tolist():
        flat.append(ids[:length])
        ids = ids[length:]
    return [flat[start : start + bags.fields] for start in range(0, len(flat), bags.fields)]


@given(rows=nested(), data=st.data())
def test_take_takes_rows(rows: Nested, data: st.DataObject) -> None:
    """Rows in any order, also twice, with their values."""
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=6))
    taken = made(rows).take(np.array(chosen, np.intp))
    assert unmade(taken) == [rows[row] for row in chosen]
    assert taken.all_values().tolist() == [float(one % 7) for row in chosen for bag in rows[row] for one in bag]


@given(rows=nested(), data=st.data())
def test_slices_put_together_are_the_whole(rows: Nested, data: st.DataObject) -> None:
    """slice and concat are inverse, wherever the cut is."""
    cut = data.draw(st.integers(0, len(rows)))
    bags = made(rows)
    assert unmade(concat([bags.slice(0, cut), bags.slice(cut, len(rows))])) == rows


@given(rows=nested(single=True))
def test_ones_may_be_left_out(rows: Nested) -> None:
    """Bags of one id each need no lengths: the same rows come out, also beside bags that have them."""
    plain = made(rows, lengths=False)
    assert unmade(plain) == rows
    assert unmade(concat([plain, made(rows)])) == rows + rows


@pytest.mark.parametrize(("fields", "ids", "values", "lengths"), [
    (2, 3, None, None), (2, 4, 3, None), (2, 4, None, [1, 1]), (1, 2, None, [2, 0]), (0, 2, None, None),
])
def test_arrays_that_do_not_fit_are_refused(fields: int, ids: int, values: int | None, lengths: list[int] | None) -> None:
    """Half rows, values or lengths for other ids, and empty bags."""
    with pytest.raises(ShapeError):
        Bags(
            fields, np.zeros(ids, np.uint64), None if values is None else np.ones(values, np.float32),
            None if lengths is None else np.array(lengths, np.uint16),
        )


@given(pieces=st.integers(1, 4).flatmap(lambda fields: st.lists(nested(fields=fields), min_size=1, max_size=4)), data=st.data())
def test_taken_of_parts_is_taken_of_the_whole(pieces: list[Nested], data: st.DataObject) -> None:
    """Wherever the parts end; with lengths, or of bags of one each, without."""
    rows = [row for piece in pieces for row in piece]
    chosen = np.array(sorted(data.draw(st.sets(st.integers(0, len(rows) - 1)))), np.intp)
    found = taken([made(piece) for piece in pieces], chosen)
    assert unmade(found) == [rows[row] for row in chosen]
    assert found.all_values().tolist() == [float(one % 7) for row in chosen for bag in rows[row] for one in bag]
    first = [[[bag[:1] for bag in row] for row in piece] for piece in pieces]
    alone = taken([made(piece, lengths=False) for piece in first], chosen)
    assert alone.lengths is None
    assert unmade(alone) == [[bag[:1] for bag in rows[row]] for row in chosen]


@given(rows=nested(), data=st.data())
def test_firsts_are_each_bags_first_ids(rows: Nested, data: st.DataObject) -> None:
    """Of the fields that are named, in that order; with lengths or without."""
    columns = data.draw(st.lists(st.integers(0, len(rows[0]) - 1), min_size=1, max_size=4))
    bags = made(rows)
    wanted = [[row[column][0] for column in columns] for row in rows]
    assert bags.firsts(columns).tolist() == wanted
    alone = made([[bag[:1] for bag in row] for row in rows], lengths=False)
    assert alone.firsts(np.array(columns)).tolist() == wanted
