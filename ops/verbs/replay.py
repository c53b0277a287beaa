"""freshet replay."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from ops.verbs.files import Format, Label, RowIntervalS, Strict, Time, tell_broken
from schemas.config import Settings


def replay(
    settings: Settings,
    file: Annotated[Path, typer.Argument(help="What to publish; .gz is unpacked.")],
    format: Format = "jsonl",
    label: Label = None,
    time: Time = None,
    strict: Strict = False,
    rate: Annotated[float, typer.Option(min=0, help="Rows a second; 0 = as fast as possible.")] = 0.0,
    rows: Annotated[int, typer.Option(min=0, help="Stop after so many rows; 0 = all.")] = 0,
    row_interval_s: RowIntervalS = None,
    wait: Annotated[float, typer.Option(min=0, help="Wait up to so many seconds until all of it is learnt.")] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="One object on stdout.")] = False,
) -> None:
    """Publish a file's impressions and clicks to the topic `events`, in order, then the tick that closes them."""
    from ops import formats
    from ops.events.replay import replay as publish
    from ops.kafka.topics import wait_for_start
    from ops.terminal.console import progress
    from ops.watching.journals import replays_ended, wait_until_learnt
    from schemas import fields

    wait_for_start(settings, ["events"])
    before = replays_ended(settings)
    broken = formats.Broken(strict=strict)
    records = formats.read(
        file, format, formats.row_interval_us(settings, row_interval_s), settings.join.action,
        schema=fields.load(settings.model.schema), label=label, time=time, broken=broken,
    )
    with progress("replay", rows or None, "rows") as bar:
        done = publish(settings, formats.first_rows(records, rows), rate, bar.advance)
    tell_broken(broken)
    report = dataclasses.asdict(done)
    if wait:
        report |= wait_until_learnt(settings, before + done.partitions, wait)
    if as_json:
        print(json.dumps(report))
        return
    print(f"{done.rows:,} rows as {done.events:,} events into {done.partitions} partition(s) in {done.seconds:.1f} s")
    if wait:
        print(f"{report['examples_learnt']:,} examples learnt in all, {report['positives']:,} of them clicked; "
              f"{report['dropped']:,} came twice and were learnt once; weights {report['weights_digest']}")
