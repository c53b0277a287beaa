"""freshet's own processes as a user starts them, to be killed as the world kills them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from schemas.config import Settings, keys, variable_name


def environment(settings: Settings) -> dict[str, str]:
    """Variables that give a process these settings."""
    defaults = keys()
    env = {name: text for name, text in os.environ.items() if not name.startswith("FRESHET_")}
    for key in defaults:
        section, _, name = key.rpartition(".")
        value = getattr(getattr(settings, section) if section else settings, name)
        if value != defaults[key]:
            env[variable_name(key)] = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return env | {"PYTHONUNBUFFERED": "1"}


class Process:
    """One running verb. Its output is kept in a file, for the message of a test that fails."""

    def __init__(self, settings: Settings, *verb: str) -> None:
        self.verb = verb
        self.settings = settings
        self.log = Path(settings.var) / f"{verb[0]}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._popen = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "ops.cli", *self.verb], env=environment(self.settings), stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def alive(self) -> bool:
        return self._popen.poll() is None

    def kill(self) -> None:
        """SIGKILL: no line of the process runs after this."""
        self._popen.kill()
        self._popen.wait()

    def restart(self) -> None:
        """The same again."""
        self._popen = self._start()

    def signal(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    def stop(self, timeout_s: float = 30) -> int:
        """SIGTERM and wait; the exit status."""
        if self.alive:
            self._popen.send_signal(signal.SIGCONT)
            self._popen.terminate()
        try:
            return self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.verb} did not end in {timeout_s} s:\n{self.tail()}") from None

    def tail(self, lines: int = 30) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def wait_until(true: Callable[[], object], timeout_s: float, what: str, every_s: float = 0.1) -> None:
    """Poll until `true()` holds. Raises AssertionError naming what did not come."""
    deadline = time.monotonic() + timeout_s
    while not true():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(every_s)
