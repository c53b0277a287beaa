"""Clients that begin a call and do nothing more, at a running scorer: the others are answered, and they are ended."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from schemas.config import Settings
from schemas.fields import load
from schemas.proto.scoring_pb2 import ScoreRequest
from schemas.proto.scoring_pb2_grpc import ScorerStub
from scorer import worker
from scorer.client import SERVICE, ScorerClient
from scorer.ports import patience
from scorer.ports import port as ports
from scorer.ports.tokens import Tokens
from tests.kit.scorer import ScorerServer
from tests.scorer.lineage import Lineage, RocksWriter, small

MODEL = {"model.bits": 9, "model.factors": 3, "model.hidden": "8,4", "model.init_scale": 0.1, "model.statistics": False}

pytestmark = pytest.mark.integration


@pytest.fixture
def target(make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A scorer with two threads, room for 40 calls, and less patience than it has by default."""
    monkeypatch.setattr(worker, "Patience", lambda: patience.Patience(0.5))
    monkeypatch.setattr(worker, "REFLECTION_S", 0.5)
    settings = make_settings(**MODEL, **{"score.threads": 2, "score.in_flight": 40})
    writer = RocksWriter(settings.store_dir)
    writer.write(Lineage(small(), load("appstore")).publish())
    server = ScorerServer(settings)
    server.start()
    with ScorerClient(f"127.0.0.1:{server.port}") as client:
        client.wait_ready(10)
    yield f"127.0.0.1:{server.port}"
    server.stop()
    writer.close()


@pytest.fixture
def never() -> Iterator[Callable[[], Iterator[bytes]]]:
    """A request whose message does not come as long as the test goes on."""
    done = threading.Event()

    def messages() -> Iterator[bytes]:
        done.wait(30)
        yield b""

    yield messages
    done.set()


@pytest.mark.parametrize("method", [f"/{SERVICE}/Score", "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"])
def test_a_call_without_its_message_is_ended(target: str, never: Callable[[], Iterator[bytes]], method: str) -> None:
    """More of them than there are threads: a request beside them is answered as soon as they are cancelled."""
    with grpc.insecure_channel(target) as silent, ScorerClient(target) as client:
        calls = [silent.stream_unary(method).future(never()) for _ in range(2)]
        time.sleep(0.1)  # until they have the threads; if they have not yet, the test claims less
        assert len(client.score({}, [{"id": "a"}], timeout_s=5).items) == 1
        assert {call.code() for call in calls} == {grpc.StatusCode.CANCELLED}


def test_a_call_that_ends_without_a_message_is_told(target: str) -> None:
    """The stream was closed and nothing had come."""
    with grpc.insecure_channel(target) as channel:
        with pytest.raises(grpc.RpcError) as failed:
            channel.stream_unary(f"/{SERVICE}/Score")(iter(()))
        assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert failed.value.details() == "the call ended without a request"


def test_a_worker_may_be_told_to_end_before_it_began(make_settings: Callable[..., Settings]) -> None:
    """There is no follower to hear from yet, and SIGTERM has come: it ends, and nothing is left."""
    asked = threading.Event()
    asked.set()
    server = worker.WorkerServer({"nobody": make_settings(**MODEL)}, lambda: 0, None)
    server.start(0, asked)
    server.stop()
    assert not [thread.name for thread in threading.enumerate() if thread.name in ("intake", "patience")]


def test_reflection_streams_are_ended(target: str, never: Callable[[], Iterator[bytes]]) -> None:
    """More than there are threads for, kept open: after a while the next client is told what there is."""
    with grpc.insecure_channel(target) as channel:
        open_ones = [
            channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")(never())
            for _ in range(worker.REFLECTIONS)
        ]
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        answer = next(reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([asked]), timeout=10))
        assert SERVICE in {one.name for one in answer.list_services_response.service}
        for call in open_ones:
            call.cancel()


def test_who_watches_health_does_not_take_the_place_of_requests(target: str) -> None:
    """A quarter of the calls in flight may watch; one more is told so, and requests are answered. Who leaves makes room."""
    with grpc.insecure_channel(target) as channel, ScorerClient(target) as client:
        stub = health_pb2_grpc.HealthStub(channel)
        watching = [stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE)) for _ in range(10)]
        for one in watching:
            next(one)
        with pytest.raises(grpc.RpcError, match="10 watch health here already"):
            next(stub.Watch(health_pb2.HealthCheckRequest()))
        for _ in range(50):
            client.score({}, [{"id": "a"}], timeout_s=5)
        watching.pop().cancel()
        end = time.monotonic() + 5
        while True:
            try:
                next(stub.Watch(health_pb2.HealthCheckRequest()))
                break
            except grpc.RpcError:
                assert time.monotonic() < end


def test_a_thousand_connections_that_say_nothing_harm_nobody(target: str) -> None:
    """Open and silent, or in the middle of HTTP/2's first words: requests are answered beside them."""
    host, _, port = target.partition(":")
    idle = [socket.create_connection((host, int(port)), timeout=10) for _ in range(1000)]
    for one in idle[::2]:
        one.sendall(b"PRI * HTTP/2.0\r\n\r\nSM")
    with ScorerClient(target) as client:
        for _ in range(20):
            assert client.score({}, [{"id": "a"}], timeout_s=5).version == 1
    for one in idle:
        one.close()


def test_a_message_may_be_as_large_as_it_says(target: str) -> None:
    """8 MiB pass, more is RESOURCE_EXHAUSTED, which names the limit."""
    with grpc.insecure_channel(target, options=[("grpc.max_send_message_length", -1)]) as channel:
        fits = ScoreRequest(item_id=["a"], exclude=["x" * (ports.MESSAGE_BYTES - 100)])
        assert len(ScorerStub(channel).Score(fits, timeout=10).items) == 1
        with pytest.raises(grpc.RpcError, match=str(ports.MESSAGE_BYTES)) as failed:
            ScorerStub(channel).Score(ScoreRequest(item_id=["a"], exclude=["x" * ports.MESSAGE_BYTES]), timeout=10)
        assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(("least_s", "stays"), [(0.02, True), (300.0, False)])
def test_a_client_may_keep_its_connection_awake(monkeypatch: pytest.MonkeyPatch, least_s: float, stays: bool) -> None:
    """Pings no more often than ports.LEAST_PING_S are no reason to be sent away; by gRPC's own limit of 300 s they are."""
    monkeypatch.setattr(ports, "LEAST_PING_S", least_s)
    server = ports.server(ThreadPoolExecutor(1), False, 10, Tokens(), "scoring", lambda _: None)
    port = ports.bind(server, "score.port", "127.0.0.1", 0, None)
    server.start()
    seen = b""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as raw:
        raw.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(SETTINGS, b""))
        raw.settimeout(0.5)
        with suppress(TimeoutError, ConnectionError):
            for _ in range(6):
                raw.sendall(_frame(PING, bytes(8)))
                time.sleep(0.05)
        with suppress(TimeoutError, ConnectionError):
            while came := raw.recv(4096):
                seen += came
    server.stop(None).wait()
    assert (b"too_many_pings" not in seen) == stays
    assert seen


SETTINGS, PING = 4, 6  # RFC 9113, section 6


def _frame(kind: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, 0]) + bytes(4) + payload
