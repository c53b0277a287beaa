"""The guard against divergence: notices that learning makes the scores worse, takes the last good state, and learns what
came since again with a smaller step. Pure: batches in, scores out; all of it a function of the examples, none of the clock.

It asks two questions, both on the same examples, so that the traffic's own ups and downs cancel (a loss compared with its
own past has no such excuse). A cheap one all the time, on a share of the examples: would the good state, had it stood still,
have scored them better than the model that went on learning? A stream that turns harder, or a click rate that doubles,
hurts the one that stands still more. If so, a dear one: from the good state, are the same batches scored better when they are
learnt with half the step? Then that is what is kept; if not, all is as it was, and the next such question has to wait.
A step that is too large from the start hurts without ever getting worse, so the dear question is also asked unprovoked,
ever more seldom: after 16,384 examples, and after eight times as many each time that it was in vain.

Every example stays learnt once: the batches since the good state are kept, and learnt again onto it. What was said
meanwhile was said, so the progressive figures keep it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from schemas.bags import Bags, concat
from schemas.crosses import crossed
from stream_trainer.learning.distinct import distinct
from stream_trainer.learning.kept import Kept
from stream_trainer.learning.learner import Diverged, Learner
from stream_trainer.learning.losses import CLIP, Seen, concat_seen, log_losses
from stream_trainer.learning.once import once

Floats = NDArray[np.float32]
Arrays = dict[str, NDArray[Any]]

ONE_IN = 4           # batches of which one is scored by the good state too; its cost: docs/bench-learn.md
ASKED = 8            # and of that one no more than this part of guard_rows: large batches make long windows
LEAST_BATCHES = 8    # between two good states, however large the batches: some of them must be scored by both
MOST_WINDOWS = 4     # of no gain over standing still, and the smaller step is tried; also bounds what is kept
SUSPECT = 3.0        # standard errors of loss above standing still at which it is tried at once
ROUTINE_AT = 16_384  # examples after which the smaller step is tried in any case,
ROUTINE_WINDOWS = 2  # on so many windows: on one, half of Adam's 3e-3 on Criteo would be 3.4 errors better, on two it is 4.7;
ROUTINE_RARER = 8    # and again after so many times as many: a seventh of a pass over 60,000 examples, nothing of a day's
SURE = 4.0           # standard errors by which the smaller step must be better; one in 30,000 by chance
HALF = 0.5           # what the rates are multiplied by
MOST_PATIENCE = 64  # windows until the next trial, which doubles with each that was in vain


@dataclass(frozen=True, slots=True)
class Divergence:
    """What the guard saw and did.

    excess: mean log loss of what was said since the good state, above that of learning it again with smaller steps, with its
    standard error; NaN where the loss itself was no number. good_at, noticed_at: examples learnt then. relearnt: examples
    learnt again, from good_at on. rate_factor: what all rates are multiplied by from here on.
    """

    excess: float
    error: float
    good_at: int
    noticed_at: int
    relearnt: int
    rate_factor: float


@dataclass(slots=True, eq=False)
class _Learnt:
    """A batch learnt since the good state. losses: (B,) f64 of what was said of it before; inf where that was no number."""

    bags: Bags
    labels: Floats
    weights: Floats | None
    seen: Seen | None
    losses: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class _State:
    """All that learning changes, but for the rows of the table, which stand in `block` in the order of Guard._kept."""

    block: Floats | None
    dense: Arrays
    dense_state: Arrays
    batches: int
    examples: int


class Guard:
    """Stands between the training and the learner: `learn` here learns there."""

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self.rate_factor = 1.0
        self._config = learner.learn_config
        self._routine = ROUTINE_AT  # examples after which there is a trial in any case
        self._patience = 1      # windows that a trial in vain makes the next one wait
        self._waits = 0         # windows until there may be one
        self._kept = Kept(learner.table.bits if self._config.guard else 0, learner.table.wide)   # rows of the good state
        self._take()

    @property
    def buffered_rows(self) -> int:
        """Examples learnt since the good state."""
        return sum(len(batch.labels) for batch in self._batches)

    def learn(
        self, bags: Bags, labels: Floats, weights: Floats | None = None, seen: Seen | None = None
    ) -> tuple[Floats, Divergence | None]:
        """As Learner.learn; and what was noticed, mostly nothing. Raises ShapeError, and Diverged where no step is small
        enough."""
        if not self._config.guard:
            return self.learner.learn(bags, labels, weights, seen), None
        # The first batch after a good state is not asked about: there is no difference yet.
        good = self._good_losses(bags, labels, weights, seen) if len(self._batches) % ONE_IN == 1 else None
        try:
            said = self.learner.learn(bags, labels, weights, seen, self._kept.keep)
        except Diverged:
            self._keep_rows(bags)
            self._add(_Learnt(bags, labels, weights, seen, np.full(len(labels), np.inf)))
            found, said = self._try_smaller()
            if found is None:
                raise
            return said, found
        losses = log_losses(said, labels, weights, seen)
        self._add(_Learnt(bags, labels, weights, seen, losses))
        if good is not None:
            more = losses[: len(good)] - good                                             # (A,)
            self._asked += len(more)
            self._sums += (more.sum(), np.square(more).sum())
        return said, self._judge()

    def _add(self, batch: _Learnt) -> None:
        self._batches.append(batch)
        self._count += len(batch.labels)

    def _judge(self) -> Divergence | None:
        """At the end of a window: a new good state, or more evidence, or the trial."""
        if self._count < self._config.guard_rows * self._windows or len(self._batches) < LEAST_BATCHES:
            return None
        self._waits = max(self._waits - 1, 0)
        mean, error = _mean(self._sums, self._asked)
        found = None
        learnt = self.learner.examples_learnt
        due = learnt >= self._routine
        if due:
            waits = self._count < ROUTINE_WINDOWS * self._config.guard_rows
        else:
            waits = mean > 0 and self._windows < MOST_WINDOWS and (mean <= SUSPECT * error or self._waits > 0)
        if waits:
            self._windows += 1
            return None
        if due or (mean > 0 and not self._waits):
            found, _ = self._try_smaller()
            self._routine = (2 if found else ROUTINE_RARER) * learnt if due or found else self._routine
            self._patience = 1 if found else min(2 * self._patience, MOST_PATIENCE)
            self._waits = 0 if found else self._patience
        self._take()
        return found

    def _try_smaller(self) -> tuple[Divergence | None, Floats]:
        """From the good state through the same batches with half the step; with a quarter if that was better …, as far as to
        the floor. The best is kept. Returns None where that is what there was; and what is then said of the last batch."""
        best, factor = self._now(), self.rate_factor
        losses = np.concatenate([batch.losses for batch in self._batches])
        labels = np.concatenate([batch.labels for batch in self._batches])
        noticed, excess, error, found, said = best.examples, math.nan, math.nan, None, np.empty(0, np.float32)
        if not np.isfinite(losses).all():
            noticed += len(self._batches[-1].labels)
        while factor * HALF >= self._config.guard_floor:
            factor *= HALF
            tried = self._relearnt(factor)
            if tried is None:
                continue
            mean, deviation = _mean_of(losses - tried[0])
            if np.isfinite(losses).all():
                if mean <= SURE * deviation or mean <= self._config.guard_margin * _entropy(labels):
                    break
                excess, error = (mean, deviation) if math.isnan(excess) else (excess + mean, max(error, deviation))
            best, losses, said, self.rate_factor = self._now(), *tried, factor
            found = Divergence(excess, error, self._good.examples, noticed, self._count, factor)
        self._set(best)
        self.learner.scale_rates(self.rate_factor)
        return found, said

    def _relearnt(self, factor: float) -> tuple[NDArray[np.float64], Floats] | None:
        """The good state, and the batches since learnt again with that share of the rates. Their losses, and what was said
        of the last; None where that diverges too."""
        self._set(self._good)
        self.learner.scale_rates(factor)
        losses = []
        try:
            for batch in self._batches:
                said = self.learner.learn(batch.bags, batch.labels, batch.weights, batch.seen)
                losses.append(log_losses(said, batch.labels, batch.weights, batch.seen))
        except Diverged:
            return None
        return np.concatenate(losses), said

    # --- the good state ---

    def _take(self) -> None:
        """What there is now is the good state. Its rows are copied when they are about to change, not before."""
        self._kept.clear()                                # of rows learnt since
        self._batches: list[_Learnt] = []
        self._count = 0                                   # examples since
        self._asked = 0                                   # of them scored by both
        self._sums = np.zeros(2)                          # over those, loss above the good state's: Σ, Σ of squares
        self._windows = 1
        self._good = self._now() if self._config.guard else _State(None, {}, {}, 0, 0)

    def _keep_rows(self, bags: Bags) -> None:
        """The rows of a batch that was not learnt: learnt again with smaller steps it may be."""
        table = self.learner.table
        numbers = table.numbers(crossed(bags, self.learner.schema).ids).cpu().numpy()     # (n,)
        rows = torch.from_numpy(distinct(numbers)).to(table.device)                       # (N,)
        table.gather(rows)
        self._kept.keep(rows, table.held(rows))

    def _good_losses(
        self, bags: Bags, labels: Floats, weights: Floats | None, seen: Seen | None
    ) -> NDArray[np.float64]:
        """Of the batch's first A examples, what the good state says: (A,)."""
        end = max(self._config.guard_rows // ASKED, 1)
        if end < len(bags):
            bags, labels, seen = bags.slice(0, end), labels[:end], None if seen is None else seen.slice(0, end)
            weights = None if weights is None else weights[:end]
        return log_losses(self._good_scores(bags), labels, weights, seen)

    def _good_scores(self, bags: Bags) -> Floats:
        """What the good state says, by its dense weights, and its rows where they differ from the table's."""
        learner, bags = self.learner, crossed(bags, self.learner.schema)
        ids = once(learner.table.numbers(bags.ids))
        rows = learner.table.gather(ids.rows)                                             # (N, W)
        places = self._kept.places(ids.rows.cpu().numpy())                                # (N,)
        kept = np.flatnonzero(places)
        good = torch.from_numpy(self._kept.block[places[kept] - 1, : learner.table.width]).to(rows.device)
        rows.index_copy_(0, torch.from_numpy(kept).to(rows.device), good)
        return learner.score_rows(ids.spread(rows), bags, self._good.dense)

    def _now(self) -> _State:
        """What there is now, with the rows learnt since the good state."""
        learner = self.learner
        block = learner.table.rows_with_state(self._kept.rows) if len(self._kept) else None
        return _State(block, learner.dense(), learner.dense_state(), learner.batches_learnt, learner.examples_learnt)

    def _set(self, state: _State) -> None:
        """As it was then. Each row set back is in a batch that has been learnt since, and so is listed for the next version and
        checkpoint, or will be when it is learnt again."""
        block = self._kept.block if state is self._good else state.block
        if block is not None:
            self.learner.table.load(self._kept.rows, block)
        self.learner.load(state.dense, state.dense_state, state.batches, state.examples)

    # --- what a checkpoint holds ---

    def state(self) -> Arrays:
        """All of it, as arrays; nothing if the guard is off."""
        if not self._config.guard:
            return {}
        good = self._good
        found: Arrays = {
            "rates": np.array([self.rate_factor]), "sums": self._sums,
            "counts": np.array([
                self._count, self._asked, self._windows, self._patience, self._waits, self._routine,
                good.batches, good.examples,
            ], np.int64),
            **{f"dense/{name}": array for name, array in good.dense.items()},
            **{f"dense_state/{name}": array for name, array in good.dense_state.items()},
        }
        if self._batches:
            bags = concat([batch.bags for batch in self._batches])
            found |= {
                "rows": self._kept.rows, "block": self._kept.block,
                "ids": bags.ids, "fields": np.array([bags.fields], np.int64),
                "cuts": np.array([len(batch.labels) for batch in self._batches], np.int64),
                "labels": np.concatenate([batch.labels for batch in self._batches]),
                "losses": np.concatenate([batch.losses for batch in self._batches]),
                "weights": np.concatenate([
                    np.full(len(batch.labels), np.nan, np.float32) if batch.weights is None else batch.weights
                    for batch in self._batches
                ]),
            }
            found |= {} if bags.values is None else {"values": bags.values}
            found |= {} if bags.lengths is None else {"lengths": bags.lengths}
            seen = concat_seen([(len(batch.labels), batch.seen) for batch in self._batches])
            found |= {} if seen is None else {"stage": seen.stage, "late": seen.late, "rate": seen.rate}
        return found

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on where `state` was taken; the learner has been restored. Without one, what there is now is the good state."""
        self._take()
        if not self._config.guard or not state:
            return
        self.rate_factor = float(state["rates"][0])
        self.learner.scale_rates(self.rate_factor)
        self._sums = np.array(state["sums"], np.float64)
        counts = [int(count) for count in state["counts"]]
        self._count, self._asked, self._windows, self._patience, self._waits, self._routine = counts[:6]
        dense, dense_state = (
            {name[len(part) :]: np.array(array) for name, array in state.items() if name.startswith(part)}
            for part in ("dense/", "dense_state/")
        )
        self._good = _State(None, dense, dense_state, *counts[6:])
        if "ids" not in state:
            return
        self._kept.restore(state["rows"], state["block"])
        bags = Bags(int(state["fields"][0]), state["ids"], state.get("values"), state.get("lengths"))
        seen = Seen(state["stage"], state["late"], state["rate"]) if "stage" in state else None
        end = 0
        for rows in state["cuts"].tolist():
            start, end = end, end + rows
            weights = state["weights"][start:end]
            self._batches.append(_Learnt(
                bags.slice(start, end), state["labels"][start:end], None if np.isnan(weights).any() else weights,
                None if seen is None else seen.slice(start, end), state["losses"][start:end],
            ))


def _mean(sums: NDArray[np.float64], n: int) -> tuple[float, float]:
    """Of n numbers with those sums (Σ, Σ of squares): their mean and its standard error."""
    mean = float(sums[0]) / max(n, 1)
    return mean, math.sqrt(max(float(sums[1]) / max(n, 1) - mean**2, 0.0) / max(n, 1))


def _mean_of(numbers: NDArray[np.float64]) -> tuple[float, float]:
    return _mean(np.array([numbers.sum(), np.square(numbers).sum()]), len(numbers))


def _entropy(labels: Floats) -> float:
    """Log loss of always saying the click rate."""
    rate = min(max(float(labels.mean(dtype=np.float64)), CLIP), 1 - CLIP)
    return -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate))
