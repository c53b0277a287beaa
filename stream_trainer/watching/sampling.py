"""The examples that are looked at field by field, and by the reference: one in so many of those that were learnt.

They are chosen by a hash of their identity: the same ones whoever asks, and of a slate mostly one or two, so that what its
items share counts about once. The learner's thread keeps what a batch is made of, which costs it nothing; when a window
closes, all its batches are looked at as one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from schemas.bags import Bags, Ids, concat, made
from stream_trainer.learning.intake import Batch, concat_batches
from stream_trainer.watching.verdicts import when_learnt

Floats = NDArray[np.float32]

_COLUMNS = ("unseen", "said", "labels", "weights", "share")   # of a Sample, besides its bags
_HALF = np.uint64(32)
_MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F), np.uint64(0x165667B19E3779F9))


class Still(Protocol):
    """A model that does not learn."""

    version: int

    def score(self, bags: Bags) -> Floats:
        """(n,) probabilities."""


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """s examples. bags: s rows. unseen: (n,) bool, ids that no example had had. said, labels, weights: (s,) f32, what the model
    said before it learnt them, what became of them, what they count for; weight NaN: their labels were not final then.
    share: (s,) f32, of the chance that was said, what is judged (1; mode corrected: what comes in time). still: what a version
    that stands still says of those that were judged, and its number; None: there is none."""

    bags: Bags
    unseen: NDArray[np.bool_]
    said: Floats
    labels: Floats
    weights: Floats
    share: Floats
    still: tuple[int, Floats] | None = None

    def __len__(self) -> int:
        return len(self.said)

    @property
    def judged(self) -> NDArray[np.bool_]:
        """(s,): whose labels were final when they were learnt."""
        return np.isfinite(self.weights)


class _Learnt(NamedTuple):
    """As Sampler.note is told."""

    batch: Batch
    said: Floats
    first: Sequence[NDArray[np.int64]]


class Sampler:
    """Keeps what was learnt since the last cut. still: a version beside the model; None: there is none."""

    def __init__(self, one_in: int, bits: int) -> None:
        """bits: of the table."""
        self.still: Still | None = None
        self._most = np.uint64((1 << 64) // one_in - 1)
        self._mask = np.uint64((1 << bits) - 1)
        self._before: Sample | None = None      # what a checkpoint knew
        self._learnt: list[_Learnt] = []

    def note(self, batch: Batch, said: Floats, first: Sequence[NDArray[np.int64]]) -> None:
        """Of a batch that was just learnt. said: (B,), before it was. first: rows of the table that it touched for the first
        time."""
        self._learnt.append(_Learnt(batch, said, first))

    def cut(self) -> Callable[[], Sample | None]:
        """Takes the sample of what was noted since the last cut, on whatever thread; None of nothing."""
        before, learnt = self._before, self._learnt
        self._before, self._learnt = None, []
        return lambda: self._beside(self._of(before, learnt))

    def state(self) -> dict[str, NDArray[Any]]:
        """Of what was noted since the last cut, for the checkpoint."""
        self._before, self._learnt = self._of(self._before, self._learnt), []
        if self._before is None:
            return {}
        bags = self._before.bags
        found: dict[str, NDArray[Any]] = {"ids": bags.ids, "width": np.array([bags.fields], np.int64)}
        found |= {} if bags.values is None else {"values": bags.values}
        found |= {} if bags.lengths is None else {"lengths": bags.lengths}
        return found | {name: getattr(self._before, name) for name in _COLUMNS}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """As `state` gave it."""
        self._before, self._learnt = None, []
        if "ids" in state:
            held = {name: np.array(array) for name, array in state.items()}
            bags = made(int(held["width"][0]), held["ids"], held.get("values"), held.get("lengths"))
            self._before = _of_columns(bags, held)

    def _of(self, before: Sample | None, learnt: Sequence[_Learnt]) -> Sample | None:
        """Both together."""
        if not learnt:
            return before
        now = self._sample(learnt)
        return now if before is None else together(before, now)

    def _sample(self, learnt: Sequence[_Learnt]) -> Sample:
        """Of all these batches, one after the other."""
        batches = [one.batch for one in learnt]
        whole = concat_batches(batches)
        rows = np.flatnonzero(identity(whole.source, whole.impression, whole.item) <= self._most)   # (s,)
        bags = whole.bags.take(rows)
        ids = bags.all_lengths().reshape(-1, bags.fields).sum(axis=1, dtype=np.int64)               # (s,)
        batch = np.repeat(np.arange(len(batches)), [len(one) for one in batches])[rows]             # (s,) of which batch
        first = [(number, rows) for number, one in enumerate(learnt) for rows in one.first]
        unseen = among(
            (bags.ids & self._mask).view(np.int64) * len(batches) + np.repeat(batch, ids),
            np.concatenate([np.empty(0, np.int64), *(rows * len(batches) + number for number, rows in first)]),
        )
        said = np.concatenate([one.said for one in learnt])[rows]
        return Sample(bags, unseen, said, whole.labels[rows], *when_learnt(whole, rows))

    def _beside(self, sample: Sample | None) -> Sample | None:
        """With what the version that stands still says."""
        if sample is None or self.still is None:
            return sample
        judged = np.flatnonzero(sample.judged)
        said = self.still.score(sample.bags.take(judged)) if len(judged) else np.empty(0, np.float32)
        return replace(sample, still=(self.still.version, said))


def identity(source: NDArray[np.int64], impression: NDArray[np.int64], item: NDArray[np.uint16]) -> Ids:
    """64 bits of each example's identity. (B,) each."""
    mixed = np.multiply(item, _MIX[0], dtype=np.uint64)
    mixed += impression.view(np.uint64)
    mixed *= _MIX[1]
    mixed += source.view(np.uint64)
    mixed ^= mixed >> _HALF
    mixed *= _MIX[2]
    return mixed


def among(numbers: NDArray[np.int64], some: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which numbers are some of those: (n,). As np.isin; for a few hundred among a few at less than half its time."""
    if not len(some):
        return np.zeros(len(numbers), np.bool_)
    rising = np.sort(some)
    found: NDArray[np.bool_] = rising.take(rising.searchsorted(numbers), mode="clip") == numbers
    return found


def together(before: Sample, after: Sample) -> Sample:
    """One after the other."""
    columns = {name: np.concatenate([getattr(before, name), getattr(after, name)]) for name in _COLUMNS}
    return _of_columns(concat([before.bags, after.bags]), columns)


def _of_columns(bags: Bags, columns: Mapping[str, NDArray[Any]]) -> Sample:
    unseen, said, labels, weights, share = (columns[name] for name in _COLUMNS)
    return Sample(bags, unseen, said, labels, weights, share)
