"""The store of a model's versions and checkpoints, opened to be read, and what is told of those in it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ops.terminal.console import progress
from schemas.config import Settings
from schemas.errors import SnapshotError
from schemas.snapshot import Kind, Manifest, weights_digest
from scorer.versions.reader import SnapshotReader, Whole, own_secondary_dir


@contextmanager
def opened(settings: Settings, kind: Kind) -> Iterator[SnapshotReader]:
    """The model's store, caught up. Raises SnapshotError where there is nothing of that kind."""
    place = own_secondary_dir(settings.store_dir.parent / "secondaries", f"snapshot-{kind}")
    with SnapshotReader(settings.store_dir, place, kind) as reader:
        if reader.poll() is None:
            raise SnapshotError(
                f"{settings.store_dir} holds no {kind} of model {settings.model.name!r}. Has its trainer run yet, "
                f"with this var and model.name?"
            )
        yield reader


def whole(reader: SnapshotReader, number: int) -> Whole:
    """One with all that it is made of, a bar meanwhile. Raises SnapshotError."""
    with progress(f"read {reader.kind} {number}", unit=f"{reader.kind}s") as bar:
        return reader.whole(number, bar.advance)


def listed(reader: SnapshotReader, last: int) -> dict[str, Any]:
    """The newest `last` snapshots, oldest first. A manifest that cannot be read stands in `broken`."""
    numbers = reader.numbers()
    found, broken = [], []
    for number in numbers[-last:]:
        try:
            found.append(brief(reader.manifest(number)))
        except SnapshotError as unreadable:
            broken.append({"number": number, "error": str(unreadable)})
    return {"kind": reader.kind, "count": len(numbers), "snapshots": found, "broken": broken}


def brief(manifest: Manifest) -> dict[str, Any]:
    """A snapshot in one line."""
    return {
        "number": manifest.number, "parent": manifest.parent, "lineage": manifest.lineage,
        "created_us": manifest.created_us, "age_s": round(time.time() - manifest.created_us / 1e6, 3),
        "rows": manifest.rows, "bytes": manifest.bytes, "examples_learnt": manifest.examples_learnt,
    }


def shown(reader: SnapshotReader, number: int | None) -> dict[str, Any]:
    """One snapshot in full, with the digest of the whole table as it was then."""
    newest = reader.numbers()[-1]
    manifest = reader.manifest(newest if number is None else number)
    found = reader.whole(manifest.number)
    weights = found.floats[:, : int(manifest.model["row_width"])]  # a checkpoint's rows carry optimiser state besides
    return {
        "kind": manifest.kind, **brief(manifest),
        "newest": manifest.number == newest, "rotation": manifest.rotation, "share": manifest.share,
        "width": manifest.width, "chunks": len(manifest.chunks), "batches_learnt": manifest.batches_learnt,
        "rows_touched": len(found.rows), "versions_read": len(found.numbers),
        "weights_digest": weights_digest(found.rows, weights, found.dense),
        "cursors": {str(partition): list(cursor) for partition, cursor in manifest.cursors.items()},
        "offsets": {str(partition): offset for partition, offset in manifest.offsets.items()},
        "tallies": dict(manifest.tallies), "traces": len(manifest.traces), "version": manifest.version,
        "model": dict(manifest.model), "fields": [field for field, _ in manifest.fields],
    }


def verified(reader: SnapshotReader, number: int | None) -> dict[str, Any]:
    """Every chunk read and checked; and whether the newest, or the one named, can be loaded whole."""
    numbers = reader.numbers() if number is None else [number]
    broken: list[dict[str, Any]] = []
    size = 0
    with progress("verify", len(numbers), f"{reader.kind}s") as bar:
        for one in numbers:
            try:
                manifest = reader.manifest(one)
                reader.read(manifest)
                size += manifest.bytes
            except SnapshotError as wrong:
                broken.append({"number": one, "error": str(wrong)})
            bar.advance()
    report = {"kind": reader.kind, "checked": len(numbers), "bytes": size, "whole": None, "broken": broken}
    try:
        report["whole"] = len(reader.whole(numbers[-1]).numbers)
    except SnapshotError as gap:
        if not any(entry["number"] == numbers[-1] for entry in broken):
            broken.append({"number": numbers[-1], "error": str(gap)})
    return report
