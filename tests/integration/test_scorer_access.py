"""Who gets to a scorer: TLS, client certificates, tokens, over real gRPC; and what the others are told."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from schemas.config import Settings
from schemas.errors import ConfigError, RequestError
from schemas.fields import load
from scorer.client import SERVICE, AsyncScorerClient, ScorerClient, ScorerUnavailable
from scorer.client.access import Access, access_of
from scorer.ports.tls import read_tls
from tests.kit.certificates import Authority
from tests.kit.processes import wait_until
from tests.kit.scorer import ScorerServer
from tests.scorer.lineage import Lineage, RocksWriter, small

MODEL = {"model.bits": 9, "model.factors": 3, "model.hidden": "8,4", "model.init_scale": 0.1, "model.statistics": False}
SCORING, OPERATOR = "scoring-token-0123456789", "operator-token-0123456789"
ITEMS: list[dict[str, Any]] = [{"id": "app1", "features": {"category": "games"}}, {"id": "app2"}]

pytestmark = pytest.mark.integration


class Papers:
    """Certificates of a test: ours, and a stranger's authority."""

    def __init__(self, dir: Path) -> None:
        self.ours, self.strange = Authority(dir, "ours"), Authority(dir, "strange")
        self.server, self.client = self.ours.sign("scorer"), self.ours.sign("caller")
        self.expired = self.ours.sign("late", days=-1)
        self.stranger = self.strange.sign("stranger")

    def settings(self, mutual: bool = False) -> dict[str, str]:
        certificate, key = self.server
        found = {"score.tls_certificate_file": str(certificate), "score.tls_key_file": str(key)}
        return found | ({"score.tls_client_ca_file": str(self.ours.ca_file)} if mutual else {})

    def access(self, own: tuple[Path, Path] | None = None, **more: Any) -> Access:
        files: dict[str, Any] = {} if own is None else {"certificate_file": str(own[0]), "key_file": str(own[1])}
        return Access(ca_file=str(self.ours.ca_file), **files, **more)


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    if shutil.which("openssl") is None:
        pytest.skip("makes its certificates with openssl, which is not here")
    return Papers(tmp_path_factory.mktemp("papers"))


@contextmanager
def serving(settings: Settings) -> Iterator[str]:
    """A scorer with one version; its address. Whether it answers is for the test to see."""
    writer = RocksWriter(settings.store_dir)
    writer.write(Lineage(small(), load("appstore")).publish())
    server = ScorerServer(settings)
    try:
        server.start()
        yield f"127.0.0.1:{server.port}"
    finally:
        server.stop()
        writer.close()


def answers(target: str, access: Access, wait_s: float = 10) -> None:
    """It scores and explains, the same from both clients."""
    with ScorerClient(target, access) as client:
        client.wait_ready(wait_s)
        sync = client.score({"user": "u1"}, ITEMS, timeout_s=5)
        explained = client.explain({"user": "u1"}, ITEMS)

    async def ask() -> Any:
        async with AsyncScorerClient(target, access) as client:
            await client.wait_ready(wait_s)
            return await client.score({"user": "u1"}, ITEMS, timeout_s=5), await client.explain({"user": "u1"}, ITEMS)

    scored_async, explained_async = asyncio.run(ask())
    assert [item.logit for item in scored_async.items] == [item.logit for item in sync.items]
    assert explained_async.items == explained.items
    assert len(sync.items) == len(explained.items) == 2


def refused(target: str, access: Access, told: str) -> None:
    """Neither client gets through, and both are told why."""
    with ScorerClient(target, access) as client, pytest.raises(ScorerUnavailable, match=told):
        client.score({}, ITEMS, timeout_s=0.5)

    async def ask() -> None:
        async with AsyncScorerClient(target, access) as client:
            await client.score({}, ITEMS, timeout_s=0.5)

    with pytest.raises(ScorerUnavailable, match=told):
        asyncio.run(ask())


def test_tls_lets_in_who_believes_the_certificate(make_settings: Callable[..., Settings], papers: Papers) -> None:
    """Who trusts its authority scores; who trusts another, speaks plain text, or sends garbage does not, and harms nobody."""
    with serving(make_settings(**MODEL, **papers.settings())) as target:
        answers(target, papers.access())
        refused(target, Access(ca_file=str(papers.strange.ca_file)), "CERTIFICATE_VERIFY_FAILED.*not of an authority that")
        refused(target, Access(tls=True), "CERTIFICATE_VERIFY_FAILED")  # gRPC's own list does not have it either
        refused(target, Access(), "UNAVAILABLE|DEADLINE_EXCEEDED")
        host, _, port = target.partition(":")
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01" + bytes(500), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"):
            with socket.create_connection((host, int(port))) as one:
                one.sendall(garbage)
        answers(target, papers.access())


def test_mutual_tls_lets_in_whose_certificate_our_authority_signed(
    make_settings: Callable[..., Settings], papers: Papers
) -> None:
    """None, another authority's, and one whose time is over are turned away; a client without its key is told at once."""
    with serving(make_settings(**MODEL, **papers.settings(mutual=True))) as target:
        answers(target, papers.access(papers.client))
        for own in (None, papers.stranger, papers.expired):
            refused(target, papers.access(own), "UNAVAILABLE|DEADLINE_EXCEEDED")
        with pytest.raises(ConfigError, match="the key is another certificate's"):
            ScorerClient(target, papers.access((papers.client[0], papers.server[1])))
        with pytest.raises(ConfigError, match="ca_file=/nowhere: No such file"):
            ScorerClient(target, Access(ca_file="/nowhere"))
        answers(target, papers.access(papers.client))


def test_a_tls_client_at_a_plain_port_is_told(make_settings: Callable[..., Settings], papers: Papers) -> None:
    """It gets an error within its time; the plain clients are answered as before."""
    with serving(make_settings(**MODEL)) as target:
        answers(target, Access())
        refused(target, papers.access(), "UNAVAILABLE|DEADLINE_EXCEEDED")
        answers(target, Access())


def test_a_token_is_asked_for_everything_but_health(make_settings: Callable[..., Settings], papers: Papers) -> None:
    """None and a wrong one: UNAUTHENTICATED, an operators' one: PERMISSION_DENIED, each saying what to send, each counted.
    Health is open to balancers. Reflection is not."""
    tokens = {"score.tokens": SCORING, "score.operator_tokens": OPERATOR}
    settings = make_settings(**MODEL, **tokens, **papers.settings())
    with serving(settings) as target:
        answers(target, papers.access(token=SCORING))
        for token, code in ((None, "UNAUTHENTICATED"), ("wrong" * 5, "UNAUTHENTICATED"), (OPERATOR, "PERMISSION_DENIED")):
            with ScorerClient(target, papers.access(token=token)) as client:
                client.wait_ready(5)
                with pytest.raises(RequestError, match=rf"{code}: .*send 'authorization: Bearer TOKEN'.*score\.tokens") as told:
                    client.score({}, ITEMS)
                assert SCORING not in str(told.value)
        credentials = grpc.ssl_channel_credentials(papers.ours.ca_file.read_bytes())
        with grpc.secure_channel(target, credentials) as channel:
            watching = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
            assert next(watching).status == health_pb2.HealthCheckResponse.SERVING
            watching.cancel()
            listing = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")(iter([b""]))
            with pytest.raises(grpc.RpcError) as failed:
                next(listing)
            assert failed.value.code() is grpc.StatusCode.UNAUTHENTICATED
            never = channel.unary_unary("/freshet.scoring.v1.Scorer/NoSuch")
            with pytest.raises(grpc.RpcError) as failed:
                never(b"")
            assert failed.value.code() is grpc.StatusCode.UNAUTHENTICATED
        answers(target, papers.access(token=SCORING))


def test_a_call_without_a_token_cannot_hold_a_thread(make_settings: Callable[..., Settings]) -> None:
    """It is refused before its message has come: more such calls than there are threads do not keep anybody waiting."""
    with serving(make_settings(**MODEL, **{"score.tokens": SCORING, "score.threads": 2})) as target:
        answers(target, Access(token=SCORING))
        done = threading.Event()

        def never() -> Iterator[bytes]:
            done.wait(20)
            yield b""

        with grpc.insecure_channel(target) as channel:
            silent = [channel.stream_unary(f"/{SERVICE}/Score").future(never()) for _ in range(20)]
            assert {call.code() for call in silent} == {grpc.StatusCode.UNAUTHENTICATED}
        done.set()
        answers(target, Access(token=SCORING))


def test_our_own_callers_come_by_the_same_settings(make_settings: Callable[..., Settings], papers: Papers) -> None:
    """score.caller_… are what `freshet score`, simulate, run and demo take: certificate, authority, token."""
    certificate, key = papers.client
    settings = make_settings(
        **MODEL, **papers.settings(mutual=True), **{
            "score.tokens": SCORING, "score.caller_token": SCORING, "score.caller_ca_file": str(papers.ours.ca_file),
            "score.caller_certificate_file": str(certificate), "score.caller_key_file": str(key),
        },
    )
    with serving(settings) as target:
        answers(target, access_of(settings.score))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda p: {"tls_certificate_file": "/nowhere/c.pem"}, "tls_certificate_file=/nowhere/c.pem: No such file .*; name"),
        (lambda p: {"tls_certificate_file": "/"}, "tls_certificate_file=/: Is a directory; name a PEM file"),
        (lambda p: {"tls_key_file": str(p.client[1])}, "the key is another certificate's; give the two that were made"),
        (lambda p: {"tls_key_file": ""}, "not a certificate and its key in PEM"),
        (lambda p: {"tls_certificate_file": str(p.server[1])}, "not a certificate and its key in PEM"),
        (lambda p: dict(zip(("tls_certificate_file", "tls_key_file"), map(str, p.expired), strict=True)),
         "certificate has expired, so every client would refuse it; get a new one"),
        (lambda p: {"tls_client_ca_file": str(p.server[1])}, "tls_client_ca_file=.*no PEM file of certificates"),
    ],
)
def test_certificates_that_cannot_serve_end_the_start(
    make_settings: Callable[..., Settings], papers: Papers, spoil: Callable[[Papers], dict[str, Any]], told: str
) -> None:
    """The setting, the file, and what to do; before anything listens."""
    score = make_settings(**papers.settings(mutual=True)).score
    with pytest.raises(ConfigError, match=told):
        read_tls(replace(score, **spoil(papers)))


def test_an_encrypted_key_is_an_error_and_no_prompt(
    make_settings: Callable[..., Settings], papers: Papers, tmp_path: Path
) -> None:
    """It says how to decrypt it."""
    locked = tmp_path / "locked.pem"
    subprocess.run(
        ["openssl", "pkey", "-in", papers.server[1], "-aes256", "-passout", "pass:secret", "-out", locked], check=True
    )
    score = make_settings(**papers.settings()).score
    with pytest.raises(ConfigError, match="tls_key_file is encrypted: decrypt it"):
        read_tls(replace(score, tls_key_file=str(locked)))


def test_several_scorers_share_the_calls_and_one_may_go(make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    """Calls go round; when one scorer ends meanwhile, no call fails, and the other has them all; both clients."""
    settings = [make_settings(**MODEL, var=str(tmp_path / name)) for name in ("a", "b")]
    writers = [RocksWriter(one.store_dir) for one in settings]
    for writer in writers:
        writer.write(Lineage(small(), load("appstore")).publish())
    servers = [ScorerServer(one) for one in settings]
    for server in servers:
        server.start()
    targets = [f"127.0.0.1:{server.port}" for server in servers]
    for target in targets:
        with ScorerClient(target) as client:
            client.wait_ready(10)

    def counted() -> list[int]:
        return [server.worker.metrics.totals()["requests"] for server in servers]

    async def ask_async(times: int) -> None:
        async with AsyncScorerClient(",".join(targets)) as client:
            for _ in range(times):
                assert len((await client.score({}, ITEMS, timeout_s=5)).items) == 2

    with ScorerClient(",".join(targets)) as client:
        for _ in range(20):
            client.score({}, ITEMS, timeout_s=5)
        wait_until(lambda: counted() == [10, 10], 5, "half of the calls each", 0.01)
        asyncio.run(ask_async(20))
        wait_until(lambda: counted() == [20, 20], 5, "half of the calls each", 0.01)
        servers[0].stop()
        for _ in range(20):
            client.score({}, ITEMS, timeout_s=5)
        asyncio.run(ask_async(20))
        wait_until(lambda: counted() == [20, 60], 5, "all of the calls at the one that is left", 0.01)
    servers[1].stop()
    for writer in writers:
        writer.close()


def test_an_address_named_twice_is_two_connections(make_settings: Callable[..., Settings]) -> None:
    """So one client can use several workers, over which the kernel spreads connections."""
    with serving(make_settings(**MODEL)) as target, ScorerClient(f"{target},{target},{target}") as client:
        client.wait_ready(10)
        for _ in range(3):
            client.score({}, ITEMS, timeout_s=5)
        port = int(target.rpartition(":")[2])
        ends = [str(one.raddr) for one in psutil.Process().net_connections("tcp")]
        assert len([end for end in ends if f"port={port})" in end]) == 3


FOREIGN = """
import sys, grpc
from google.protobuf import descriptor_pool, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

target, ca_file, token = sys.argv[1:]

class Token(grpc.StreamStreamClientInterceptor, grpc.UnaryUnaryClientInterceptor):
    def intercept_stream_stream(self, go_on, call, messages):
        return go_on(call._replace(metadata=[("authorization", "Bearer " + token)]), messages)
    intercept_unary_unary = intercept_stream_stream

secure = grpc.secure_channel(target, grpc.ssl_channel_credentials(open(ca_file, "rb").read()))
channel = grpc.intercept_channel(secure, Token())
database = ProtoReflectionDescriptorDatabase(channel)
method = descriptor_pool.DescriptorPool(database).FindServiceByName("freshet.scoring.v1.Scorer").FindMethodByName("Score")
ask, answer = (message_factory.GetMessageClass(kind) for kind in (method.input_type, method.output_type))
call = channel.unary_unary("/freshet.scoring.v1.Scorer/Score", ask.SerializeToString, answer.FromString)
print(*sorted(database.get_services()), *(item.logit for item in call(ask(item_id=["app1", "app2"]), timeout=5).items))
assert not any(name.split(".")[0] in ("schemas", "scorer") for name in sys.modules)
"""


def test_a_foreign_client_comes_with_a_certificate_and_a_token_alone(
    make_settings: Callable[..., Settings], papers: Papers, tmp_path: Path
) -> None:
    """Nothing of ours is in it: what there is and how it is called it learns by reflection, over TLS, with its token."""
    with serving(make_settings(**MODEL, **papers.settings(), **{"score.tokens": SCORING})) as target:
        with ScorerClient(target, papers.access(token=SCORING)) as client:
            client.wait_ready(10)
            ours = client.score({}, [{"id": "app1"}, {"id": "app2"}], timeout_s=5)
        done = subprocess.run(
            [sys.executable, "-I", "-c", FOREIGN, target, papers.ours.ca_file, SCORING], cwd=tmp_path, capture_output=True,
            text=True, timeout=60, check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == [
            SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection",
            *(str(item.logit) for item in ours.items),
        ]
