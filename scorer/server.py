"""`freshet scorer`: a follower for each model, workers that answer for all, and this process above them, which holds their port
and starts them again.

The port is bound here, without listening, for as long as the scorer runs. Workers share it (SO_REUSEPORT), so the kernel
spreads connections over them; a second scorer is refused, which SO_REUSEPORT alone would let in.

All are forked from this process, which has imported torch for them: once instead of in each, and the pages are shared. So it
does nothing but watch over them: a thread here, or one of gRPC's or OpenMP's, would be missing in what is forked from it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from multiprocessing.context import ForkProcess

import structlog

from schemas import fields
from schemas.config import ScoreConfig, Settings
from schemas.errors import ConfigError, FreshetError
from scorer import processes
from scorer.ports.tls import Certificates, certificates
from scorer.ports.tokens import read_tokens
from scorer.signals import asked_to_end

# A signal may be taken by any thread, and does not wake the main one where it waits for a lock: 3 of 60 scorers under load
# never heard SIGTERM. So it looks up by itself.
WAKE_S = 0.05
STOP_S = 12.0        # a worker ends 6 s after SIGTERM at the latest; then it is killed
FIRST_PAUSE_S = 0.05
MOST_PAUSE_S = 2.0
HEALTHY_S = 3.0      # a process that ran this long was well: the pause is short again
GIVE_UP_AFTER = 10   # quick ends in a row, after about 10 s of pauses
MOST_WORKERS = 4     # of themselves: each has the whole table; score.workers asks for more

_FORK = multiprocessing.get_context("fork")
_log = structlog.get_logger("scorer")


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


def check(score: ScoreConfig) -> Certificates | None:
    """What the ports will show, None = plain text. Raises ConfigError, before anything is started, for certificates, tokens and
    operators' ports that cannot serve."""
    found = certificates(score)
    read_tokens(score)
    for setting, step in (("operator_port", 1), ("metrics_port", 2)):
        port = score.beside(getattr(score, setting), step)
        try:
            with socket.create_server(
                (score.operator_host, port), family=socket.AF_INET6 if ":" in score.operator_host else socket.AF_INET
            ):
                pass
        except (OSError, OverflowError) as taken:
            raise ConfigError(
                f"score.{setting}={getattr(score, setting)}: cannot listen on {score.operator_host}:{port}. Another process "
                "has that port, or score.operator_host is not of this machine: end that process, or set another port (0 = any)."
            ) from taken
    return found


def _check_memory(models: Sequence[Settings]) -> None:
    """Raises DoesNotFit. A follower that finds so by itself is only tried again where there are several."""
    from schemas.memory import room
    from scorer.memory import check_scorer

    check_scorer(models, room())


def workers_of(score: ScoreConfig) -> int:
    """How many there are to be."""
    return score.workers or min(MOST_WORKERS, len(os.sched_getaffinity(0)))


@dataclass
class _Child:
    """One process that is kept running. run: what it does; when that returns, it has ended. life: see processes.begin.
    alone: the others are of no use without it, so they end where it cannot be kept."""

    name: str
    run: Callable[[], None]
    life: tuple[int, int]
    alone: bool = True
    process: ForkProcess | None = None
    began: float = 0.0
    failures: int = 0
    start_at: float = 0.0

    def keep(self, now: float) -> None:
        """Start it if it is to run and does not. Raises FreshetError when that does not help."""
        if self.process is None:
            if now >= self.start_at:
                self.process = _FORK.Process(target=processes.begin, args=(self.name, self.run, self.life), name=self.name)
                self.process.start()
                self.began = now
            return
        code = self.process.exitcode
        if code is None:
            return
        self._let_go()
        if code == processes.WRONG_USE and self.alone:
            raise ConfigError(f"{self.name} ended with a wrong setting, named above")
        self.failures = self.failures + 1 if now - self.began < HEALTHY_S else 0
        if self.failures >= GIVE_UP_AFTER and self.alone:
            raise FreshetError(f"{self.name} ended {GIVE_UP_AFTER} times in a row within {HEALTHY_S:.0f} s; see above why")
        pause_s = min(MOST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(self.failures, GIVE_UP_AFTER))
        self.start_at = now + pause_s
        ended = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        _log.warning("scorer.restart", process=self.name, ended=ended, ran_s=round(now - self.began, 1), pause_s=pause_s)

    def end(self) -> None:
        """Tell it to."""
        if self.process is not None:
            self.process.terminate()

    def wait(self, until: float) -> None:
        """Until it has ended; killed after that time."""
        if self.process is None:
            return
        self.process.join(max(0.0, until - time.monotonic()))
        if self.process.exitcode is None:
            _log.error("scorer.killed", process=self.name, why="it did not end when it was told to")
            self.process.kill()
            self.process.join()
        self._let_go()

    def _let_go(self) -> None:
        assert self.process is not None
        self.process.close()
        self.process = None


def run(models: Sequence[Settings]) -> None:
    """Keep followers and workers running until SIGTERM or SIGINT; then workers answer what has begun, and all end.

    models: settings of each, with names of their own; ports, tokens and processes are as the first's say.
    """
    asked = asked_to_end()
    from scorer.versions import feed

    score = models[0].score
    papers = check(score)
    for settings in models:
        fields.load(settings.model.schema)
    with reserved(score) as port, ExitStack() as listening:
        number_of_port, count = int(port.getsockname()[1]), workers_of(score)
        listeners = [listening.enter_context(feed.listening()) for _ in models]
        by_feed = {feed.name_of(listener): settings for listener, settings in zip(listeners, models, strict=True)}
        _log.info(
            "scorer.starting", host=score.host, port=number_of_port, workers=count,
            stores=[str(settings.store_dir) for settings in models],
        )
        processes.import_all()
        if len(models) > 1:
            _check_memory(models)
        life = os.pipe()

        def follow(own: str, listener: socket.socket) -> None:
            for other in (port, *listeners):
                if other is not listener:
                    other.close()
            processes.follow(by_feed, own, listener, asked, papers)

        def work() -> None:
            for other in (port, *listeners):
                other.close()
            processes.work(by_feed, number_of_port, asked, papers)

        followers = [
            _Child(
                "follower" if len(models) == 1 else f"{settings.model.name} follower", partial(follow, own, listener), life,
                alone=len(models) == 1,
            )
            for (own, settings), listener in zip(by_feed.items(), listeners, strict=True)
        ]
        workers = [_Child(f"worker {place}", work, life) for place in range(count)]
        try:
            while not asked.wait(WAKE_S):
                if papers is not None:
                    papers.watch()  # here too: a process that starts again begins with the newest that can serve
                for child in (*followers, *workers):
                    child.keep(time.monotonic())
        finally:
            _log.info("scorer.stopping")
            _end(workers)
            _end(followers)  # last: they write down what was counted
            _log.info("scorer.ended")


def _end(children: Sequence[_Child]) -> None:
    for child in children:
        child.end()
    until = time.monotonic() + STOP_S
    for child in children:
        child.wait(until)
