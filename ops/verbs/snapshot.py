"""freshet snapshot."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from schemas.config import Settings
from schemas.control import Then
from schemas.errors import ConfigError, SnapshotError

if TYPE_CHECKING:
    from ops.control import Retention
    from schemas.snapshot import Kind, Manifest
    from scorer.reader import SnapshotReader


def snapshot(
    settings: Settings,
    what: Annotated[
        Literal["list", "show", "verify", "pin", "unpin", "rollback"],
        typer.Argument(help="Which there are; one in full; are they whole; keep one; let it go; go back to one."),
    ],
    number: Annotated[int | None, typer.Argument(min=0, help="Which one. show, verify: by default the newest; all.")] = None,
    *,
    to: Annotated[int | None, typer.Option(min=1, help="rollback: the version whose weights are wanted back.")] = None,
    then: Annotated[Then | None, typer.Option(help="rollback: learn again what came since, or leave it out.")] = None,
    wait: Annotated[float, typer.Option(min=0, help="pin, unpin, rollback: seconds to wait for the trainer's answer.")] = 15.0,
    kind: Annotated[Literal["version", "checkpoint"], typer.Option(help="What serving or what resuming needs.")] = "version",
    last: Annotated[int, typer.Option(min=1, help="list: only so many, the newest.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="One object on stdout.")] = False,
) -> None:
    """Look into the store of versions and checkpoints, and have the trainer keep a version or go back to one.

    show prints where its examples came from and the digest of all weights: the same weights, however they came to be,
    have the same. verify reads every byte against its checksum, and exits with 1 if one is wrong. pin N, unpin N and
    rollback --to V --then replay|skip are orders that the trainer obeys as soon as it runs (docs/going-back.md).
    """
    if what in ("pin", "unpin", "rollback"):
        report = ordered(settings, what, to if what == "rollback" else number, then, wait)
        print(json.dumps(report) if as_json else order_text(report, wait))
        if report["refused"]:
            raise typer.Exit(1)
        return
    with opened(settings, kind) as reader:
        if what == "list":
            report = listed(reader, last)
            with going_back(settings, kind) as tell:
                report["snapshots"] = [one | tell(reader.manifest(one["number"])) for one in report["snapshots"]]
            text = list_table(report)
        elif what == "show":
            report = shown(reader, number)
            with going_back(settings, kind) as tell:
                report |= tell(reader.manifest(report["number"]))
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

    place = own_secondary_dir(settings.store_dir.parent / "secondaries", f"snapshot-{kind}")
    with SnapshotReader(settings.store_dir, place, kind) as reader:
        if reader.poll() is None:
            raise SnapshotError(
                f"{settings.store_dir} holds no {kind} of model {settings.model.name!r}. Has its trainer run yet, "
                f"with this var and model.name?"
            )
        yield reader


def ordered(settings: Settings, what: Any, number: int | None, then: Then | None, wait_s: float) -> dict[str, Any]:
    """Write an order and wait for what the trainer says. Raises ConfigError, SnapshotError where there is no such version."""
    from ops.control import give
    from ops.watch import wait_for_order
    from schemas.control import Order

    if number is None or (what == "rollback") != (then is not None):
        wanted = "--to VERSION --then replay|skip" if what == "rollback" else "VERSION, and no --then"
        raise ConfigError(f"freshet snapshot {what} needs {wanted}")
    with opened(settings, "version") as reader:
        version = reader.manifest(number)
    order = Order(
        what=what, model=settings.model.name, lineage=version.lineage, version=number, then=then,
        ordered_us=time.time_ns() // 1000,
    )
    offset = give(settings, order)
    answer = wait_for_order(settings, offset, wait_s) or {}
    return {
        "order": what, "version": number, "then": then, "offset": offset, "obeyed": bool(answer) and not answer["refused"],
        "refused": answer.get("refused"), "first": answer.get("first"), "lineage": answer.get("lineage"),
    }


def order_text(report: dict[str, Any], wait_s: float) -> str:
    """What came of it."""
    what = f"{report['order']} {report['version']} (order {report['offset']})"
    if report["refused"]:
        return f"{what} is refused: {report['refused']}"
    if not report["obeyed"]:
        return f"{what} is written; no trainer here has answered in {wait_s:.0f} s. It is obeyed as soon as one runs."
    if report["order"] == "rollback":
        return f"version {report['first']} has the weights of {report['version']}: a new lineage, {report['lineage'][:8]}"
    return f"{what} is obeyed"


@contextmanager
def going_back(settings: Settings, kind: Kind) -> Iterator[Callable[[Manifest], dict[str, Any]]]:
    """What can be told of a version besides itself: is it pinned, and what going back to it would begin from, until when.
    Of checkpoints nothing. Without a broker, when it can be replayed is not known (null)."""
    from ops.control import Retention
    from schemas.errors import BrokerError
    from schemas.snapshot import checkpoint_before

    if kind == "checkpoint":
        yield lambda _: {}
        return
    try:
        with opened(settings, "checkpoint") as reader:
            checkpoints = list(reader.manifests().values())
    except SnapshotError:
        checkpoints = []
    retention: Retention | None = None
    with suppress(BrokerError):
        retention = Retention(settings)
    known: dict[int, dict[str, Any]] = {}

    def tell(version: Manifest) -> dict[str, Any]:
        start = checkpoint_before(checkpoints, version)
        found = {"replayable": None if start else False, "replayable_until_us": None}
        if start is not None and retention is not None:
            if start.number not in known:
                known[start.number] = retention.replayable(start.offsets)
            found = known[start.number]
        pinned = checkpoints[-1].pinned if checkpoints else ()
        return {"pinned": version.number in pinned, "back_to": version.back_to,
                "checkpoint": start.number if start else None, **found}

    try:
        yield tell
    finally:
        if retention is not None:
            retention.close()


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
        f"{'  replay until' if report['kind'] == 'version' else ''}"
    ]
    lines += [
        f"{one['number']:>10}  {'none' if one['parent'] is None else one['parent']:>10}  {one['lineage'][:8]:<8}  "
        f"{one['age_s']:>7.1f} s  {one['rows']:>10,}  {one['bytes']:>12,}  {one['examples_learnt']:>15,}"
        f"{going_back_text(one)}"
        for one in report["snapshots"]
    ]
    lines += [f"{one['number']:>10}  broken: {one['error']}" for one in report["broken"]]
    if report["count"] > len(report["snapshots"]) + len(report["broken"]):
        lines.append(f"{report['count']:,} in all; --last N shows more")
    return "\n".join(lines)


def going_back_text(one: dict[str, Any]) -> str:
    """The end of a version's line: until when it can be replayed, is it pinned, whose weights does it have."""
    if "pinned" not in one:
        return ""
    until = {None: "not known", False: "gone", True: "no end"}[one["replayable"]]
    if one["replayable_until_us"] is not None:
        until = time.strftime("%m-%d %H:%M", time.localtime(one["replayable_until_us"] / 1e6))
    back = f"  weights of {one['back_to']}" if one["back_to"] is not None else ""
    return f"  {until:<12}{'  pinned' if one['pinned'] else ''}{back}"


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
