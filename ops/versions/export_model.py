"""`freshet snapshot export`: a version out of the store into one file, and the optimiser's state of the checkpoint before."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from ops.versions import model_file
from ops.versions.store import opened, whole
from schemas import fields
from schemas.config import Settings
from schemas.errors import SnapshotError
from schemas.snapshot import checkpoint_before
from scorer.answers.engine import Blueprint


def exported(settings: Settings, number: int, out: Path) -> dict[str, Any]:
    """Write the file; what is in it."""
    place = fields.find(settings.model.schema)
    blueprint = Blueprint(settings.model, fields.load(settings.model.schema))
    with opened(settings, "version") as reader:
        version = reader.manifest(number)
        blueprint.check(version)
        table = whole(reader, number)
    start = None
    with suppress(SnapshotError), opened(settings, "checkpoint") as reader:
        if (checkpoint := checkpoint_before(reader.manifests().values(), version)) is not None:
            start = checkpoint, whole(reader, checkpoint.number), reader.read(checkpoint).state
    model = model_file.taken(version, table, blueprint.counted, place.read_text(encoding="utf-8"), start)
    size = model_file.write(out, model)
    state = model.state
    return {
        "file": str(out), "bytes": size, "lineage": version.lineage, "number": number, "created_us": version.created_us,
        "examples_learnt": version.examples_learnt, "rows": len(table.rows), "weights_digest": model.digest,
        "state_behind_examples": None if state is None else version.examples_learnt - state.examples_learnt,
    }
