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
    only: Annotated[str, typer.Option(
        metavar="PARTS", help="Of peers,limit,tables,stream,kafka,phases; ours is always there. Default: all."
    )] = "",
    examples: Annotated[int, typer.Option(min=20_000, help="In Kafka, for the trainer.")] = 1_000_000,
    as_json: Annotated[bool, typer.Option("--json", help="One object on stdout.")] = False,
) -> None:
    """The learner's speed beside DeepCTR-Torch, FuxiCTR and the machine's limit, on the same generated rows.

    The model is a DeepFM of 39 fields, 10 factors and 400-400-400; --set changes ours, model.factors and model.hidden
    that of all. The libraries are installed below var/peers on first use. Exit code 1 if a bar is missed (docs/bench-learn.md).
    """
    from ops.bench import learn as bench

    found = bench.compare(
        loaded, device=device, threads=bench.numbers("--threads", threads), batches=bench.numbers("--batch", batch),
        tables=bench.numbers("--bits", bits), rounds=rounds, parts=bench.parts_of(only), examples=examples,
        say=lambda text: typer.echo(f"bench learn: {text}", err=True),
    )
    print(json.dumps(found) if as_json else bench.table(found))
    if missed := bench.missed(found):
        typer.echo(f"freshet: {missed}", err=True)
        raise typer.Exit(1)
