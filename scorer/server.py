"""The scorer's process: gRPC, health, reflection, signals, and a line about itself every few seconds."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import structlog
import torch
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from schemas import fields
from schemas.config import Settings
from schemas.errors import ConfigError
from schemas.journal import Journal
from schemas.proto.scoring_pb2_grpc import add_ScorerServicer_to_server
from scorer.client import SERVICE
from scorer.engine import Blueprint
from scorer.follower import Follower
from scorer.freshness import Freshness
from scorer.metrics import Metrics
from scorer.reader import SnapshotReader, own_secondary_dir
from scorer.service import ScoringService

STATUS_EVERY_S = 2.0
GRACE_S = 5.0          # requests in flight get this long to end after SIGTERM
# Answering goes on this long after SIGTERM: balancers see NOT_SERVING, and requests on their way here arrive. Without it
# grpc cancelled one in three times a request that it had received but not yet handed to Python.
NOTICE_S = 0.5
# A signal may be taken by any thread, and does not wake the main one where it waits for a lock: 3 of 60 scorers under load
# never heard SIGTERM. So it looks up by itself.
WAKE_S = 0.1
REFLECTIONS = 4        # reflection streams at once: each holds a thread while its client stays, so not the scorers' own
MESSAGE_BYTES = 8 << 20  # 1,000 items with 100 features each are about 6 MiB; grpc's own limit is 4 MiB

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_log = structlog.get_logger("scorer")


def now_us() -> int:
    """Wall clock."""
    return time.time_ns() // 1000


class ScorerServer:
    """All of it in one object: `start`, `port`, `stop`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        score, model = settings.score, settings.model
        schema = fields.load(model.schema)
        self.metrics = Metrics()
        self._freshness = Freshness(settings.metrics_dir / "freshness.jsonl", now_us)
        self._journal = Journal(settings.metrics_dir / "scorer.jsonl")
        secondaries = settings.store_dir.parent / "secondaries"
        self._reader = SnapshotReader(settings.store_dir, own_secondary_dir(secondaries, "scorer"))
        self.follower = Follower(
            self._reader, Blueprint(model, schema), score.poll_s, self.metrics, now_us,
            applied=self._freshness.applied, ready=self._is_ready,
        )
        service = ScoringService(
            model.name, schema, score.strict, lambda: self.follower.engine, self._freshness.served, self.metrics, now_us
        )

        self._server = grpc.server(
            ThreadPoolExecutor(score.threads, thread_name_prefix="score"),
            options=[
                # On by default: a second scorer on this port would then silently take half of the connections.
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", MESSAGE_BYTES),
                ("grpc.max_send_message_length", MESSAGE_BYTES),
            ],
        )
        add_ScorerServicer_to_server(service, self._server)  # type: ignore[no-untyped-call]
        self._health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(_Reflection(names), self._server)
        self._set_health(_NOT_SERVING)
        self.port = 0
        self._closing = threading.Event()
        self._status = threading.Thread(target=self._write_status, name="status", daemon=True)

    def start(self) -> None:
        """Bind, answer, follow. Raises ConfigError if the port cannot be had."""
        score = self._settings.score
        host = f"[{score.host}]" if ":" in score.host else score.host
        try:
            self.port = self._server.add_insecure_port(f"{host}:{score.port}")
        except RuntimeError as taken:
            self._close_quietly()
            raise ConfigError(
                f"score.port={score.port}: cannot listen on {score.host}:{score.port}. Another process has that port "
                f"(another scorer?), or score.host is not of this machine: end that process, or set another port."
            ) from taken
        self._server.start()
        self.follower.start()
        self._status.start()
        _log.info("scorer.listening", host=score.host, port=self.port, store=str(self._settings.store_dir))

    def stop(self, grace_s: float = GRACE_S, notice_s: float = 0.0) -> None:
        """Say NOT_SERVING, go on answering for notice_s, let requests in flight end, close everything.

        A second call does nothing.
        """
        if self._closing.is_set():
            return
        self._closing.set()
        self._health.enter_graceful_shutdown()
        time.sleep(notice_s)
        self._server.stop(grace_s).wait()
        self.follower.stop()
        self._status.join()
        self._journal.write(self._status_row())
        self._close_quietly()
        _log.info("scorer.stopped")

    def _close_quietly(self) -> None:
        self._freshness.close()
        self._journal.close()
        self._reader.close()

    def _is_ready(self) -> None:
        self._set_health(_SERVING)
        _log.info("scorer.serving", version=self._version_fields()["version"])

    def _set_health(self, status: Any) -> None:
        for name in ("", SERVICE):
            self._health.set(name, status)

    def _write_status(self) -> None:
        while not self._closing.wait(STATUS_EVERY_S):
            try:
                self._journal.write(self._status_row())
            except OSError as full:
                _log.error("status.not_written", path=str(self._journal.path), error=str(full))

    def _status_row(self) -> dict[str, Any]:
        return {
            "event": "scorer.status", "port": self.port, **self._version_fields(), **self.metrics.totals(),
            "versions_served": self._freshness.versions_served,
        }

    def _version_fields(self) -> dict[str, Any]:
        engine = self.follower.engine
        version = None if engine is None else engine.version
        if version is None:
            return {"lineage": None, "version": None, "version_age_s": None}
        age_s = round((now_us() - version.created_us) / 1e6, 3)
        return {"lineage": version.lineage, "version": version.number, "version_age_s": age_s}


class _Reflection(reflection.ReflectionServicer):  # type: ignore[misc]
    """Reflection on threads of its own: a client that keeps its stream open must not hold one that answers `Score`."""

    def ServerReflectionInfo(self, request_iterator: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        yield from super().ServerReflectionInfo(request_iterator, context)

    ServerReflectionInfo.experimental_thread_pool = ThreadPoolExecutor(  # type: ignore[attr-defined]
        REFLECTIONS, thread_name_prefix="reflection"
    )


def run(settings: Settings) -> None:
    """Answer until SIGTERM or SIGINT; then let requests in flight end and return."""
    torch.set_num_threads(1)  # two threads in one scorer are slower than two scorers
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.set())
    server = ScorerServer(settings)
    server.start()
    while not asked.wait(WAKE_S):
        pass
    _log.info("scorer.stopping")
    server.stop(notice_s=NOTICE_S)
