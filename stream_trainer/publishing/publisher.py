"""When the trainer writes what: versions for scorers, checkpoints for itself, and how it goes on after a kill.

After a kill the trainer is back at its checkpoint while scorers may hold versions published after it. It learns the same
examples again and publishes nothing until it is past the newest version. The next version, a child of that one, then
holds every row that the versions after the checkpoint held, besides those touched in this life: whatever a scorer has, it
ends with exactly the trainer's weights. Numbers go on where they stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.config import SnapshotConfig
from schemas.errors import SnapshotError
from schemas.snapshot import (
    Kind,
    Manifest,
    encode_rows,
    encode_tensors,
    model_identity,
    refuse_other_model,
)
from stream_trainer.learning.distinct import distinct
from stream_trainer.learning.guard import Guard
from stream_trainer.learning.learner import Diverged, Learner
from stream_trainer.publishing.control import Control
from stream_trainer.publishing.gate import Gate
from stream_trainer.store import SnapshotStore
from stream_trainer.watching.progressive import Progressive

PIECE_ROWS = 1 << 17  # some tens of MB
WITHOUT_A_KEY = {"first_order_optimiser": "same", "dense_optimiser": "adam"}  # checkpoints older than these settings
Cursors = Mapping[int, tuple[int, int, int]]


@dataclass(frozen=True, slots=True)
class Restored:
    """Where a trainer goes on.

    cursors: last example learnt of each source partition (trigger, offset, item). offsets: next record to read of each
    partition of `examples`. republish_after: examples that must be learnt before anything is published again.
    """

    checkpoint: int
    lineage: str
    cursors: dict[int, tuple[int, int, int]]
    offsets: dict[int, int]
    tallies: dict[str, int]
    examples_learnt: int
    batches_learnt: int
    rows: int
    republish_after: int


class Publisher:
    """Owns what the store holds of one learner. Call `restore` once, before anything else.

    Times are wall microseconds, passed in. lineage: the name of this line of weights, random, used if the store is new.
    guard: what stands between the examples and the learner, if anything does; gate: what stands between the learner and a
    version; the state of both is part of a checkpoint.
    """

    def __init__(
        self, store: SnapshotStore, learner: Learner, progressive: Progressive, config: SnapshotConfig, lineage: str,
        guard: Guard | None = None, gate: Gate | None = None,
    ) -> None:
        if learner.table.rotation != config.rotation:
            raise SnapshotError(
                f"the learner was made with rotation {learner.table.rotation}, snapshot.rotation is {config.rotation}"
            )
        self.store = store
        self.learner = learner
        self.progressive = progressive
        self.guard = guard
        self.gate = gate
        self.config = config
        self.lineage = lineage
        self.control = Control()
        self._version_us: int | None = None
        self._checkpoint_us: int | None = None
        self._checkpointed: tuple[Any, ...] | None = None
        self._ready = False

    def restore(self) -> Restored | None:
        """Go on from the newest checkpoint; None where there is none: begin at the beginning of the examples.

        Raises SnapshotError if the store belongs to another model, naming what differs, or is broken.
        """
        checkpoint = self.store.newest_checkpoint()
        version = self.store.newest("version", checkpoint.lineage if checkpoint else None)
        self._ready = True
        for manifest in (checkpoint, version):
            if manifest is not None:
                self._refuse_other(manifest)
        table = self.learner.table
        if checkpoint is None:
            if version is not None:
                self.lineage = version.lineage
                table.touch(self.store.rows_touched_since(None, version.lineage))
            return None

        self.lineage = checkpoint.lineage
        self.control = Control.of(checkpoint)
        self.store.replay("checkpoint", checkpoint.number, table.load)
        dense, parts = self.store.tensors(checkpoint)
        state = _grouped(parts)
        self.learner.load(dense, state["dense"], checkpoint.batches_learnt, checkpoint.examples_learnt)
        self.progressive.restore(state["progressive"])
        if self.guard is not None:
            self.guard.restore(state["guard"])
        if self.gate is not None:
            self.gate.restore(state["gate"])
        pending = state["pending"]["rows"].astype(np.int64)
        table.touch(distinct(pending, self.store.rows_touched_since(checkpoint.version, self.lineage)))
        self._checkpointed = _progress(
            checkpoint.batches_learnt, checkpoint.cursors, checkpoint.offsets, checkpoint.tallies, self.control, self._changes
        )
        return Restored(
            checkpoint=checkpoint.number,
            lineage=checkpoint.lineage,
            cursors={partition: (a, b, c) for partition, (a, b, c) in checkpoint.cursors.items()},
            offsets=dict(checkpoint.offsets),
            tallies=dict(checkpoint.tallies),
            examples_learnt=checkpoint.examples_learnt,
            batches_learnt=checkpoint.batches_learnt,
            rows=len(table),
            republish_after=version.examples_learnt if version else 0,
        )

    def maybe_publish(
        self,
        now_us: int,
        *,
        cursors: Cursors | None = None,
        offsets: Mapping[int, int] | None = None,
        tallies: Mapping[str, int] | None = None,
        traces: Sequence[Mapping[str, Any]] = (),
        force: bool = False,
    ) -> Manifest | None:
        """Write a version if one is due and there is anything new; its manifest, or None.

        force: due or not. Nothing is written, forced or not, before more was learnt than the newest version holds (the
        first may hold nothing), nor while the gate holds, but for the first. traces: examples to be followed to the scorer;
        the caller keeps them until they went.
        """
        self._refuse_unready()
        newest = self.store.newest("version", self.lineage)
        if newest is not None and self.learner.examples_learnt <= newest.examples_learnt:
            return None
        if not force and not _due(now_us, self._version_us, self.config.version_every_s):
            return None
        self._version_us = now_us
        if newest is not None and self.gate is not None and self.gate.holds(now_us):
            return None
        table = self.learner.table
        share, rows = self._rows("version", newest)
        weights = table.weights(rows)
        dense = self.learner.dense()
        _refuse_infinite("version", weights, dense.values())
        manifest = self._manifest(
            "version", newest, share, rows, table.width, now_us, cursors, offsets, tallies, traces=tuple(traces)
        )
        return self.store.write_version(manifest, _chunks(rows, weights, dense, {}))

    def checkpoint_due(self, now_us: int) -> bool:
        """Whether the time has come for one. A version of the same moment can be gone back to with nothing approximate."""
        return _due(now_us, self._checkpoint_us, self.config.checkpoint_every_s)

    def maybe_checkpoint(
        self,
        now_us: int,
        *,
        cursors: Cursors,
        offsets: Mapping[int, int],
        tallies: Mapping[str, int],
        force: bool = False,
    ) -> Manifest | None:
        """Write a checkpoint if one is due and anything changed, and let old snapshots go; its manifest, or None.

        cursors, offsets, tallies: as `restore` is to return them; they must be those of the very examples learnt so far.
        """
        self._refuse_unready()
        progress = _progress(self.learner.batches_learnt, cursors, offsets, tallies, self.control, self._changes)
        if progress == self._checkpointed:
            return None
        if not force and not self.checkpoint_due(now_us):
            return None
        self._checkpoint_us = now_us
        table = self.learner.table
        newest, version = self.store.newest("checkpoint", self.lineage), self.store.newest("version", self.lineage)
        share, rows = self._rows("checkpoint", newest)
        block = table.rows_with_state(rows)
        dense, dense_state = self.learner.dense(), self.learner.dense_state()
        _refuse_infinite("checkpoint", block, [*dense.values(), *dense_state.values()])
        state = self._state(dense_state)
        manifest = self._manifest(
            "checkpoint", newest, share, rows, table.wide, now_us, cursors, offsets, tallies,
            version=version.number if version else None, training=self._training(),
            control=self.control.next_offset, pinned=tuple(sorted(self.control.pinned)),
        )
        written = self.store.write_checkpoint(manifest, _chunks(rows, block, dense, state))
        self._checkpointed = progress
        self.store.expire(now_us, self.config.keep_s, self.control.pinned)
        return written

    def begin(self, now_us: int, tallies: Mapping[str, int]) -> tuple[Manifest, Manifest]:
        """Instead of `restore`, of a learner that learnt apart from the stream: a lineage begins with its weights. Its first
        version and its first checkpoint, which has no cursor, are there together or not at all.

        What the store holds of other lineages stays for its time, and orders that were obeyed there stay obeyed. The table is
        read in pieces: its copy need not fit beside it. Raises Diverged, and nothing is written.
        """
        self.control = Control.of(self.store.newest_checkpoint())
        self._ready = True
        table, dense, dense_state = self.learner.table, self.learner.dense(), self.learner.dense_state()
        number = self.store.next_number("version")
        share, rows = self._rows("version", None)
        self._rows("checkpoint", None)
        _refuse_infinite("version", np.empty(0, np.float32), [*dense.values(), *dense_state.values()])
        return self.store.write_both(
            self._manifest("version", None, share, rows, table.width, now_us, None, None, tallies),
            _pieces("version", rows, table.weights, dense, {}),
            self._manifest(
                "checkpoint", None, share, rows, table.wide, now_us, None, None, tallies, version=number,
                training=self._training(), control=self.control.next_offset, pinned=tuple(sorted(self.control.pinned)),
            ),
            _pieces("checkpoint", rows, table.rows_with_state, dense, self._state(dense_state)),
        )

    @property
    def _changes(self) -> int:
        """Of what the gate does, since this process began."""
        return self.gate.changes if self.gate else 0

    def _state(self, dense_state: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """What a checkpoint holds besides rows and dense weights."""
        return {
            **{f"dense/{name}": array for name, array in dense_state.items()},
            **{f"progressive/{name}": array for name, array in self.progressive.state().items()},
            **{f"guard/{name}": array for name, array in (self.guard.state() if self.guard else {}).items()},
            **{f"gate/{name}": array for name, array in (self.gate.state() if self.gate else {}).items()},
            "pending/rows": self.learner.table.pending("version").astype(np.uint32),
        }

    def _rows(self, kind: Kind, parent: Manifest | None) -> tuple[int, NDArray[np.int64]]:
        """The share that the next snapshot carries, and its rows; the first of a lineage holds all."""
        if parent is None:
            self.learner.table.drain(kind, 0)
            return 0, self.learner.table.touched()
        share = (parent.share + 1) % self.config.rotation
        return share, self.learner.table.drain(kind, share)

    def _manifest(
        self,
        kind: Kind,
        parent: Manifest | None,
        share: int,
        rows: NDArray[np.int64],
        width: int,
        now_us: int,
        cursors: Cursors | None,
        offsets: Mapping[int, int] | None,
        tallies: Mapping[str, int] | None,
        **more: Any,
    ) -> Manifest:
        return Manifest(
            kind=kind,
            lineage=self.lineage,
            number=self.store.next_number(kind),
            parent=parent.number if parent else None,
            rotation=self.config.rotation,
            share=share,
            model=self._identity(),
            fields=self._fields(),
            chunks=(),
            rows=len(rows),
            width=width,
            created_us=now_us,
            examples_learnt=self.learner.examples_learnt,
            batches_learnt=self.learner.batches_learnt,
            cursors=dict(cursors or {}),
            offsets=dict(offsets or {}),
            tallies=dict(tallies or {}),
            **more,
        )

    def _refuse_other(self, manifest: Manifest) -> None:
        """A store of another model, or whose rows carry another optimiser's state."""
        way_out = (
            f"Give this model the settings and schema of {self.store.dir}, or another model.name, or move the "
            "directory away to begin anew."
        )
        refuse_other_model(manifest, self._identity(), self._fields(), way_out)
        mine, theirs = self._training(), {**WITHOUT_A_KEY, **manifest.training}
        if manifest.kind == "checkpoint" and theirs != mine:
            raise SnapshotError(
                f"checkpoint {manifest.number} was written with {theirs}, this trainer has {mine}: the "
                f"optimiser's state does not fit. {way_out}"
            )

    def _identity(self) -> dict[str, Any]:
        return model_identity(self.learner.model_config, self.learner.table.width)

    def _fields(self) -> tuple[tuple[int, int], ...]:
        return self.learner.schema.identity

    def _training(self) -> dict[str, Any]:
        return training_of(self.learner)

    def _refuse_unready(self) -> None:
        if not self._ready:
            raise SnapshotError("call restore() first: what is written must go on from what the store holds")


def training_of(learner: Learner) -> dict[str, Any]:
    """What the optimiser's state that a checkpoint holds is good for."""
    config = learner.learn_config
    return {
        "row_optimiser": config.row_optimiser, "first_order_optimiser": config.first_order_rule,
        "dense_optimiser": config.dense_optimiser, "row_floats": learner.table.wide,
    }


def _due(now_us: int, last_us: int | None, every_s: float) -> bool:
    """Whether the time has come; a clock that was set back does not hold it up."""
    return last_us is None or not 0 <= now_us - last_us < every_s * 1e6


def _progress(
    batches: int, cursors: Cursors, offsets: Mapping[int, int], tallies: Mapping[str, int], control: Control, changes: int
) -> tuple[Any, ...]:
    """What a new checkpoint would change."""
    return batches, {key: tuple(value) for key, value in cursors.items()}, dict(offsets), dict(tallies), control, changes


def _chunks(
    rows: NDArray[np.int64],
    floats: NDArray[np.float32],
    dense: Mapping[str, NDArray[Any]],
    state: Mapping[str, NDArray[Any]],
) -> Iterator[bytes]:
    yield from encode_rows(rows, floats)
    yield from encode_tensors(dense, "dense")
    if state:
        yield from encode_tensors(state, "state")


def _pieces(
    what: str, rows: NDArray[np.int64], read: Callable[[NDArray[np.int64]], NDArray[np.float32]],
    dense: Mapping[str, NDArray[Any]], state: Mapping[str, NDArray[Any]],
) -> Iterator[bytes]:
    """The same of a whole table, some rows at a time."""
    for start in range(0, len(rows), PIECE_ROWS):
        some = rows[start : start + PIECE_ROWS]
        block = read(some)
        _refuse_infinite(what, block, [])
        yield from encode_rows(some, block)
    yield from _chunks(rows[:0], read(rows[:0]), dense, state)


def _grouped(state: Mapping[str, NDArray[Any]]) -> dict[str, dict[str, NDArray[Any]]]:
    """"a/b/c" → ["a"]["b/c"]."""
    groups: dict[str, dict[str, NDArray[Any]]] = {"dense": {}, "progressive": {}, "pending": {}, "guard": {}, "gate": {}}
    for name, array in state.items():
        group, _, rest = name.partition("/")
        groups.setdefault(group, {})[rest] = array
    return groups


def _refuse_infinite(what: str, block: NDArray[np.float32], arrays: Iterable[NDArray[Any]]) -> None:
    """Nothing that is not a number goes out."""
    if not np.isfinite(block).all() or not all(np.isfinite(array).all() for array in arrays):
        raise Diverged(
            f"the weights are not finite any more: no {what} is written. Lower learn.row_rate or learn.dense_rate, and "
            "start again: the trainer goes on from its last checkpoint."
        )
