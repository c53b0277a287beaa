"""freshet bench learn."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from ops.settings import Loaded


def learn(
    loaded: Loaded,
    device: Annotated[str, typer.Option(help="cpu or cuda; of all contenders.")] = "cpu",
    threads: Annotated[str, typer.Option(metavar="N,N", help="The most with each batch, fewer with 1,024.")] = "1,2",
    batch: Annotated[str, typer.Option(metavar="N,N", help="Examples in a batch.")] = "256,1024,4096",
    bits: Annotated[str, typer.Option(metavar="N,N", help="Tables of 2^N rows: the same speed?")] = "18,20,22,24",
    rounds: Annotated[int, typer.Option(min=1, help="Figures are medians of these.")] = 5,
    runs: Annotated[int, typer.Option(min=1, help="All of it so many times: medians of the runs, their least and most.")] = 1,
    only: Annotated[str, typer.Option(
        metavar="PARTS", help="Of peers,limit,tables,stream,kafka,phases; ours is always there. Default: all. "
        "Or steady, by itself: the trainer's memory while it is fed 1,500 examples a second."
    )] = "",
    examples: Annotated[int, typer.Option(min=20_000, help="In Kafka, for the trainer.")] = 1_000_000,
    minutes: Annotated[float, typer.Option(min=1, help="How long --only steady takes.")] = 60,
    as_json: Annotated[bool, typer.Option("--json", help="One object on stdout.")] = False,
) -> None:
    """The learner's speed beside DeepCTR-Torch, FuxiCTR and the machine's limit, on the same generated rows.

    The model is a DeepFM of 39 fields, 10 factors and 400-400-400; --set changes ours, model.factors and model.hidden
    that of all. The libraries are installed below var/peers on first use. Exit code 1 if a bar is missed (docs/bench-learn.md).
    """
    from ops.bench import learn as bench

    def say(text: str) -> None:
        typer.echo(f"bench learn: {text}", err=True)

    parts = bench.parts_of(only)
    if parts == [bench.STEADY]:
        print(json.dumps(bench.steady(loaded, device=device, minutes=minutes, say=say)))
        return
    found = bench.together([
        bench.compare(
            loaded, device=device, threads=bench.numbers("--threads", threads), batches=bench.numbers("--batch", batch),
            tables=bench.numbers("--bits", bits), rounds=rounds, parts=parts, examples=examples, say=say,
        )
        for _ in range(runs)
    ])
    if as_json:
        print(json.dumps(found if runs > 1 else found["runs"][0]))
    else:
        print(bench.spread(found) if runs > 1 else bench.table(found["runs"][0]))
    if missed := bench.missed(found):
        typer.echo(f"freshet: {missed}", err=True)
        raise typer.Exit(1)
