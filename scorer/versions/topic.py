"""Reading model-updates: one partition, from any place, by its sender and by mirrors."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from schemas.config import KafkaConfig
from schemas.errors import BrokerError
from schemas.kafka import client_settings
from schemas.snapshot import Manifest, decode_manifest, number_of
from schemas.updates import Told, is_of, told

LOOK_BACK = 8             # records, for the newest manifest; four times as many with each try
READ_TIMEOUT_S = 30.0
FETCH_BYTES = 16 << 20    # of chunks of 1 MiB


@dataclass(frozen=True, slots=True)
class Sent:
    """A manifest in the topic. key, value: as in the store."""

    offset: int
    key: bytes
    value: bytes
    told: Told

    def manifest(self) -> Manifest:
        """Raises SnapshotError."""
        return decode_manifest(self.value, self.key)


def connected(kafka: KafkaConfig, role: str) -> Any:
    """A kafka-python consumer of the one partition of model-updates. Raises BrokerError."""
    topic = kafka.topic("model-updates")
    try:
        consumer = KafkaConsumer(
            **client_settings(kafka, role), group_id=None, enable_auto_commit=False, auto_offset_reset="none",
            max_partition_fetch_bytes=FETCH_BYTES, fetch_max_bytes=FETCH_BYTES,
        )
        consumer.assign([TopicPartition(topic, 0)])
    except KafkaError as failed:
        raise BrokerError(f"{topic} at {kafka.bootstrap} (kafka.bootstrap) cannot be read: {failed}") from failed
    return consumer


def ends(consumer: Any) -> tuple[int, int]:
    """The first offset there is, and the one behind the last."""
    (place,) = consumer.assignment()
    return consumer.beginning_offsets([place])[place], consumer.end_offsets([place])[place]


def position(consumer: Any) -> int:
    """Offset of the next record."""
    (place,) = consumer.assignment()
    return int(consumer.position(place))


def seek(consumer: Any, offset: int) -> None:
    """Read on there."""
    (place,) = consumer.assignment()
    consumer.seek(place, offset)


def poll(consumer: Any, timeout_s: float) -> list[Any]:
    """Records that come next; none where none comes in time."""
    return [record for records in consumer.poll(timeout_ms=int(1000 * timeout_s)).values() for record in records]


def newest(consumer: Any, model: str) -> Sent | None:
    """The manifest of that model that was sent last. Moves the consumer. Raises BrokerError, SnapshotError."""
    begin, upto = ends(consumer)
    step = LOOK_BACK
    while upto > begin:
        since = max(begin, upto - step)
        found = None
        for record in between(consumer, since, upto):
            if is_of(model, record.headers) and number_of("version", record.key) is not None:
                found = Sent(record.offset, record.key, record.value, told(record.headers))
        if found is not None:
            return found
        upto, step = since, 4 * step
    return None


def between(consumer: Any, since: int, upto: int) -> Iterator[Any]:
    """Records from one offset to before another. Raises BrokerError where they do not come."""
    seek(consumer, since)
    deadline = time.monotonic() + READ_TIMEOUT_S
    while position(consumer) < upto:
        if time.monotonic() > deadline:
            raise BrokerError(f"model-updates cannot be read from {since} to {upto} in {READ_TIMEOUT_S:.0f} s")
        yield from (record for record in poll(consumer, 0.5) if record.offset < upto)
