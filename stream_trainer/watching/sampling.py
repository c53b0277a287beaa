"""The examples that are looked at field by field, and by the reference: one in so many of those that were learnt.

They are chosen by a hash of their identity: the same ones whoever asks, and of a slate mostly one or two, so that what its
items share counts about once. The learner's thread keeps what a batch is made of, which costs it nothing; when a window
closes, all its batches are looked at as one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from schemas.bags import Bags, Ids, concat, made, taken
from stream_trainer.learning.intake import Batch, concat_weights
from stream_trainer.learning.losses import concat_seen
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


_Noted = tuple[Batch, Floats, Sequence[NDArray[np.int64]]]    # as Sampler.note is told


@dataclass(frozen=True, slots=True, eq=False)
class Taken:
    """Those that are looked at of what was learnt between two cuts; which of their ids had been seen is not found out yet, but
    for what a checkpoint knew: in whatever process that is done.

    now: s examples, unseen all False. batch: (s,) which of `batches` each was learnt in. first: (m,) rows of the table that
    were touched for the first time, and by: (m,) which batch. mask: of the table's rows.
    """

    before: Sample | None
    now: Sample | None
    batch: NDArray[np.int64]
    first: NDArray[np.int64]
    by: NDArray[np.int64]
    batches: int
    mask: np.uint64

    def sample(self) -> Sample | None:
        """None where nothing was learnt."""
        if self.now is None:
            return self.before
        bags = self.now.bags
        ids = bags.all_lengths().reshape(-1, bags.fields).sum(axis=1, dtype=np.int64)               # (s,)
        places = (bags.ids & self.mask).view(np.int64) * self.batches + np.repeat(self.batch, ids)
        now = replace(self.now, unseen=among(places, self.first * self.batches + self.by))
        return now if self.before is None else together(self.before, now)


class Sampler:
    """Keeps what was learnt since the last cut. still: a version beside the model; None: there is none."""

    def __init__(self, one_in: int, bits: int) -> None:
        """bits: of the table."""
        self.still: Still | None = None
        self._most = np.uint64((1 << 64) // one_in - 1)
        self._mask = np.uint64((1 << bits) - 1)
        self._before: Sample | None = None      # what a checkpoint knew
        self._batches: list[_Noted] = []

    def note(self, batch: Batch, said: Floats, first: Sequence[NDArray[np.int64]]) -> None:
        """Of a batch that was just learnt. said: (B,), before it was. first: rows of the table that it touched for the first
        time."""
        self._batches.append((batch, said, first))

    def cut(self) -> Callable[[], Taken]:
        """Takes what was noted since the last cut, on whatever thread."""
        before, batches = self._before, self._batches
        self._before, self._batches = None, []
        return lambda: self._beside(self._taken(before, batches))

    def state(self) -> dict[str, NDArray[Any]]:
        """Of what was noted since the last cut, for the checkpoint."""
        self._before, self._batches = self._taken(self._before, self._batches).sample(), []
        if self._before is None:
            return {}
        bags = self._before.bags
        found: dict[str, NDArray[Any]] = {"ids": bags.ids, "width": np.array([bags.fields], np.int64)}
        found |= {} if bags.values is None else {"values": bags.values}
        found |= {} if bags.lengths is None else {"lengths": bags.lengths}
        return found | {name: getattr(self._before, name) for name in _COLUMNS}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """As `state` gave it."""
        self._before, self._batches = None, []
        if "ids" in state:
            held = {name: np.array(array) for name, array in state.items()}
            bags = made(int(held["width"][0]), held["ids"], held.get("values"), held.get("lengths"))
            self._before = _of_columns(bags, held)

    def _taken(self, before: Sample | None, noted: Sequence[_Noted]) -> Taken:
        none = np.empty(0, np.int64)
        first = [(number, rows) for number, (_, _, new) in enumerate(noted) for rows in new]
        now, batch = self._looked_at(noted) if noted else (None, none)
        return Taken(
            before, now, batch, np.concatenate([none, *(rows for _, rows in first)]),
            np.concatenate([none, *(np.full(len(rows), number) for number, rows in first)]), len(noted), self._mask,
        )

    def _looked_at(self, noted: Sequence[_Noted]) -> tuple[Sample, NDArray[np.int64]]:
        """Of those batches, at least one; and by which each was learnt."""
        batches = [batch for batch, _, _ in noted]
        source, impression, item, labels, said = map(np.concatenate, zip(*(
            (batch.source, batch.impression, batch.item, batch.labels, said) for batch, said, _ in noted
        ), strict=True))
        rows = np.flatnonzero(identity(source, impression, item) <= self._most)                     # (s,)
        seen = concat_seen([(len(batch), batch.seen) for batch in batches])
        weights, share = when_learnt(labels, concat_weights(batches), seen)                         # (n,) each
        bags, number = taken([batch.bags for batch in batches], rows), np.repeat(np.arange(len(noted)), list(map(len, batches)))
        none = np.zeros(len(bags.ids), np.bool_)
        return Sample(bags, none, said[rows], labels[rows], weights[rows], share[rows]), number[rows]

    def _beside(self, taken: Taken) -> Taken:
        """What the version beside says of it, which is here alone."""
        if self.still is None or (sample := taken.sample()) is None:
            return taken
        judged = np.flatnonzero(sample.judged)
        said = self.still.score(sample.bags.take(judged)) if len(judged) else np.empty(0, np.float32)
        return replace(taken, before=replace(sample, still=(self.still.version, said)), now=None)


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
