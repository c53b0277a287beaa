"""freshet snapshot."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from schemas.config import Settings
from schemas.control import Then, What

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
    from ops.versions.going_back import going_back
    from ops.versions.store import listed, opened

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
    from ops.versions.going_back import going_back
    from ops.versions.store import opened, shown

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
    from ops.versions.store import opened, verified

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
    from ops.versions.compared import differences
    from ops.versions.store import opened

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
    from ops.versions.export_model import exported

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
    from ops.versions.import_model import imported

    report = imported(settings, file, replace, fresh_state)
    _print(report, show_table, as_json)


def _print(report: dict[str, Any], text: Callable[[dict[str, Any]], str], as_json: bool) -> None:
    print(json.dumps(report) if as_json else text(report))
    if report.get("broken"):
        raise typer.Exit(1)


def _order(settings: Settings, what: What, number: int, then: Then | None, wait_s: float, as_json: bool) -> None:
    from ops.versions import orders

    report = orders.about_version(settings, what, number, then, wait_s)
    print(json.dumps(report) if as_json else orders.about_version_text(report, wait_s))
    if report["refused"]:
        raise typer.Exit(1)


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
