"""freshet snapshot."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from schemas.config import Settings
from schemas.control import Then, What
from schemas.errors import SnapshotError

if TYPE_CHECKING:
    from ops.control import Retention
    from schemas.models import RowModel
    from schemas.snapshot import Kind, Manifest
    from scorer.versions.reader import SnapshotReader, Whole

_Json = Annotated[bool, typer.Option("--json", help="One object on stdout.")]
_Kind = Annotated[Literal["version", "checkpoint"], typer.Option(help="What serving or what resuming needs.")]
_Wait = Annotated[float, typer.Option(min=0, help="Seconds to wait for the trainer's answer.")]
_Version = Annotated[int, typer.Argument(min=1, help="Which version.")]


def list_(
    settings: Settings,
    *,
    kind: _Kind = "version",
    last: Annotated[int, typer.Option(min=1, help="Only so many, the newest.")] = 20,
    as_json: _Json = False,
) -> None:
    """Which versions or checkpoints there are; of versions also which are pinned and until when they can be replayed."""
    with opened(settings, kind) as reader:
        report = listed(reader, last)
        with going_back(settings, kind) as tell:
            report["snapshots"] = [one | tell(reader.manifest(one["number"])) for one in report["snapshots"]]
    _print(report, list_table, as_json)


def show(
    settings: Settings,
    number: Annotated[int | None, typer.Argument(min=0, help="Which one; by default the newest.")] = None,
    *,
    kind: _Kind = "version",
    as_json: _Json = False,
) -> None:
    """One in full: where its examples came from, and the digest of all weights: the same weights, however they came to be,
    have the same."""
    with opened(settings, kind) as reader:
        report = shown(reader, number)
        with going_back(settings, kind) as tell:
            report |= tell(reader.manifest(report["number"]))
    _print(report, show_table, as_json)


def verify(
    settings: Settings,
    number: Annotated[int | None, typer.Argument(min=0, help="Which one; by default all.")] = None,
    *,
    kind: _Kind = "version",
    as_json: _Json = False,
) -> None:
    """Read every byte against its checksum, and see whether the newest can be loaded whole; exits with 1 if not."""
    with opened(settings, kind) as reader:
        report = verified(reader, number)
    _print(report, verify_text, as_json)


def diff(
    settings: Settings,
    a: Annotated[int, typer.Argument(min=1, help="One of them.")],
    b: Annotated[int, typer.Argument(min=1, help="The other.")],
    *,
    kind: _Kind = "version",
    as_json: _Json = False,
) -> None:
    """What is different between two: rows, dense weights, and by how much.

    A row that only one of them has is compared with what it was before it was touched. Of rows the learnt weights are
    compared, not counts and not the optimiser's state.
    """
    with opened(settings, kind) as reader:
        report = differences(settings, reader, a, b)
    _print(report, diff_table, as_json)


def pin(settings: Settings, number: _Version, *, wait: _Wait = 15.0, as_json: _Json = False) -> None:
    """Have the trainer keep a version, with all that going back to it needs, until it is unpinned (docs/going-back.md)."""
    _order(settings, "pin", number, None, wait, as_json)


def unpin(settings: Settings, number: _Version, *, wait: _Wait = 15.0, as_json: _Json = False) -> None:
    """Let a pinned version go when its time is over."""
    _order(settings, "unpin", number, None, wait, as_json)


def rollback(
    settings: Settings,
    *,
    to: Annotated[int, typer.Option(min=1, help="The version whose weights are wanted back.")],
    then: Annotated[Then, typer.Option(help="Learn again what came since, or leave it out.")],
    wait: _Wait = 15.0,
    as_json: _Json = False,
) -> None:
    """Go back to a version: every scorer answers with its weights a moment later (docs/going-back.md).

    The order is obeyed as soon as the trainer runs; exits with 1 if it refuses.
    """
    _order(settings, "rollback", to, then, wait, as_json)


def export(
    settings: Settings,
    number: _Version,
    *,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to; a file that is there is replaced.")],
    as_json: _Json = False,
) -> None:
    """Write a version, whole, into one safetensors file that any program can read (docs/snapshots.md).

    In it: row numbers, weights, counts, dense weights by name, the optimiser's state from the checkpoint before it, the field
    schema, model settings, lineage. `freshet snapshot import` makes a model of it.
    """
    report = exported(settings, number, out)
    _print(report, show_table, as_json)


def import_(
    settings: Settings,
    file: Annotated[Path, typer.Argument(help="What `freshet snapshot export` wrote.")],
    *,
    replace: Annotated[bool, typer.Option(help="Even where the store has a model: it begins a new lineage.")] = False,
    fresh_state: Annotated[
        bool, typer.Option(help="Leave the optimiser's state in the file; its first steps are the largest.")
    ] = False,
    as_json: _Json = False,
) -> None:
    """Begin a model with the weights in a file: scorers serve it, and the trainer learns on from it.

    Settings ([model], model.schema) must be those of the file. No trainer may run meanwhile. The file has no place in the
    stream: learn.start_at says where in `examples` the trainer begins.
    """
    report = imported(settings, file, replace, fresh_state)
    _print(report, show_table, as_json)


def _print(report: dict[str, Any], text: Callable[[dict[str, Any]], str], as_json: bool) -> None:
    print(json.dumps(report) if as_json else text(report))
    if report.get("broken"):
        raise typer.Exit(1)


def _order(settings: Settings, what: What, number: int, then: Then | None, wait_s: float, as_json: bool) -> None:
    report = ordered(settings, what, number, then, wait_s)
    print(json.dumps(report) if as_json else order_text(report, wait_s))
    if report["refused"]:
        raise typer.Exit(1)


@contextmanager
def opened(settings: Settings, kind: Kind) -> Iterator[SnapshotReader]:
    """The model's store, caught up. Raises SnapshotError where there is nothing of that kind."""
    from scorer.versions.reader import SnapshotReader, own_secondary_dir

    place = own_secondary_dir(settings.store_dir.parent / "secondaries", f"snapshot-{kind}")
    with SnapshotReader(settings.store_dir, place, kind) as reader:
        if reader.poll() is None:
            raise SnapshotError(
                f"{settings.store_dir} holds no {kind} of model {settings.model.name!r}. Has its trainer run yet, "
                f"with this var and model.name?"
            )
        yield reader


def ordered(settings: Settings, what: What, number: int, then: Then | None, wait_s: float) -> dict[str, Any]:
    """Write an order and wait for what the trainer says. Raises SnapshotError where there is no such version."""
    from ops import control
    from schemas.control import Order

    with opened(settings, "version") as reader:
        version = reader.manifest(number)
    report, answer = control.ordered(settings, Order(
        what=what, model=settings.model.name, lineage=version.lineage, version=number, then=then,
        ordered_us=time.time_ns() // 1000,
    ), wait_s)
    return report | {"version": number, "then": then, "first": answer.get("first"), "lineage": answer.get("lineage")}


def order_text(report: dict[str, Any], wait_s: float) -> str:
    """What came of it."""
    from ops import control

    if report["order"] == "rollback" and report["obeyed"]:
        return f"version {report['first']} has the weights of {report['version']}: a new lineage, {report['lineage'][:8]}"
    return control.order_text(f"{report['order']} {report['version']}", report, wait_s)


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


def differences(settings: Settings, reader: SnapshotReader, a: int, b: int) -> dict[str, Any]:
    """Two snapshots and what is different, b against a. Raises SnapshotError where one is not whole, or of another model."""
    import torch

    from ops.difference import difference, refuse_other_shape

    there = [reader.manifest(number) for number in (a, b)]
    refuse_other_shape(*({**one.model, "fields": list(one.fields)} for one in there))
    made = _built(settings, there[0])
    found = difference(
        _whole(reader, a), _whole(reader, b), made.row_width - made.counted,
        lambda rows: made.new_rows(torch.from_numpy(rows)).numpy(),
    )
    return {"kind": reader.kind, "a": brief(there[0]), "b": brief(there[1]),
            "same_lineage": there[0].lineage == there[1].lineage, **found}


def _built(settings: Settings, manifest: Manifest) -> RowModel:
    """The model of a snapshot, whatever these settings have. Raises SnapshotError where the schema is another one."""
    from schemas import fields
    from schemas.models import build
    from schemas.snapshot import model_config

    schema = fields.load(settings.model.schema)
    config = model_config(manifest, settings.model.name, settings.model.schema)
    made = build(config, len(schema.fields), len(schema.crosses), schema.logs, schema.sides)
    if made.row_width != manifest.model["row_width"]:
        raise SnapshotError(
            f"{manifest.kind} {manifest.number} has rows of {manifest.model['row_width']} floats, the schema "
            f"{settings.model.schema} makes {made.row_width}: set model.schema to the one that it was learnt with"
        )
    return made


def _whole(reader: SnapshotReader, number: int) -> Whole:
    from ops.console import progress

    with progress(f"read {reader.kind} {number}", unit=f"{reader.kind}s") as bar:
        return reader.whole(number, bar.advance)


def exported(settings: Settings, number: int, out: Path) -> dict[str, Any]:
    """Write the file; what is in it."""
    from ops import model_file
    from schemas import fields
    from schemas.snapshot import checkpoint_before
    from scorer.answers.engine import Blueprint

    place = fields.find(settings.model.schema)
    blueprint = Blueprint(settings.model, fields.load(settings.model.schema))
    with opened(settings, "version") as reader:
        version = reader.manifest(number)
        blueprint.check(version)
        whole = _whole(reader, number)
    start = None
    with suppress(SnapshotError), opened(settings, "checkpoint") as reader:
        if (checkpoint := checkpoint_before(reader.manifests().values(), version)) is not None:
            start = checkpoint, _whole(reader, checkpoint.number), reader.read(checkpoint).state
    model = model_file.taken(version, whole, blueprint.counted, place.read_text(encoding="utf-8"), start)
    size = model_file.write(out, model)
    state = model.state
    return {
        "file": str(out), "bytes": size, "lineage": version.lineage, "number": number, "created_us": version.created_us,
        "examples_learnt": version.examples_learnt, "rows": len(whole.rows), "weights_digest": model.digest,
        "state_behind_examples": None if state is None else version.examples_learnt - state.examples_learnt,
    }


def imported(settings: Settings, file: Path, replace: bool, fresh_state: bool) -> dict[str, Any]:
    """Make the store's newest version this model; what there is now."""
    import secrets

    from ops import model_file
    from ops.console import progress
    from ops.import_model import import_model

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


def diff_table(report: dict[str, Any]) -> str:
    """A line for the rows, one for each dense weight."""
    a, b, rows = report["a"], report["b"], report["rows"]
    lines = [
        f"{report['kind']} {one['number']} of lineage {one['lineage'][:8]}, {one['examples_learnt']:,} examples learnt"
        for one in (a, b)
    ]
    lines.append(f"rows: {rows['a']:,} and {rows['b']:,}; {rows['only_a']:,} only in {a['number']}, {rows['only_b']:,} only in "
                 f"{b['number']}; {rows['differ']:,} differ")
    lines.append(f"{'':<28}  {'differ':>9}  {'largest change':>14}  {'mean change':>11}  {'norms':>23}  {'of the change':>13}")
    parts = {"rows (mean: those that differ)": rows, **report["dense"]}
    for name, part in parts.items():
        if part["differ"] is None:
            lines.append(f"{name:<28}  of shape {part['a']} and {part['b']}")
            continue
        norms = f"{part['norm_a']:.5g}, {part['norm_b']:.5g}"
        lines.append(f"{name:<28}  {part['differ']:>9,}  {part['largest_change']:>14.6g}  {part['mean_change']:>11.4g}  "
                     f"{norms:>23}  {part['norm_of_change']:>13.5g}")
    return "\n".join(lines)


def verify_text(report: dict[str, Any]) -> str:
    """What held and what did not."""
    lines = [f"{one['number']}: {one['error']}" for one in report["broken"]]
    if report["whole"] is not None:
        lines.append(f"the newest loads whole, from {report['whole']} {report['kind']}s")
    lines.append(f"{report['checked']:,} checked, {report['bytes']:,} bytes; {len(report['broken'])} broken")
    return "\n".join(lines)
