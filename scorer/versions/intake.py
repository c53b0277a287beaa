"""A worker's side of the feed: takes versions over between two requests, and keeps asking for them if the follower dies."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import structlog
import torch

from schemas.errors import SnapshotError
from scorer.answers.engine import Blueprint, Engine
from scorer.answers.version import Version
from scorer.versions import feed, segment

AGAIN_S = 0.05        # between two tries to reach the follower, which is soon started again
DEFECT_PAUSE_S = 1.0
TOTALS_EVERY_S = 1.0  # how often a worker says what it counted

_log = structlog.get_logger("scorer")


class Intake:
    """`engine` is the one that answers, None before the first version. Runs on a thread of its own.

    heard: set once the follower has said what there is, so that a worker does not listen while others could answer.
    """

    def __init__(
        self,
        name: str,
        blueprint: Blueprint,
        totals: Callable[[], Mapping[str, float]],
        port: Callable[[], int],
        now_us: Callable[[], int],
        ready: Callable[[], None],
    ) -> None:
        """name: of the follower's socket. totals: what this worker counted. ready: called when the first version is in."""
        self.engine: Engine | None = None
        self.heard = threading.Event()
        self._name = name
        self._blueprint = blueprint
        self._totals = totals
        self._port = port
        self._now_us = now_us
        self._ready = ready
        self._closing = threading.Event()
        self._connection: socket.socket | None = None
        self._last: Version | None = None
        self._thread = threading.Thread(target=self._run, name="intake", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def served(self, version: Version) -> None:
        """An answer from `version` is complete: from every request, a comparison unless the version is new."""
        if version is not self._last:
            self._last = version
            self._say({"kind": "served", "served_us": self._now_us(), **feed.as_message(version)})

    def close(self) -> None:
        """Say what was counted, and stop."""
        self._say_totals()
        self._closing.set()
        if (connection := self._connection) is not None:
            with suppress(OSError):  # what was said before still arrives
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def _run(self) -> None:
        away = False
        while not self._closing.is_set():
            try:
                with feed.connected(self._name) as connection:
                    connection.settimeout(TOTALS_EVERY_S)
                    version = self._now()
                    lineage, number = (None, None) if version is None else (version.lineage, version.number)
                    feed.send(connection, {"kind": "hello", "pid": os.getpid(), "lineage": lineage, "number": number})
                    self._connection = connection
                    if away:
                        _log.info("follower.back")
                    away = False
                    self._take_all(connection)
            except OSError as gone:
                if not away and not self._closing.is_set():
                    now = self._now()
                    _log.warning("follower.away", error=str(gone), serving=None if now is None else now.number)
                away = True
            except SnapshotError as unfit:
                _log.error("version.refused", error=str(unfit), then="asking for the whole table")
            except Exception:  # noqa: BLE001  (a defect of ours: answering from the last good version beats not answering)
                _log.exception("intake.defect")
                self._closing.wait(DEFECT_PAUSE_S)
            finally:
                self._connection = None
            self._closing.wait(AGAIN_S)

    def _now(self) -> Version | None:
        return None if self.engine is None else self.engine.version

    def _take_all(self, connection: socket.socket) -> None:
        """Until the follower is gone, or this worker closes. Raises OSError, SnapshotError."""
        said_at = 0.0
        while not self._closing.is_set():
            if time.monotonic() - said_at > TOTALS_EVERY_S:
                said_at = time.monotonic()
                self._say_totals()
            try:
                came = feed.receive(connection)
            except TimeoutError:
                continue
            if came is None:
                raise ConnectionResetError("the follower has ended")
            message, file = came
            version = self._take(message, file)
            if version is not None:
                feed.send(connection, {"kind": "took", "packet": message["packet"], **feed.as_message(version)})
            self.heard.set()

    def _take(self, message: Mapping[str, Any], file: int | None) -> Version | None:
        """The version that came with a message; None where there was none."""
        if file is None:
            return None
        try:
            found = segment.opened(file)
        finally:
            os.close(file)
        first = self.engine is None
        if found.table is None:
            if self.engine is None:
                raise SnapshotError(f"version {found.manifest.number} came before any table")
            return self.engine.apply(found.manifest, found.content, gently=True)
        # A copy: the mapping's pages would else be copied one by one, each when a version first writes to it. numpy's, which
        # asks for huge pages: a third of the time of torch's.
        engine = Engine(self._blueprint, self._now_us, torch.from_numpy(found.table.copy()))
        version = engine.apply(found.manifest, found.content)
        self.engine = engine
        _log.info("table.taken", version=version.number, lineage=version.lineage[:8], rows=len(found.table))
        if first:
            self._ready()
        return version

    def _say(self, message: Mapping[str, Any]) -> None:
        connection = self._connection
        if connection is not None:
            try:
                feed.send(connection, message)
            except OSError:
                return  # the follower is gone, which the thread that listens notices too

    def _say_totals(self) -> None:
        self._say({"kind": "totals", "totals": dict(self._totals()), "port": self._port()})
