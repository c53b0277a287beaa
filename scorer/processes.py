"""What the follower's and the workers' processes do from start to end: signals, and their parent's death."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time

from schemas.config import Settings
from scorer.signals import asked_to_end

SWITCH_S = 2e-4  # a request waits so long for the interpreter while a version is taken over, not Python's 5 ms


def now_us() -> int:
    """Wall clock."""
    return time.time_ns() // 1000


def follow(settings: Settings, listener: socket.socket) -> None:
    """Read the store and hand versions to the workers that connect to `listener`, until SIGTERM. Raises DoesNotFit."""
    from scorer.distributor import Distributor  # without grpc, which takes as long to import as a table to load
    from scorer.memory import check_scorer

    check_scorer(settings)
    asked = _asked_to_end()
    distributor = Distributor(settings, listener, now_us)
    while not asked.is_set():
        distributor.turn()
    distributor.close()


def work(settings: Settings, feed: str, port: int) -> None:
    """Answer on that port until SIGTERM; then let requests in flight end and return."""
    import torch

    from scorer.worker import NOTICE_S, WAKE_S, WorkerServer

    torch.set_num_threads(1)  # two threads in one worker are slower than two workers
    sys.setswitchinterval(SWITCH_S)
    asked = _asked_to_end()
    server = WorkerServer(settings, feed, now_us)
    server.start(port, asked)
    while not asked.wait(WAKE_S):
        pass
    server.stop(notice_s=NOTICE_S)


def _asked_to_end() -> threading.Event:
    """Set by SIGTERM and SIGINT. The process ends at once when its standard input does: its parent is gone."""
    asked = asked_to_end()
    threading.Thread(target=_end_with_the_parent, name="parent", daemon=True).start()
    return asked


def _end_with_the_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)
