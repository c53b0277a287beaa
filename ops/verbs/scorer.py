"""freshet scorer, and the processes that it starts."""

from __future__ import annotations

import os
import socket
import sys
from typing import Annotated

import typer

from ops.settings import Loaded
from schemas.config import Settings


def scorer(loaded: Loaded) -> None:
    """Answer `Score` over gRPC with the newest version of the store, until told to stop.

    One follower reads the store, score.workers processes answer on one port, and are started again if they end. Health is
    NOT_SERVING until the first version is loaded. Needs no broker.
    """
    from scorer.server import Commands, run

    ours = [sys.executable, "-m", "ops.cli"]
    run(loaded.settings, Commands(
        follower=lambda descriptor: [*ours, "scorer-follower", str(descriptor)],
        worker=lambda feed, port: [*ours, "scorer-worker", feed, str(port)],
        environment=loaded.child_environment(os.environ),
    ))


def follower(
    settings: Settings, descriptor: Annotated[int, typer.Argument(help="Of the socket that workers connect to.")]
) -> None:
    """Part of `freshet scorer`: reads the store, hands versions to the workers."""
    from scorer.processes import follow

    follow(settings, socket.socket(fileno=descriptor))


def worker(
    settings: Settings,
    feed: Annotated[str, typer.Argument(help="Name of the follower's socket.")],
    port: Annotated[int, typer.Argument(help="Shared with the other workers.")],
) -> None:
    """Part of `freshet scorer`: answers."""
    from scorer.processes import work

    work(settings, feed, port)
