"""The follower's process: the one that reads the store. It keeps a table of its own and hands each version to all workers.

A version goes out once, as one file in memory that every worker maps (segment.py). A worker that is new, fell behind, or
cannot use what it got, gets the whole table as it is here. Workers tell when they took a version over, when they first
answered from it, and what they counted: so `scorer.status` and freshness.jsonl speak of all of them.
"""

from __future__ import annotations

import os
import selectors
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import structlog
from prometheus_client import Metric

from schemas import fields
from schemas.config import Settings
from schemas.journal import Journal
from schemas.snapshot import Arrays, Manifest, Unpacked
from scorer.answers.engine import Blueprint
from scorer.answers.version import Version
from scorer.metrics import Metrics, totals_of
from scorer.versions import feed, segment
from scorer.versions.follower import Follower
from scorer.versions.freshness import Freshness
from scorer.versions.reader import SnapshotReader, own_secondary_dir

STATUS_EVERY_S = 2.0
SEEN_EVERY_S = 0.25  # how old what an operator is shown may be
MAX_BEHIND = 32  # versions that a worker may not have taken yet: 16 s at two a second, then it gets the whole table

_log = structlog.get_logger("scorer")


@dataclass(frozen=True, slots=True)
class Seen:
    """What an operator is shown: as of one moment, for other threads. counts: as Metrics.counts, of all processes together."""

    version: Version | None
    workers: tuple[tuple[int, int], ...]  # (pid, number of the version that it answers from) of each that has one
    counts: Mapping[str, float]

    @property
    def serving(self) -> bool:
        """Whether a request is answered."""
        return bool(self.workers)

    def as_message(self) -> dict[str, Any]:
        """For another process of ours."""
        version = None if self.version is None else feed.as_message(self.version)
        return {"version": version, "workers": self.workers, "counts": dict(self.counts)}

    @classmethod
    def of_message(cls, message: Mapping[str, Any]) -> Seen:
        """The same, back."""
        version = None if message["version"] is None else feed.as_version(message["version"])
        return cls(version, tuple((pid, number) for pid, number in message["workers"]), message["counts"])


@dataclass(eq=False)
class _Worker:
    """One connection. took: number of the last packet that it has taken; totals: what it counted, as it said last. watches: it
    is no worker, and is told what is seen."""

    connection: socket.socket
    pid: int | None = None
    took: int = 0
    totals: dict[str, float] = field(default_factory=dict)
    port: int | None = None
    number: int | None = None  # of the version that it answers from
    watches: bool = False


@dataclass(eq=False)
class _Handed:
    """A version whose traces wait until every worker has it. packet: its number among all that were sent."""

    packet: int
    version: Version
    traces: Sequence[Mapping[str, Any]]
    waiting: set[_Worker]


class Distributor:
    """All of it in one object and one thread: `turn` again and again, then `close`."""

    def __init__(self, settings: Settings, listener: socket.socket, now_us: Callable[[], int]) -> None:
        """listener: where workers connect (feed.listening); closed by `close`."""
        model = settings.model
        self._now_us = now_us
        self._metrics = Metrics()
        self._freshness = Freshness(settings.metrics_dir / "freshness.jsonl")
        self._journal = Journal(settings.metrics_dir / "scorer.jsonl")
        self._reader = SnapshotReader(
            settings.store_dir, own_secondary_dir(settings.store_dir.parent / "secondaries", "scorer")
        )
        self._follower = Follower(
            self._reader, Blueprint(model, fields.load(model.schema)), settings.score.poll_s, self._metrics, now_us,
            self._changed, self._applied,
        )
        self._newest: tuple[Manifest, Arrays] | None = None
        self._packets = 0
        self._handed: list[_Handed] = []
        self._workers: dict[socket.socket, _Worker] = {}
        self._ended: dict[str, float] = {}  # what workers counted that are gone
        self.seen = Seen(None, (), {})
        self._seen_at = 0.0
        self._listener = listener
        listener.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._look_at = self._status_at = time.monotonic()

    def turn(self) -> None:
        """Look at the store if it is time to, then wait for what workers say until the next look."""
        if (now := time.monotonic()) >= self._look_at:
            self._look_at = now + self._follower.look()
        if now >= self._status_at:
            self._status_at = now + STATUS_EVERY_S
            self._journal.write(self._status_row())
        if now >= self._seen_at:
            self._seen_at = now + SEEN_EVERY_S
            self.seen = self._see()
            for watcher in [one for one in self._workers.values() if one.watches]:
                self._say(watcher, {"kind": "seen", **self.seen.as_message()})
        self._hear(max(0.0, self._look_at - time.monotonic()))

    def families(self) -> Iterator[Metric]:
        """What Prometheus reads. For any thread."""
        return self._metrics.families(self.seen.counts)

    def close(self) -> None:
        """Hear what workers said last, write it down, let go of everything. They go on with the version that they have."""
        self._hear(0)
        self._journal.write(self._status_row())
        for worker in list(self._workers.values()):
            self._drop(worker)
        self._selector.close()
        self._listener.close()
        self._freshness.close()
        self._journal.close()
        self._reader.close()

    # --- versions, from the follower ---

    def _changed(self, manifest: Manifest, content: Unpacked, whole: bool) -> None:
        self._newest = (manifest, content.dense)  # not its rows: of a whole table they are as large as that
        if whole:
            self._send_table(self._known())
        else:
            self._send("version", segment.of_version(manifest, content), self._known())

    def _applied(self, version: Version, traces: Sequence[Mapping[str, Any]]) -> None:
        self._handed.append(_Handed(self._packets, version, traces, set(self._known())))
        self._settle()

    def _settle(self) -> None:
        """Hand on the traces of versions that every worker has."""
        for one in [one for one in self._handed if not one.waiting]:
            self._handed.remove(one)
            self._freshness.applied(one.version, one.traces)

    def _known(self) -> list[_Worker]:
        return [worker for worker in self._workers.values() if worker.pid is not None]

    def _send_table(self, workers: Iterable[_Worker]) -> None:
        engine, newest = self._follower.engine, self._newest
        assert engine is not None
        assert newest is not None
        manifest, dense = newest
        self._send("table", segment.of_table(manifest, engine.table.numpy(), dense), workers)

    def _send(self, kind: str, file: int, workers: Iterable[_Worker]) -> None:
        """One packet to each; closes the file. Who is too far behind is dropped, and asks for the whole table when it
        comes back."""
        self._packets += 1
        try:
            for worker in list(workers):
                if kind == "version" and self._packets - worker.took > MAX_BEHIND:
                    _log.warning("worker.too_far_behind", pid=worker.pid, packets=self._packets - worker.took)
                    self._drop(worker)
                    continue
                self._say(worker, {"kind": kind, "packet": self._packets}, file)
        finally:
            os.close(file)

    def _say(self, worker: _Worker, message: Mapping[str, Any], file: int | None = None) -> None:
        try:
            feed.send(worker.connection, message, file)
        except OSError as gone:  # it does not read, or is no more
            _log.warning("worker.not_reached", pid=worker.pid, error=str(gone))
            self._drop(worker)

    # --- what workers say ---

    def _hear(self, timeout_s: float) -> None:
        for key, _ in self._selector.select(timeout_s):
            if key.fileobj is self._listener:
                self._welcome()
            elif (worker := self._workers.get(key.fileobj)) is not None:  # type: ignore[call-overload]
                self._hear_all(worker)
        self._settle()

    def _welcome(self) -> None:
        connection, _ = self._listener.accept()
        if not feed.is_ours(connection):
            _log.warning("worker.refused", why="a process of another user")
            connection.close()
            return
        connection.setblocking(False)
        self._workers[connection] = _Worker(connection)
        self._selector.register(connection, selectors.EVENT_READ)

    def _hear_all(self, worker: _Worker) -> None:
        while worker.connection in self._workers:
            try:
                said = feed.receive(worker.connection)
            except BlockingIOError:
                return
            except OSError:
                said = None
            if said is None:
                self._drop(worker)
            else:
                self._hear_one(worker, said[0])

    def _hear_one(self, worker: _Worker, said: Mapping[str, Any]) -> None:
        kind = said["kind"]
        if kind == "took":
            worker.took = said["packet"]
            took = feed.as_version(said)
            worker.number = took.number
            for one in self._handed:
                if one.packet <= worker.took and worker in one.waiting:
                    one.waiting.discard(worker)
                    one.version = replace(one.version, applied_us=max(one.version.applied_us, took.applied_us))
        elif kind == "served":
            self._freshness.served(feed.as_version(said), said["served_us"])
        elif kind == "totals":
            worker.totals, worker.port = said["totals"], said["port"]
        elif kind == "watch":
            worker.watches = True
        elif kind == "hello":
            worker.pid, worker.took = said["pid"], self._packets
            if self._newest is None:
                self._say(worker, {"kind": "nothing"})
            elif (said["lineage"], said["number"]) == (self._newest[0].lineage, self._newest[0].number):
                worker.number = said["number"]
                self._say(worker, {"kind": "same"})
            else:
                self._send_table([worker])

    def _drop(self, worker: _Worker) -> None:
        if self._workers.pop(worker.connection, None) is None:
            return
        self._selector.unregister(worker.connection)
        worker.connection.close()
        self._ended = _added([self._ended, worker.totals])
        for one in self._handed:
            one.waiting.discard(worker)

    # --- the row about all ---

    def _status_row(self) -> dict[str, Any]:
        ports = [worker.port for worker in self._workers.values() if worker.port is not None]
        return {
            "event": "scorer.status", "port": ports[0] if ports else None, "workers": len(self._known()),
            **self._version_fields(), **totals_of(self._counts()), "versions_served": self._freshness.versions_served,
        }

    def _counts(self) -> dict[str, float]:
        return _added([self._metrics.counts(), self._ended, *(worker.totals for worker in self._workers.values())])

    def _see(self) -> Seen:
        workers = tuple(
            (worker.pid, worker.number) for worker in self._known() if worker.pid is not None and worker.number is not None
        )
        self._metrics.workers.set(len(workers))
        engine = self._follower.engine
        return Seen(None if engine is None else engine.version, workers, self._counts())

    def _version_fields(self) -> dict[str, Any]:
        engine = self._follower.engine
        version = None if engine is None else engine.version
        if version is None:
            return {"lineage": None, "version": None, "version_age_s": None}
        age_s = round((self._now_us() - version.created_us) / 1e6, 3)
        return {"lineage": version.lineage, "version": version.number, "version_age_s": age_s}


def _added(counts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for one in counts:
        for key, value in one.items():
            total[key] = total.get(key, 0) + value
    return total
