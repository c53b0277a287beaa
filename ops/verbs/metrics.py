"""freshet metrics."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from schemas.config import Settings


def metrics(
    settings: Settings,
    last: Annotated[int, typer.Option(min=0, help="Newest windows only; 0 = all.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One object on stdout.")] = False,
) -> None:
    """The trainer's figures, from the score of each example before it was learnt: per window, and over all."""
    from ops.tables import window_table
    from ops.watch import last as newest
    from ops.watch import windows

    rows = windows(settings)
    shown = rows[-last:] if last else rows
    status = newest(settings, "trainer", "trainer.status")
    if as_json:
        print(json.dumps({"windows": shown, "status": status}))
        return
    if status is None:
        typer.echo(f"freshet: no trainer has logged anything of {settings.model.name} in {settings.metrics_dir}", err=True)
        raise typer.Exit(1)
    print(window_table(shown, status["lifetime"]))
    print("ends: " + ", ".join(f"{count:,} {name}" for name, count in sorted(status["tallies"].items())))
