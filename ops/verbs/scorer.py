"""freshet scorer."""

from __future__ import annotations

from schemas.config import Settings


def scorer(settings: Settings) -> None:
    """Answer `Score` over gRPC with the newest version of the store, until told to stop.

    Health is NOT_SERVING until the first version is loaded. Needs no broker.
    """
    from scorer.server import run

    run(settings)
