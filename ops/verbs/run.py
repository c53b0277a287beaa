"""freshet run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from ops.settings import Loaded


def run(
    loaded: Loaded,
    *,
    without: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Leave a process out, e.g. appstore. Repeatable.")
    ] = None,
    procfile: Annotated[Path | None, typer.Option(help="Other processes than ours.")] = None,
) -> None:
    """Run everything on this machine until Ctrl-C: Kafka, joiner, trainer, scorer, and a simulated app store.

    Says in one line each how far it is, up to the first served score. FRESHET_KAFKA=host:port uses a Kafka that runs
    already; else one of our own is started on the port of kafka.bootstrap. The processes are those of the Procfile.
    """
    from ops.running.run import run as run_all

    raise typer.Exit(run_all(loaded, os.environ, procfile, without or ()))
