"""What the follower of another model says of itself, for the one whose process has the operators' ports."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

from prometheus_client import Metric

from scorer.metrics import Metrics
from scorer.versions import feed
from scorer.versions.distributor import Seen

AGAIN_S = 0.25  # between two tries to reach it: it is soon started again


class Watched:
    """`seen` and `families`, as a distributor has them; from a thread, `start` to `close`. While that follower is away they
    stay as they were: its workers go on with the version that they have."""

    def __init__(self, name: str) -> None:
        """name: of the follower's socket (scorer/versions/feed.py)."""
        self.seen = Seen(None, (), {})
        self._name = name
        self._metrics = Metrics()
        self._closing = threading.Event()
        self._connection: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, name="watched", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def families(self) -> Iterator[Metric]:
        """What Prometheus reads. For any thread."""
        return self._metrics.families(self.seen.counts)

    def close(self) -> None:
        """Stop."""
        self._closing.set()
        if (connection := self._connection) is not None:
            with suppress(OSError):  # it has just gone
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.is_set():
            with suppress(OSError), feed.connected(self._name) as connection:
                self._connection = connection
                feed.send(connection, {"kind": "watch"})
                while not self._closing.is_set() and (came := feed.receive(connection)) is not None:
                    self._take(Seen.of_message(came[0]))
            self._connection = None
            self._closing.wait(AGAIN_S)

    def _take(self, seen: Seen) -> None:
        self._metrics.show(seen.version, len(seen.workers))
        self.seen = seen
