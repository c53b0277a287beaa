"""What the model is fed with, field by field: how often a value is missing, how often it is one never seen before, and how far
its values have moved from those of the windows before. Pure: batches in, a table per window out.

All is taken from a sample of the examples (sampling.py).

How far values moved is the population stability index, Σ (p − q)·ln(p / q) over bins: p their shares in this window, q in the
windows before, one that ended n examples ago counting 2^(−n / half-life). An id is a hash, so its upper bits are its bin, one
of 64 (a missing value has one of its own); a real number's is its order of magnitude. Of a set all members count. Bins empty
on both sides are left out, k remain, and half an example is added to each on either side. Chance alone makes
(k − 1)·(1/n + 1/m) of it in the mean, n and m values on the two sides, if they were drawn one by one.
Source: Siddiqi, Credit Risk Scorecards, 2006, for the index; Yurdakul, Statistical Properties of Population Stability Index,
2018, for what chance makes of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.fields import FieldSchema
from schemas.hashing import hash_missing
from stream_trainer.watching.sampling import Sample

Table = dict[str, Any]
Floats = NDArray[np.float32]
Array = NDArray[np.float64]

HASH_BINS = 64
MISSING = HASH_BINS               # the bin of a missing value
BINS = HASH_BINS + 1
FIELD_COLUMNS = (
    "first_row", "last_row", "field", "rows", "values", "missing_share", "unseen_share", "psi", "psi_chance", "bins",
)
_SHIFT = np.uint64(58)            # 64 bits to 64 bins


class Inputs:
    """Makes a window's table, a line per field; remembers the windows before."""

    def __init__(self, schema: FieldSchema, half_life_rows: float) -> None:
        self._fields = schema.fields
        self._half_life_rows = half_life_rows
        self._missing = np.array([hash_missing(spec.number) for spec in schema.fields], np.uint64)
        self._real = np.array([spec.kind == "numeric" and not spec.binned for spec in schema.fields])
        self._identity = np.array(list(zip(schema.numbers, schema.digests, strict=True)), np.uint64)    # (F, 2)
        self._before = np.zeros((len(schema.fields), BINS))    # values by bin, those of windows before, faded
        self._squares = np.zeros(len(schema.fields))           # Σ of (what a value counts)², for how many they are worth

    def table(self, first_row: int, last_row: int, sample: Sample | None) -> Table:
        """Of a window's examples, which then are among those before. A share of nothing is NaN."""
        count, rows = len(self._fields), 0 if sample is None else len(sample)
        now, unseen = (np.zeros((count, BINS)), np.zeros(count)) if sample is None else self._counted(sample)
        values = now.sum(axis=1)
        psi, chance, bins = stability(now, self._before, self._squares)
        factor = 2.0 ** (-(last_row - first_row + 1) / self._half_life_rows)
        self._before = factor * self._before + now
        self._squares = factor * factor * self._squares + values
        with np.errstate(divide="ignore", invalid="ignore"):
            return {
                "first_row": np.full(count, first_row), "last_row": np.full(count, last_row),
                "field": [spec.name for spec in self._fields],
                "rows": np.full(count, rows), "values": values.astype(np.int64),
                "missing_share": now[:, MISSING] / np.float64(rows), "unseen_share": unseen / (values - now[:, MISSING]),
                "psi": psi, "psi_chance": chance, "bins": bins,
            }

    def _counted(self, sample: Sample) -> tuple[Array, Array]:
        """(F, BINS) how many values; (F,) how many of them are unseen, but for the missing."""
        bags, count = sample.bags, len(self._fields)
        field = np.tile(np.arange(count), len(bags))                                        # (n,)
        if bags.lengths is not None:
            field = np.repeat(field, bags.lengths)
        places = (bags.ids >> _SHIFT).astype(np.intp)                                       # (n,)
        if bags.values is not None and self._real.any():
            real = self._real[field]
            places[real] = magnitude(bags.values[real])
        missing = bags.ids == self._missing[field]
        places[missing] = MISSING
        now = np.bincount(field * BINS + places, minlength=count * BINS).reshape(count, BINS)
        unseen = np.bincount(field[sample.unseen & ~missing], minlength=count)
        return now.astype(np.float64), unseen.astype(np.float64)

    def state(self) -> dict[str, NDArray[Any]]:
        """What is known of the windows before."""
        return {"fields": self._identity, "before": self._before.copy(), "squares": self._squares.copy()}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on where `state` was taken; fields that were not there, or had another meaning, begin here."""
        self._before[:], self._squares[:] = 0, 0
        if "fields" not in state:
            return
        there = {tuple(one): place for place, one in enumerate(state["fields"].tolist())}
        for place, one in enumerate(self._identity.tolist()):
            if tuple(one) in there:
                self._before[place] = state["before"][there[tuple(one)]]
                self._squares[place] = state["squares"][there[tuple(one)]]


def stability(now: Array, before: Array, squares: Array) -> tuple[Array, Array, NDArray[np.int64]]:
    """now, before: (F, BINS) counts; squares: (F,) Σ of squares of what each value before counts. Returns (F,) each: the index,
    what chance makes of it, and the bins that are not empty on both sides; NaN where either side is empty."""
    used = (now > 0) | (before > 0)
    bins = used.sum(axis=1)
    here, there = now.sum(axis=1), before.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = np.where(used, (now + 0.5) / (here + bins / 2)[:, None], 1.0)
        q = np.where(used, (before + 0.5) / (there + bins / 2)[:, None], 1.0)
        index = ((p - q) * np.log(p / q)).sum(axis=1)
        chance = (bins - 1) * (1 / here + squares / there**2)
    neither = (here == 0) | (there == 0)
    return np.where(neither, np.nan, index), np.where(neither, np.nan, chance), bins


def magnitude(values: Floats) -> NDArray[np.intp]:
    """The bin of a real number: 32 for 0, more above, less below, one for each half of a doubling from 2^−7.5 to 2^7.5."""
    with np.errstate(divide="ignore"):
        half = np.clip(np.floor(2 * np.log2(np.abs(values.astype(np.float64)))), -15, 15)
    return np.where(values == 0, 32, 32 + np.sign(values) * (half + 16)).astype(np.intp)
