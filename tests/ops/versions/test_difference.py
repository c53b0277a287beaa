"""What is different between two snapshots."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ops.versions.difference import difference, refuse_other_shape
from schemas.errors import SnapshotError
from scorer.versions.reader import Whole


def side(rows: dict[int, list[float]], **dense: Any) -> Whole:
    """A table of rows of three floats."""
    numbers = np.array(sorted(rows), np.int64)
    floats = np.array([rows[row] for row in sorted(rows)], np.float32).reshape(-1, 3)
    return Whole((1,), numbers, floats, {name: np.array(array, np.float32) for name, array in dense.items()})


def untouched(rows: np.ndarray) -> np.ndarray:
    """A row begins with its own number, halved."""
    return np.repeat((rows / 2).astype(np.float32)[:, None], 3, axis=1)


def test_rows_and_dense_weights_are_compared() -> None:
    """By hand: row 3 changed by 1 and 2; row 4 is new and was [2, 2] before; row 8 is as it would be anyway; the third
    float of each row (a count) is not looked at."""
    a = side({1: [1, 1, 9], 3: [0, 0, 9]}, bias=[1], w=[3, 4], gone=[1])
    b = side({1: [1, 1, 5], 3: [1, -2, 9], 4: [2, 5, 0], 8: [4, 4, 7]}, bias=[1], w=[3, 6], new=[[1, 2]])
    found = difference(a, b, 2, untouched)
    rows = found["rows"]
    assert (rows["a"], rows["b"], rows["only_a"], rows["only_b"], rows["differ"]) == (2, 4, 0, 2, 2)
    assert (rows["largest_change"], rows["largest_at_row"], rows["mean_change"]) == (3, 4, (1 + 2 + 0 + 3) / 4)
    assert rows["norm_of_change"] == pytest.approx(np.sqrt(1 + 4 + 9))
    assert rows["norm_a"] == pytest.approx(np.sqrt(1 + 1 + 2 * 4 + 2 * 16))
    assert rows["norm_b"] == pytest.approx(np.sqrt(1 + 1 + 1 + 4 + 4 + 25 + 2 * 16))
    assert found["dense"]["w"] == {"shape": [2], "differ": 1, "largest_change": 2, "mean_change": 1, "norm_a": 5,
                                   "norm_b": pytest.approx(np.sqrt(45)), "norm_of_change": 2}
    assert found["dense"]["bias"]["differ"] == 0
    assert found["dense"]["gone"] == {"a": [1], "b": None, "differ": None}
    assert found["dense"]["new"] == {"a": None, "b": [1, 2], "differ": None}


def test_the_same_twice_is_no_difference() -> None:
    """Also of nothing at all."""
    for one in (side({5: [1, 2, 3]}, bias=[2]), side({})):
        found = difference(one, one, 3, untouched)
        assert (found["rows"]["differ"], found["rows"]["largest_change"], found["rows"]["mean_change"]) == (0, 0, 0)


def test_two_models_are_not_compared() -> None:
    """What differs is named with both sides."""
    refuse_other_shape({"bits": 9, "seed": 1}, {"bits": 9, "seed": 1})
    with pytest.raises(SnapshotError, match=r"model\.seed is 1 and 2"):
        refuse_other_shape({"bits": 9, "seed": 1}, {"bits": 9, "seed": 2})
