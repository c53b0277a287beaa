"""Topics on a real broker."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from ops.kafka.cluster import admin
from ops.kafka.topics import describe, ensure_topics, topics_of, wait_for_topics
from schemas.config import Settings
from schemas.errors import BrokerError

pytestmark = pytest.mark.integration


def test_topics_are_made_as_the_design_says(broker: str, make_settings: Callable[..., Settings]) -> None:
    """Five topics; partitions by settings; broker's time on events and examples; model-control is compacted."""
    settings = make_settings(**{"kafka.bootstrap": broker, "kafka.event_partitions": 3, "kafka.example_partitions": 2})
    report = ensure_topics(settings)
    assert len(report.created) == 5
    assert not report.mismatches
    with admin(settings.kafka) as client:
        found = describe(client, [topic.name for topic in topics_of(settings).values()])
    partitions = {name: found[settings.kafka.topic(name)][0] for name in topics_of(settings)}
    assert partitions == {"events": 3, "examples": 2, "dead-letters": 1, "model-updates": 1, "model-control": 1}
    for name in ("events", "examples"):
        assert found[settings.kafka.topic(name)][1]["message.timestamp.type"] == "LogAppendTime"
    assert found[settings.kafka.topic("model-control")][1]["cleanup.policy"] == "compact"


def test_existing_topics_stay_and_differences_are_told(broker: str, make_settings: Callable[..., Settings]) -> None:
    """A second call makes nothing; another number of partitions in the settings is reported, not applied."""
    first = make_settings(**{"kafka.bootstrap": broker, "kafka.event_partitions": 2})
    ensure_topics(first)
    again = ensure_topics(make_settings(**{"kafka.bootstrap": broker, "kafka.event_partitions": 4}))
    assert not again.created
    assert again.mismatches == [
        f"{first.kafka.topic('events')} has partitions=2, freshet would have made it 4"
    ]


def test_a_record_of_five_megabytes_passes_the_broker(broker: str, make_settings: Callable[..., Settings]) -> None:
    """It is our own code that has to refuse it, with a dead letter: so it must get that far."""
    settings = make_settings(**{"kafka.bootstrap": broker})
    ensure_topics(settings)
    topic = settings.kafka.topic("events")
    producer = KafkaProducer(bootstrap_servers=broker, acks="all", max_request_size=8 << 20)
    producer.send(topic, b"x" * (5 << 20)).get(timeout=30)
    producer.close()
    consumer = KafkaConsumer(bootstrap_servers=broker, group_id=None)
    partition = TopicPartition(topic, 0)
    assert consumer.end_offsets([partition]) == {partition: 1}
    consumer.close()


def test_waiting_for_topics_ends_when_they_are_made(broker: str, make_settings: Callable[..., Settings]) -> None:
    """A process that starts before its topics exist waits for them."""
    settings = make_settings(**{"kafka.bootstrap": broker})
    maker = threading.Timer(0.5, ensure_topics, [settings])
    maker.start()
    began = time.monotonic()
    wait_for_topics(settings, ["events", "examples"], timeout_s=20)
    assert time.monotonic() - began >= 0.4
    maker.join()


def test_topics_that_never_come_are_named(broker: str, make_settings: Callable[..., Settings]) -> None:
    """The error names the topic and the command that makes it."""
    settings = make_settings(**{"kafka.bootstrap": broker})
    with pytest.raises(BrokerError, match=rf"{settings.kafka.topic('events')}.*freshet topics"):
        wait_for_topics(settings, ["events"], timeout_s=0.3)


def test_no_broker_is_an_error_that_says_where(make_settings: Callable[..., Settings]) -> None:
    """Nothing listens there: the address is in the error, and it comes in time."""
    began = time.monotonic()
    with pytest.raises(BrokerError, match=r"127\.0\.0\.1:1 "):
        wait_for_topics(make_settings(**{"kafka.bootstrap": "127.0.0.1:1"}), ["events"], timeout_s=0.5)
    assert time.monotonic() - began < 5
