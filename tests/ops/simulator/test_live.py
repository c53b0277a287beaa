"""The store with the real Kafka, and with a scorer that comes and goes."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from kafka import KafkaConsumer, TopicPartition

from ops.simulator.live import GrpcRanker, KafkaLog, Record
from ops.simulator.options import StoreOptions
from ops.simulator.slates import Simulator
from ops.simulator.store import AppStore, WallClock
from schemas.errors import RequestError
from schemas.proto.scoring_pb2 import ItemScore, ScoreResponse
from schemas.proto.scoring_pb2_grpc import ScorerServicer, add_ScorerServicer_to_server

ROOT = Path(__file__).resolve().parents[3]
SMALL = StoreOptions(users=200, apps=40, slate=8, candidates=8, delay_median_s=0.1, delay_most_s=0.5)
CANDIDATES = [{"id": f"app{n}", "features": {"category": "news", "price": 0.99, "tags": ["ads"]}} for n in range(3)]


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


class Answers(ScorerServicer):
    """Scores items by their place, or refuses a model that it does not have."""

    def Score(self, request, context):
        if request.model != "appstore":
            context.abort(grpc.StatusCode.NOT_FOUND, f"no model {request.model}")
        items = [
            ItemScore(item_id=name, probability=(place + 1) / 8, echo=b"e%d" % place)
            for place, name in enumerate(request.item_id)
        ]
        return ScoreResponse(request_id=request.request_id, model="appstore", lineage="a1", version=5, items=items)


@pytest.fixture
def scorer():
    """start(port): a gRPC server there; ended after the test."""
    started = []

    def start(port: int):
        server = grpc.server(ThreadPoolExecutor(1))
        add_ScorerServicer_to_server(Answers(), server)
        server.add_insecure_port(f"127.0.0.1:{port}")
        server.start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.stop(None).wait()


def in_topic(settings):
    """(partition, key, value) of all events in the topic, partition by partition."""
    consumer = KafkaConsumer(bootstrap_servers=settings.kafka.bootstrap, enable_auto_commit=False)
    topic = settings.kafka.topic("events")
    partitions = [TopicPartition(topic, n) for n in sorted(consumer.partitions_for_topic(topic))]
    consumer.assign(partitions)
    consumer.seek_to_beginning(*partitions)
    ends = consumer.end_offsets(partitions)
    found = []
    while any(consumer.position(partition) < ends[partition] for partition in partitions):
        for records in consumer.poll(200).values():
            found += [(record.partition, record.key, record.value) for record in records]
    consumer.close()
    return found


def test_a_scorer_that_is_away_is_found_again_when_it_is_back(scorer):
    """No scores meanwhile, and nobody waits long for them."""
    port = free_port()
    ranker = GrpcRanker(f"127.0.0.1:{port}", "appstore")
    began = time.monotonic()
    assert [ranker.score({"user": "u1"}, CANDIDATES, f"r{n}") for n in range(200)] == [None] * 200
    assert time.monotonic() - began < 1.0

    server = scorer(port)
    deadline = time.monotonic() + 10
    while (scored := ranker.score({"user": "u1"}, CANDIDATES, "r")) is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert list(scored.probabilities) == [1 / 8, 2 / 8, 3 / 8]
    assert (scored.model, scored.lineage, scored.version) == ("appstore", "a1", 5)
    assert scored.echoes == [b"e0", b"e1", b"e2"]

    server.stop(None).wait()
    assert ranker.score({"user": "u1"}, CANDIDATES, "r") is None
    ranker.close()


def test_a_scorer_that_refuses_ends_the_store(scorer):
    """A wrong model name is not mended by asking again."""
    port = free_port()
    scorer(port)
    ranker = GrpcRanker(f"127.0.0.1:{port}", "other")
    with pytest.raises(RequestError, match="no model other"):
        ranker.score({}, CANDIDATES, "r")
    ranker.close()


@pytest.mark.integration
def test_events_reach_kafka_in_order_and_by_key(kafka_settings, tmp_path):
    """Two seconds in real time into four partitions: what is recorded is what is there, each impression in one place."""
    settings = kafka_settings(**{"kafka.event_partitions": 4})
    clock = WallClock(threading.Event())
    log = Record(tmp_path / "events.jsonl", KafkaLog(settings))
    report = AppStore(Simulator(SMALL, clock.now_us()), clock, log, rate=100, seconds=2, grace_s=1).run()
    assert 150 <= report.impressions <= 200
    assert report.clicks_unsent == 0

    found = in_topic(settings)
    sent = (tmp_path / "events.jsonl").read_bytes().splitlines()
    assert len(found) == len(sent) == report.impressions + report.clicks_sent
    place = {value: number for number, value in enumerate(sent)}
    where: dict[bytes, int] = {}
    for partition in range(4):
        order = [place[value] for at, _, value in found if at == partition]
        assert order
        assert order == sorted(order)
    for partition, key, value in found:
        assert json.loads(value)["impression_id"].encode() == key
        assert where.setdefault(key, partition) == partition


@pytest.mark.integration
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_the_verb_with_its_report(kafka_settings, number):
    """Exit 0, nothing left running, all that it says it sent is in the topic."""
    settings = kafka_settings()
    arguments = [f"kafka.bootstrap={settings.kafka.bootstrap}", f"kafka.prefix={settings.kafka.prefix}",
                 f"score.port={free_port()}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ops.cli", "simulate", "--rate", "100", "--json",
         *[word for argument in arguments for word in ("--set", argument)]],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT,
    )
    try:
        deadline = time.monotonic() + 30
        while len(in_topic(settings)) < 100:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 0, err.decode()
    report = json.loads(out)
    assert len(in_topic(settings)) == report["impressions"] + report["clicks_sent"]
    assert report["scored_slates"] == 0
    assert report["clicks"] == report["clicks_sent"] + report["clicks_unsent"]
