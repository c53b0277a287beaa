"""A number for each worker of one kind on this machine, free again the moment its holder dies."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

MOST = 1024


def take_slot(folder: Path, kind: str) -> str:
    """A name that no living worker of this kind on this machine has, and that a worker killed and restarted gets again.

    Kafka knows a group's member by it: a member that comes back under its name goes on at once (1.6 s after SIGKILL)
    where a stranger waits until the dead one's session is over (6 s). The slot is an open lock file: it ends with the
    process, however that ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(MOST):
        lock = os.open(folder / f"{kind}-{number}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        return f"{socket.gethostname()}-{kind}-{number}"
    raise RuntimeError(f"{MOST} workers hold {folder}/{kind}-*.lock")
