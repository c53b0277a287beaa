"""The embedded broker: a real Kafka, started, killed, started again."""

from __future__ import annotations

import re
import socket
import time
from pathlib import Path

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from ops.broker import start_broker
from ops.broker.java import find_libs
from ops.broker.properties import render
from ops.kafka.topics import ensure_topics
from ops.machine.ports import PortTaken, is_open
from schemas.errors import BrokerError

ROOT = Path(__file__).resolve().parents[3]

pytestmark = pytest.mark.integration


def _read_all(bootstrap: str, topic: str, count: int) -> list[bytes]:
    consumer = KafkaConsumer(bootstrap_servers=bootstrap, group_id=None, enable_auto_commit=False)
    consumer.assign([TopicPartition(topic, 0)])
    consumer.seek_to_beginning()
    read: list[bytes] = []
    deadline = time.monotonic() + 60
    while len(read) < count and time.monotonic() < deadline:
        for records in consumer.poll(timeout_ms=500).values():
            read += [record.value for record in records]
    consumer.close()
    return read


def test_what_was_acknowledged_survives_sigkill(own_broker, make_settings) -> None:
    """SIGKILL, then the same data on the same port: it answers (after 4 s on a quiet machine) with all records."""
    node = own_broker()
    settings = make_settings(**{"kafka.bootstrap": node.bootstrap})
    ensure_topics(settings)
    topic = settings.kafka.topic("events")
    producer = KafkaProducer(bootstrap_servers=node.bootstrap, acks="all")
    sent = [b"event %d" % n for n in range(100)]
    for value in sent:
        producer.send(topic, value)
    producer.flush()
    producer.close()

    node.kill()
    assert not is_open("127.0.0.1", node.port)
    again = own_broker(port=node.port)

    assert _read_all(again.bootstrap, topic, len(sent)) == sent


def test_data_follows_the_folder_to_another_port(own_broker, make_settings) -> None:
    """Both ports may change between two starts on the same data."""
    node = own_broker()
    created = ensure_topics(make_settings(**{"kafka.bootstrap": node.bootstrap})).created
    node.stop()
    assert not node.alive
    moved = own_broker()
    assert moved.port != node.port
    assert ensure_topics(make_settings(**{"kafka.bootstrap": moved.bootstrap})).existing == created


def test_a_taken_port_is_named_with_its_holder(tmp_path: Path) -> None:
    """The error says which port, who holds it, and which setting changes it."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(PortTaken) as told:
            start_broker(tmp_path, port=port)
    for wanted in (str(port), "pid ", "kafka.bootstrap", "FRESHET_KAFKA"):
        assert wanted in str(told.value)


def test_missing_jars_are_named_with_the_remedy(tmp_path: Path) -> None:
    """Nothing fetched yet: the error says what fetches them, and the ways without."""
    with pytest.raises(BrokerError, match=r"make setup.*FRESHET_KAFKA.*compose"):
        find_libs(tmp_path)


def test_a_broker_that_cannot_start_shows_its_log(tmp_path: Path) -> None:
    """A damaged data folder: the error carries the end of Kafka's own log, and nothing stays behind."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "meta.properties").write_text("version=1\ncluster.id=x\nnode.id=7\n")
    with pytest.raises(BrokerError, match=r"(?s)did not start.*node id 7"):
        start_broker(tmp_path)


def test_the_container_is_told_what_our_own_broker_is() -> None:
    """compose.yaml and properties.py: same version as the pom, same settings but for where it listens and writes."""
    compose = (ROOT / "ops" / "compose.yaml").read_text()
    told = dict(re.findall(r'^ +KAFKA_(\w+): "?([^"\n]+)"?$', compose, re.MULTILINE))
    there = {name.lower().replace("_", "."): value for name, value in told.items() if name != "HEAP_OPTS"}
    here = dict(line.split("=", 1) for line in render(data=Path("x"), port=1, controller_port=2).splitlines())
    places = {"listeners", "advertised.listeners", "controller.quorum.voters", "log.dirs"}
    assert {key: there[key] for key in there.keys() - places} == {key: here[key] for key in here.keys() - places}
    pom = (ROOT / "ops" / "broker" / "pom.xml").read_text()
    version = re.search(r"<artifactId>kafka_2.13</artifactId>\s*<version>(.+)</version>", pom)
    assert version
    assert f"apache/kafka:{version.group(1)}" in compose
