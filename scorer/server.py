"""`freshet scorer`: one follower, several workers, and this process above them, which holds their port and starts them again.

The port is bound here, without listening, for as long as the scorer runs. Workers share it (SO_REUSEPORT), so the kernel
spreads connections over them; a second scorer is refused, which SO_REUSEPORT alone would let in. Nothing heavy is
imported: this process is to live.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from schemas.config import ScoreConfig, Settings
from schemas.errors import ConfigError, FreshetError
from scorer.signals import asked_to_end

# A signal may be taken by any thread, and does not wake the main one where it waits for a lock: 3 of 60 scorers under load
# never heard SIGTERM. So it looks up by itself.
WAKE_S = 0.05
STOP_S = 12.0        # a worker ends 6 s after SIGTERM at the latest; then it is killed
LATER_S = 1.5        # all workers but the first: follower and first worker have the cores while they import torch
FIRST_PAUSE_S = 0.05
MOST_PAUSE_S = 2.0
HEALTHY_S = 3.0      # a process that ran this long was well: the pause is short again
GIVE_UP_AFTER = 10   # quick ends in a row, after about 10 s of pauses
MOST_WORKERS = 4     # of themselves: each has the whole table; score.workers asks for more
WRONG_USE = 2        # the exit code of a wrong setting, which trying does not mend

_log = structlog.get_logger("scorer")


@dataclass(frozen=True, slots=True)
class Commands:
    """How the processes are started. follower: takes the descriptor of its socket; worker: that socket's name and a port."""

    follower: Callable[[int], Sequence[str]]
    worker: Callable[[str, int], Sequence[str]]
    environment: Mapping[str, str]


def reserved(score: ScoreConfig) -> socket.socket:
    """The port, bound and not listened on, so that workers can share it and other scorers cannot. Raises ConfigError."""
    held: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(
            score.host, score.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[:1]:
            held.append(made := socket.socket(family, kind, protocol))
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections closed a moment ago do not count
            made.bind(address)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)  # from now on nobody else may
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # but those who share
    except OSError as taken:
        for one in held:
            one.close()
        raise ConfigError(
            f"score.port={score.port}: cannot listen on {score.host}:{score.port}. Another process has that port "
            f"(another scorer?), or score.host is not of this machine: end that process, or set another port."
        ) from taken
    return held[0]


def workers_of(score: ScoreConfig) -> int:
    """How many there are to be."""
    return score.workers or min(MOST_WORKERS, len(os.sched_getaffinity(0)))


@dataclass
class _Child:
    """One process that is kept running. Its standard input is a pipe from us: when we are gone, it sees the end of it."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    pass_fds: tuple[int, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    began: float = 0.0
    failures: int = 0
    start_at: float = 0.0

    def keep(self, now: float) -> None:
        """Start it if it is to run and does not. Raises FreshetError when that does not help."""
        if self.process is None:
            if now >= self.start_at:
                # A session of its own: Ctrl-C on the terminal reaches us alone, and we say it once.
                self.process = subprocess.Popen(
                    self.command, env=dict(self.environment), stdin=subprocess.PIPE, pass_fds=self.pass_fds,
                    start_new_session=True,
                )
                self.began = now
            return
        code = self.process.poll()
        if code is None:
            return
        self._let_go()
        if code == WRONG_USE:
            raise ConfigError(f"{self.name} ended with a wrong setting, named above")
        self.failures = self.failures + 1 if now - self.began < HEALTHY_S else 0
        if self.failures >= GIVE_UP_AFTER:
            raise FreshetError(f"{self.name} ended {GIVE_UP_AFTER} times in a row within {HEALTHY_S:.0f} s; see above why")
        pause_s = min(MOST_PAUSE_S, FIRST_PAUSE_S * 2.0**self.failures)
        self.start_at = now + pause_s
        ended = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        _log.warning("scorer.restart", process=self.name, ended=ended, ran_s=round(now - self.began, 1), pause_s=pause_s)

    def tell(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def wait(self, until: float) -> None:
        """Until it has ended; killed after that time."""
        if self.process is None:
            return
        try:
            self.process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            _log.error("scorer.killed", process=self.name, why="it did not end when it was told to")
            self.process.kill()
            self.process.wait()
        self._let_go()

    def _let_go(self) -> None:
        assert self.process is not None
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process = None


def run(settings: Settings, commands: Commands) -> None:
    """Keep follower and workers running until SIGTERM or SIGINT; then workers answer what has begun, and all end."""
    asked = asked_to_end()
    from scorer import feed

    with reserved(settings.score) as port, feed.listening() as listener:
        listener.set_inheritable(True)
        follower = _Child(
            "follower", commands.follower(listener.fileno()), commands.environment, (listener.fileno(),)
        )
        number_of_port, now = int(port.getsockname()[1]), time.monotonic()
        workers = [
            _Child(
                f"worker {place}", commands.worker(feed.name_of(listener), number_of_port), commands.environment,
                start_at=now + (LATER_S if place else 0.0),
            )
            for place in range(workers_of(settings.score))
        ]
        _log.info(
            "scorer.starting", host=settings.score.host, port=number_of_port, workers=len(workers),
            store=str(settings.store_dir),
        )
        try:
            while not asked.wait(WAKE_S):
                for child in (follower, *workers):
                    child.keep(time.monotonic())
        finally:
            _log.info("scorer.stopping")
            _end(workers)
            _end([follower])  # last: it writes down what they counted
            _log.info("scorer.ended")


def _end(children: Sequence[_Child]) -> None:
    for child in children:
        child.tell(signal.SIGTERM)
    until = time.monotonic() + STOP_S
    for child in children:
        child.wait(until)
