"""Figures of scored rows with what chance alone could do to them: 95 % bootstrap intervals, and AUC within groups.

Rows are drawn again with replacement, as many as there are; each draw gives every figure anew, and the interval is the middle
95 % of them. The draws hang on the number of rows and the seed alone, so those of two models on the same rows are paired, and
the interval of their difference is far narrower than either's own. Source: Efron, Tibshirani, An Introduction to the
Bootstrap, 1993, ch. 13 (percentile intervals). The rows of a group count as independent; what is alike in all of them is
the model, which is held fixed: an interval says nothing of other seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schemas.errors import ShapeError
from stream_trainer.learning.losses import plain_losses

Array = NDArray[np.float64]
Interval = tuple[float, float]

RESAMPLES = 300        # the ends of an interval are then known to about a tenth of its length
SEED = 1
CHUNK_BYTES = 1 << 24  # of weights at once
NO_GROUP = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupAuc:
    """auc: mean over groups, each weighted by its rows; None if no group has both classes. groups: how many have.
    left_out: groups of one class. rows: in groups that count. rows_without: rows that name no group."""

    auc: float | None
    groups: int
    left_out: int
    rows: int
    rows_without: int


class Ranking:
    """AUC within groups under any weights of the rows, by one sort. One group: the AUC itself."""

    def __init__(self, scores: NDArray[np.float32], labels: NDArray[np.float32], groups: NDArray[np.int64] | None) -> None:
        """scores, labels, groups: (n,). Rows of NO_GROUP are left out."""
        if scores.shape != labels.shape or (groups is not None and groups.shape != labels.shape):
            raise ShapeError(f"{scores.shape} scores, {labels.shape} labels, {None if groups is None else groups.shape} groups")
        if groups is None:
            groups = np.zeros(len(scores), np.int64)
        order = np.lexsort((scores, groups))
        self._order = order[groups[order] != NO_GROUP]                              # (m,)
        group, score = groups[self._order], scores[self._order]
        self._clicked = labels[self._order] > 0.5
        new_group = np.diff(group, prepend=-2) != 0
        new_cell = new_group | (np.diff(score, prepend=np.float32(-1)) != 0)
        self._cells = np.flatnonzero(new_cell)                                      # first row of each (group, score)
        self._groups = np.flatnonzero(new_group[self._cells])                       # first cell of each group
        self._group_of = np.cumsum(new_group[self._cells]) - 1                      # (cells,)

    def per_group(self, weights: Array) -> tuple[Array, Array, Array]:
        """weights: (R, n). Returns wins (pairs where the click scored higher, ties half), clicks, non-clicks: (R, G)."""
        if not len(self._order):
            nothing = np.zeros((len(weights), 0))
            return nothing, nothing, nothing
        sorted_ = weights[:, self._order]                                           # (R, m)
        clicks = np.add.reduceat(sorted_ * self._clicked, self._cells, axis=1)      # (R, cells)
        rest = np.add.reduceat(sorted_, self._cells, axis=1) - clicks
        below = np.cumsum(rest, axis=1) - rest
        below -= below[:, self._groups][:, self._group_of]
        wins = np.add.reduceat(clicks * (below + rest / 2), self._groups, axis=1)   # (R, G)
        return wins, np.add.reduceat(clicks, self._groups, axis=1), np.add.reduceat(rest, self._groups, axis=1)

    def mean(self, weights: Array) -> Array:
        """(R,): AUC over groups with both classes, weighted by rows; NaN where there is none."""
        wins, clicks, rest = self.per_group(weights)
        both = (clicks > 0) & (rest > 0)
        rows = np.where(both, clicks + rest, 0.0)
        auc = wins / np.where(both, clicks * rest, 1.0)
        total = rows.sum(axis=1)
        return np.where(total > 0, (rows * auc).sum(axis=1) / np.where(total > 0, total, 1.0), np.nan)


def group_auc(scores: NDArray[np.float32], labels: NDArray[np.float32], groups: NDArray[np.int64]) -> GroupAuc:
    """AUC within groups. scores, labels, groups: (n,)."""
    ranking = Ranking(scores, labels, groups)
    once = np.ones((1, len(scores)))
    _, clicks, rest = ranking.per_group(once)
    both = (clicks > 0) & (rest > 0)
    mean = float(ranking.mean(once)[0])
    return GroupAuc(
        auc=None if np.isnan(mean) else mean, groups=int(both.sum()), left_out=int((~both).sum()),
        rows=int((clicks + rest)[both].sum()), rows_without=int((groups == NO_GROUP).sum()),
    )


def draws(
    scores: NDArray[np.float32], labels: NDArray[np.float32], groups: NDArray[np.int64] | None = None,
    resamples: int = RESAMPLES, seed: int = SEED,
) -> dict[str, Array]:
    """Figure → (resamples,): its value in each draw, NaN where the draw has but one class.

    scores, labels, groups: (n,). Figures: auc, log_loss, normalized_entropy, calibration, and group_auc if groups are given.
    """
    rows = len(scores)
    clicked = (labels > 0.5).astype(np.float64)
    p = scores.astype(np.float64)
    sums = np.stack([plain_losses(scores, labels), p, clicked], axis=1)   # (n, 3)
    rankings = {"auc": Ranking(scores, labels, None)}
    if groups is not None:
        rankings["group_auc"] = Ranking(scores, labels, groups)
    found: dict[str, list[Array]] = {name: [] for name in ("log_loss", "normalized_entropy", "calibration", *rankings)}
    with np.errstate(divide="ignore", invalid="ignore"):
        for weights in _weights(rows, resamples, seed):
            loss, said, clicks = (weights @ sums).T
            rate = clicks / rows
            entropy = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))      # NaN at rates 0 and 1
            found["log_loss"].append(loss / rows)
            found["normalized_entropy"].append(loss / rows / entropy)
            found["calibration"].append(np.where(clicks > 0, said / clicks, np.nan))
            for name, ranking in rankings.items():
                found[name].append(ranking.mean(weights))
    return {name: np.concatenate(parts) if parts else np.empty(0) for name, parts in found.items()}


def intervals(drawn: Mapping[str, Array], level: float = 0.95) -> dict[str, Interval | None]:
    """The middle `level` of each figure's draws; None where a figure exists in none."""
    return {name: interval(values, level) for name, values in drawn.items()}


def interval(values: Array, level: float = 0.95) -> Interval | None:
    """values: (R,), NaN = does not exist."""
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _weights(rows: int, resamples: int, seed: int) -> Iterator[Array]:
    """How often each row was drawn, some draws at a time: (≤ chunk, rows), each summing to `rows`."""
    random = np.random.default_rng(seed)
    chunk = max(1, CHUNK_BYTES // (8 * max(rows, 1)))
    for start in range(0, resamples, chunk):
        count = min(chunk, resamples - start)
        taken = random.integers(0, rows, (count, rows), dtype=np.int64)
        taken += np.arange(count)[:, None] * rows
        yield np.bincount(taken.reshape(-1), minlength=count * rows).reshape(count, rows).astype(np.float64)
