"""freshet bench drift."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Annotated

import typer

from schemas.config import Settings


def drift(
    settings: Settings,
    only: Annotated[str, typer.Option(
        metavar="NAMES", help="Of the drifts, like labels_flipped,new_apps; stationary = none of them. Default: all."
    )] = "",
    stationary: Annotated[
        int, typer.Option(min=0, metavar="EVENTS", help="Of the stream on which nothing happens; 0 = leave it out.")
    ] = 5_000_000,
    quick: Annotated[bool, typer.Option("--quick", help="Less of everything: minutes, to see that it works.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the store and the model.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="One object on stdout.")] = False,
) -> None:
    """Planted drifts: was each noticed, how soon, blamed on the right place, and held back by the gate; and false alarms.

    A simulated store, the join, the training with all that watches it, and the gate, in one process and in event time, without
    Kafka. The whole takes an hour of one core, --quick some minutes. [join], [learn], [metrics], [gate] are as set.
    Exit code 1 where one of the bars of docs/bench-drift.md does not hold.
    """
    import structlog

    from ops.bench import drift as bench
    from ops.terminal.console import progress

    cases = bench.chosen(only)
    plan = bench.Plan(stationary_events=min(stationary, 200_000) if quick else stationary)
    plan = plan.quick if quick else plan
    one = replace(settings, model=replace(settings.model, seed=seed))
    found = []
    with progress("bench drift", bench.Bench.steps(one, plan, cases), "versions") as bar:
        run = bench.Bench(one, plan, seed, bar.advance)
        for case in cases:
            seen = run.follow(case)
            found.append(seen)
            structlog.get_logger().info(
                "drift.followed", name=seen.name, by=seen.by, seconds=seen.seconds, blamed=seen.blamed, held_for=seen.held_for,
                held_after_s=seen.held_after_s, wrong=seen.wrong,
            )
        still = run.stationary() if plan.stationary_events else None
    print(json.dumps(bench.as_json(found, still, plan)) if as_json else bench.table(found, still))
    if wrong := bench.missed(found, still):
        for line in wrong:
            typer.echo(f"freshet: {line}", err=True)
        raise typer.Exit(1)
