"""What the verbs that read files have in common: options, and a word on rows that did not fit."""

from __future__ import annotations

from typing import Annotated

import typer

from ops.formats.common import Broken

Format = Annotated[str, typer.Option(
    help="criteo (TSV without a header), jsonl (our events, one a line), csv, tsv, parquet, libffm, movielens."
)]
Label = Annotated[str | None, typer.Option(metavar="COLUMN", help="0 or 1. Default: the column named label.")]
Time = Annotated[str | None, typer.Option(
    metavar="COLUMN", help="Event time: ISO 8601 or unix seconds. Rows are sorted by it. Default: the order of rows."
)]
RowIntervalS = Annotated[float | None, typer.Option(
    help="Event time between two rows of a file without a clock. Default: the join's window, so that examples keep the "
         "file's order."
)]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first row that does not fit.")]


def tell_broken(broken: Broken) -> None:
    """How many rows did not fit, and the first of them by line."""
    if not broken.rows:
        return
    for bad in broken.first:
        typer.echo(f"freshet: {bad}", err=True)
    rows = "1 broken row" if broken.rows == 1 else f"{broken.rows:,} broken rows"
    typer.echo(f"freshet: {rows} skipped (--strict stops at the first)", err=True)
