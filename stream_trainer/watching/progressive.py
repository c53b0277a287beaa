"""Progressive validation: every example is scored before it is learnt, so the stream itself is the test set.

An example is judged once, by its final label (verdicts.py holds what was said until that is known), and counts for its
weight, so that sampled negatives stand for all.

Windows are cut by count, whatever the batches were, and over a whole run the figures do not depend on how it was cut
either: they are taken from whole windows. Log loss is in float64 of probabilities clipped to [1e-7, 1 − 1e-7].
Source: Blum, Kalai, Langford, Beating the Hold-Out, COLT 1999; He et al., ADKDD 2014, for NE and calibration.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from schemas.errors import ShapeError
from stream_trainer.parts import joined
from stream_trainer.watching.inputs import Sample, sample_of, state_of, together
from stream_trainer.watching.marks import Keys
from stream_trainer.watching.slices import Scored, auc_by_value
from stream_trainer.watching.verdicts import Verdicts

Floats = NDArray[np.float32]
Sampled = Callable[[], Sample]   # takes it when it is wanted

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

    def copy(self) -> Rows:
        """In memory of their own."""
        return Rows(*(column.copy() for column in self))  # type: ignore[arg-type]


class Watcher(Protocol):
    """Takes the rows of each complete window, and has a state that belongs to the same moment as the windows'."""

    def closed(self, window: Window, rows: Rows, scored: Scored, sample: Sample | None) -> None:
        """A window is complete. scored: its rows. sample: of what was learnt up to then, since the window before."""

    def state(self) -> dict[str, NDArray[Any]]:
        """All of it, as arrays whose names begin with watch_."""

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on where `state` was taken, by whomever."""


class Doer(Protocol):
    """Does pieces of work in the order in which they are given."""

    def give(self, work: Callable[[], None]) -> None:
        """Do it, now or soon."""

    def settle(self) -> None:
        """Returns when all is done that was given."""


class AtOnce:
    """Does it when it is given."""

    def give(self, work: Callable[[], None]) -> None:
        """Do it now."""
        work()

    def settle(self) -> None:
        """Nothing waits."""


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


class Progressive:
    """Takes scores and labels in any cut; gives a `Window` for each `window_rows` of them, and figures over all.

    watcher: is told the rows of each window too; None = nobody. doer: closes windows, at once or on a thread beside; what is
    asked for here is the same either way.
    """

    def __init__(self, window_rows: int, watcher: Watcher | None = None, doer: Doer | None = None) -> None:
        self.window_rows = window_rows
        self.verdicts = Verdicts()
        self._watcher = watcher
        self._doer = doer or AtOnce()
        self._closed: deque[Window] = deque()                  # and not returned yet
        self._first = 0                                        # rows in windows that are complete
        self._waiting: list[Rows] = []                         # of the window that is being filled
        self._waiting_rows = 0
        self._samples: list[Sampled] = []                      # of what was learnt since the last window
        self._complete = Tally()                               # of windows that are complete

    @property
    def rows(self) -> int:
        """Examples so far."""
        return self._first + self._waiting_rows

    @property
    def whole_rows(self) -> int:
        """Examples in complete windows: the first row of the one that is being filled."""
        return self._first

    def note(self, sample: Sampled) -> None:
        """Of a batch that was just learnt: it goes to the window that is being filled, and is taken when that closes."""
        self._samples.append(sample)

    def add(
        self, probabilities: Floats, labels: Floats, weights: Floats | None = None, served: Floats | None = None,
        keys: Keys | None = None,
    ) -> list[Window]:
        """The windows that were closed since this was asked last: mostly none, and those that these examples completed unless
        a thread beside closes them. All as in Rows; None = all 1, not told, not watched."""
        rows = len(labels)
        weights = np.ones(labels.shape, np.float32) if weights is None else weights
        served = np.full(labels.shape, np.nan, np.float32) if served is None else served
        keys = np.empty((rows, 0), np.uint64) if keys is None else keys
        if not probabilities.shape == labels.shape == weights.shape == served.shape or labels.ndim != 1 or len(keys) != rows:
            raise ShapeError(
                f"{probabilities.shape} probabilities, {weights.shape} weights, {served.shape} served and {len(keys)} keys for "
                f"{labels.shape} labels"
            )
        given = Rows(probabilities, labels, weights, served, keys)
        start = 0
        while start < rows:
            part = given.take(slice(start, start + self.window_rows - self._waiting_rows)).copy()
            if self._waiting and self._waiting[0].keys.shape[1] != part.keys.shape[1]:
                self._forget_keys(part.keys.shape[1])
            self._waiting.append(part)
            self._waiting_rows += len(part.labels)
            start += len(part.labels)
            if self._waiting_rows == self.window_rows:
                self._close()
        return [self._closed.popleft() for _ in range(len(self._closed))]

    def partial(self) -> Window | None:
        """The window that is being filled, as far as it is."""
        if not self._waiting_rows:
            return None
        return figures(self._first, *self._open()[:3])

    def lifetime(self) -> Window | None:
        """All rows so far. The AUC is taken from 65,536 bins of the logit; `auc_error` bounds what that can cost."""
        if not self.rows:
            return None
        self._doer.settle()
        whole = self._complete
        if self._waiting_rows:
            waiting = Tally()
            waiting.add(Scored.of(*self._open()[:3]))
            whole = whole + waiting
        return whole.figures(0, self.rows)

    def state(self) -> dict[str, NDArray[Any]]:
        """All of it, as arrays for the checkpoint. Waits until complete windows are closed."""
        self._doer.settle()
        waiting = self._open()
        return {
            **self.verdicts.state(),
            "first": np.array([self._first], np.int64), **self._complete.state(),
            "probabilities": waiting.probabilities, "labels": waiting.labels, "weights": waiting.weights,
            "served": waiting.served, "keys": waiting.keys,
            **{f"sample_{name}": array for name, array in state_of(self._sampled()).items()},
            **({} if self._watcher is None else self._watcher.state()),
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on exactly where `state` was taken. With a smaller window than then, what was waiting may fill some: they
        count, but are not reported."""
        self._doer.settle()
        self.verdicts.restore(state)
        self._first = int(state["first"][0])
        sums = np.array(state["sums"], np.float64)
        if len(sums) == 3:                                     # a checkpoint from before there were weights
            sums = np.append(sums, (self._first, sums[2]))
        self._complete = Tally.restored(BINS, sums, state["bins"], state["counts"])
        if self._watcher is not None:
            self._watcher.restore(state)
        self._waiting, self._waiting_rows = [], 0
        part = "sample_"
        sample = sample_of({name[len(part) :]: np.array(array) for name, array in state.items() if name.startswith(part)})
        self._samples = [] if sample is None else [lambda: sample]
        names = ("probabilities", "labels", "weights", "served", "keys")
        self.add(*(np.array(state[name]) if name in state else None for name in names))  # type: ignore[arg-type]
        self._doer.settle()
        self._closed.clear()

    def _open(self) -> Rows:
        if not self._waiting:
            none = np.empty(0, np.float32)
            return Rows(none, none, none, none, np.empty((0, 0), np.uint64))
        self._waiting = [joined(self._waiting)]
        return self._waiting[0]

    def _sampled(self) -> Sample | None:
        """All that waits, taken."""
        sample = together([taken() for taken in self._samples])
        self._samples = [] if sample is None else [lambda: sample]
        return sample

    def _forget_keys(self, width: int) -> None:
        """What waits was watched by other slices, before the schema or a setting changed."""
        waiting = self._open()
        self._waiting = [waiting._replace(keys=np.zeros((len(waiting.labels), width), np.uint64))]

    def _close(self) -> None:
        """The window that is full, to be closed by somebody."""
        parts, first, samples = self._waiting, self._first, self._samples
        self._first += self._waiting_rows
        self._waiting, self._waiting_rows, self._samples = [], 0, []
        self._doer.give(partial(self._figure_out, first, parts, samples))

    def _figure_out(self, first_row: int, parts: list[Rows], samples: list[Sampled]) -> None:
        """On the doer's thread; nobody else touches what it changes before the doer has settled."""
        rows = joined(parts)
        scored = Scored.of(*rows[:3])
        window = _figures(first_row, scored)
        self._complete.add(scored)
        if self._watcher is not None:
            self._watcher.closed(window, rows, scored, together([taken() for taken in samples]))
        self._closed.append(window)


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
