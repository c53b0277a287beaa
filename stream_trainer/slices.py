"""Figures of a window's rows, as a whole and by value: whatever order the rows come in, and from however many processes.

All is numpy over whole columns. AUCs by value come from one sort by score and one stable sort by value of what is sorted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_trainer.losses import plain_losses
from stream_trainer.marks import NOTHING, Keys

Floats = NDArray[np.float32]
Array = NDArray[np.float64]
Codes = NDArray[np.intp]

TENTHS = 10


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """n rows with one score: what is needed of them more than once.

    said, clicked, weights, losses: (n,). order: (n,) their places by ascending score; the rest in that order: rank, alike
    where scores are equal, rising_clicked, rising_weights, and rising_rest, the weights of non-clicks, as whole numbers where
    all weigh 1.
    """

    said: Array
    clicked: NDArray[np.bool_]
    weights: Array
    losses: Array
    order: Codes
    rank: NDArray[np.int32]
    rising_clicked: NDArray[np.bool_]
    rising_weights: Array
    rising_rest: NDArray[Any]

    @classmethod
    def of(cls, said: Floats, labels: Floats, weights: Floats) -> Scored:
        """said, labels, weights: (n,)."""
        order = np.argsort(said)
        rising, clicked, w = said[order], labels > 0.5, weights.astype(np.float64)
        rank = np.zeros(len(said), np.int32)
        np.cumsum(rising[1:] != rising[:-1], out=rank[1:])
        return cls(
            said.astype(np.float64), clicked, w, plain_losses(said, labels), order, rank,
            clicked[order], w[order],
            (~clicked).astype(np.int32)[order] if bool((w == 1).all()) else np.where(clicked, 0.0, w)[order],
        )

    @property
    def unweighted(self) -> bool:
        """Whether every row weighs 1."""
        return self.rising_rest.dtype == np.int32


@dataclass(frozen=True, slots=True, eq=False)
class ByValue:
    """Sums over the rows of each of G values, (G,) each: rows, clicks, Σ w, Σ w of clicks, Σ w·loss, Σ w·loss², Σ w·p; and
    the AUC, NaN where a value has one class only."""

    rows: Array
    clicks: Array
    weight: Array
    click_weight: Array
    loss_sum: Array
    loss_square_sum: Array
    probability_sum: Array
    auc: Array


def by_value(scored: Scored, codes: Codes, count: int) -> ByValue:
    """codes: (n,) which value each row has, below count."""
    def total(of: Array | None) -> Array:
        return np.bincount(codes, of, count).astype(np.float64)

    rows, clicks = total(None), np.bincount(codes[scored.clicked], minlength=count).astype(np.float64)
    if scored.unweighted:
        weight, click_weight, loss, said = rows, clicks, scored.losses, scored.said
    else:
        w = scored.weights
        weight, click_weight = total(w), total(np.where(scored.clicked, w, 0.0))
        loss, said = w * scored.losses, w * scored.said
    return ByValue(
        rows, clicks, weight, click_weight, total(loss), total(loss * scored.losses), total(said),
        auc_by_value(scored, codes, count),
    )


def auc_by_value(scored: Scored, codes: Codes, count: int) -> Array:
    """(count,): chance that a click of a value scored above a non-click of the same, ties half, pairs by the product of their
    weights; NaN with one class. codes: (n,), below count."""
    own = codes.astype(np.uint16 if count <= 1 << 16 else np.int64)[scored.order]     # 16 bits are sorted by radix
    place = np.argsort(own, kind="stable")                                            # by value, then by score
    value, rank = own[place], scored.rank[place]
    rest = np.zeros(len(value) + 1, np.int64 if scored.unweighted else np.float64)    # of all rows before
    np.cumsum(scored.rising_rest[place], out=rest[1:])
    hits = np.flatnonzero(scored.rising_clicked[place])
    mine, w = value[hits].astype(np.intp), scored.rising_weights[place[hits]]
    new = np.empty(len(value) + 1, np.bool_)                                          # where a value and score begin
    new[0] = new[-1] = True
    np.not_equal(rank[1:], rank[:-1], out=new[1:-1])
    new[1:-1] |= value[1:] != value[:-1]
    starts = np.flatnonzero(new)
    run = np.searchsorted(starts, hits, "right")
    ends = np.searchsorted(value, np.arange(count, dtype=value.dtype), "right")       # (count,), of each value
    first = np.concatenate(([0], ends[:-1]))
    below = (rest[starts[run - 1]] + rest[starts[run]]) / 2 - rest[first[mine]]
    wins = np.bincount(mine, w * below, count)
    pairs = np.bincount(mine, w, count) * (rest[ends] - rest[first])
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Array = np.where(pairs > 0, wins / pairs, np.nan)
    return found


def group_auc(scored: Scored, groups: Keys) -> tuple[float | None, int]:
    """Mean of the AUCs within groups, each by the weight of its rows, over groups with both classes; and how many those are.
    groups: (n,), NOTHING = of none. None where there is no such group."""
    named, codes = np.unique(groups, return_inverse=True)
    auc = auc_by_value(scored, codes, len(named))
    weight = np.bincount(codes, scored.weights, len(named))
    counts = np.isfinite(auc) & (named != NOTHING)
    total = float(weight[counts].sum())
    return (float((weight * np.nan_to_num(auc))[counts].sum()) / total if total else None), int(counts.sum())


def deciles(scored: Scored) -> tuple[Array, Array, Array]:
    """Tenths of the rows by score, lowest first: (10,) each of Σ w, Σ w·p, Σ w of clicks. Rows of equal score go to one tenth,
    that of the middle of their weight, so that no order of the rows matters; a tenth may be empty."""
    w = scored.rising_weights
    tied = np.bincount(scored.rank, w) if len(w) else np.empty(0)
    ends = np.cumsum(tied)
    total = float(ends[-1]) if len(ends) else 0.0
    tenth_of = np.minimum((ends - tied / 2) * (TENTHS / (total or 1.0)), TENTHS - 1).astype(np.intp)     # (distinct,)
    tenth = tenth_of[scored.rank]
    parts = (w, w * scored.said[scored.order], w - scored.rising_rest)
    weight, said, clicks = (np.bincount(tenth, part, TENTHS).astype(np.float64) for part in parts)
    return weight, said, clicks


def most_frequent(keys: Keys, most: int) -> tuple[Keys, Codes, bool]:
    """The values with most rows, at most so many, and the row's place among them. keys: (n,). Returns (V,) values, (n,) codes,
    and whether there were more: code V is then all others."""
    values, codes = distinct(keys)
    if len(values) <= most:
        return values, codes, False
    kept = np.sort(np.argsort(-np.bincount(codes), kind="stable")[:most])
    code_of = np.full(len(values), most, np.intp)
    code_of[kept] = np.arange(most)
    return values[kept], code_of[codes], True


def distinct(keys: Keys) -> tuple[Keys, Codes]:
    """As np.unique with the inverse, at a quarter of its time where there are few values: keys are hashes, so that two of them
    seldom agree in their upper 16 bits. keys: (n,). Returns (V,) ascending values, (n,) codes."""
    upper = (keys >> np.uint64(48)).astype(np.intp)
    holder = np.full(1 << 16, -1, np.intp)
    holder[upper] = np.arange(len(keys))
    if not np.array_equal(keys[holder[upper]], keys):
        values, codes = np.unique(keys, return_inverse=True)
        return values, codes
    held = holder >= 0
    return keys[holder[held]], (np.cumsum(held) - 1)[upper]
