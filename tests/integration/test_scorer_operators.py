"""The operators' ports of a running scorer: status, health, metrics; who may see them; and what garbage does there."""

from __future__ import annotations

import shutil
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from schemas.config import Settings
from schemas.errors import ConfigError
from schemas.fields import load
from schemas.proto.scoring_pb2 import StatusRequest
from schemas.proto.scoring_pb2_grpc import OperatorStub
from scorer.client import SERVICE, ScorerClient
from scorer.operators import CONNECTIONS
from scorer.server import check
from tests.kit.certificates import Authority
from tests.kit.processes import wait_until
from tests.kit.scorer import ScorerServer
from tests.scorer.lineage import Lineage, RocksWriter, small

MODEL = {"model.bits": 9, "model.factors": 3, "model.hidden": "8,4", "model.init_scale": 0.1, "model.statistics": False}
SCORING, OPERATOR = "scoring-token-0123456789", "operator-token-0123456789"
TOKENS = {"score.tokens": SCORING, "score.operator_tokens": OPERATOR}

pytestmark = pytest.mark.integration


class Running:
    """A scorer without a version yet, and its store's writer."""

    def __init__(self, settings: Settings) -> None:
        self.lineage, self.writer = Lineage(small(), load("appstore")), RocksWriter(settings.store_dir)
        self.server = ScorerServer(settings)
        self.server.start()
        self.operators = self.server.operators
        self.scheme = "https" if settings.score.tls else "http"

    def publish(self) -> None:
        self.writer.write(self.lineage.publish())

    def get(
        self, path: str, token: str | None = None, accept: str = "", context: ssl.SSLContext | None = None
    ) -> tuple[int, str]:
        """(status, text) of an HTTP answer."""
        headers = {"Accept": accept} | ({} if token is None else {"Authorization": f"Bearer {token}"})
        url = f"{self.scheme}://127.0.0.1:{self.operators.metrics_port}{path}"
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10, context=context) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refused:
            return refused.code, refused.read().decode()

    def close(self) -> None:
        self.server.stop()
        self.writer.close()


@pytest.fixture
def start(make_settings: Callable[..., Settings]):
    """start(**settings): a Running that is closed in the end."""
    running: list[Running] = []

    def begin(**values: object) -> Running:
        running.append(Running(make_settings(**MODEL, **values)))
        return running[-1]

    yield begin
    for one in running:
        one.close()


def test_health_and_status_follow_the_workers(start):
    """NOT_SERVING and 503 before the first version, SERVING and 200 after it; the status names version and worker."""
    running = start()
    with grpc.insecure_channel(f"127.0.0.1:{running.operators.port}") as channel:
        health, operator = health_pb2_grpc.HealthStub(channel), OperatorStub(channel)

        def statuses() -> set[int]:
            return {health.Check(health_pb2.HealthCheckRequest(service=name)).status for name in ("", SERVICE)}

        assert statuses() == {health_pb2.HealthCheckResponse.NOT_SERVING}
        assert running.get("/healthz") == (503, "NOT_SERVING: no worker has a version yet\n")
        assert operator.Status(StatusRequest()).lineage == ""
        running.publish()
        wait_until(lambda: statuses() == {health_pb2.HealthCheckResponse.SERVING}, 10, "SERVING", 0.02)
        assert running.get("/healthz") == (200, "SERVING\n")
        status = operator.Status(StatusRequest())
        assert (status.model, status.lineage, status.version) == ("appstore", running.lineage.name, 1)
        assert [worker.version for worker in status.workers] == [1]
        assert status.totals["loads"] == 1


def test_metrics_are_those_of_all_processes_together(start):
    """Requests counted by a worker and versions by the follower stand in one page, in both formats that Prometheus asks for."""
    running = start()
    running.publish()
    with ScorerClient(f"127.0.0.1:{running.server.port}") as client:
        client.wait_ready(10)
        for _ in range(3):
            client.score({}, [{"id": "a"}, {"id": "b"}])

    def sample(name: str, **labels: str) -> float:
        code, text = running.get("/metrics", accept="application/openmetrics-text; version=1.0.0")
        assert code == 200
        found = [
            float(one.value) for family in text_string_to_metric_families(text) for one in family.samples
            if one.name == name and one.labels == {"model": "appstore", **labels}
        ]
        return found[0]

    wait_until(lambda: sample("freshet_scorer_requests_total", status="OK") == 3, 10, "three requests", 0.1)
    assert sample("freshet_scorer_items_scored_total") == 6
    assert sample("freshet_scorer_request_duration_seconds_bucket", le="+Inf") == 3
    assert sample("freshet_scorer_request_duration_seconds_count") == 3
    assert sample("freshet_scorer_versions_applied_total") == 1
    assert sample("freshet_scorer_version") == 1
    assert sample("freshet_scorer_workers") == 1
    code, text = running.get("/metrics")
    assert code == 200
    assert '\nfreshet_scorer_requests_total{model="appstore",status="OK"} 3.0\n' in text


def test_operators_have_tokens_of_their_own(start):
    """A scoring token is PERMISSION_DENIED and 403, none or a wrong one UNAUTHENTICATED and 401; health needs none."""
    running = start(**TOKENS)
    running.publish()
    for token, code in ((None, 401), ("wrong" * 5, 401), (SCORING, 403), (OPERATOR, 200)):
        found, text = running.get("/metrics", token)
        assert found == code
        assert ("send 'authorization: Bearer TOKEN'" in text) == (code != 200)
        assert SCORING not in text
        assert OPERATOR not in text
    wait_until(lambda: running.get("/healthz")[0] == 200, 10, "healthz without a token", 0.05)
    with grpc.insecure_channel(f"127.0.0.1:{running.operators.port}") as channel:
        for token, status in (("wrong" * 5, "UNAUTHENTICATED"), (SCORING, "PERMISSION_DENIED")):
            with pytest.raises(grpc.RpcError) as failed:
                OperatorStub(channel).Status(StatusRequest(), metadata=(("authorization", f"Bearer {token}"),))
            assert failed.value.code().name == status
            assert "score.operator_tokens" in failed.value.details()
        OperatorStub(channel).Status(StatusRequest(), metadata=(("authorization", f"Bearer {OPERATOR}"),))
        assert health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest()).status


def test_the_operators_ports_speak_tls_where_the_scorer_does(start, tmp_path: Path):
    """With the same certificate and the same demand for one; a plain client and garbage get nothing and harm nobody."""
    if shutil.which("openssl") is None:
        pytest.skip("makes its certificates with openssl, which is not here")
    authority = Authority(tmp_path, "ours")
    (certificate, key), own = authority.sign("scorer"), authority.sign("prometheus")
    running = start(**{
        "score.tls_certificate_file": str(certificate), "score.tls_key_file": str(key),
        "score.tls_client_ca_file": str(authority.ca_file),
    })
    known = ssl.create_default_context(cafile=str(authority.ca_file))
    with pytest.raises(OSError, match=r"certificate required|reset|EOF|closed"):
        running.get("/metrics", context=known)
    known.load_cert_chain(*own)
    for garbage in (b"GET /metrics HTTP/1.1\r\n\r\n", bytes(300)):
        with socket.create_connection(("127.0.0.1", running.operators.metrics_port), timeout=5) as one:
            one.sendall(garbage)
            with suppress(ConnectionResetError):
                assert b"freshet_scorer" not in one.recv(1000)
    assert running.get("/metrics", context=known)[0] == 200
    credentials = grpc.ssl_channel_credentials(authority.ca_file.read_bytes(), own[1].read_bytes(), own[0].read_bytes())
    with grpc.secure_channel(f"127.0.0.1:{running.operators.port}", credentials) as channel:
        assert OperatorStub(channel).Status(StatusRequest()).model == "appstore"


def test_silent_connections_do_not_pile_up(start):
    """Beyond a few at once they are closed unheard; when these end, others are answered."""
    running = start()
    address = ("127.0.0.1", running.operators.metrics_port)
    silent = [socket.create_connection(address, timeout=5) for _ in range(CONNECTIONS + 20)]
    closed = [one for one in silent[CONNECTIONS:] if one.recv(1) == b""]
    assert len(closed) == 20
    for one in silent:
        one.close()
    wait_until(lambda: running.get("/healthz")[0] == 503, 10, "an answer once they are gone", 0.05)


def test_a_taken_operators_port_ends_the_start(make_settings: Callable[..., Settings]):
    """With the setting's name, before anything else; where score.port is set, the two beside it are the default."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        for setting in ("operator_port", "metrics_port"):
            with pytest.raises(ConfigError, match=rf"score\.{setting}={port}: cannot listen on 127\.0\.0\.1:{port}"):
                check(make_settings(**{f"score.{setting}": port}).score)
        with pytest.raises(ConfigError, match=rf"score\.operator_port=-1: cannot listen on 127\.0\.0\.1:{port}"):
            check(make_settings(**{"score.port": port - 1}).score)
    check(make_settings().score)
