"""Windows that are complete: the figures of each, and those of all of them together.

Over a whole run the figures do not depend on how it was cut: they are taken from whole windows. Log loss is in float64 of
probabilities clipped to [1e-7, 1 − 1e-7]. Source: He et al., Practical Lessons, ADKDD 2014, for NE and calibration.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from stream_trainer.watching.marks import Keys
from stream_trainer.watching.sampling import Sample, Taken
from stream_trainer.watching.slices import Scored, auc_by_value

Floats = NDArray[np.float32]

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


class Rows(NamedTuple):
    """n judged examples. probabilities, labels, weights: (n,) f32. served: (n,) f32, what the scorer had said, NaN = not told.
    keys: (n, 1 + S) as marks.Marker makes them; (n, 0) where nothing is watched."""

    probabilities: Floats
    labels: Floats
    weights: Floats
    served: Floats
    keys: Keys

    def take(self, which: slice | NDArray[np.bool_]) -> Rows:
        """Some of the rows, where they stand if they are a slice."""
        return Rows(
            self.probabilities[which], self.labels[which], self.weights[which], self.served[which], self.keys[which]
        )


class Watcher(Protocol):
    """Takes the rows of each complete window, and has a state that belongs to the same moment as the windows'."""

    def closed(self, window: Window, rows: Rows, scored: Scored, sample: Sample | None) -> None:
        """A window is complete. scored: its rows. sample: of what was learnt up to then, since the window before."""

    def state(self) -> dict[str, NDArray[Any]]:
        """All of it, as arrays whose names begin with watch_."""

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on where `state` was taken, by whomever."""


class Tally:
    """Sums of any number of rows in bounded memory. Tallies of parts add up to the whole's.

    sums: as in Scored. bins: (2, n), Σ w of non-clicks and of clicks by logit.
    """

    def __init__(self, bins: int = BINS) -> None:
        self.sums = np.zeros(5)
        self.bins = np.zeros((2, bins))

    def add(self, scored: Scored) -> None:
        """Count rows."""
        bins = self.bins.shape[1]
        place = ((scored.logit + _LOGIT_END) * (bins / (2 * _LOGIT_END))).astype(np.intp)
        place += bins * scored.clicked
        self.sums += scored.sums
        np.add.at(self.bins.reshape(-1), place, scored.weights)

    def fade(self, factor: float) -> None:
        """All so far counts for so much less."""
        self.sums *= factor
        self.bins *= factor

    def __add__(self, other: Tally) -> Tally:
        found = Tally(self.bins.shape[1])
        found.sums, found.bins = self.sums + other.sums, self.bins + other.bins
        return found

    def figures(self, first_row: int, rows: int) -> Window:
        """Of all that was counted; the AUC with its bound."""
        return _window(first_row, rows, self.sums, *auc_of_bins(self.bins))

    def state(self) -> dict[str, NDArray[Any]]:
        """sums; bins, those that are not empty, and their counts."""
        used = np.flatnonzero(self.bins.any(axis=0))
        return {"sums": self.sums.copy(), "bins": used.astype(np.int32), "counts": self.bins[:, used]}

    @classmethod
    def restored(cls, bins: int, sums: NDArray[Any], used: NDArray[Any], counts: NDArray[Any]) -> Tally:
        """As its state was."""
        made = cls(bins)
        made.sums = np.array(sums, np.float64)
        made.bins[:, used] = counts
        return made


class Windows:
    """Of those that are complete, all figures that are asked for again. watcher: is told the rows of each; None = nobody."""

    def __init__(self, watcher: Watcher | None = None) -> None:
        self._watcher = watcher
        self._complete = Tally()

    def close(self, first_row: int, rows: Rows, taken: Taken | None) -> Window:
        """Figures of a window that has become complete. taken: what was learnt up to then, since the window before."""
        scored = Scored.of(*rows[:3])
        window = _figures(first_row, scored)
        self._complete.add(scored)
        if self._watcher is not None:
            self._watcher.closed(window, rows, scored, None if taken is None else taken.sample())
        return window

    def lifetime(self, rows: int, waiting: Rows) -> Window:
        """All rows: those of windows and `waiting`, of one that is being filled."""
        whole = self._complete
        if len(waiting.labels):
            part = Tally()
            part.add(Scored.of(*waiting[:3]))
            whole = whole + part
        return whole.figures(0, rows)

    def state(self) -> dict[str, NDArray[Any]]:
        """All of it, as arrays for the checkpoint."""
        return {**self._complete.state(), **({} if self._watcher is None else self._watcher.state())}

    def restore(self, rows: int, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on where `state` was taken, when so many rows were in windows."""
        sums = np.array(state["sums"], np.float64)
        if len(sums) == 3:                                     # a checkpoint from before there were weights
            sums = np.append(sums, (rows, sums[2]))
        self._complete = Tally.restored(BINS, sums, state["bins"], state["counts"])
        if self._watcher is not None:
            self._watcher.restore(state)


def figures(first_row: int, probabilities: Floats, labels: Floats, weights: Floats | None = None) -> Window:
    """Exact figures of these rows, at least one."""
    weights = np.ones(len(labels), np.float32) if weights is None else weights
    return _figures(first_row, Scored.of(probabilities, labels, weights))


def _figures(first_row: int, scored: Scored) -> Window:
    rows = len(scored.said)
    auc = auc_by_value(scored, np.zeros(rows, np.intp), 1).item()
    return _window(first_row, rows, scored.sums, None if math.isnan(auc) else auc, 0.0)


def auc_of_bins(bins: NDArray[Any]) -> tuple[float | None, float]:
    """AUC where all is known but the order within a bin, which counts as tied; and the most it can be off by that.

    bins: (2, n), non-clicks and clicks by ascending score. The pairs of a bin, (clicks · non-clicks), are the only ones
    that can be wrong, by half each.
    """
    rest, clicks = (part.astype(np.float64, copy=False) for part in bins)
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
