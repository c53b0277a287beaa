"""freshet bench watch."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from ops.settings import Loaded


def watch(
    loaded: Loaded,
    turns: Annotated[int, typer.Option(min=0, help="Of the trainer from Kafka, with it and without; 0 = leave it out.")] = 10,
    rounds: Annotated[int, typer.Option(min=0, help="Turns of each part, from memory; 0 = leave them out.")] = 40,
    seconds: Annotated[float, typer.Option(min=60, help="Of the store's log that they learn again and again.")] = 300.0,
    as_json: Annotated[bool, typer.Option("--json", help="One object on stdout.")] = False,
) -> None:
    """What watching costs the trainer: all of it, from Kafka; and slices, fields, detectors, the gate and a reference version,
    one after the other, from records in memory to weights.

    Exit code 1 if the trainer from Kafka (without it: its learner alone) loses more than 5 % of its throughput.
    """
    from ops.bench import watch as bench

    def say(text: str) -> None:
        typer.echo(f"bench watch: {text}", err=True)

    found = bench.judged(
        bench.compare(loaded.settings, rounds, seconds, say) if rounds else None,
        bench.from_kafka(loaded, turns, say) if turns else None,
    )
    print(json.dumps(found) if as_json else bench.table(found))
    if not found["bar"]["met"]:
        raise typer.Exit(1)
