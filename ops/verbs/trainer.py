"""freshet trainer."""

from __future__ import annotations

import os

from schemas.config import Settings


def trainer(settings: Settings) -> None:
    """Learn from the topic `examples` and publish versions and checkpoints into the store, until told to stop.

    Orders of model-control (freshet snapshot pin, unpin, rollback) are obeyed meanwhile.
    """
    from ops.machine.threads import wait_briefly

    wait_briefly(settings.learn.threads, os.environ)
    from ops.kafka.topics import hold_to_topics, wait_for_start
    from ops.versions.control import Orders
    from stream_trainer.faust_driver import crash
    from stream_trainer.trainer import run

    wait_for_start(settings, ["events", "examples", "model-control"])
    hold_to_topics(settings, "trainer", ["events", "examples"], crash)
    run(settings, Orders(settings))
