"""freshet demo."""

from __future__ import annotations

import json
import os
import secrets
import sys
from pathlib import Path
from typing import Annotated

import typer

from ops.settings import Loaded, load


def demo(
    loaded: Loaded,
    *,
    seconds: Annotated[float, typer.Option(min=40, help="Of the whole, start and end included.")] = 90.0,
    rate: Annotated[float, typer.Option(help="Slates of 20 apps a second.")] = 50.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the simulated store.")] = 1,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the report as JSON here too.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One object on stdout instead of the table.")] = False,
) -> None:
    """The whole loop for ninety seconds with a report: events, learning, and scores against an oracle.

    Exit 1 if counts do not reconcile, the last third has under 60 % of the oracle's lead over 0.5 or less than the
    first third, or the p99 of click to served (mode eager) is over 5 s. It learns a new model each time.
    """
    from ops.running.demo import demo as run
    from ops.running.demo import table
    from ops.terminal.console import progress

    name = f"demo-{secrets.token_hex(3)}"
    flags = dict(loaded.overrides) | {"model.name": name, "kafka.prefix": f"{name}-"}
    own = load(loaded.file, [f"{key}={value}" for key, value in flags.items()], os.environ)
    with progress("demo", round((seconds - 25) * rate), "slates") as bar:
        report = run(own, seconds, rate, seed, lambda text: print(text, file=sys.stderr, flush=True), bar.advance)
    text = json.dumps(report.as_dict())
    path = out or own.settings.var / "demo.json"
    path.write_text(text + "\n")
    print(text if as_json else table(report) + f"\nthe same as JSON: {path}")
    for failure in report.failures:
        typer.echo(f"freshet: {failure}", err=True)
    if report.failures:
        raise typer.Exit(1)
