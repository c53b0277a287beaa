"""Children that never outlive their parent, even if it is killed outright."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

_PR_SET_PDEATHSIG = 1  # linux/prctl.h

# Looked up once, here: between fork and exec a child must not import or allocate more than it has to.
_prctl = ctypes.CDLL(None, use_errno=True).prctl if sys.platform == "linux" else None


def tie_to_parent(parent: int, deadly: signal.Signals = signal.SIGKILL) -> None:
    """Ask the kernel to send this process `deadly` as soon as the parent's thread that made it is gone.

    parent: the pid that the caller believes is its parent; if that one died before the request was made, this process
    ends at once. Linux only; elsewhere nothing happens, and a parent killed outright leaves its children.
    """
    if _prctl is None:
        return
    _prctl(_PR_SET_PDEATHSIG, int(deadly), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def tied(deadly: signal.Signals = signal.SIGKILL) -> Callable[[], None]:
    """A `preexec_fn` for subprocess.Popen. Call Popen from the main thread: it is that thread's end that counts."""
    parent = os.getpid()
    return lambda: tie_to_parent(parent, deadly)


def end(child: subprocess.Popen[Any], timeout_s: float) -> None:
    """SIGTERM, and SIGKILL if it has not ended by then. What it still writes into a pipe of ours is read and dropped."""
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
    try:
        child.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
