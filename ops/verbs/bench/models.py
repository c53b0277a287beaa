"""freshet bench models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ops.verbs.files import Strict, tell_broken
from schemas.config import Settings


def models(
    settings: Settings,
    file: Annotated[Path, typer.Argument(help="Rows in Criteo's own form; .gz is unpacked.")],
    only: Annotated[str, typer.Option(metavar="NAMES", help="Of ours, like deepfm,default. Default: all.")] = "",
    from_row: Annotated[int, typer.Option(min=0, help="Figures from this row on only (all rows are learnt).")] = 0,
    rows: Annotated[int, typer.Option(min=0, help="Stop after so many rows of the file; 0 = all.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="Figures are means over seeds 1 to N.")] = 1,
    strict: Strict = False,
    as_json: Annotated[bool, typer.Option("--json", help="One object on stdout.")] = False,
) -> None:
    """Every model beside DeepCTR-Torch and FuxiCTR under matched settings, and our best beside Vowpal Wabbit; one pass.

    Exit code 1 if a model that a library has too lies more than .002 AUC and two standard errors away from it. The libraries
    are installed below var/peers on first use. --set reaches what the matched settings leave open, such as learn.threads.
    """
    from ops import formats
    from ops.bench import models as bench
    from ops.bench.peers import environment
    from ops.offline.evaluate import NothingLearnt
    from ops.terminal.console import progress
    from schemas import fields

    names = bench.chosen(only)
    broken = formats.Broken(strict=strict)
    records = formats.read(file, "criteo", formats.row_interval_us(settings, None), settings.join.action, broken=broken)
    with progress("reading", None, "rows") as bar:
        read = bench.read(formats.first_rows(records, rows), fields.load("criteo"), bar.advance)
    tell_broken(broken)
    if len(read.labels) <= from_row:
        raise NothingLearnt(f"{file} holds {len(read.labels):,} rows; figures were asked for from row {from_row:,} on")

    peers = settings.var.resolve() / "peers"
    environment.make(peers, lambda line: typer.echo(f"bench models: {line}", err=True))
    with progress("bench models", bench.runs(names, seeds), "runs") as bar:
        made = bench.Bench(settings, read, environment.python_of(peers), bar.advance)
        found = [made.compare(name, range(1, seeds + 1), from_row) for name in names]
        times = made.times(names, range(1, seeds + 1))
    if as_json:
        report = {"rows": len(read.labels), "from_row": from_row, "versions": environment.versions()}
        print(json.dumps({**report, "models": found, "times": times}))
    else:
        print(bench.table(found))
        if times:
            print(f"CPU time of a pass of the learner alone, in turns, medians of {seeds} seed(s):\n{bench.times_told(times)}")
    if beyond := bench.beyond(found):
        typer.echo(f"freshet: further apart than {bench.TOLERANCE} AUC and two standard errors: {', '.join(beyond)}", err=True)
        raise typer.Exit(1)
