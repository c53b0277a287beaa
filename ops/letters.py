"""Dead letters, read from their topic. One event may have been written twice by a joiner that was killed: it counts once."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass

import orjson
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from schemas.config import Settings
from schemas.errors import BrokerError


@dataclass(frozen=True, slots=True)
class Letter:
    """An event that could not be used. value: as it came, cut at 256 KiB; size_bytes: before the cut."""

    source_partition: int
    source_offset: int
    reason: str
    text: str
    size_bytes: int
    value: bytes


def letters(settings: Settings) -> Iterator[Letter]:
    """All that the topic holds now, each source record once. Raises BrokerError."""
    topic = settings.kafka.topic("dead-letters")
    try:
        consumer = KafkaConsumer(bootstrap_servers=settings.kafka.bootstrap.split(","), client_id="freshet-dead-letters")
    except KafkaError as failed:
        raise BrokerError(f"no broker at {settings.kafka.bootstrap}: {failed}") from failed
    try:
        partitions = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic) or ())]
        if not partitions:
            raise BrokerError(f"topic {topic} does not exist; create it with `freshet topics`")
        consumer.assign(partitions)
        consumer.seek_to_beginning()
        ends = consumer.end_offsets(partitions)
        seen: set[bytes] = set()
        while any(consumer.position(place) < end for place, end in ends.items()):
            for batch in consumer.poll(timeout_ms=500).values():
                for record in batch:
                    if record.key not in seen:
                        seen.add(record.key)
                        yield _letter(record.value)
    finally:
        consumer.close()


def _letter(value: bytes) -> Letter:
    row = orjson.loads(value)
    return Letter(
        row["source_partition"], row["source_offset"], row["reason"], row["text"], row["size_bytes"],
        base64.b64decode(row["value_base64"]),
    )
