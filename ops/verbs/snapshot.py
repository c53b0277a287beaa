"""freshet snapshot."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from schemas.config import Settings
from schemas.errors import SnapshotError

if TYPE_CHECKING:
    from schemas.snapshot import Kind, Manifest
    from scorer.reader import SnapshotReader


def snapshot(
    settings: Settings,
    what: Annotated[Literal["list", "show", "verify"], typer.Argument(help="Which there are; one in full; are they whole.")],
    number: Annotated[int | None, typer.Argument(min=0, help="show, verify: which one. Default: the newest; all.")] = None,
    *,
    kind: Annotated[Literal["version", "checkpoint"], typer.Option(help="What serving or what resuming needs.")] = "version",
    last: Annotated[int, typer.Option(min=1, help="list: only so many, the newest.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="One object on stdout.")] = False,
) -> None:
    """Look into the store of versions and checkpoints. The trainer may run meanwhile.

    show prints where its examples came from and the digest of all weights: the same weights, however they came to be,
    have the same. verify reads every byte against its checksum, and exits with 1 if one is wrong.
    """
    with opened(settings, kind) as reader:
        if what == "list":
            report = listed(reader, last)
            text = list_table(report)
        elif what == "show":
            report = shown(reader, number)
            text = show_table(report)
        else:
            report = verified(reader, number)
            text = verify_text(report)
    print(json.dumps(report) if as_json else text)
    if report.get("broken"):
        raise typer.Exit(1)


@contextmanager
def opened(settings: Settings, kind: Kind) -> Iterator[SnapshotReader]:
    """The model's store, caught up. Raises SnapshotError where there is nothing of that kind."""
    from scorer.reader import SnapshotReader, own_secondary_dir

    place = own_secondary_dir(settings.store_dir.parent / "secondaries", "snapshot")
    with SnapshotReader(settings.store_dir, place, kind) as reader:
        if reader.poll() is None:
            raise SnapshotError(
                f"{settings.store_dir} holds no {kind} of model {settings.model.name!r}. Has its trainer run yet, "
                f"with this var and model.name?"
            )
        yield reader


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
    from schemas.snapshot import weights_digest

    newest = reader.numbers()[-1]
    manifest = reader.manifest(newest if number is None else number)
    whole = reader.whole(manifest.number)
    weights = whole.floats[:, : int(manifest.model["row_width"])]  # a checkpoint's rows carry optimiser state besides
    return {
        "kind": manifest.kind, **brief(manifest),
        "newest": manifest.number == newest, "rotation": manifest.rotation, "share": manifest.share,
        "width": manifest.width, "chunks": len(manifest.chunks), "batches_learnt": manifest.batches_learnt,
        "rows_touched": len(whole.rows), "versions_read": len(whole.numbers),
        "weights_digest": weights_digest(whole.rows, weights, whole.dense),
        "cursors": {str(partition): list(cursor) for partition, cursor in manifest.cursors.items()},
        "offsets": {str(partition): offset for partition, offset in manifest.offsets.items()},
        "tallies": dict(manifest.tallies), "traces": len(manifest.traces), "version": manifest.version,
        "model": dict(manifest.model), "fields": [field for field, _ in manifest.fields],
    }


def verified(reader: SnapshotReader, number: int | None) -> dict[str, Any]:
    """Every chunk read and checked; and whether the newest, or the one named, can be loaded whole."""
    from ops.console import progress

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


def list_table(report: dict[str, Any]) -> str:
    """A line per snapshot, the newest last."""
    lines = [
        f"{'number':>10}  {'parent':>10}  {'lineage':<8}  {'age':>9}  {'rows':>10}  {'bytes':>12}  {'examples learnt':>15}"
    ]
    lines += [
        f"{one['number']:>10}  {'none' if one['parent'] is None else one['parent']:>10}  {one['lineage'][:8]:<8}  "
        f"{one['age_s']:>7.1f} s  {one['rows']:>10,}  {one['bytes']:>12,}  {one['examples_learnt']:>15,}"
        for one in report["snapshots"]
    ]
    lines += [f"{one['number']:>10}  broken: {one['error']}" for one in report["broken"]]
    if report["count"] > len(report["snapshots"]) + len(report["broken"]):
        lines.append(f"{report['count']:,} in all; --last N shows more")
    return "\n".join(lines)


def show_table(report: dict[str, Any]) -> str:
    """A line per figure."""
    lines = []
    for key, value in report.items():
        if isinstance(value, dict):
            lines += [f"{key + '.' + name:<28}  {inner}" for name, inner in value.items()]
        else:
            lines.append(f"{key:<28}  {value:,}" if type(value) is int and key != "created_us" else f"{key:<28}  {value}")
    return "\n".join(lines)


def verify_text(report: dict[str, Any]) -> str:
    """What held and what did not."""
    lines = [f"{one['number']}: {one['error']}" for one in report["broken"]]
    if report["whole"] is not None:
        lines.append(f"the newest loads whole, from {report['whole']} {report['kind']}s")
    lines.append(f"{report['checked']:,} checked, {report['bytes']:,} bytes; {len(report['broken'])} broken")
    return "\n".join(lines)
