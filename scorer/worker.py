"""A worker: gRPC, health, reflection. It answers from the tables that followers keep it up to date with, one for each model."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from schemas import fields
from schemas.config import Settings
from schemas.errors import ConfigError
from schemas.proto.scoring_pb2_grpc import add_ScorerServicer_to_server
from scorer.answers.engine import Blueprint
from scorer.answers.service import ByName, ScoringService
from scorer.client.calls import SERVICE, health_name
from scorer.metrics import Metrics
from scorer.ports import port as ports
from scorer.ports.health import SERVING, Health
from scorer.ports.patience import Patience
from scorer.ports.tls import Certificates
from scorer.ports.tokens import read_tokens
from scorer.versions.intake import Intake

WAKE_S = 0.1           # see scorer/server.py
ALONE_S = 2.0          # so long a model whose follower says nothing keeps the others waiting
GRACE_S = 5.0          # requests in flight get this long to end after SIGTERM
# Answering goes on this long after SIGTERM: balancers see NOT_SERVING, and requests on their way here arrive. Without it
# grpc cancelled one in three times a request that it had received but not yet handed to Python.
NOTICE_S = 0.5
REFLECTIONS = 4        # reflection streams at once: each holds a thread while its client stays, so not the scorers' own
REFLECTION_S = 20.0    # the longest of them

HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
_log = structlog.get_logger("scorer")


class WorkerServer:
    """All of it in one object: `start`, `port`, `stop`."""

    def __init__(
        self, models: Mapping[str, Settings], now_us: Callable[[], int], certificates: Certificates | None
    ) -> None:
        """models: name of each one's follower's socket (versions/feed.py) → its settings; the first's are those of the port.
        certificates: None = plain text."""
        served = {settings.model.name: _Served(feed, settings, lambda: self.port, now_us, self._is_ready)
                  for feed, settings in models.items()}
        self._score = score = next(iter(models.values())).score
        self._served = tuple(served.values())
        # What is counted before a model is known counts with the first.
        self.metrics = self._served[0].metrics
        service = ByName({name: one.service for name, one in served.items()})
        self._certificates = certificates
        self._server = ports.server(
            ThreadPoolExecutor(score.threads, thread_name_prefix="score"),
            shared=True,  # with the other workers; scorer/server.py keeps other scorers away
            in_flight=score.in_flight, tokens=read_tokens(score), role="scoring",
            refused=lambda status: self.metrics.requests.labels(status).inc(),
        )
        self._patience = Patience()
        registrar = self._patience.registrar(self._server)
        add_ScorerServicer_to_server(service, registrar)  # type: ignore[no-untyped-call]
        # Who watches stays, and counts as in flight: it must not take the place of `Score`.
        self._health = Health(("", SERVICE, *map(health_name, served)), most=score.in_flight // 4)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, registrar)
        names = (SERVICE, HEALTH, reflection.SERVICE_NAME)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(_Reflection(names, self._patience), registrar)
        self.port = 0
        self._stopped = False

    def start(self, port: int, asked: threading.Event) -> None:
        """Follow, then bind and answer: a worker without a table would take connections from those that have one. Where one
        model's follower says nothing, the others are not kept waiting for long.

        port: this or, 0, any. Raises ConfigError if it cannot be had. asked: to end, where the follower is not there yet.
        """
        began = time.monotonic()
        for one in self._served:
            one.intake.start()
        while not self._heard(time.monotonic() - began):
            if asked.wait(WAKE_S):
                return
        score = self._score
        try:
            self.port = ports.bind(self._server, "score.port", score.host, port, self._certificates)
        except ConfigError:
            for one in self._served:
                one.intake.close()
            raise
        self._patience.start()
        self._server.start()
        _log.info("scorer.listening", host=score.host, port=self.port)

    def stop(self, grace_s: float = GRACE_S, notice_s: float = 0.0) -> None:
        """Say NOT_SERVING, go on answering for notice_s, let requests in flight end, close everything.

        A second call does nothing.
        """
        if self._stopped:
            return
        self._stopped = True
        self._health.end()
        time.sleep(notice_s)
        self._server.stop(grace_s).wait()
        self._patience.close()
        for one in self._served:
            one.intake.close()
        _log.info("scorer.stopped")

    def _heard(self, waited_s: float) -> bool:
        heard = [one.intake.heard.is_set() for one in self._served]
        return all(heard) or (any(heard) and waited_s > ALONE_S)

    def _is_ready(self, model: str, intake: Intake) -> None:
        self._health.set(SERVING, "", SERVICE, health_name(model))
        version = None if intake.engine is None else intake.engine.version
        _log.info("scorer.serving", model=model, version=None if version is None else version.number)


class _Served:
    """One model in a worker: its engine, its service, what was counted of it."""

    def __init__(
        self, feed: str, settings: Settings, port: Callable[[], int], now_us: Callable[[], int],
        ready: Callable[[str, Intake], None],
    ) -> None:
        model, schema = settings.model, fields.load(settings.model.schema)
        self.metrics = Metrics()
        self.intake = intake = Intake(
            feed, Blueprint(model, schema, settings.score.precision), self.metrics.counts, port, now_us,
            lambda: ready(model.name, intake),
        )
        self.service = ScoringService(
            model.name, schema, settings.score.strict, lambda: intake.engine, intake.served, self.metrics, now_us
        )


class _Reflection(reflection.ReflectionServicer):  # type: ignore[misc]
    """Reflection on threads of its own: a client that keeps its stream open must not hold one that answers `Score`."""

    def __init__(self, names: Iterable[str], patience: Patience) -> None:
        super().__init__(names)
        self._patience = patience

    def ServerReflectionInfo(self, request_iterator: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        self._patience.begin(context, REFLECTION_S)
        try:
            yield from super().ServerReflectionInfo(request_iterator, context)
        finally:
            self._patience.end(context)

    ServerReflectionInfo.experimental_thread_pool = ThreadPoolExecutor(  # type: ignore[attr-defined]
        REFLECTIONS, thread_name_prefix="reflection"
    )
