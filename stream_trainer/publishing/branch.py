"""Going back: a new lineage that begins with the weights of an earlier version. All of it happens in the store; the
trainer then starts from it as after a kill (docs/decisions/0007-going-back.md).

(1) The first version of the new lineage: the whole table as it was at that version, under a new number. Scorers follow the
newest number, and load another lineage afresh, so no row that was touched since outlives this. (2) The first checkpoint of
the new lineage, which names the order. Until it is there the order is still to be obeyed; (1), which is found again by the
lineage's name, is then not written a second time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from schemas.control import ControlError, Order
from schemas.snapshot import Manifest, checkpoint_before, encode_rows, encode_tensors
from stream_trainer.publishing.control import Control, Given
from stream_trainer.store import Loaded, SnapshotStore

# Tallies of what is in the weights (stream_trainer/learning/intake.py); all others are of what was read.
LEARNT = ("examples", "positives", "impressions", "corrections", "true_positives", "late_positives")
HOLD = "gate/hold"   # of a checkpoint's state: whoever goes back wants what follows to be served
SKIPPED = "skipped"  # examples that were learnt, then gone back on, and are not learnt again


def lineage_after(lineage: str, offset: int) -> str:
    """Name of the lineage that the order at that offset begins: always the same, so that it is begun once."""
    return xxhash.xxh3_128_hexdigest(f"{lineage} {offset}".encode())


def go_back(store: SnapshotStore, given: Given, control: Control, now_us: int) -> Manifest:
    """Obey a rollback from the newest checkpoint, which must be of this moment. Returns the first version of the new
    lineage. The version must be in the store. control: as it is once this order is obeyed.

    Raises ControlError if there is no way back to that version: then nothing was written. Raises SnapshotError where what it
    needs is broken: then that first version may be there, and the next one of the present lineage follows upon it.
    """
    order = given.order
    head, version = store.newest_checkpoint(), store.manifests("version")[order.version]
    start = checkpoint_before(store.manifests("checkpoint").values(), version)
    if head is None or start is None:
        raise ControlError(f"version {order.version} has no checkpoint before it any more")
    if (version.model, version.fields, start.training) != (head.model, head.fields, head.training):
        raise ControlError(f"version {order.version} was learnt with other settings of [model] or [learn], or another schema")
    if order.then == "replay":
        gone = {p: (at, given.earliest[p]) for p, at in start.offsets.items() if at < given.earliest.get(p, 0)}
        if gone:
            raise ControlError(
                f"version {order.version} cannot be replayed: examples are needed from offset "
                + ", ".join(f"{at} of partition {p} (the first there is: {first})" for p, (at, first) in gone.items())
                + ". Go back with `--then skip`, or to a later version"
            )

    table = store.load_version(version.number)
    lineage = lineage_after(head.lineage, given.offset)
    first = store.newest("version", lineage) or store.write_version(
        replace(
            version, lineage=lineage, number=store.next_number("version"), parent=None, share=0, rows=len(table.rows),
            created_us=now_us, traces=(), back_to=version.number,
        ),
        _chunks(table),
    )
    from_where = store.load_checkpoint(start.number)
    whole = (
        _to_learn_again(table, from_where) if order.then == "replay"
        else _to_go_on(table, from_where, head, store.read(head, "state").state)
    )
    store.write_checkpoint(
        replace(
            whole.manifest, lineage=lineage, number=store.next_number("checkpoint"), parent=None, share=0,
            rows=len(whole.rows), created_us=now_us, version=first.number, control=control.next_offset,
            pinned=tuple(sorted(control.pinned)),
        ),
        _chunks(whole),
    )
    return first


def _to_learn_again(table: Loaded, start: Loaded) -> Loaded:
    """The checkpoint itself. What the version holds and it does not is to be published again."""
    changed = ~np.isin(table.rows, start.rows)                                          # (n,)
    both = np.flatnonzero(~changed)
    place = np.searchsorted(start.rows, table.rows[both])
    changed[both] = (table.floats[both] != start.floats[place, : table.manifest.width]).any(axis=1)
    state = {name: array for name, array in start.state.items() if name != HOLD}
    return replace(start, state=state | {"pending/rows": table.rows[changed].astype(np.uint32)})


def _to_go_on(table: Loaded, start: Loaded, head: Manifest, head_state: Mapping[str, NDArray[Any]]) -> Loaded:
    """The version's weights with the optimiser's state of the checkpoint before it, at the place in the stream, and with the
    figures of what was said, of now."""
    version = table.manifest
    floats = np.zeros((len(table.rows), start.manifest.width), np.float32)              # (n, S); zeros: a row's first state
    known = np.isin(start.rows, table.rows)
    floats[np.searchsorted(table.rows, start.rows[known])] = start.floats[known]
    floats[:, : version.width] = table.floats
    same = start.manifest.examples_learnt == version.examples_learnt
    state = {name: array for name, array in start.state.items() if name.startswith("dense/")}
    state |= {name: array for name, array in start.state.items() if name.startswith("guard/") and same}
    state |= {name: array for name, array in start.state.items() if name.startswith("gate/") and name != HOLD}
    state |= {name: array for name, array in head_state.items() if name.startswith("progressive/")}
    state["pending/rows"] = np.empty(0, np.uint32)
    return Loaded(_place(version, start.manifest, head), table.rows, floats, table.dense, state)


def _place(version: Manifest, start: Manifest, head: Manifest) -> Manifest:
    """Where it goes on: behind all that was read, and behind all that the version holds (which may be ahead of a trainer
    that is still learning again)."""
    both = (head, version)
    ahead = max(both, key=_read)
    tallies = {name: version.tallies.get(name, 0) if name in LEARNT else count for name, count in ahead.tallies.items()}
    return replace(
        start, examples_learnt=version.examples_learnt, batches_learnt=version.batches_learnt,
        cursors={p: max(one.cursors[p] for one in both if p in one.cursors) for p in {**head.cursors, **version.cursors}},
        offsets={p: max(one.offsets[p] for one in both if p in one.offsets) for p in {**head.offsets, **version.offsets}},
        tallies=tallies | {SKIPPED: _read(ahead) - tallies.get("examples", 0)},
    )


def _read(manifest: Manifest) -> int:
    """Examples that were learnt or skipped by then."""
    return manifest.tallies.get("examples", 0) + manifest.tallies.get(SKIPPED, 0)


def _chunks(whole: Loaded) -> Iterator[bytes]:
    yield from encode_rows(whole.rows, whole.floats)
    yield from encode_tensors(whole.dense, "dense")
    if whole.state:
        yield from encode_tensors(whole.state, "state")


def told(order: Order) -> dict[str, Any]:
    """An order as logs and journals name it."""
    return {"order": order.what, "version": order.version} | ({} if order.then is None else {"then": order.then})
