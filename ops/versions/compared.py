"""Two snapshots of a store, read, and what is different between them."""

from __future__ import annotations

from typing import Any

import torch

from ops.versions.difference import difference, refuse_other_shape
from ops.versions.store import brief, whole
from schemas import fields
from schemas.config import Settings
from schemas.errors import SnapshotError
from schemas.models import RowModel, build
from schemas.snapshot import Manifest, model_config
from scorer.versions.reader import SnapshotReader


def differences(settings: Settings, reader: SnapshotReader, a: int, b: int) -> dict[str, Any]:
    """Two snapshots and what is different, b against a. Raises SnapshotError where one is not whole, or of another model."""
    there = [reader.manifest(number) for number in (a, b)]
    refuse_other_shape(*({**one.model, "fields": list(one.fields)} for one in there))
    made = _built(settings, there[0])
    found = difference(
        whole(reader, a), whole(reader, b), made.row_width - made.counted,
        lambda rows: made.new_rows(torch.from_numpy(rows)).numpy(),
    )
    return {"kind": reader.kind, "a": brief(there[0]), "b": brief(there[1]),
            "same_lineage": there[0].lineage == there[1].lineage, **found}


def _built(settings: Settings, manifest: Manifest) -> RowModel:
    """The model of a snapshot, whatever these settings have. Raises SnapshotError where the schema is another one."""
    schema = fields.load(settings.model.schema)
    config = model_config(manifest, settings.model.name, settings.model.schema)
    made = build(config, len(schema.fields), len(schema.crosses), schema.logs, schema.sides)
    if made.row_width != manifest.model["row_width"]:
        raise SnapshotError(
            f"{manifest.kind} {manifest.number} has rows of {manifest.model['row_width']} floats, the schema "
            f"{settings.model.schema} makes {made.row_width}: set model.schema to the one that it was learnt with"
        )
    return made
