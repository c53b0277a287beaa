"""freshet evaluate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from schemas.config import Settings


def evaluate(
    settings: Settings,
    file: Annotated[Path, typer.Argument(help="What to learn; .gz is unpacked.")],
    format: Annotated[str, typer.Option(help="criteo (TSV) or jsonl (our events, one a line).")] = "jsonl",
    from_row: Annotated[int, typer.Option(min=0, help="Figures from this row on only (all rows are learnt).")] = 0,
    rows: Annotated[int, typer.Option(min=0, help="Stop after so many rows of the file; 0 = all.")] = 0,
    row_interval_s: Annotated[
        float | None, typer.Option(help="As in `freshet replay`.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One object on stdout.")] = False,
) -> None:
    """Learn a file in one pass, each row scored before it is learnt: the figures of a replay, without Kafka."""
    from ops import formats
    from ops.console import progress
    from ops.evaluate import evaluate as learn
    from ops.tables import window_table

    records = formats.read(file, format, formats.row_interval_us(settings, row_interval_s), settings.join.action)
    with progress("evaluate", None, "examples") as bar:
        found = learn(settings, formats.first_rows(records, rows), from_row, bar.advance)
    if as_json:
        print(json.dumps({
            **found.figures.as_dict(), "windows": [window.as_dict() for window in found.windows],
            "tallies": found.tallies, "weights_digest": found.weights_digest, "seconds": found.seconds,
            "examples_per_s": found.tallies["examples"] / found.seconds,
        }))
        return
    print(window_table([window.as_dict() for window in found.windows], found.figures.as_dict()))
    print(f"{found.tallies['examples']:,} examples in {found.seconds:.1f} s, weights {found.weights_digest}")
    for letter in found.dead_letters[:5]:
        typer.echo(f"freshet: event {letter.offset} could not be used: {letter.text}", err=True)
