"""freshet updates."""

from __future__ import annotations

from typing import Annotated

import typer

from schemas.config import Settings


def updates(
    settings: Settings,
    *,
    anew: Annotated[bool, typer.Option(help="Begin another history whatever the topic holds; mirrors take it over.")] = False,
) -> None:
    """Send the store's versions to the topic model-updates, for scorers on other machines, until told to stop.

    Runs beside the trainer, on its machine; `freshet run` starts it where snapshot.updates is set (docs/snapshots.md).
    """
    from ops.kafka.topics import wait_for_start
    from ops.versions.updates import run

    wait_for_start(settings, ["model-updates"])
    run(settings, anew)
