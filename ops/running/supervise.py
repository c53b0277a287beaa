"""`freshet supervise -- CMD…`: start a process again when it crashes, and give up loudly when that does not help.

Ours crash on purpose: a process that cannot go on ends, and what it needs stands in the log. The pause grows from half
a second to ten; half a minute of health forgets what was; eight quick failures in a row are the end. Wrong use (exit
code 2) is not tried again, as trying does not mend it.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from ops.machine.processes import tied
from ops.terminal.logging import configure

FIRST_PAUSE_S = 0.5
MOST_PAUSE_S = 10.0
HEALTHY_S = 30.0     # a process that ran this long was well: the pause starts small again
GIVE_UP_AFTER = 8    # quick failures in a row: after about 36 s of pauses
WRONG_USE = 2        # the exit code of a wrong setting


@dataclass
class Patience:
    """How long to pause after each failure. No clock, no process: told how long each run was."""

    give_up_after: int = GIVE_UP_AFTER
    failures: int = 0

    def failed(self, ran_s: float) -> float | None:
        """Seconds to pause before the next start; None = it is enough."""
        self.failures = 1 if ran_s >= HEALTHY_S else self.failures + 1
        if self.failures >= self.give_up_after:
            return None
        return min(MOST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (self.failures - 1))


class Supervisor:
    """One command, kept running. SIGTERM and SIGINT are passed on, and end it; it dies with this process (Linux)."""

    def __init__(self, command: Sequence[str], patience: Patience) -> None:
        import structlog

        self._command = list(command)
        self._patience = patience
        self._child: subprocess.Popen[bytes] | None = None
        self._told: signal.Signals | None = None
        self._log = structlog.get_logger().bind(command=" ".join(self._command))

    def run(self) -> int:
        """Until the command ends well, is told to end, or is given up. Returns this process's exit code."""
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._pass_on)
        while True:
            began = time.monotonic()
            try:
                code = self._run_once()
            except OSError as wrong:
                self._log.error("supervise.cannot_start", why=str(wrong))
                return WRONG_USE
            ran_s = time.monotonic() - began
            if self._told is not None:
                return max(code, 0)
            if code in (0, WRONG_USE):
                if code:
                    self._log.error("supervise.wrong_use", code=code, then="not started again: trying does not mend it")
                return code
            pause_s = self._patience.failed(ran_s)
            if pause_s is None:
                self._log.error("supervise.gave_up", failures=self._patience.failures, last=_name(code))
                return 1
            self._log.warning(
                "supervise.restart", ended=_name(code), ran_s=round(ran_s, 1), pause_s=pause_s,
                failures=self._patience.failures,
            )
            if not self._sleep(pause_s):
                return 0

    def _run_once(self) -> int:
        # Its own session: Ctrl-C on the terminal reaches us alone, and we pass it on once.
        self._child = subprocess.Popen(self._command, start_new_session=True, preexec_fn=tied())
        if self._told is not None:  # told between the last look and now
            self._child.send_signal(self._told)
        return self._child.wait()

    def _pass_on(self, signum: int, _frame: object) -> None:
        self._told = signal.Signals(signum)
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(signum)

    def _sleep(self, pause_s: float) -> bool:
        """False if told to end meanwhile. In small pieces: a signal's handler does not cut a sleep short."""
        until = time.monotonic() + pause_s
        while time.monotonic() < until:
            if self._told is not None:
                return False
            time.sleep(0.05)
        return self._told is None


def _name(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def main(argv: Sequence[str]) -> int:
    """`freshet supervise [--give-up-after N] -- CMD…`"""
    parser = argparse.ArgumentParser(
        prog="freshet supervise", description="Start CMD again, with a growing pause, whenever it fails."
    )
    parser.add_argument("--give-up-after", type=int, default=GIVE_UP_AFTER, help="quick failures in a row (default: 8)")
    parser.add_argument("command", nargs="+", metavar="CMD")
    given = parser.parse_args(list(argv))
    configure(sys.stderr)
    return Supervisor(given.command, Patience(given.give_up_after)).run()
