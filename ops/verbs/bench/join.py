"""freshet bench join."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from ops.settings import Loaded


def join(
    loaded: Loaded,
    slates: Annotated[int, typer.Option(min=100, help="Of 20 items. The first window of them is not measured.")] = 120_000,
    singles: Annotated[int, typer.Option(min=100, help="Slates of one item; the same.")] = 300_000,
    rounds: Annotated[int, typer.Option(min=1, help="Figures are medians of these.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Of the simulated store.")] = 1,
    memory_events: Annotated[int, typer.Option(
        "--memory", min=0, metavar="N", help="Instead: the joiner's memory while N events pass through it."
    )] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One object on stdout.")] = False,
) -> None:
    """The joiner's speed beside a stock Faust that does nothing, where its time goes, and what an open impression costs.

    On one core, the broker (our own, or the one FRESHET_KAFKA names) on another. It takes some minutes. Exit code 1
    if slates of 20 make under 120,000 examples a second, or slates of one item run under .9 of what stock Faust reads.
    """
    from ops.bench import join as bench

    def say(text: str) -> None:
        typer.echo(f"bench join: {text}", err=True)

    if memory_events:
        seen = bench.memory_over(loaded, memory_events, seed, say)
        rows = "\n".join(f"{one['events']:>12,} events  {one['open']:>8,} open  {one['bytes'] / 1e6:>7,.0f} MB" for one in seen)
        print(json.dumps({"memory": seen}) if as_json else rows)
        return
    found = bench.compare(loaded, slates, singles, rounds, seed, say)
    print(json.dumps(found) if as_json else bench.table(found))
    if missed := bench.missed(found):
        typer.echo(f"freshet: {missed}", err=True)
        raise typer.Exit(1)
