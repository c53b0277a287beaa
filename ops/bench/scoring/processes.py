"""The processes of `freshet bench score`, as the one that measures has them: the scorer, other servers, the load generator."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from ops.bench.scoring.served import MODEL
from ops.machine.processes import tied
from schemas.config import Settings, value_of, variable_name
from schemas.errors import FreshetError
from scorer.client import ScorerClient

CONNECTIONS = 32             # the kernel spreads connections, not requests: of 8, two came to one worker and six to the other
IN_FLIGHT = 32               # at saturation
WARM_S = 0.5
CALL = "/freshet.scoring.v1.Scorer/Score"


class BenchFailed(FreshetError):
    """A process of the bench ended, or answered wrong."""


class Load:
    """The load generator, in a process of its own. failed: requests that were refused, as a scorer does beyond
    score.in_flight."""

    failed = 0

    def __enter__(self) -> Load:
        self._child = subprocess.Popen(
            [sys.executable, "-m", "ops.bench.scoring.child", "load"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            preexec_fn=tied(),
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._child.kill()
        self._child.communicate()

    def run(
        self, port: int, bodies: Path, seconds: float, seed: int, rate: float | None = None, path: str = CALL
    ) -> dict[str, Any]:
        """rate: of calls a second, open loop; None = as many as are answered."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        task = {
            "port": port, "path": path, "bodies": str(bodies), "connections": CONNECTIONS, "in_flight": IN_FLIGHT,
            "seconds": seconds, "warm_s": WARM_S, "rate": rate, "seed": seed,
        }
        self._child.stdin.write(json.dumps(task) + "\n")
        self._child.stdin.flush()
        found: dict[str, Any] = json.loads(self._child.stdout.readline() or '{"refused": "the load generator ended"}')
        if "refused" in found or not found["requests"]:
            raise BenchFailed(f"port {port}: {found.get('refused', 'every request failed')}")
        self.failed += found["failed"]
        return found


def _environment(settings: Settings) -> dict[str, str]:
    """This bench's settings alone, one thread for torch."""
    own = {name: text for name, text in os.environ.items() if not name.startswith("FRESHET_")}
    given = {
        "FRESHET_VAR": str(settings.var), "FRESHET_SCORE_PORT": str(settings.score.port),
        "FRESHET_SCORE_OPERATOR_PORT": "0", "FRESHET_SCORE_METRICS_PORT": "0",
        "FRESHET_MODEL_SCHEMA": settings.model.schema, "OMP_NUM_THREADS": "1",
    }
    for key in ("workers", "threads", "precision", "poll_s"):
        given[f"FRESHET_SCORE_{key.upper()}"] = str(getattr(settings.score, key))
    for key in MODEL:
        value = value_of(settings, key)
        given[variable_name(key)] = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return own | given


@contextmanager
def scorer_of(settings: Settings) -> Iterator[psutil.Process]:
    """`freshet scorer`, once it answers. Raises BenchFailed."""
    settings.var.mkdir(parents=True, exist_ok=True)
    with (settings.var / "scorer.log").open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "ops.cli", "scorer"], env=_environment(settings), stderr=log, stdin=subprocess.DEVNULL,
            preexec_fn=tied(),
        )
    try:
        _wait_until_it_listens(settings.score.port, 60)
        with ScorerClient(f"127.0.0.1:{settings.score.port}") as client:
            client.wait_ready(60)
        yield psutil.Process(child.pid)
    finally:
        child.terminate()
        child.wait(30)


def workers(parent: psutil.Process) -> list[psutil.Process]:
    """Those of a scorer that answer."""
    return [child for child in parent.children() if child.name().startswith("scorer-worker")]


@contextmanager
def server(*arguments: str) -> Iterator[psutil.Process]:
    """One of those of child.py, once it answers. Raises BenchFailed."""
    child = subprocess.Popen(
        [sys.executable, "-m", "ops.bench.scoring.child", *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, preexec_fn=tied(),
    )
    try:
        assert child.stdout is not None
        if child.stdout.readline() != "ready\n":
            raise BenchFailed(f"the {arguments[0]} server did not start; see above")
        yield psutil.Process(child.pid)
    finally:
        child.kill()
        child.communicate()


def _wait_until_it_listens(port: int, seconds: float) -> None:
    """grpc's client pauses for longer and longer between two tries, which is none of the scorer's time. Raises BenchFailed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.005)
    raise BenchFailed(f"the scorer did not listen on port {port} within {seconds:.0f} s")
