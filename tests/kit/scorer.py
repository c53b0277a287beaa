"""Follower and one worker in the test's own process, with the real socket and the real gRPC between them."""

from __future__ import annotations

import threading

from schemas.config import Settings
from scorer.operators import Operators
from scorer.ports.tls import certificates
from scorer.processes import now_us
from scorer.versions import feed
from scorer.versions.distributor import Distributor
from scorer.worker import WorkerServer


class ScorerServer:
    """What `freshet scorer` starts as processes: `start`, `port`, `stop`."""

    def __init__(self, settings: Settings) -> None:
        listener, papers = feed.listening(), certificates(settings.score)
        self.worker = WorkerServer({feed.name_of(listener): settings}, now_us, papers)
        self.distributor = Distributor(settings, listener, now_us)
        self.operators = Operators(settings.score, {settings.model.name: self.distributor}, now_us, papers)
        self._port = settings.score.port
        self._asked = threading.Event()
        self._following = threading.Thread(target=self._follow, name="follower")

    @property
    def port(self) -> int:
        return self.worker.port

    def start(self) -> None:
        self._following.start()
        self.worker.start(self._port, self._asked)

    def stop(self) -> None:
        """The worker first, as the processes end. A second call does nothing."""
        self.worker.stop()
        self._asked.set()
        self._following.join()

    def _follow(self) -> None:
        while not self._asked.is_set():
            self.distributor.turn()
        self.operators.close()
        self.distributor.close()
