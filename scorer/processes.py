"""What the scorer's processes do from start to end. Follower and workers are forked from one that has imported for all."""

from __future__ import annotations

import gc
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from schemas.config import Settings
from schemas.errors import ConfigError, FreshetError, SchemaError

SWITCH_S = 2e-4  # a request waits so long for the interpreter while a version is taken over, not Python's 5 ms
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


def follow(settings: Settings, listener: socket.socket, asked: threading.Event) -> None:
    """Read the store and hand versions to the workers that connect to `listener`, until asked to end. Raises DoesNotFit."""
    from scorer.distributor import Distributor
    from scorer.memory import check_scorer
    from scorer.operators import Operators

    check_scorer(settings)
    distributor = Distributor(settings, listener, now_us)
    operators = Operators(settings, distributor, now_us)
    while not asked.is_set():
        distributor.turn()
    operators.close()
    distributor.close()


def work(settings: Settings, feed: str, port: int, asked: threading.Event) -> None:
    """Answer on that port until asked to end; then let requests in flight end and return."""
    from scorer.worker import NOTICE_S, WAKE_S, WorkerServer

    sys.setswitchinterval(SWITCH_S)
    server = WorkerServer(settings, feed, now_us)
    server.start(port, asked)
    while not asked.wait(WAKE_S):
        pass
    server.stop(notice_s=NOTICE_S)


def _end_with_the_parent(reading: int) -> None:
    os.read(reading, 1)
    os._exit(1)
