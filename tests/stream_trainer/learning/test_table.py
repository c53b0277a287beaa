"""The table against a dictionary of rows."""

from __future__ import annotations

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import ShapeError
from schemas.rows import initial_rows
from stream_trainer.learning.optimisers import Adagrad
from stream_trainer.learning.table import Table

WIDTH = 3


def new_rows(rows: torch.Tensor) -> torch.Tensor:
    """As a model gives them."""
    return initial_rows(rows, WIDTH, 1, 0.01, 1)


def a_table(bits: int = 8, rotation: int = 4) -> Table:
    """Small."""
    return Table(bits, WIDTH, Adagrad(0.1), new_rows, rotation)


def learn(table: Table, rows: list[int], gradient: float = 1.0) -> None:
    """One step on these rows."""
    at = torch.tensor(rows)
    table.gather(at)
    table.apply(at, torch.full((len(rows), WIDTH), gradient))


def test_a_row_is_the_id_s_low_bits() -> None:
    """All 64 bits of the id are taken, the topmost too."""
    table = a_table(bits=10)
    ids = np.array([0, 5, 1024 + 5, 2**64 - 1, 2**63], np.uint64)
    assert table.numbers(ids).tolist() == [0, 5, 5, 1023, 0]


def test_gathering_touches_nothing() -> None:
    """A row never learnt is a function of its number, before and after it was looked at."""
    table = a_table()
    rows = torch.tensor([7, 3, 7])
    for _ in range(2):
        assert torch.equal(table.gather(rows), new_rows(rows))
    assert len(table) == 0
    assert len(table.touched()) == 0
    assert len(table.drain("version", 3)) == 0


def test_what_is_gathered_may_be_changed() -> None:
    """It is a copy."""
    table = a_table()
    learn(table, [1])
    before = table.weights(np.array([1])).copy()
    table.gather(torch.tensor([1])).fill_(9)
    np.testing.assert_array_equal(table.weights(np.array([1])), before)


def test_rows_not_in_the_batch_do_not_move() -> None:
    """Nor does their state."""
    table = a_table()
    learn(table, [1, 2, 3])
    before = table.rows_with_state(np.array([2])).copy()
    learn(table, [1, 3, 200])
    np.testing.assert_array_equal(table.rows_with_state(np.array([2])), before)


def test_apply_without_gather_before_it_is_the_same() -> None:
    """The block kept from gathering is a shortcut only, and is not taken for other rows."""
    gathered, plain, confused = a_table(), a_table(), a_table()
    rows, gradients = torch.tensor([5, 9]), torch.ones(2, WIDTH)
    for _ in range(3):
        gathered.gather(rows)
        gathered.apply(rows, gradients)
        plain.apply(rows, gradients)
        confused.gather(torch.tensor([9, 5]))
        confused.apply(rows, gradients)
    at = np.array([5, 9])
    np.testing.assert_array_equal(gathered.rows_with_state(at), plain.rows_with_state(at))
    np.testing.assert_array_equal(gathered.rows_with_state(at), confused.rows_with_state(at))


steps = st.lists(
    st.one_of(
        st.tuples(st.just("learn"), st.lists(st.integers(0, 63), min_size=1, max_size=6, unique=True)),
        st.tuples(st.sampled_from(["version", "checkpoint"]), st.integers(0, 3)),
        st.tuples(st.sampled_from(["touch", "load"]), st.lists(st.integers(0, 63), max_size=4, unique=True)),
    ),
    max_size=30,
)


@given(steps)
def test_it_lists_what_a_plain_set_would(history: list[tuple[str, object]]) -> None:
    """Touched since the last version, since the last checkpoint, ever; and each share, in any order of events."""
    table = a_table(bits=6)
    ever: set[int] = set()
    since: dict[str, set[int]] = {"version": set(), "checkpoint": set()}
    for what, given_rows in history:
        if isinstance(given_rows, int):
            share = {row for row in ever if row % 4 == given_rows}
            assert table.pending(what).tolist() == sorted(since[what])
            assert table.drain(what, given_rows).tolist() == sorted(since[what] | share)
            since[what] = set()
            continue
        assert isinstance(given_rows, list)
        rows = np.array(given_rows, np.int64)
        if what == "learn":
            learn(table, given_rows)
        elif what == "touch":
            table.touch(rows)
        else:
            table.load(rows, np.ones((len(rows), table.wide), np.float32))
        ever.update(given_rows)
        if what != "load":
            for kind in since.values():
                kind.update(given_rows)
        assert table.touched().tolist() == sorted(ever)
        assert len(table) == len(ever)


def test_loaded_rows_are_what_was_stored() -> None:
    """Weights and state, so that the next step is the one that would have been."""
    table, other = a_table(), a_table()
    learn(table, [1, 77])
    learn(table, [1], -2.0)
    rows = table.touched()
    other.load(rows, table.rows_with_state(rows))
    learn(table, [1, 77, 4])
    learn(other, [1, 77, 4])
    rows = table.touched()
    np.testing.assert_array_equal(other.rows_with_state(rows), table.rows_with_state(rows))


def test_touching_changes_no_row() -> None:
    """A learnt row stays as it was, a new one holds what it would hold anyway."""
    table = a_table()
    learn(table, [1])
    before = table.weights(np.array([1])).copy()
    table.touch(np.array([1, 9]))
    np.testing.assert_array_equal(table.weights(np.array([1])), before)
    np.testing.assert_array_equal(table.weights(np.array([9])), new_rows(torch.tensor([9])).numpy())
    assert not table.rows_with_state(np.array([9]))[:, WIDTH:].any()


def test_gradients_must_fit() -> None:
    """One per row and weight."""
    with pytest.raises(ShapeError, match="2 rows of 3"):
        a_table().apply(torch.tensor([1, 2]), torch.ones(2, 4))


def test_memory_is_taken_as_rows_are_touched() -> None:
    """A table of 2^24 rows (400 MB) costs next to nothing before it is used."""
    process = psutil.Process()
    before = process.memory_info().rss
    table = a_table(bits=24)
    learn(table, [5])
    assert process.memory_info().rss - before < 50e6
