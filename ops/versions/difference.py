"""What is different between two snapshots of one model: which rows, which dense weights, and by how much."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.errors import SnapshotError
from scorer.versions.reader import Whole

Floats = NDArray[np.float32]


def difference(
    a: Whole, b: Whole, weights: int, new_rows: Callable[[NDArray[np.int64]], Floats]
) -> dict[str, Any]:
    """Rows and dense weights of b against those of a.

    weights: so many of a row's floats are compared; a checkpoint's rows go on with the optimiser's state. new_rows: (n,) row
    numbers → (n, W), what rows never touched hold: that is what a row that only one of the two has is compared with.
    Changes are |b − a|; norms are Euclidean, over the rows that either has.
    """
    rows = np.union1d(a.rows, b.rows)                                                   # (n,)
    sides = [_at(rows, side, weights, new_rows) for side in (a, b)]                     # each (n, W)
    change = np.abs(sides[1] - sides[0])                                                # (n, W)
    per_row = change.max(axis=1) if len(rows) else np.empty(0, np.float32)              # (n,)
    differ = per_row > 0
    largest = int(per_row.argmax()) if len(rows) else None
    return {
        "rows": {
            "a": len(a.rows), "b": len(b.rows), "only_a": len(np.setdiff1d(a.rows, b.rows)),
            "only_b": len(np.setdiff1d(b.rows, a.rows)), "differ": int(differ.sum()),
            "largest_change": _largest(change), "largest_at_row": None if largest is None else int(rows[largest]),
            "mean_change": _mean(change[differ]), "norm_a": _norm(sides[0]), "norm_b": _norm(sides[1]),
            "norm_of_change": _norm(change),
        },
        "dense": {name: _dense(a.dense.get(name), b.dense.get(name)) for name in sorted({*a.dense, *b.dense})},
    }


def _at(
    rows: NDArray[np.int64], side: Whole, weights: int, new_rows: Callable[[NDArray[np.int64]], Floats]
) -> NDArray[np.float64]:
    """Those rows of one side, (n, W)."""
    has = np.isin(rows, side.rows)                                                      # (n,)
    found = np.empty((len(rows), weights), np.float64)
    found[has] = side.floats[:, :weights]
    found[~has] = new_rows(rows[~has])[:, :weights]
    return found


def _dense(a: NDArray[Any] | None, b: NDArray[Any] | None) -> dict[str, Any]:
    if a is None or b is None or a.shape != b.shape:
        return {"a": None if a is None else list(a.shape), "b": None if b is None else list(b.shape), "differ": None}
    change = np.abs(b.astype(np.float64) - a.astype(np.float64))
    return {
        "shape": list(a.shape), "differ": int((change > 0).sum()), "largest_change": _largest(change),
        "mean_change": _mean(change), "norm_a": _norm(a), "norm_b": _norm(b), "norm_of_change": _norm(change),
    }


def _largest(change: NDArray[Any]) -> float:
    return float(change.max()) if change.size else 0.0


def _mean(change: NDArray[Any]) -> float:
    return float(change.mean()) if change.size else 0.0


def _norm(array: NDArray[Any]) -> float:
    return float(np.linalg.norm(array.astype(np.float64).ravel()))


def refuse_other_shape(a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
    """Raise SnapshotError where two snapshots are not of one model. a, b: what their manifests say of it."""
    differences = [f"model.{key} is {a.get(key)} and {b.get(key)}" for key in sorted({*a, *b}) if a.get(key) != b.get(key)]
    if differences:
        raise SnapshotError(f"the two are of different models, their rows mean different things: {'; '.join(differences)}")
