"""freshet mirror."""

from __future__ import annotations

from schemas.config import Settings


def mirror(settings: Settings) -> None:
    """Take versions from the topic model-updates into a store of this machine, for the scorer here, until told to stop.

    Needs [model] and model.schema as the trainer has them, and a var of its own; the scorer beside it follows that store
    (docs/snapshots.md). What is kept, and how long: snapshot.keep_s here.
    """
    from ops.kafka.topics import wait_for_start
    from scorer.versions.mirror import run

    wait_for_start(settings, ["model-updates"])
    run(settings)
