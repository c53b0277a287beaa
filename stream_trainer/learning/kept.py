"""Rows of a table as they were at some moment: copied when they are about to change, not before."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Rows = NDArray[np.int64]
Floats = NDArray[np.float32]


class Kept:
    """Rows with their state, in memory that grows to what was once needed and is used again after each `clear`."""

    def __init__(self, bits: int, wide: int) -> None:
        """Of a table of 2^bits rows, `wide` floats each."""
        self._place = np.zeros(1 << bits, np.int32)       # row → 1 + where it stands; 0 = not kept
        self._rows = np.empty(0, np.int64)                # (capacity,)
        self._block = np.empty((0, wide), np.float32)     # (capacity, S)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def rows(self) -> Rows:
        """(N,), in the order in which they were kept. A view, until the next `keep`."""
        return self._rows[: self._count]

    @property
    def block(self) -> Floats:
        """(N, S), what they held. A view, until the next `keep`."""
        return self._block[: self._count]

    def keep(self, rows: Tensor, block: Tensor) -> None:
        """Copy those that are not kept yet. rows: (N,) int64, each once. block: (N, S), what they hold now."""
        numbers = rows.cpu().numpy()
        new = np.flatnonzero(self._place.take(numbers) == 0)                              # (n,)
        if len(new):
            start = self._room(len(new))
            numbers.take(new, out=self._rows[start : self._count], mode="clip")           # else numpy copies once more
            block.detach().cpu().numpy().take(new, axis=0, out=self._block[start : self._count], mode="clip")
            self._number(start)

    def places(self, rows: Rows) -> NDArray[np.int32]:
        """1 + where each stands in `rows` and `block`; 0 = not kept. rows: (n,)."""
        found: NDArray[np.int32] = self._place.take(rows)
        return found

    def clear(self) -> None:
        """Keep nothing."""
        self._place[self.rows] = 0
        self._count = 0

    def restore(self, rows: Rows, block: Floats) -> None:
        """What was kept elsewhere, in that order. rows: (N,), block: (N, S)."""
        self.clear()
        self._room(len(rows))
        self._rows[: self._count], self._block[: self._count] = rows, block
        self._number(0)

    def _room(self, more: int) -> int:
        """Make place for so many more; where they begin."""
        start = self._count
        self._count += more
        if self._count > len(self._rows):
            capacity = max(2 * len(self._rows), self._count)
            rows, block = np.empty(capacity, np.int64), np.empty((capacity, self._block.shape[1]), np.float32)
            rows[:start], block[:start] = self._rows[:start], self._block[:start]
            self._rows, self._block = rows, block
        return start

    def _number(self, start: int) -> None:
        self._place[self._rows[start : self._count]] = np.arange(start + 1, self._count + 1, dtype=np.int32)
