"""The scorer as a process meets it: real gRPC, a real RocksDB that another writer fills, real signals."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from schemas import echo, journal
from schemas.config import Settings
from schemas.errors import ConfigError
from schemas.fields import load
from schemas.proto.scoring_pb2 import ScoreRequest
from schemas.proto.scoring_pb2_grpc import ScorerStub
from scorer.client import SERVICE, Scored, ScorerClient, ScorerUnavailable
from scorer.server import reserved
from scorer.worker import REFLECTIONS
from tests.kit.scorer import ScorerServer
from tests.scorer.lineage import Lineage, RocksWriter, small, spoilt

SCHEMA = load("appstore")
MODEL = {"model.bits": 9, "model.factors": 3, "model.hidden": "8,4", "model.init_scale": 0.1, "model.statistics": False}
CONTEXT = {"user": "u17", "country": "NO", "hour": 10, "installed": ["games", "food"]}
ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.integration


def slate(items: int, seed: int = 0):
    random = np.random.default_rng(seed)
    return [
        {"id": f"app{n}", "features": {"category": f"c{random.integers(9)}", "tags": ["free"] * int(random.integers(2))}}
        for n in range(items)
    ]


def until(true, timeout_s: float = 10):
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def assert_right(lineage: Lineage, scored: Scored) -> None:
    """Every item's logit is that of the version that the answer names, recomputed from its echo and the whole table."""
    assert scored.lineage == lineage.name
    bags = echo.to_bags([item.echo for item in scored.items], SCHEMA)
    assert bags is not None
    truth = lineage.truth(scored.version, bags)
    np.testing.assert_allclose([item.logit for item in scored.items], truth, atol=2e-6)
    np.testing.assert_allclose([item.probability for item in scored.items], 1 / (1 + np.exp(-truth)), atol=1e-6)


class Running:
    """A server in this process, its store's writer, and a client."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.lineage = Lineage(small(), SCHEMA, rotation=8)
        self.server = ScorerServer(settings)
        self.server.start()
        self.target = f"127.0.0.1:{self.server.port}"
        self.channel = grpc.insecure_channel(self.target)
        self.client = ScorerClient(self.target)
        self.writer: RocksWriter | None = None

    def publish(self, **options) -> int:
        if self.writer is None:
            self.writer = RocksWriter(self.settings.store_dir)
        self.writer.write(self.lineage.publish(**options))
        return self.lineage.next - 1

    def health(self, service: str) -> int:
        stub = health_pb2_grpc.HealthStub(self.channel)
        status: int = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5).status
        return status

    def serving(self) -> int:
        return self.client.score(CONTEXT, slate(1)).version

    def close(self) -> None:
        self.client.close()
        self.channel.close()
        self.server.stop()
        if self.writer is not None:
            self.writer.close()


@pytest.fixture
def running(make_settings):
    running = Running(make_settings(**MODEL, **{"score.poll_s": 0.002, "score.threads": 3}))
    yield running
    running.close()


def test_health_is_not_serving_until_the_first_version_is_loaded(running):
    """For the server and for the service by name; a request meanwhile is UNAVAILABLE; both change by themselves."""
    not_serving, serving = health_pb2.HealthCheckResponse.NOT_SERVING, health_pb2.HealthCheckResponse.SERVING
    assert [running.health(name) for name in ("", SERVICE)] == [not_serving, not_serving]
    with pytest.raises(ScorerUnavailable, match="no version of 'appstore' is loaded yet"):
        running.client.score(CONTEXT, slate(2))
    with pytest.raises(ScorerUnavailable, match="no version is loaded yet"):
        running.client.wait_ready(0.1)
    running.publish()
    running.client.wait_ready(10)
    assert [running.health(name) for name in ("", SERVICE)] == [serving, serving]
    assert_right(running.lineage, running.client.score(CONTEXT, slate(5)))


def test_every_answer_under_load_is_that_of_the_version_it_names(running):
    """Versions land every few milliseconds while four clients ask: no answer mixes two, none goes back in time."""
    running.publish(rows=400)
    running.client.wait_ready(10)
    stop = threading.Event()
    answers: list[list[Scored]] = [[] for _ in range(4)]

    def ask(place: int) -> None:
        with ScorerClient(running.target) as client:
            for seed in range(10_000):
                if stop.is_set():
                    return
                answers[place].append(client.score(CONTEXT, slate(5, seed), timeout_s=10))

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(120):
        newest = running.publish(rows=400)
        time.sleep(0.01)
    until(lambda: running.serving() == newest)
    stop.set()
    for thread in threads:
        thread.join()
    served = {scored.version for part in answers for scored in part}
    assert len(served) > 20
    for part in answers:
        versions = [scored.version for scored in part]
        assert versions == sorted(versions)
        for scored in part:
            assert_right(running.lineage, scored)


def test_a_broken_version_is_skipped_under_a_running_server(running):
    """The last good one answers until the versions after it hold the whole table."""
    running.publish()
    running.client.wait_ready(10)
    good = running.publish()
    until(lambda: running.serving() == good)
    running.writer.write(spoilt(running.lineage.publish()))
    for _ in range(7):
        running.publish()
        time.sleep(0.03)
        assert running.serving() == good
    newest = running.publish()
    until(lambda: running.serving() == newest)
    assert_right(running.lineage, running.client.score(CONTEXT, slate(50)))


def test_a_new_lineage_is_followed_without_a_pause_in_the_answers(running):
    """A trainer that began anew: loaded afresh beside the old table, then swapped."""
    for _ in range(3):
        running.publish()
    running.client.wait_ready(10)
    assert_right(running.lineage, running.client.score(CONTEXT, slate(50)))
    running.lineage = Lineage(small(), SCHEMA, name="b" * 32, rotation=8, first=10)
    first = running.publish()
    until(lambda: running.serving() == first)
    running.publish()
    assert_right(running.lineage, running.client.score(CONTEXT, slate(50)))


def test_what_a_click_waited_for_is_written_down(running):
    """Traces of a version come out complete after its first answer, and the status row counts what was done."""
    running.publish()
    running.client.wait_ready(10)
    traced = running.publish(traces=[{"click_us": 1, "joined_us": 2, "learnt_us": 3, "published_us": 4}])
    until(lambda: running.serving() == traced)
    running.server.stop()
    (line,) = journal.read(running.settings.metrics_dir / "freshness.jsonl")
    assert (line["click_us"], line["joined_us"], line["learnt_us"], line["published_us"]) == (1, 2, 3, 4)
    assert line["published_us"] < line["applied_us"] <= line["served_us"]
    assert line["version"] == traced
    *_, row = journal.read(running.settings.metrics_dir / "scorer.jsonl")
    assert (row["version"], row["versions_applied"], row["versions_skipped"], row["loads"]) == (traced, 2, 0, 1)
    assert row["requests"] == row["items_scored"] >= row["versions_served"] >= 1
    assert not list((running.settings.store_dir.parent / "secondaries").iterdir())


def test_a_taken_port_is_an_error_that_names_the_setting(make_settings):
    """Neither another process's nor another scorer's, though its workers share one."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"score\.port={port}: cannot listen on 127\.0\.0\.1:{port}"):
            reserved(make_settings(**{"score.port": port}).score)
    settings = make_settings(**MODEL)
    process = Process(settings)
    port = int(process.target.rpartition(":")[2])
    with pytest.raises(ConfigError, match=r"another scorer\?"):
        reserved(make_settings(**{"score.port": port}).score)
    assert process.end(signal.SIGTERM) == 0


def test_hostile_clients_do_not_stop_the_others(running):
    """20 MB, garbage on the port, and more open reflection and health streams than there are threads."""
    running.publish()
    running.client.wait_ready(10)
    with grpc.insecure_channel(running.target, options=[("grpc.max_send_message_length", -1)]) as channel:
        with pytest.raises(grpc.RpcError) as failed:
            ScorerStub(channel).Score(ScoreRequest(item_id=["x" * 20_000_000]))
        assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(grpc.RpcError) as failed:
            channel.unary_unary(f"/{SERVICE}/Score")(b"\xff garbage")
        assert failed.value.code() is grpc.StatusCode.INTERNAL
    garbage = [socket.create_connection(("127.0.0.1", running.server.port)) for _ in range(20)]
    for connection in garbage:
        connection.sendall(b"GET / HTTP/1.1\r\n\r\n" + os.urandom(2000))
    done = threading.Event()

    def forever():
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        done.wait()

    streams = [
        reflection_pb2_grpc.ServerReflectionStub(running.channel).ServerReflectionInfo(forever())
        for _ in range(REFLECTIONS + 5)
    ]
    watches = [
        health_pb2_grpc.HealthStub(running.channel).Watch(health_pb2.HealthCheckRequest(service="")) for _ in range(20)
    ]
    next(iter(streams[0]))
    next(iter(watches[0]))
    for _ in range(20):
        assert_right(running.lineage, running.client.score(CONTEXT, slate(5)))
    done.set()
    for call in (*streams, *watches):
        call.cancel()
    for connection in garbage:
        connection.close()


def test_more_than_it_can_take_is_refused_at_once(make_settings):
    """Beyond score.in_flight a call is RESOURCE_EXHAUSTED instead of waiting; those that were taken are answered right, and
    afterwards everything is as before."""
    running = Running(make_settings(**MODEL, **{"score.poll_s": 0.002, "score.in_flight": 4}))
    running.publish()
    running.client.wait_ready(10)
    request = ScoreRequest(item_id=[f"app{n}" for n in range(1000)])
    calls = [ScorerStub(running.channel).Score.future(request, timeout=20) for _ in range(60)]
    codes = [call.code() for call in calls]
    assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert all(len(call.result().items) == 1000 for call, code in zip(calls, codes, strict=True) if code is grpc.StatusCode.OK)
    assert_right(running.lineage, running.client.score(CONTEXT, slate(5)))
    running.close()


FOREIGN = """
import sys, json, grpc
from google.protobuf import descriptor_pool, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
channel = grpc.insecure_channel(sys.argv[1])
database = ProtoReflectionDescriptorDatabase(channel)
services = sorted(database.get_services())
method = descriptor_pool.DescriptorPool(database).FindServiceByName("freshet.scoring.v1.Scorer").FindMethodByName("Score")
ask, answer = (message_factory.GetMessageClass(kind) for kind in (method.input_type, method.output_type))
request = ask(request_id="foreign", item_id=["app1", "app2"])
request.context.add(field="user", strings=["u17"])
request.items.add(field="category", strings=["games", "food"])
call = channel.unary_unary("/freshet.scoring.v1.Scorer/Score", ask.SerializeToString, answer.FromString)
scored = call(request, timeout=5)
assert not any(name.split(".")[0] in ("schemas", "scorer") for name in sys.modules)
print(json.dumps({"services": services, "version": scored.version, "request_id": scored.request_id,
                  "logits": [item.logit for item in scored.items]}))
"""


def test_a_foreign_client_needs_nothing_but_the_address(running, tmp_path):
    """It lists the service by reflection and gets a score, with no code generated from our files."""
    running.publish()
    running.client.wait_ready(10)
    done = subprocess.run(
        [sys.executable, "-I", "-c", FOREIGN, running.target], cwd=tmp_path, capture_output=True, text=True, timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert {SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"} <= set(told["services"])
    ours = running.client.score(
        {"user": "u17"},
        [{"id": "app1", "features": {"category": "games"}}, {"id": "app2", "features": {"category": "food"}}],
    )
    assert told["logits"] == [item.logit for item in ours.items]
    assert (told["version"], told["request_id"]) == (1, "foreign")


class Process:
    """`freshet scorer` as a process of its own."""

    def __init__(self, settings: Settings) -> None:
        values = {"var": settings.var, "score.port": 0, "score.poll_s": 0.005, "score.workers": 2, **MODEL}
        flags = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ops.cli", "scorer", *flags], cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stderr is not None
        self.log: list[str] = []
        for line in self.process.stderr:
            self.log.append(line)
            if found := re.search(r"scorer\.listening .*port=(\d+)", line):
                self.target = f"127.0.0.1:{found[1]}"
                break
        else:
            raise AssertionError("".join(self.log))
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def _read(self) -> None:
        for line in self.process.stderr or ():
            self.log.append(line)

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        code = self.process.wait(timeout=30)
        self._reading.join()
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_requests_in_flight_end(make_settings, number):
    """Asked to stop under load: every request that had begun is answered, later ones are told to go elsewhere, exit 0."""
    settings = make_settings(**MODEL)
    lineage, writer = Lineage(small(), SCHEMA), RocksWriter(settings.store_dir)
    writer.write(lineage.publish())
    process = Process(settings)
    outcomes: list[tuple[float, grpc.StatusCode]] = []
    failures: list[BaseException] = []
    request = ScoreRequest(item_id=[f"app{n}" for n in range(1000)])

    def ask() -> None:
        with grpc.insecure_channel(process.target) as channel:
            stub = ScorerStub(channel)
            while True:
                began = time.monotonic()
                try:
                    answer = stub.Score(request, timeout=20)
                except grpc.RpcError as failed:
                    outcomes.append((began, failed.code()))
                    return
                if len(answer.items) != 1000:
                    failures.append(AssertionError("half an answer"))
                outcomes.append((began, grpc.StatusCode.OK))

    with ScorerClient(process.target) as client:
        client.wait_ready(30)
    until(lambda: sum("scorer.serving" in line for line in process.log) == 2, 30)
    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    until(lambda: len(outcomes) > 20)
    asked = time.monotonic()
    assert process.end(number) == 0
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()
    writer.close()
    assert not failures
    assert {code for began, code in outcomes if began < asked} == {grpc.StatusCode.OK}
    gone = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}  # both: try another scorer
    assert {code for _, code in outcomes} - gone == {grpc.StatusCode.OK}
    assert len([line for line in process.log if "scorer.stopped" in line]) == 2  # both workers
    *_, row = journal.read(settings.metrics_dir / "scorer.jsonl")
    answered = len([code for _, code in outcomes if code is grpc.StatusCode.OK])
    assert row["requests"] == answered


def parts(process: Process, name: str) -> list[int]:
    """Process ids of the follower or the workers, the oldest first."""
    found = []
    for one in psutil.Process(process.process.pid).children():
        with suppress(psutil.NoSuchProcess):  # or a zombie, which has ended too
            if one.name().startswith(name):
                found.append(one)
    return [one.pid for one in sorted(found, key=psutil.Process.create_time)]


def test_follower_and_workers_are_killed_in_turn_under_load(make_settings):
    """No answer is wrong or of another version than it names (300 of them are recomputed); no request fails, since the client
    tries again; versions published while the follower was away are served once it is back."""
    settings = make_settings(**MODEL)
    lineage, writer = Lineage(small(), SCHEMA, rotation=8), RocksWriter(settings.store_dir)
    writer.write(lineage.publish(rows=300))
    process = Process(settings)
    answers: list[Scored] = []
    failures: list[str] = []
    stop = threading.Event()

    def ask() -> None:
        seed = 0
        with ScorerClient(process.target) as client:
            client.wait_ready(30)
            while not stop.is_set():
                seed += 1
                try:
                    answers.append(client.score(CONTEXT, slate(5, seed), timeout_s=20))
                except ScorerUnavailable as gone:
                    failures.append(str(gone))

    def served(number: int) -> bool:
        return bool(answers) and {one.version for one in answers[-8:]} == {number}

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for turn in range(3):
            until(partial(served, lineage.next - 1), 60)
            name = ("scorer-worker", "scorer-follower")[turn % 2]
            until(lambda: len(parts(process, name)) == (2, 1)[turn % 2], 60)  # noqa: B023
            before = parts(process, name)
            os.kill(before[0], signal.SIGKILL)
            for _ in range(1 + turn):
                writer.write(lineage.publish(rows=300))
            until(lambda: len({*parts(process, name)} - {*before}) == 1, 60)  # noqa: B023
        until(partial(served, lineage.next - 1), 60)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert process.end(signal.SIGTERM) == 0
    writer.close()
    assert not failures  # the client tries again, on another connection
    for scored in answers[:: 1 + len(answers) // 300]:
        assert_right(lineage, scored)


def test_killed_outright_and_started_again_it_goes_on(make_settings):
    """Nothing that a killed scorer leaves behind stops the next: its own processes end with it, and nothing piles up."""
    settings = make_settings(**MODEL)
    lineage, writer = Lineage(small(), SCHEMA), RocksWriter(settings.store_dir)
    for round_number in range(2):
        for _ in range(3):
            writer.write(lineage.publish())
        process = Process(settings)
        with ScorerClient(process.target) as client:
            client.wait_ready(30)
            scored = client.score(CONTEXT, slate(20), timeout_s=10)
        assert scored.version == 3 * round_number + 3
        assert_right(lineage, scored)
        parent = psutil.Process(process.process.pid)
        until(lambda: len(parent.children()) == 3)  # noqa: B023
        children = parent.children()
        assert process.end(signal.SIGKILL) == -signal.SIGKILL
        _, left = psutil.wait_procs(children, timeout=10)
        assert not left
    writer.close()
    assert len(list((settings.store_dir.parent / "secondaries").iterdir())) <= 1


def test_what_the_processes_import_is_there_once(make_settings):
    """A worker holds less than 100 MB by itself, though torch alone is 277 MB to a process that imports it; and the process
    that they are forked from has one thread, so that no fork can lose another."""
    settings = make_settings(**MODEL)
    lineage, writer = Lineage(small(), SCHEMA), RocksWriter(settings.store_dir)
    writer.write(lineage.publish())
    process = Process(settings)
    with ScorerClient(process.target) as client:
        client.wait_ready(30)
        client.score(CONTEXT, slate(20), timeout_s=10)
        assert psutil.Process(process.process.pid).num_threads() == 1
        workers = [psutil.Process(pid).memory_full_info() for pid in parts(process, "scorer-worker")]
        assert len(workers) == 2
        assert all(one.uss < 100e6 < one.rss for one in workers)
    assert process.end(signal.SIGTERM) == 0
    writer.close()
