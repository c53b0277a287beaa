"""freshet train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ops.verbs.files import Format, Label, RowIntervalS, Strict, Time, tell_broken
from schemas.config import Settings

if TYPE_CHECKING:
    from ops.formats import Broken
    from ops.offline.train import Trained


def train(
    settings: Settings,
    file: Annotated[Path, typer.Argument(help="What to learn; .gz is unpacked.")],
    out: Annotated[Path | None, typer.Option(
        metavar="DIR", help="The store to write. Default: the model's own, VAR/models/NAME/store."
    )] = None,
    replace: Annotated[bool, typer.Option(
        "--replace", help="Also where the store has a model: a new line of weights begins there and is served."
    )] = False,
    format: Format = "jsonl",
    label: Label = None,
    time: Time = None,
    rows: Annotated[int, typer.Option(min=0, help="Stop after so many rows of the file; 0 = all.")] = 0,
    row_interval_s: RowIntervalS = None,
    strict: Strict = False,
    as_json: Annotated[bool, typer.Option("--json", help="One object on stdout.")] = False,
) -> None:
    """Learn a first model from a file in one pass, and write the store that trainer and scorer go on from.

    Each row is scored before it is learnt, as in evaluate: the same weights, and an AUC on the way. The store gets all or
    nothing. The trainer then reads the topic from learn.start_at on: earliest (the default), latest, or a time.
    """
    import structlog

    from ops import formats
    from ops.offline.train import train as learn
    from ops.terminal.console import progress
    from ops.terminal.tables import window_table
    from schemas import fields

    broken = formats.Broken(strict=strict)
    records = formats.read(
        file, format, formats.row_interval_us(settings, row_interval_s), settings.join.action,
        schema=fields.load(settings.model.schema), label=label, time=time, broken=broken,
    )
    log = structlog.get_logger()
    store = out or settings.store_dir
    with progress("train", None, "examples") as bar:
        try:
            found = learn(
                settings, formats.first_rows(records, rows), store, replace=replace, progress=bar.advance, broken=broken,
                window=lambda one: log.info("train.window", rows=one.last_row + 1, auc=one.auc, log_loss=one.log_loss),
            )
        finally:
            tell_broken(broken)
    report = reported(found, store, broken)
    if as_json:
        print(json.dumps(report))
        return
    print(window_table([one.as_dict() for one in found.windows], found.figures.as_dict()))
    print(told(report, settings, formats.has_clock(format, time)))


def reported(found: Trained, store: Path, broken: Broken) -> dict[str, Any]:
    """All of it as JSON has it."""
    return {
        **found.figures.as_dict(), "windows": [one.as_dict() for one in found.windows], "rows_learnt": found.rows_learnt,
        "tallies": found.tallies, "rows_broken": broken.rows, "first_broken": [str(bad) for bad in broken.first],
        "store": str(store), "lineage": found.version.lineage, "version": found.version.number,
        "checkpoint": found.checkpoint.number, "rows_touched": found.rows_touched,
        "bytes": found.version.bytes + found.checkpoint.bytes, "newest_event_us": found.newest_us,
        "seconds": found.seconds, "examples_per_s": found.rows_learnt / found.seconds,
    }


def told(report: dict[str, Any], settings: Settings, has_clock: bool) -> str:
    """What was learnt and written, and how it goes on."""
    from schemas.events import time_text

    lines = [
        f"{report['rows_learnt']:,} examples learnt in {report['seconds']:.1f} s ({report['examples_per_s']:,.0f}/s); "
        f"{report['rows_touched']:,} of {1 << settings.model.bits:,} rows touched",
        f"{report['store']} has version {report['version']} and checkpoint {report['checkpoint']} of lineage "
        f"{report['lineage'][:8]}, {report['bytes']:,} bytes",
    ]
    if report["store"] != str(settings.store_dir):
        lines.append(f"a trainer with these settings reads {settings.store_dir}: move it there, or set var and model.name")
    lines.append(f"the trainer will read examples from learn.start_at={settings.learn.start_at} on")
    if has_clock:
        lines[-1] += f"; the file's newest event is of {time_text(report['newest_event_us'])}"
    return "\n".join(lines)
