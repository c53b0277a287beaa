"""What the scorer's processes do from start to end. Follower and workers are forked from one that has imported for all."""

from __future__ import annotations

import gc
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from schemas.config import Settings
from schemas.errors import ConfigError, FreshetError, SchemaError
from scorer.ports.tls import Certificates

SWITCH_S = 2e-4  # a request waits so long for the interpreter while a version is taken over, not Python's 5 ms
# Once somebody answers, the follower gives way: what it does for a version takes 10 to 25 ms of a core, and a request that is
# due meanwhile would wait behind it. A third of a share is left to it where others want all: with a ninth, 10 instead of 5, and
# from its start on, a first table took 46 s on a machine with a load of 50.
FOLLOWER_NICE = 5
WRONG_USE = 2    # the exit code of a wrong setting, which trying does not mend


def now_us() -> int:
    """Wall clock."""
    return time.time_ns() // 1000


def import_all() -> None:
    """In the process above: import what follower and workers need, which takes 1.3 s and 300 MB, and start nothing of it."""
    gc.disable()  # nothing to collect in these objects: a sixth of the time
    import torch

    import scorer.operators
    import scorer.worker  # noqa: F401

    # In each of them too: two threads in one worker are slower than two workers, and where others use the cores a follower's
    # two threads wait for one another (1.7 s instead of .15 to fill a table of 2^22 rows, with a load of 5).
    torch.set_num_threads(1)
    gc.freeze()  # a collection in a child would write to all these objects, and so copy them
    gc.enable()


def begin(name: str, run: Callable[[], None], life: tuple[int, int]) -> None:
    """The first thing in a forked process, and the last.

    life: a pipe that nobody writes to. Its writing end stays with the process above alone, so that its end is the end of this
    one too, at once.
    """
    reading, writing = life
    os.close(writing)
    os.setsid()  # Ctrl-C on the terminal reaches the process above alone, which says it once
    Path("/proc/self/comm").write_text(f"scorer-{name}")  # what ps and top call it
    threading.Thread(target=_end_with_the_parent, args=(reading,), name="parent", daemon=True).start()
    try:
        run()
    except FreshetError as wrong:
        sys.stderr.write(f"freshet: {wrong}\n")
        sys.exit(WRONG_USE if isinstance(wrong, ConfigError | SchemaError) else 1)


def follow(
    models: Mapping[str, Settings], own: str, listener: socket.socket, asked: threading.Event, certificates: Certificates | None
) -> None:
    """Read one model's store and hand versions to the workers that connect to `listener`, until asked to end; the first model's
    has the operators' ports.

    models: name of each follower's socket → settings. own: which of them this is. Raises DoesNotFit.
    """
    from scorer.memory import check_scorer
    from scorer.operators import Model, Operators
    from scorer.versions.distributor import Distributor
    from scorer.versions.watched import Watched

    check_scorer(list(models.values()))
    distributor = Distributor(models[own], listener, now_us)
    with ExitStack() as opened:
        opened.callback(distributor.close)
        if own == next(iter(models)):
            seen: dict[str, Model] = {models[own].model.name: distributor}
            for feed, settings in models.items():
                if feed != own:
                    seen[settings.model.name] = other = Watched(feed)
                    other.start()
                    opened.callback(other.close)
            opened.callback(Operators(models[own].score, seen, now_us, certificates).close)
        served = False
        while not asked.is_set():
            distributor.turn()
            if not served and distributor.seen.serving:
                served = True
                _give_way()


def work(
    models: Mapping[str, Settings], port: int, asked: threading.Event, certificates: Certificates | None
) -> None:
    """Answer for all models on that port until asked to end; then let requests in flight end and return."""
    from scorer.worker import NOTICE_S, WAKE_S, WorkerServer

    sys.setswitchinterval(SWITCH_S)
    server = WorkerServer(models, now_us, certificates)
    server.start(port, asked)
    while not asked.wait(WAKE_S):
        pass
    server.stop(notice_s=NOTICE_S)


def _give_way() -> None:
    os.nice(FOLLOWER_NICE)
    with suppress(OSError):  # where each session has a share of its own (sched_autogroup), nice counts within one alone
        Path("/proc/self/autogroup").write_text(str(FOLLOWER_NICE))


def _end_with_the_parent(reading: int) -> None:
    os.read(reading, 1)
    os._exit(1)
