"""Being asked to end. Imports nothing heavy."""

from __future__ import annotations

import signal
import threading


def asked_to_end() -> threading.Event:
    """Set by SIGTERM and SIGINT from now on. Call it from the main thread, and look at it every so often: a signal may be taken
    by another thread, and does not wake this one where it waits for a lock."""
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.set())
    return asked
