"""Progressive validation: every example is scored before it is learnt, so the stream itself is the test set.

An example is judged once, by its final label (verdicts.py holds what was said until that is known), and counts for its
weight, so that sampled negatives stand for all.

Windows are cut by count, whatever the batches were, and over a whole run the figures do not depend on how it was cut
either: they are taken from whole windows. Log loss is in float64 of probabilities clipped to [1e-7, 1 − 1e-7].
Source: Blum, Kalai, Langford, Beating the Hold-Out, COLT 1999; He et al., ADKDD 2014, for NE and calibration.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.errors import ShapeError
from stream_trainer.losses import clipped, plain_losses
from stream_trainer.verdicts import Verdicts

Floats = NDArray[np.float32]
Rows = tuple[Floats, Floats, Floats]   # probabilities, labels, weights

BINS = 1 << 16             # of the lifetime's AUC, over the logit
_LOGIT_END = 16.2          # beyond the logit of losses.CLIP


@dataclass(frozen=True, slots=True)
class Window:
    """Figures over rows first_row ≤ row < last_row + 1 of the stream, counted from 0.

    auc: chance that a click scored above a non-click, ties half; None where there is only one class, for which it does
    not exist. auc_error: how far it can be off at most (0: exact). normalized_entropy: log loss over that of always
    saying the click rate (below 1 beats it), None with one class. calibration: Σ probabilities / clicks, None without.
    All but rows and clicks, which are counts, by the rows' weights.
    """

    first_row: int
    last_row: int
    rows: int
    clicks: int
    auc: float | None
    auc_error: float
    log_loss: float
    normalized_entropy: float | None
    calibration: float | None
    click_rate: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Progressive:
    """Takes scores and labels in any cut; gives a `Window` for each `window_rows` of them, and figures over all."""

    def __init__(self, window_rows: int) -> None:
        self.window_rows = window_rows
        self.verdicts = Verdicts()
        self._first = 0                                        # rows in windows that are complete
        self._waiting: list[Rows] = []                         # of the window that is being filled
        self._waiting_rows = 0
        self._sums = np.zeros(5)                               # as _sums gives them; complete windows
        self._bins = np.zeros((2, BINS))                       # non-clicks and clicks by logit; complete windows

    @property
    def rows(self) -> int:
        """Examples so far."""
        return self._first + self._waiting_rows

    def add(self, probabilities: Floats, labels: Floats, weights: Floats | None = None) -> list[Window]:
        """The windows that these examples completed, mostly none. probabilities, labels, weights: (B,)."""
        weights = np.ones(labels.shape, np.float32) if weights is None else weights
        if not probabilities.shape == labels.shape == weights.shape or probabilities.ndim != 1:
            raise ShapeError(f"{probabilities.shape} probabilities, {weights.shape} weights for {labels.shape} labels")
        complete = []
        while len(labels):
            room = self.window_rows - self._waiting_rows
            self._waiting.append((probabilities[:room].copy(), labels[:room].copy(), weights[:room].copy()))
            self._waiting_rows += len(labels[:room])
            probabilities, labels, weights = probabilities[room:], labels[room:], weights[room:]
            if self._waiting_rows == self.window_rows:
                complete.append(self._close())
        return complete

    def partial(self) -> Window | None:
        """The window that is being filled, as far as it is."""
        if not self._waiting_rows:
            return None
        return figures(self._first, *self._open())

    def lifetime(self) -> Window | None:
        """All rows so far. The AUC is taken from 65,536 bins of the logit; `auc_error` bounds what that can cost."""
        if not self.rows:
            return None
        sums, bins = self._sums.copy(), self._bins
        if self._waiting_rows:
            sums += _sums(*self._open())
            bins = bins + _binned(*self._open())
        auc, error = auc_of_bins(bins)
        return _window(0, self.rows, sums, auc, error)

    def state(self) -> dict[str, NDArray[Any]]:
        """All of it, as arrays for the checkpoint."""
        used = np.flatnonzero(self._bins.any(axis=0))
        p, y, w = self._open()
        return {
            **self.verdicts.state(),
            "first": np.array([self._first], np.int64), "sums": self._sums.copy(),
            "bins": used.astype(np.int32), "counts": self._bins[:, used],
            "probabilities": p, "labels": y, "weights": w,
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on exactly where `state` was taken. With a smaller window than then, what was waiting may fill some: they
        count, but are not reported."""
        self.verdicts.restore(state)
        self._first = int(state["first"][0])
        self._sums = np.array(state["sums"], np.float64)
        if len(self._sums) == 3:                               # a checkpoint from before there were weights
            self._sums = np.append(self._sums, (self._first, self._sums[2]))
        self._bins = np.zeros((2, BINS))
        self._bins[:, state["bins"]] = state["counts"]
        self._waiting, self._waiting_rows = [], 0
        weights = state.get("weights")
        self.add(np.array(state["probabilities"]), np.array(state["labels"]), None if weights is None else np.array(weights))

    def _open(self) -> Rows:
        if not self._waiting:
            return np.empty(0, np.float32), np.empty(0, np.float32), np.empty(0, np.float32)
        if len(self._waiting) > 1:
            p, y, w = (np.concatenate(column) for column in zip(*self._waiting, strict=True))
            self._waiting = [(p, y, w)]
        return self._waiting[0]

    def _close(self) -> Window:
        rows = self._open()
        window = figures(self._first, *rows)
        self._sums += _sums(*rows)
        self._bins += _binned(*rows)
        self._first += self._waiting_rows
        self._waiting, self._waiting_rows = [], 0
        return window


def figures(first_row: int, probabilities: Floats, labels: Floats, weights: Floats | None = None) -> Window:
    """Exact figures of these rows, at least one."""
    weights = np.ones(len(labels), np.float32) if weights is None else weights
    weighted = None if bool((weights == 1).all()) else weights
    auc = auc_by_ranks(probabilities, labels) if weighted is None else _weighted_auc(probabilities, labels, weighted)
    return _window(first_row, len(labels), _sums(probabilities, labels, weights), auc, 0.0)


def _weighted_auc(scores: Floats, labels: Floats, weights: Floats) -> float | None:
    """Of pairs that count for the product of their weights."""
    _, place = np.unique(scores, return_inverse=True)
    positive, bins = labels > 0.5, int(place.max()) + 1
    return auc_of_bins(np.stack([
        np.bincount(place, np.where(own, weights, 0).astype(np.float64), bins) for own in (~positive, positive)
    ]))[0]


def auc_by_ranks(scores: NDArray[Any], labels: NDArray[Any]) -> float | None:
    """Chance that a positive scores above a negative, ties counted half; None with one class. scores, labels: (n,).

    By the sum of the positives' ranks (Mann-Whitney), equal scores sharing their mean rank; integers throughout.
    """
    positive = labels > 0.5
    clicks = int(positive.sum())
    rest = len(labels) - clicks
    if not clicks or not rest:
        return None
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    twice_rank = 2 * np.cumsum(count) - count + 1                    # of each distinct score: first + last rank of it
    twice_wins = int(twice_rank[place[positive]].sum()) - clicks * (clicks + 1)
    return twice_wins / (2 * clicks * rest)


def auc_of_bins(bins: NDArray[Any]) -> tuple[float | None, float]:
    """AUC where all is known but the order within a bin, which counts as tied; and the most it can be off by that.

    bins: (2, n), non-clicks and clicks by ascending score. The pairs of a bin, (clicks · non-clicks), are the only ones
    that can be wrong, by half each.
    """
    rest, clicks = (part.astype(np.float64) for part in bins)
    pairs = float(rest.sum()) * float(clicks.sum())
    if not pairs:
        return None, 0.0
    below = np.cumsum(rest) - rest
    tied = float((clicks * rest).sum())
    return (float((clicks * below).sum()) + tied / 2) / pairs, tied / 2 / pairs


def _window(first_row: int, rows: int, sums: NDArray[np.float64], auc: float | None, error: float) -> Window:
    loss, said, clicked, weight, clicks = (float(part) for part in sums)
    weight = weight or 1.0                                     # rows that all count for nothing
    rate = clicked / weight
    entropy = -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate)) if 0 < rate < 1 else None
    return Window(
        first_row=first_row,
        last_row=first_row + rows - 1,
        rows=rows,
        clicks=int(clicks),
        auc=auc,
        auc_error=error,
        log_loss=loss / weight,
        normalized_entropy=None if entropy is None else loss / weight / entropy,
        calibration=said / clicked if clicked else None,
        click_rate=rate,
    )


def _sums(probabilities: Floats, labels: Floats, weights: Floats) -> NDArray[np.float64]:
    """Σ w·log loss, Σ w·probabilities, Σ w over clicks, Σ w, clicks."""
    losses, clicked, w = plain_losses(probabilities, labels), labels > 0.5, weights.astype(np.float64)
    return np.array(
        [(w * losses).sum(), (w * probabilities).sum(), (w * clicked).sum(), w.sum(), clicked.sum()], np.float64
    )


def _binned(probabilities: Floats, labels: Floats, weights: Floats) -> NDArray[np.float64]:
    """(2, BINS): weights of non-clicks and clicks by logit."""
    p = clipped(probabilities)
    logit = np.log(p) - np.log1p(-p)
    place = ((logit + _LOGIT_END) * (BINS / (2 * _LOGIT_END))).astype(np.int64)
    return np.bincount(place + BINS * (labels > 0.5), weights, minlength=2 * BINS).reshape(2, BINS).astype(np.float64)
