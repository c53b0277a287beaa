"""The table: 2^bits rows of weights with their optimiser's state beside them, behind gather · apply · touched.

Memory is flat by construction and taken from the system only as rows are touched. What a batch costs depends on its
rows, what a snapshot costs on the rows touched since the last one; neither on the size of the table.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from schemas.bags import Ids
from schemas.errors import ShapeError
from schemas.models.native import numpy_reaches
from schemas.models.statistics import add_counts
from stream_trainer.learning.distinct import distinct
from stream_trainer.learning.optimisers import RowOptimiser

RowNumbers = NDArray[np.int64]
Floats = NDArray[np.float32]

_EVER = 1                                     # bits of a row's flag: touched at all,
_LISTED = {"version": 2, "checkpoint": 4}     # and already listed for the next one of each kind


class Table:
    """Rows by number. `new_rows` says what a row holds before it is touched: (N,) int64 → (N, W)."""

    def __init__(
        self,
        bits: int,
        width: int,
        optimiser: RowOptimiser,
        new_rows: Callable[[Tensor], Tensor],
        rotation: int = 64,
        device: torch.device | None = None,
        counted: int = 0,
    ) -> None:
        """counted: the last so many columns of a row are counts, which no optimiser knows."""
        self.bits = bits
        self.width = width                                       # W: weights and counts in a row
        self.learnt = width - counted                            # L: weights alone
        self.wide = width + optimiser.state_width(self.learnt)   # S: weights, counts and state
        self.rotation = rotation
        self.device = device or torch.device("cpu")
        self._mask = np.uint64((1 << bits) - 1)
        self.optimiser = optimiser                               # may be exchanged for one with a state as wide
        self._new_rows = new_rows
        self._packed = _zeros((1 << bits, self.wide), np.float32, self.device)    # (2^bits, S)
        # The same in numpy, asked for once: where caches are cold, as between two batches, asking torch takes 40 µs.
        self._array = self._packed.numpy() if numpy_reaches(self.device) else None
        self._flags = _zeros((1 << bits,), np.uint8, self.device)                 # (2^bits,)
        self._held: tuple[Tensor, Tensor] | None = None                           # rows gathered last, and their block
        self._listed: dict[str, list[Tensor]] = {kind: [] for kind in _LISTED}
        self._fresh: list[Tensor] = []                           # touched for the first time, not yet in a share
        self._shares: list[list[RowNumbers]] = [[] for _ in range(rotation)]
        self._ever = 0

    def __len__(self) -> int:
        """How many rows were ever touched."""
        return self._ever

    def numbers(self, ids: Ids) -> Tensor:
        """Row of each id: id mod 2^bits. ids: (n,) uint64. Returns (n,) int64 on the table's device."""
        return torch.from_numpy((ids & self._mask).view(np.int64)).to(self.device)

    def gather(self, rows: Tensor) -> Tensor:
        """Weights of those rows, which need not differ. rows: (N,) int64. Returns (N, W), a view into a copy."""
        block = self._packed.index_select(0, rows)                                # (N, S)
        fresh = (self._flags.index_select(0, rows) == 0).nonzero().squeeze(1)     # (n,)
        if len(fresh):
            block[fresh, : self.width] = self._new_rows(rows[fresh])
        self._held = (rows, block)
        return block[:, : self.width]

    def held(self, rows: Tensor) -> Tensor:
        """The same with their state: (N, S), what they hold until `apply` changes it. rows: those gathered last."""
        if self._held is None or self._held[0] is not rows:
            self.gather(rows)
        assert self._held is not None
        return self._held[1]

    def apply(self, rows: Tensor, gradients: Tensor, counts: Tensor | None = None) -> None:
        """One step of the optimiser. rows: (N,) int64, each once. gradients: (N, W), duplicates summed; nobody reads those
        of counts. counts: (N, W − L), what to add to them."""
        if gradients.shape != (len(rows), self.width):
            raise ShapeError(f"{len(rows)} rows of {self.width} weights take no gradients {tuple(gradients.shape)}")
        block, self._held = self.held(rows), None
        self.optimiser.step(block[:, : self.learnt], block[:, self.width :], gradients[:, : self.learnt])
        if counts is not None and self.learnt < self.width:
            add_counts(block[:, self.learnt : self.width], counts)
        self._write(rows, block)
        self._mark(rows)

    def load(self, rows: RowNumbers, block: Floats) -> None:
        """Set rows with their state, as a checkpoint holds them. They count as touched, not as changed since."""
        at = torch.from_numpy(rows.astype(np.int64)).to(self.device)
        self._write(at, torch.from_numpy(block.astype(np.float32)).to(self.device))
        new = at[self._flags.index_select(0, at) == 0]
        self._flags.index_fill_(0, new, _EVER)
        self._count(new)

    @property
    def firsts(self) -> int:
        """How often rows were touched for the first time, until the next snapshot; for `first_touched`."""
        return len(self._fresh)

    def first_touched(self, since: int) -> list[RowNumbers]:
        """Rows touched for the first time since `firsts` was that, with no snapshot between, as they came: mostly none."""
        return [new.cpu().numpy() for new in self._fresh[since:]]

    def places(self, ids: Ids) -> NDArray[np.int64]:
        """Where `counts` looks for each id: (n,)."""
        rows = (ids & self._mask).view(np.int64)
        return rows if self.learnt == self.width else rows * self.wide + self.learnt

    def counts(self, places: NDArray[np.int64]) -> Floats:
        """How many examples the row at each place was in: (n,). Where rows do not count, infinity if it was ever touched."""
        if self.learnt == self.width:
            touched = self._flags.index_select(0, torch.from_numpy(places).to(self.device)) != 0
            return np.where(touched.cpu().numpy(), np.float32(np.inf), np.float32(0))
        if self._array is not None:
            return self._array.take(places)
        return self._packed.reshape(-1).index_select(0, torch.from_numpy(places).to(self.device)).cpu().numpy()

    def touch(self, rows: RowNumbers) -> None:
        """Make the next version and checkpoint hold these rows, changed or not. rows: each once."""
        at = torch.from_numpy(rows.astype(np.int64)).to(self.device)
        weights = self.gather(at)
        self._held = None
        new = self._flags.index_select(0, at) == 0                                # (N,)
        self._packed[at[new], : self.width] = weights[new]
        self._mark(at)

    def drain(self, kind: str, share: int) -> RowNumbers:
        """What the next snapshot of that kind holds, ascending: rows touched since the last drain, and of all ever
        touched those with row mod rotation = share."""
        listed = torch.cat([*self._listed[kind], self._packed.new_empty(0, dtype=torch.int64)])  # (M,)
        self._listed[kind] = []
        self._unlist(listed, ~_LISTED[kind] & 0xFF)
        return distinct(listed.cpu().numpy(), self._share(share))

    def pending(self, kind: str) -> RowNumbers:
        """Rows touched since the last drain of that kind, ascending, left where they are."""
        return np.sort(torch.cat([*self._listed[kind], self._packed.new_empty(0, dtype=torch.int64)]).cpu().numpy())

    def touched(self) -> RowNumbers:
        """All rows ever touched, ascending."""
        self._sort_fresh()
        return np.sort(np.concatenate([part for share in self._shares for part in share] or [np.empty(0, np.int64)]))

    def weights(self, rows: RowNumbers) -> Floats:
        """Weights of touched rows: (N, W), what a version holds."""
        return self._read(rows)[:, : self.width]

    def rows_with_state(self, rows: RowNumbers) -> Floats:
        """Weights and state of touched rows: (N, S), what a checkpoint holds."""
        return self._read(rows)

    def _read(self, rows: RowNumbers) -> Floats:
        if self._array is not None:
            block: Floats = self._array.take(rows, axis=0)
        else:
            block = self._packed.index_select(0, torch.from_numpy(rows).to(self.device)).cpu().numpy()
        return block

    def _write(self, rows: Tensor, block: Tensor) -> None:
        """rows: (N,) int64, each once. block: (N, S). A row is copied as one thing of so many bytes where the table is numpy's:
        half the time of torch's index_copy_, which copies floats."""
        if self._array is not None:
            whole = np.dtype((np.void, 4 * self.wide))
            self._array.view(whole)[rows.numpy(), 0] = block.contiguous().numpy().view(whole)[:, 0]
        else:
            self._packed.index_copy_(0, rows, block)

    def _mark(self, rows: Tensor) -> None:
        """Rows changed: into each list that does not have them yet. Most are in all of them."""
        everywhere = _EVER | sum(_LISTED.values())
        flags = self._flags.index_select(0, rows)                                 # (N,)
        some = (flags != everywhere).nonzero().squeeze(1)                         # (M,)
        if not len(some):
            return
        rows, flags = rows.index_select(0, some), flags.index_select(0, some)
        self._count(rows[flags == 0])
        for kind, bit in _LISTED.items():
            self._listed[kind].append(rows[(flags & bit) == 0])
        self._flags.index_fill_(0, rows, everywhere)

    def _unlist(self, rows: Tensor, kept: int) -> None:
        """Of the flags of those rows, keep these bits alone. 150,000 rows: numpy .4 ms, torch 7."""
        if numpy_reaches(self.device):
            self._flags.numpy()[rows.numpy()] &= np.uint8(kept)
        else:
            self._flags[rows] &= kept

    def _count(self, new: Tensor) -> None:
        if len(new):
            self._fresh.append(new)
            self._ever += len(new)

    def _share(self, share: int) -> RowNumbers:
        """All rows ever touched with row mod rotation = share, ascending."""
        self._sort_fresh()
        parts = self._shares[share]
        if len(parts) > 1:
            parts[:] = [np.sort(np.concatenate(parts))]
        return parts[0] if parts else np.empty(0, np.int64)

    def _sort_fresh(self) -> None:
        """Rows touched for the first time go into their shares."""
        if not self._fresh:
            return
        new = torch.cat(self._fresh).cpu().numpy()
        self._fresh = []
        share = new % self.rotation
        order = np.argsort(share, kind="stable")
        ends = np.cumsum(np.bincount(share, minlength=self.rotation))
        for place, part in enumerate(np.split(new[order], ends[:-1])):
            if len(part):
                self._shares[place].append(part)


def _zeros(shape: tuple[int, ...], kind: type[np.generic], device: torch.device) -> Tensor:
    """Zeros that take memory only when touched: numpy asks the system for clean pages, torch writes them all."""
    zeros = np.zeros(shape, kind)
    if device.type == "cpu":
        return torch.from_numpy(zeros)
    return torch.zeros(shape, dtype=torch.from_numpy(zeros[:0]).dtype, device=device)
