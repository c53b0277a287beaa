"""freshet bench watch."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from schemas.config import Settings


def watch(
    settings: Settings,
    rounds: Annotated[int, typer.Option(min=2, help="Turns of each way.")] = 40,
    seconds: Annotated[float, typer.Option(min=60, help="Of the simulated store's log, learnt again and again.")] = 300.0,
    as_json: Annotated[bool, typer.Option("--json", help="One object on stdout.")] = False,
) -> None:
    """What watching costs the trainer: slices, fields, detectors, the gate and a reference version, one after the other.

    From records in memory to weights, without Kafka and versions. Exit code 1 if all together cost more than 5 % of the
    throughput.
    """
    from ops.bench import watch as bench

    found = bench.compare(settings, rounds, seconds, lambda text: typer.echo(f"bench watch: {text}", err=True))
    print(json.dumps(found) if as_json else bench.table(found))
    if not found["bar"]["met"]:
        raise typer.Exit(1)
