"""freshet trainer."""

from __future__ import annotations

from schemas.config import Settings


def trainer(settings: Settings) -> None:
    """Learn from the topic `examples` and publish versions and checkpoints into the store, until told to stop."""
    from ops.topics import wait_for_start
    from stream_trainer.trainer import run

    wait_for_start(settings, ["examples"])
    run(settings)
