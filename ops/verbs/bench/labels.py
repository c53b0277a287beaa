"""freshet bench labels."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from schemas.config import Settings


def labels(
    settings: Settings,
    talkingdata: Annotated[Path | None, typer.Option(
        metavar="FILE", help="TalkingData's train.csv, to judge by its installs too; .gz is unpacked."
    )] = None,
    seconds: Annotated[float, typer.Option(min=10, help="Of the simulated store's time, at 20 slates of 20 a second.")] = 900.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the store and the model.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="One object on stdout.")] = False,
) -> None:
    """Modes of the label beside an oracle that has every label at once: what the model says when an impression is shown.

    On a simulated store a quarter of whose clicks come after the short window, and on TalkingData's installs. The last line is
    immediate without its correction. [model] and [learn] are as configured, but for the schema.
    """
    from ops.bench import labels as bench
    from ops.terminal.console import progress

    learn = replace(settings.learn, guard=False)
    report: dict[str, Any] = {}

    def run(name: str, schema: str, log: bench.Log, tried: list[bench.Way]) -> None:
        one = replace(settings, learn=learn, model=replace(settings.model, schema=schema, seed=seed))
        with progress(f"bench labels: {name}", len(log.events) * len(tried), "events") as bar:
            found = bench.compare(one, log, tried, bar.advance)
        report[name] = {
            "events": len(log.events), "delay_s": bench.delay_quantiles_s(log), "ways": [asdict(figures) for figures in found],
        }
        if not as_json:
            print(bench.table(name, found) + "\n")

    short, long = bench.STORE_WINDOWS
    run("store", "appstore", bench.store_log(replace(bench.STORE, seed=seed), seconds),
        bench.ways(settings.join, short, long, long))
    if talkingdata is not None:
        run("talkingdata", "talkingdata", bench.install_log(talkingdata, settings.join.action),
            bench.ways(settings.join, *bench.INSTALL_WINDOWS, bench.INSTALL_CORRECTED_S))
    if as_json:
        print(json.dumps(report))
