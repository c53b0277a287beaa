"""`freshet snapshot import`: a new lineage that begins with the weights in a file."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ops.terminal.console import progress
from ops.versions import model_file
from ops.versions.model_file import Model, refuse_other
from schemas import fields
from schemas.config import Settings
from schemas.errors import ConfigError, SnapshotError
from schemas.snapshot import Manifest, model_identity
from stream_trainer.learning.guard import Guard
from stream_trainer.learning.learner import Learner
from stream_trainer.learning.memory import check_learner
from stream_trainer.publishing.publisher import Publisher, training_of
from stream_trainer.store import SnapshotStore
from stream_trainer.watching.progressive import Progressive


@dataclass(frozen=True, slots=True)
class Imported:
    """What the store holds now."""

    version: Manifest
    checkpoint: Manifest
    weights_digest: str


def import_model(
    settings: Settings, model: Model, lineage: str, now_us: int, *, replace: bool = False, fresh_state: bool = False
) -> Imported:
    """Make the store's newest version and checkpoint this model, both at once: wherever it is killed, they are there whole or
    not at all. lineage: a new name, since the line that the file is from may go on elsewhere.

    replace: the store may have a model already; ConfigError if it has one and this is not given. fresh_state: the optimisers
    begin anew. Raises SnapshotError where the file does not fit these settings. Then nothing was written.
    """
    schema = fields.load(settings.model.schema)
    check_learner(settings.model, settings.learn, schema)
    learner = Learner(settings.model, settings.learn, schema, settings.snapshot.rotation)
    refuse_other(model, model_identity(settings.model, learner.table.width), learner.schema.identity, schema)
    state = None if fresh_state else model.state
    if state is None and not fresh_state:
        raise SnapshotError(
            "the file has no optimiser state: the version had no checkpoint before it. --fresh-state begins learning without "
            "(its first steps are the largest)"
        )
    mine = training_of(learner)
    if state is not None and dict(state.training) != mine:
        raise SnapshotError(
            f"the file's optimiser state is of {dict(state.training)}, these settings have {mine}. Set [learn] as it is there, "
            "or begin learning without it: --fresh-state (its first steps are the largest)"
        )
    progressive, guard = Progressive(settings.metrics.window_rows), Guard(learner)
    _fill(learner, progressive, guard, model, use_state=state is not None)
    with SnapshotStore(settings.store_dir) as store:
        newest = store.newest_checkpoint() or store.newest_version()
        if newest is not None and not replace:
            raise ConfigError(
                f"{store.dir} has a model already ({newest.kind} {newest.number} of lineage {newest.lineage[:8]}): --replace "
                "begins a new lineage in it, and scorers take it over at once; or choose another var or model.name"
            )
        publisher = Publisher(store, learner, progressive, settings.snapshot, lineage, guard)
        version, checkpoint = publisher.begin(now_us, model.manifest.tallies)
    return Imported(version, checkpoint, learner.digest())


def imported(settings: Settings, file: Path, replace: bool, fresh_state: bool) -> dict[str, Any]:
    """Make the store's newest version this model; what there is now."""
    with progress(f"read {file.name}", unit="tensors") as bar:
        model = model_file.read(file, bar.advance)
    done = import_model(
        settings, model, secrets.token_hex(16), time.time_ns() // 1000, replace=replace, fresh_state=fresh_state
    )
    return {
        "store": str(settings.store_dir), "lineage": done.version.lineage, "version": done.version.number,
        "checkpoint": done.checkpoint.number, "rows": done.version.rows, "weights_digest": done.weights_digest,
        "from_lineage": model.manifest.lineage, "from_version": model.manifest.number,
        "examples_learnt": model.manifest.examples_learnt, "learnt_until_us": model.manifest.created_us,
    }


def _fill(learner: Learner, progressive: Progressive, guard: Guard, model: Model, use_state: bool) -> None:
    """The learner as it was, and what judges and watches it."""
    beside = learner.table.wide - learner.table.width
    state = model.state if use_state else None
    rows = np.zeros((len(model.rows), beside), np.float32) if state is None else state.rows
    learner.table.load(model.rows, np.concatenate([model.floats, rows], axis=1))
    groups: dict[str, dict[str, np.ndarray]] = {"dense": {}, "guard": {}, "progressive": {}}
    for name, array in ({} if state is None else state.others).items():
        group, _, rest = name.partition("/")
        groups.setdefault(group, {})[rest] = array
    learner.load(
        model.dense, groups["dense"] or learner.dense_state(), model.manifest.batches_learnt, model.manifest.examples_learnt
    )
    if groups["progressive"]:
        progressive.restore(groups["progressive"])
    guard.restore(groups["guard"])
