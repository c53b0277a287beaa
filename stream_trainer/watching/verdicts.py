"""What was said of an example, held until its label is final. Pure: batches in, judgements out, each example once.

Most labels are final when they are learnt. In mode immediate an impression is learnt as a 0 before anybody knows; judged as
such, the best model would look worst. So what was said of it then, before it was learnt, waits here for its window's end: as
many numbers as the joiner holds items open. In mode corrected nobody waits days: what is judged is the first of the two, what
was seen within the window, by the chance that it is seen, f·(1 − late). The second is not judged: it has been learnt before.
The order of judgements is a function of the examples and where batches are cut.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.examples import Stage
from stream_trainer.learning.intake import Batch
from stream_trainer.learning.losses import Seen
from stream_trainer.watching.marks import Keys

Floats = NDArray[np.float32]
Key = tuple[int, int]   # source partition, offset of the impression


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """probabilities, labels: (n,) f32, what was said and what became of it. weights: (n,) f32, what each counts for, such
    that sampled negatives stand for all. source, impression: (n,) i64, whose they are. served: (n,) f32, what the scorer had
    said, NaN = not told. keys: (n, 1 + S) by what they are watched (marks.Marker), (n, 0) = nothing."""

    probabilities: Floats
    labels: Floats
    weights: Floats
    source: NDArray[np.int64]
    impression: NDArray[np.int64]
    served: Floats
    keys: Keys

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(slots=True)
class _Held:
    """Items of one impression: place → (what was said, what it counts for as a negative, what was served, keys); and those
    with an action."""

    said: dict[int, tuple[float, float, float, tuple[int, ...]]] = field(default_factory=dict)
    clicked: set[int] = field(default_factory=set)


class Verdicts:
    """Takes batches with what was said of them, and which impressions are settled; gives what can be judged."""

    def __init__(self) -> None:
        self._held: dict[Key, _Held] = {}
        self._width = 0    # keys of an example, as the last batch had them

    def __len__(self) -> int:
        """Impressions that wait."""
        return len(self._held)

    def judge(self, batch: Batch | None, said: Floats, before: Sequence[Key], after: Sequence[Key]) -> Judged:
        """before, after: impressions that are settled before the batch's last row, and after it (Intake.settled).

        In order: those before of earlier batches, what is final in this batch, those before of this one, those after.
        """
        if batch is None:
            return self._settle([*before, *after])
        keys = np.empty((len(batch), 0), np.uint64) if batch.keys is None else batch.keys
        self._width = keys.shape[1]
        if batch.seen is None:
            weights = _weights(batch.labels, batch.weights, batch.seen)
            now = Judged(said, batch.labels, weights, batch.source, batch.impression, batch.served_probability, keys)
            return joined([self._settle(before), now, self._settle(after)]) if before or after else now
        new, direct = self._hold(batch, said, keys)
        own = (batch.seen.stage == Stage.FINAL) | (batch.seen.stage == Stage.OBSERVED)
        own[direct] = True
        expected = np.where(batch.seen.stage == Stage.OBSERVED, said * (1 - batch.seen.late), said).astype(np.float32)
        return joined([
            self._settle([key for key in before if key not in new]),
            _judged(batch, np.flatnonzero(own), expected, _weights(batch.labels, batch.weights, batch.seen), keys),
            self._settle([key for key in before if key in new]),
            self._settle(after),
        ])

    def _hold(self, batch: Batch, said: Floats, keys: Keys) -> tuple[set[Key], list[int]]:
        """Keep what is not final. Returns the impressions that came with this batch, and rows to be judged at once: an action
        on an item whose 0 the sample left out."""
        assert batch.seen is not None
        new: set[Key] = set()
        direct = []
        weights = _weights(batch.labels, batch.weights, batch.seen)
        stages = batch.seen.stage
        for row in np.flatnonzero((stages == Stage.IMMEDIATE) | (stages == Stage.IMMEDIATE_BOTH)).tolist():
            key, item = (int(batch.source[row]), int(batch.impression[row])), int(batch.item[row])
            held = self._held.get(key)
            if batch.labels[row] > 0.5 and stages[row] == Stage.IMMEDIATE:
                if held is not None and item in held.said:
                    held.clicked.add(item)
                else:
                    direct.append(row)
                continue
            if held is None:
                held = self._held[key] = _Held()
            new.add(key)
            served = float(batch.served_probability[row])
            held.said[item] = float(said[row]), float(weights[row]), served, tuple(keys[row].tolist())
            if batch.labels[row] > 0.5:
                held.clicked.add(item)
        return new, direct

    def _settle(self, settled: Sequence[Key]) -> Judged:
        """Judge these; one of which nothing is held (the sample left out all of it) says nothing."""
        said, labels, weights, owners, served, marked = [], [], [], [], [], []
        for key in settled:
            held = self._held.pop(key, None)
            for item, (probability, weight, shown, keys) in sorted(held.said.items() if held is not None else ()):
                clicked = held is not None and item in held.clicked
                said.append(probability)
                labels.append(float(clicked))
                weights.append(1.0 if clicked else weight)
                owners.append(key)
                served.append(shown)
                marked.append(keys if len(keys) == self._width else (0,) * self._width)   # watched by others then
        places = np.array(owners, np.int64).reshape(-1, 2)
        return Judged(
            np.array(said, np.float32), np.array(labels, np.float32), np.array(weights, np.float32), places[:, 0], places[:, 1],
            np.array(served, np.float32), np.array(marked, np.uint64).reshape(len(marked), self._width),
        )

    def state(self) -> dict[str, NDArray[Any]]:
        """All of it, as arrays for the checkpoint."""
        rows = [
            ((*key, item, int(item in held.clicked)), numbers, keys if len(keys) == self._width else (0,) * self._width)
            for key, held in self._held.items() for item, (*numbers, keys) in held.said.items()
        ]
        return {
            "held_names": np.array([names for names, _, _ in rows], np.int64).reshape(-1, 4),
            "held_numbers": np.array([numbers for _, numbers, _ in rows], np.float32).reshape(-1, 3),
            "held_keys": np.array([keys for _, _, keys in rows], np.uint64).reshape(len(rows), self._width),
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on where `state` was taken; one from before there was such a thing holds nothing."""
        self._held = {}
        if "held_names" not in state:
            return
        names, numbers = state["held_names"].tolist(), state["held_numbers"].tolist()
        every_key = state["held_keys"] if "held_keys" in state else np.empty((len(names), 0), np.uint64)
        self._width = every_key.shape[1]
        for (source, offset, item, clicked), (said, weight, *served), keys in zip(
            names, numbers, every_key.tolist(), strict=True
        ):
            held = self._held.setdefault((source, offset), _Held())
            held.said[item] = said, weight, *(served or [math.nan]), tuple(keys)
            if clicked:
                held.clicked.add(item)


def when_learnt(labels: Floats, weights: Floats | None, seen: Seen | None) -> tuple[Floats, Floats]:
    """Of each row: what it counts for in figures, NaN where it is judged later or never; and what share of the chance that was
    said is judged."""
    counts = _weights(labels, weights, seen)
    share = np.ones(len(labels), np.float32)
    if seen is not None:
        observed = seen.stage == Stage.OBSERVED
        share[observed] -= seen.late[observed]
        counts = np.where(observed | (seen.stage == Stage.FINAL), counts, np.float32(np.nan))
    return counts, share


def _weights(labels: Floats, weights: Floats | None, seen: Seen | None) -> Floats:
    """What each row counts for in figures: a negative that was kept unweighted stands for 1/rate of them."""
    counts = np.ones(len(labels), np.float32) if weights is None else weights
    if seen is None:
        return counts
    found: Floats = np.where(labels > 0.5, counts, counts / seen.rate).astype(np.float32)
    return found


def _judged(batch: Batch, rows: NDArray[np.intp], said: Floats, weights: Floats, keys: Keys) -> Judged:
    return Judged(
        said[rows], batch.labels[rows], weights[rows], batch.source[rows], batch.impression[rows],
        batch.served_probability[rows], keys[rows],
    )


def joined(parts: Sequence[Judged]) -> Judged:
    """One after the other."""
    filled = [part for part in parts if len(part)] or list(parts[:1])
    if len(filled) == 1:
        return filled[0]
    names = ("probabilities", "labels", "weights", "source", "impression", "served", "keys")
    return Judged(*(np.concatenate([getattr(part, name) for part in filled]) for name in names))
