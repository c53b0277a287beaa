"""The ports for operators: gRPC with status, health and reflection; HTTP with /metrics and /healthz. In the follower's process,
which knows of all workers; where a scorer serves several models, in that of the first, which the others tell."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder

from schemas.config import ScoreConfig
from schemas.errors import ConfigError
from schemas.proto import scoring_pb2
from schemas.proto.scoring_pb2_grpc import OperatorServicer, add_OperatorServicer_to_server
from scorer.client.calls import SERVICE, health_name
from scorer.metrics import PREFIX, by_model, totals_of
from scorer.ports import port as ports
from scorer.ports.health import NOT_SERVING, SERVING, Health
from scorer.ports.patience import Patience
from scorer.ports.tls import Certificates
from scorer.ports.tokens import Tokens, read_tokens
from scorer.versions.distributor import Seen

HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
OPERATOR = scoring_pb2.DESCRIPTOR.services_by_name["Operator"].full_name  # freshet.scoring.v1.Operator
THREADS = 4
IN_FLIGHT = 32       # gRPC calls, open streams among them
CONNECTIONS = 16     # HTTP connections at once; more are closed unheard
PATIENCE_S = 5.0     # an HTTP client that says nothing for so long is let go
HEALTH_EVERY_S = 0.1

_log = structlog.get_logger("scorer")


class Model(Protocol):
    """What a follower says of its model."""

    @property
    def seen(self) -> Seen: ...
    def families(self) -> Iterator[Metric]: ...


class Operators:
    """Both ports, from `__init__` to `close`."""

    def __init__(
        self, score: ScoreConfig, models: Mapping[str, Model], now_us: Callable[[], int], certificates: Certificates | None
    ) -> None:
        """models: by their names, the scorer's first first. certificates: None = plain text. Raises ConfigError where a port
        cannot be had."""
        tokens = read_tokens(score)
        self._server = ports.server(
            ThreadPoolExecutor(THREADS, thread_name_prefix="operators"), shared=False, in_flight=IN_FLIGHT, tokens=tokens,
            role="operator", refused=lambda status: _log.warning("operator.refused", status=status),
        )
        self._patience = Patience()
        registrar = self._patience.registrar(self._server)
        add_OperatorServicer_to_server(  # type: ignore[no-untyped-call]
            _Status(models, now_us), registrar
        )
        self._health = Health(("", SERVICE, OPERATOR, *map(health_name, models)), most=IN_FLIGHT // 4)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, registrar)
        reflection.enable_server_reflection((OPERATOR, HEALTH, reflection.SERVICE_NAME), registrar)
        self.port = ports.bind(
            self._server, "score.operator_port", score.operator_host, score.beside(score.operator_port, 1), certificates
        )
        self._patience.start()
        self._server.start()

        wanted = score.beside(score.metrics_port, 2)
        kind = type("Http", (_Http,), {"address_family": socket.AF_INET6 if ":" in score.operator_host else socket.AF_INET})
        try:
            self._http: _Http = kind((score.operator_host, wanted), _handler(models, tokens, certificates))
        except OSError as taken:
            self._server.stop(None)
            self._patience.close()
            raise ConfigError(
                f"score.metrics_port={score.metrics_port}: cannot listen on {score.operator_host}:{wanted} ({taken.strerror}): "
                "end the process that does, or set another port"
            ) from taken
        self._http.certificates = certificates
        self.metrics_port = int(self._http.server_address[1])
        self._closing = threading.Event()
        self._threads = [
            threading.Thread(target=self._http.serve_forever, args=(HEALTH_EVERY_S,), name="metrics", daemon=True),
            threading.Thread(target=self._follow_health, args=(models,), name="health", daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        _log.info("operators.listening", host=score.operator_host, port=self.port, metrics_port=self.metrics_port)

    def close(self) -> None:
        """Say NOT_SERVING and let go of both ports."""
        self._closing.set()
        self._health.end()
        self._http.shutdown()
        self._http.server_close()
        self._server.stop(0).wait()
        self._patience.close()
        for thread in self._threads:
            thread.join()

    def _follow_health(self, models: Mapping[str, Model]) -> None:
        while not self._closing.wait(HEALTH_EVERY_S):
            self._health.set(SERVING if _any_serving(models) else NOT_SERVING, "", SERVICE, OPERATOR)
            for name, model in models.items():
                self._health.set(SERVING if model.seen.serving else NOT_SERVING, health_name(name))


def _any_serving(models: Mapping[str, Model]) -> bool:
    return any(model.seen.serving for model in models.values())


class _Status(OperatorServicer):
    """What is there, from the followers' own words."""

    def __init__(self, models: Mapping[str, Model], now_us: Callable[[], int]) -> None:
        self._models = models
        self._now_us = now_us

    def Status(self, request: scoring_pb2.StatusRequest, context: grpc.ServicerContext) -> scoring_pb2.StatusResponse:
        """Of one model: the newest version, the workers, and what all of them counted."""
        name = request.model or next(iter(self._models))
        if name not in self._models:
            context.abort(
                grpc.StatusCode.NOT_FOUND,
                f"model {name[:100]!r} is not served here; this scorer has {', '.join(map(repr, self._models))}",
            )
        seen = self._models[name].seen
        version = seen.version
        return scoring_pb2.StatusResponse(
            model=name,
            lineage="" if version is None else version.lineage,
            version=0 if version is None else version.number,
            version_age_s=0.0 if version is None else max(0.0, (self._now_us() - version.created_us) / 1e6),
            workers=[scoring_pb2.Worker(pid=pid, version=number) for pid, number in seen.workers],
            totals=totals_of(seen.counts),
            models=list(self._models),
        )


class _Http(ThreadingHTTPServer):
    """A few connections at once, TLS where the other ports have it."""

    daemon_threads = True
    request_queue_size = 128
    certificates: Certificates | None = None

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._free = threading.BoundedSemaphore(CONNECTIONS)

    def process_request(self, request: Any, client_address: Any) -> None:
        """More than enough are closed here, before they get a thread."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """The handshake is the thread's too: a client that does not end it keeps nobody else waiting."""
        try:
            request.settimeout(PATIENCE_S)
            try:
                papers = self.certificates
                spoken = request if papers is None else papers.now().context.wrap_socket(request, server_side=True)
            except OSError:  # not TLS, no certificate, or gone
                self.shutdown_request(request)
                return
            super().process_request_thread(spoken, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away in the middle: nothing for the log."""


def _handler(
    models: Mapping[str, Model], tokens: Tokens, certificates: Certificates | None
) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = PATIENCE_S
        server_version, sys_version = "freshet", ""

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/healthz":
                serving = _any_serving(models)
                self._say(200 if serving else 503, "SERVING\n" if serving else "NOT_SERVING: no worker has a version yet\n")
            elif path != "/metrics":
                self._say(404, "there are /metrics and /healthz\n")
            elif (refusal := tokens.refusal(self.headers.get("Authorization"), "operator")) is not None:
                self._say(403 if refusal.known else 401, refusal.text + "\n")
            else:
                encode, kind = choose_encoder(self.headers.get("Accept", ""))
                registry = CollectorRegistry()
                registry.register(_Families(models, certificates))
                self._send(200, encode(registry), kind)

        def _say(self, code: int, text: str) -> None:
            self._send(code, text.encode(), "text/plain; charset=utf-8")

        def _send(self, code: int, body: bytes, kind: str) -> None:
            self.send_response(code)
            if code == 401:
                self.send_header("WWW-Authenticate", "Bearer")
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """A scrape every few seconds is nothing for the log."""

    return Handler


class _Families:
    def __init__(self, models: Mapping[str, Model], certificates: Certificates | None) -> None:
        self._models = models
        self._certificates = certificates

    def collect(self) -> Any:
        yield from by_model({name: model.families() for name, model in self._models.items()})
        if self._certificates is not None:
            tls = self._certificates.now()
            if tls.ends_s is not None:
                yield GaugeMetricFamily(
                    f"{PREFIX}certificate_ends_timestamp_seconds", "When the certificate that is shown ends", tls.ends_s
                )
            yield GaugeMetricFamily(
                f"{PREFIX}certificate_refused", "1 while the newest files cannot serve, so the certificate before goes on",
                float(bool(self._certificates.refused)),
            )
