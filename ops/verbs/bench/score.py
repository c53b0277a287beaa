"""freshet bench score."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ops.settings import Loaded


def score(
    loaded: Loaded,
    rounds: Annotated[int, typer.Option(min=1, help="Figures are medians of these.")] = 5,
    runs: Annotated[int, typer.Option(min=1, help="Whole runs, each with new processes; figures are medians of them.")] = 1,
    seconds: Annotated[float, typer.Option(min=0.5, help="Of each load; there are nine in a round.")] = 6.0,
    seed: Annotated[int, typer.Option(min=0, help="Of ids, weights and the moments of requests.")] = 1,
    picture: Annotated[Path | None, typer.Option(help="Write the latencies here, as SVG.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One object on stdout.")] = False,
) -> None:
    """The scorer's speed beside a plain grpcio server with the same model, while versions land and while none does.

    DeepFM with 39 fields, 10 factors, 400-400-400, 2^20 rows; load generator and servers on this machine. It takes some
    minutes. score.workers, threads, precision and poll_s are as set. Exit code 1 if a bar of docs/bench-score.md is missed.
    """
    from ops.bench import score as bench

    def say(text: str) -> None:
        typer.echo(f"bench score: {text}", err=True)

    found = bench.together([bench.compare(loaded, rounds, seconds, seed + run, say) for run in range(runs)])
    print(json.dumps(found) if as_json else bench.table(found))
    if picture is not None:
        picture.write_text(bench.picture(found), encoding="utf-8")
    if missed := bench.missed(found):
        typer.echo(f"freshet: {missed}", err=True)
        raise typer.Exit(1)
