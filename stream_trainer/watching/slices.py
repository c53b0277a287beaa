"""Figures of a window's rows, as a whole and by value: whatever order the rows come in, and from however many processes.

All is numpy over whole columns. AUCs by value come from one sort by score and one stable sort by value of what is sorted, both
by digits: numpy sorts 16 bits so, at a quarter of the time that it takes to compare.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_trainer.learning.losses import clipped, plain_losses
from stream_trainer.watching.marks import NOTHING, Keys

Floats = NDArray[np.float32]
Array = NDArray[np.float64]
Codes = NDArray[np.intp]

TENTHS = 10


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """n rows with one score: what is needed of them more than once.

    said, clicked, weights, losses: (n,). logit: (n,) of the clipped score. sums: (5,) Σ w·loss, Σ w·said, Σ w of clicks, Σ w,
    clicks. order: (n,) places by ascending score, non-clicks first where scores are equal; the rest in that order:
    rising_clicked, rising_weights, and rising_rest, the weights of non-clicks, as whole numbers where all weigh 1. tied: (t,)
    places in that order of rows that do not have their score alone; run: (t,) which of them are equal.
    """

    said: Array
    clicked: NDArray[np.bool_]
    weights: Array
    losses: Array
    logit: Array
    sums: Array
    order: Codes
    rising_clicked: NDArray[np.bool_]
    rising_weights: Array
    rising_rest: NDArray[Any]
    tied: Codes
    run: Codes

    @classmethod
    def of(cls, said: Floats, labels: Floats, weights: Floats) -> Scored:
        """said: (n,) from 0 to 1. labels, weights: (n,)."""
        order, clicked, w = by_score(said), labels > 0.5, weights.astype(np.float64)
        rising = said[order]
        new = np.ones(len(said) + 1, np.bool_)                                # where a score begins, and the end
        np.not_equal(rising[1:], rising[:-1], out=new[1:-1])
        tied = np.flatnonzero(~(new[:-1] & new[1:]))
        run = np.cumsum(new[tied], dtype=np.intp)
        order[tied] = order[tied[np.lexsort((clicked[order[tied]], run))]]    # runs stay where they are
        rising_clicked = clicked[order]
        ones = bool((weights == 1).all())
        rising_weights = w if ones else w[order]
        rest = (~rising_clicked).astype(np.int32) if ones else np.where(rising_clicked, 0.0, rising_weights)
        p, losses = clipped(said), plain_losses(said, labels)
        sums = np.array([(w * losses).sum(), (w * said).sum(), (w * clicked).sum(), w.sum(), clicked.sum()], np.float64)
        return cls(
            said.astype(np.float64), clicked, w, losses, np.log(p) - np.log1p(-p), sums,
            order, rising_clicked, rising_weights, rest, tied, run,
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


def slope_terms(scored: Scored) -> tuple[Array, Array]:
    """What each row adds to the score test of the calibration slope, that is of the b in logit P(click) = a + b·(logit p − c),
    for b = 1: (n,) each of the score w·(click − p)·(logit p − c) and its information w·p(1 − p)·(logit p − c)². c is their mean
    logit by w·p(1 − p), so that to first order a wrong level (a) adds nothing. Both are sums: 1 + Σ score / Σ information is b
    after one Newton step, of any rows together.
    Source: Cox, Two Further Applications of a Model for Binary Regression, Biometrika 1958."""
    variance = scored.weights * scored.said * (1 - scored.said)
    logit = scored.logit - (variance * scored.logit).sum() / (variance.sum() or 1.0)  # `@` would wake the threads of BLAS
    return scored.weights * (scored.clicked - scored.said) * logit, variance * logit * logit


def auc_by_value(scored: Scored, codes: Codes, count: int) -> Array:
    """(count,): chance that a click of a value scored above a non-click of the same, ties half, pairs by the product of their
    weights; NaN with one class. codes: (n,), below count."""
    own = codes.astype(_narrowest(count))[scored.order]
    place = np.argsort(own, kind="stable")                                            # by value, then by score
    hits = np.flatnonzero(scored.rising_clicked[place])
    of = place[hits]
    mine, w = own[of].astype(np.intp), scored.rising_weights[of]
    rows, clicks = np.bincount(codes, minlength=count), np.bincount(mine, w, count)   # (count,) each
    if scored.unweighted:
        rest, below = rows - clicks, (hits - np.arange(len(hits))).astype(np.float64)
    else:
        rest = np.bincount(own, scored.rising_rest, count).astype(np.float64)
        below = np.cumsum(scored.rising_rest[place], dtype=np.float64)[hits]
    wins = np.bincount(mine, w * (below - (np.cumsum(rest) - rest)[mine]), count) - _half_of_ties(scored, own, count)
    pairs = clicks * rest
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Array = np.where(pairs > 0, wins / pairs, np.nan)
    return found


def _half_of_ties(scored: Scored, own: NDArray[Any], count: int) -> Array:
    """(count,): what counts as won too much where a click and a non-click of a value have one score. own: (n,) by score."""
    if not len(scored.tied):
        return np.zeros(count)
    order = np.argsort(own[scored.tied], kind="stable")                               # by value, then by score
    at, run = scored.tied[order], scored.run[order]
    value = own[at]
    starts = np.concatenate(([0], np.flatnonzero((run[1:] != run[:-1]) | (value[1:] != value[:-1])) + 1))
    pairs = np.add.reduceat(scored.rising_weights[at] * scored.rising_clicked[at], starts)
    pairs *= np.add.reduceat(scored.rising_rest[at], starts)
    found: Array = np.bincount(value[starts], pairs / 2, count).astype(np.float64)
    return found


def by_score(said: Floats) -> Codes:
    """(n,) places by ascending score, rows of equal scores in their order. said: (n,), no negative number and no NaN: so their
    bits are in order as well."""
    bits = (said + np.float32(0)).view(np.uint32)                                     # −0 becomes 0
    order = np.argsort(bits.astype(np.uint16), kind="stable")
    return order[np.argsort((bits >> np.uint32(16)).astype(np.uint16)[order], kind="stable")]


def _narrowest(count: int) -> type[np.integer[Any]]:
    """What numbers below count fit into."""
    if count <= 1 << 8:
        return np.uint8
    return np.uint16 if count <= 1 << 16 else np.int64


def grouped(groups: Keys) -> tuple[Keys, Codes]:
    """As np.unique with the inverse; faster where they come nearly in order, as slates do. groups: (n,)."""
    order = np.argsort(groups, kind="stable")
    new = np.ones(len(groups), np.bool_)
    np.not_equal(groups[order[1:]], groups[order[:-1]], out=new[1:])
    codes = np.empty(len(groups), np.intp)
    codes[order] = np.cumsum(new) - 1
    return groups[order[new]], codes


def group_auc(scored: Scored, named: Keys, codes: Codes) -> tuple[float | None, int]:
    """Mean of the AUCs within groups, each by the weight of its rows, over groups with both classes; and how many those are.
    named: (G,) NOTHING = is no group. codes: (n,) of which of them a row is. None where there is no such group."""
    auc = auc_by_value(scored, codes, len(named))
    weight = np.bincount(codes, scored.weights, len(named))
    counts = np.isfinite(auc) & (named != NOTHING)
    total = float(weight[counts].sum())
    return (float((weight * np.nan_to_num(auc))[counts].sum()) / total if total else None), int(counts.sum())


def deciles(scored: Scored) -> tuple[Array, Array, Array]:
    """Tenths of the rows by score, lowest first: (10,) each of Σ w, Σ w·p, Σ w of clicks. Rows of equal score go to one tenth,
    that of the middle of their weight, so that no order of the rows matters; a tenth may be empty."""
    w = scored.rising_weights
    ends = np.cumsum(w)
    middle = ends - w / 2
    if len(scored.tied):
        first = np.flatnonzero(np.diff(scored.run, prepend=0))                        # of each run
        last = np.append(first[1:], len(scored.run)) - 1
        own = (middle[scored.tied[first]] - w[scored.tied[first]] / 2 + ends[scored.tied[last]]) / 2
        middle[scored.tied] = own[scored.run - scored.run[0]]
    total = float(ends[-1]) if len(ends) else 0.0
    tenth = np.minimum(middle * (TENTHS / (total or 1.0)), TENTHS - 1).astype(np.intp)
    starts = np.searchsorted(tenth, np.arange(TENTHS + 1))
    there = np.flatnonzero(np.diff(starts))
    weight, said, clicks = found = np.zeros((3, TENTHS))
    for sums, part in zip(found, (w, w * scored.said[scored.order], w - scored.rising_rest), strict=True):
        sums[there] = np.add.reduceat(part, starts[there])
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
    there = np.zeros(1 << 16, np.bool_)
    there[upper] = True
    held = np.flatnonzero(there)
    code_of = np.empty(1 << 16, np.uint16)
    code_of[held] = np.arange(len(held))
    codes = code_of.take(upper).astype(np.intp)
    values = np.empty(len(held), np.uint64)
    values[codes] = keys
    if not np.array_equal(values.take(codes), keys):
        values, codes = np.unique(keys, return_inverse=True)
    return values, codes
