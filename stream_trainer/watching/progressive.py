"""Progressive validation: every example is scored before it is learnt, so the stream itself is the test set.

An example is judged once, by its final label (verdicts.py holds what was said until that is known), and counts for its
weight, so that sampled negatives stand for all. Windows are cut by count, whatever the batches were.
Source: Blum, Kalai, Langford, Beating the Hold-Out, COLT 1999.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from schemas.errors import ShapeError
from stream_trainer.parts import joined
from stream_trainer.watching.marks import Keys
from stream_trainer.watching.sampling import Sampler, Taken
from stream_trainer.watching.verdicts import Verdicts
from stream_trainer.watching.windows import Floats, Rows, Window, Windows, figures

_SAMPLE = "sample_"    # what its names begin with in a state


class Closer(Protocol):
    """Makes figures of complete windows, and knows those of all (windows.Windows, here or in another process)."""

    def close(self, first_row: int, rows: Rows, taken: Taken | None) -> Window:
        """A window has become complete. taken: what was learnt up to then, since the window before."""

    def lifetime(self, rows: int, waiting: Rows) -> Window:
        """All rows: those of windows and `waiting`, of one that is being filled."""

    def state(self) -> dict[str, NDArray[Any]]:
        """All of it, as arrays."""

    def restore(self, rows: int, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on where `state` was taken, when so many rows were in windows."""


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


class Progressive:
    """Takes scores and labels in any cut; gives a `Window` for each `window_rows` of them, and figures over all.

    closer: makes figures of each window; None = in this process, and nobody else is told. doer: lets it, at once or on a thread
    beside; what is asked for here is the same either way. sampler: keeps what is looked at field by field; None = nothing is.
    """

    def __init__(
        self, window_rows: int, closer: Closer | None = None, doer: Doer | None = None, sampler: Sampler | None = None
    ) -> None:
        self.window_rows = window_rows
        self.verdicts = Verdicts()
        self.sampler = sampler
        self._closer = closer or Windows()
        self._doer = doer or AtOnce()
        self._closed: deque[Window] = deque()                  # and not returned yet
        self._lately: Window | None = None
        self._asked = False                                    # for the lifetime, and not answered yet
        self._first = 0                                        # rows in windows that are complete
        self._waiting: list[Rows] = []                         # of the window that is being filled
        self._waiting_rows = 0

    @property
    def rows(self) -> int:
        """Examples so far."""
        return self._first + self._waiting_rows

    @property
    def whole_rows(self) -> int:
        """Examples in complete windows: the first row of the one that is being filled."""
        return self._first

    def add(
        self, probabilities: Floats, labels: Floats, weights: Floats | None = None, served: Floats | None = None,
        keys: Keys | None = None,
    ) -> list[Window]:
        """The windows that were closed since this was asked last: mostly none, and those that these examples completed unless
        a thread beside closes them. All as in Rows; None = all 1, not told, not watched. What is given is kept until its window
        is closed."""
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
        if self._waiting and self._waiting[0].keys.shape[1] != keys.shape[1]:
            self._forget_keys(keys.shape[1])
        start = 0
        while start < rows:
            part = given.take(slice(start, start + self.window_rows - self._waiting_rows))
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
        return self._closer.lifetime(self.rows, self._open())

    def lately(self) -> Window | None:
        """All rows of when this was asked last, or the time before: nobody waits, they are made by whoever closes windows."""
        if self.rows and not self._asked:
            self._asked = True
            self._doer.give(partial(self._answer, self.rows, self._open()))
        return self._lately

    def _answer(self, rows: int, waiting: Rows) -> None:
        """On the doer's thread."""
        self._lately = self._closer.lifetime(rows, waiting)
        self._asked = False

    def state(self) -> dict[str, NDArray[Any]]:
        """All of it, as arrays for the checkpoint. Waits until complete windows are closed."""
        self._doer.settle()
        waiting = self._open()
        return {
            **self.verdicts.state(),
            "first": np.array([self._first], np.int64), **self._closer.state(),
            "probabilities": waiting.probabilities, "labels": waiting.labels, "weights": waiting.weights,
            "served": waiting.served, "keys": waiting.keys,
            **{f"{_SAMPLE}{name}": array for name, array in (self.sampler.state() if self.sampler else {}).items()},
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on exactly where `state` was taken. With a smaller window than then, what was waiting may fill some: they
        count, but are not reported."""
        self._doer.settle()
        self.verdicts.restore(state)
        self._first = int(state["first"][0])
        self._closer.restore(self._first, state)
        self._waiting, self._waiting_rows = [], 0
        if self.sampler is not None:
            self.sampler.restore({name.removeprefix(_SAMPLE): state[name] for name in state if name.startswith(_SAMPLE)})
        names = ("probabilities", "labels", "weights", "served", "keys")
        self.add(*(np.array(state[name]) if name in state else None for name in names))  # type: ignore[arg-type]
        self._doer.settle()
        self._closed.clear()

    def _open(self) -> Rows:
        """What waits."""
        if not self._waiting:
            none = np.empty(0, np.float32)
            return Rows(none, none, none, none, np.empty((0, 0), np.uint64))
        self._waiting = [joined(self._waiting)]
        return self._waiting[0]

    def _forget_keys(self, width: int) -> None:
        """What waits was watched by other slices, before the schema or a setting changed."""
        waiting = self._open()
        self._waiting = [waiting._replace(keys=np.zeros((len(waiting.labels), width), np.uint64))]

    def _close(self) -> None:
        """The window that is full, to be closed by somebody."""
        parts, first, taken = self._waiting, self._first, self.sampler.cut() if self.sampler else _nothing
        self._first += self._waiting_rows
        self._waiting, self._waiting_rows = [], 0
        self._doer.give(partial(self._figure_out, first, parts, taken))

    def _figure_out(self, first_row: int, parts: list[Rows], taken: Callable[[], Taken | None]) -> None:
        """On the doer's thread."""
        self._closed.append(self._closer.close(first_row, joined(parts), taken()))


def _nothing() -> None:
    """Of what nobody looks at."""
