"""freshet scorer."""

from __future__ import annotations

import os

from ops.settings import of_scorer
from schemas.config import Settings


def scorer(settings: Settings) -> None:
    """Answer `Score` over gRPC with the newest version of the store, until told to stop.

    One follower reads the store, score.workers processes answer on one port, and are started again if they end. Health is
    NOT_SERVING until the first version is loaded. score.also names the settings of other models that the same processes
    answer for, each with a store and a follower of its own. Needs no broker.
    """
    from scorer.server import run

    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's threads would begin with its import, before workers are forked
    run(of_scorer(settings))
