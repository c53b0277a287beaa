"""Progressive validation: every example is scored before it is learnt, so the stream itself is the test set.

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

Floats = NDArray[np.float32]

CLIP = 1e-7                # nearest a probability may be to 0 or 1: float32 has nothing between 1 − 6e-8 and 1
BINS = 1 << 16             # of the lifetime's AUC, over the logit
_LOGIT_END = 16.2          # beyond the logit of CLIP


@dataclass(frozen=True, slots=True)
class Window:
    """Figures over rows first_row ≤ row < last_row + 1 of the stream, counted from 0.

    auc: chance that a click scored above a non-click, ties half; None where there is only one class, for which it does
    not exist. auc_error: how far it can be off at most (0: exact). normalized_entropy: log loss over that of always
    saying the click rate (below 1 beats it), None with one class. calibration: Σ probabilities / clicks, None without.
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
        self._first = 0                                        # rows in windows that are complete
        self._waiting: list[tuple[Floats, Floats]] = []        # of the window that is being filled
        self._waiting_rows = 0
        self._sums = np.zeros(3)                               # Σ log loss, Σ probabilities, clicks; complete windows
        self._bins = np.zeros((2, BINS), np.int64)             # non-clicks and clicks by logit; complete windows

    @property
    def rows(self) -> int:
        """Examples so far."""
        return self._first + self._waiting_rows

    def add(self, probabilities: Floats, labels: Floats) -> list[Window]:
        """The windows that these examples completed, mostly none. probabilities, labels: (B,)."""
        if probabilities.shape != labels.shape or probabilities.ndim != 1:
            raise ShapeError(f"{probabilities.shape} probabilities for {labels.shape} labels")
        complete = []
        while len(labels):
            room = self.window_rows - self._waiting_rows
            self._waiting.append((probabilities[:room].copy(), labels[:room].copy()))
            self._waiting_rows += len(labels[:room])
            probabilities, labels = probabilities[room:], labels[room:]
            if self._waiting_rows == self.window_rows:
                complete.append(self._close())
        return complete

    def partial(self) -> Window | None:
        """The window that is being filled, as far as it is."""
        if not self._waiting_rows:
            return None
        p, y = self._open()
        return figures(self._first, p, y)

    def lifetime(self) -> Window | None:
        """All rows so far. The AUC is taken from 65,536 bins of the logit; `auc_error` bounds what that can cost."""
        if not self.rows:
            return None
        sums, bins = self._sums.copy(), self._bins
        if self._waiting_rows:
            p, y = self._open()
            sums += _sums(p, y)
            bins = bins + _binned(p, y)
        auc, error = auc_of_bins(bins)
        return _window(0, self.rows, sums, auc, error)

    def state(self) -> dict[str, NDArray[Any]]:
        """All of it, as arrays for the checkpoint."""
        used = np.flatnonzero(self._bins.any(axis=0))
        p, y = self._open()
        return {
            "first": np.array([self._first], np.int64), "sums": self._sums.copy(),
            "bins": used.astype(np.int32), "counts": self._bins[:, used],
            "probabilities": p, "labels": y,
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on exactly where `state` was taken. With a smaller window than then, what was waiting may fill some: they
        count, but are not reported."""
        self._first = int(state["first"][0])
        self._sums = np.array(state["sums"], np.float64)
        self._bins = np.zeros((2, BINS), np.int64)
        self._bins[:, state["bins"]] = state["counts"]
        self._waiting, self._waiting_rows = [], 0
        self.add(np.array(state["probabilities"]), np.array(state["labels"]))

    def _open(self) -> tuple[Floats, Floats]:
        if not self._waiting:
            return np.empty(0, np.float32), np.empty(0, np.float32)
        if len(self._waiting) > 1:
            self._waiting = [
                (np.concatenate([p for p, _ in self._waiting]), np.concatenate([y for _, y in self._waiting]))
            ]
        return self._waiting[0]

    def _close(self) -> Window:
        p, y = self._open()
        window = figures(self._first, p, y)
        self._sums += _sums(p, y)
        self._bins += _binned(p, y)
        self._first += len(y)
        self._waiting, self._waiting_rows = [], 0
        return window


def figures(first_row: int, probabilities: Floats, labels: Floats) -> Window:
    """Exact figures of these rows, at least one."""
    return _window(first_row, len(labels), _sums(probabilities, labels), auc_by_ranks(probabilities, labels), 0.0)


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


def auc_of_bins(bins: NDArray[np.int64]) -> tuple[float | None, float]:
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
    loss, said, clicks = (float(part) for part in sums)
    rate = clicks / rows
    entropy = -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate)) if 0 < rate < 1 else None
    return Window(
        first_row=first_row,
        last_row=first_row + rows - 1,
        rows=rows,
        clicks=int(clicks),
        auc=auc,
        auc_error=error,
        log_loss=loss / rows,
        normalized_entropy=None if entropy is None else loss / rows / entropy,
        calibration=said / clicks if clicks else None,
        click_rate=rate,
    )


def _clipped(probabilities: Floats) -> NDArray[np.float64]:
    return np.clip(probabilities.astype(np.float64), CLIP, 1 - CLIP)


def _sums(probabilities: Floats, labels: Floats) -> NDArray[np.float64]:
    """Σ log loss, Σ probabilities, clicks."""
    p, clicked = _clipped(probabilities), labels > 0.5
    loss = -np.log(np.where(clicked, p, 1 - p)).sum()
    return np.array([loss, probabilities.sum(dtype=np.float64), clicked.sum()], np.float64)


def _binned(probabilities: Floats, labels: Floats) -> NDArray[np.int64]:
    """(2, BINS): non-clicks and clicks by logit."""
    p = _clipped(probabilities)
    logit = np.log(p) - np.log1p(-p)
    place = ((logit + _LOGIT_END) * (BINS / (2 * _LOGIT_END))).astype(np.int64)
    return np.bincount(place + BINS * (labels > 0.5), minlength=2 * BINS).reshape(2, BINS)
