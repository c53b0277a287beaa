"""A file's events into Kafka: in order, at a rate or as fast as possible, between an opening and a closing tick."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from kafka.errors import KafkaError

from ops.formats import EventRecord, closing_tick, opening_tick
from ops.kafka.cluster import producer, refused
from schemas.config import Settings
from schemas.errors import BrokerError


@dataclass(frozen=True, kw_only=True, slots=True)
class Replayed:
    """What was published."""

    rows: int
    events: int
    partitions: int
    seconds: float


def replay(
    settings: Settings, records: Iterable[EventRecord], rate: float = 0.0, progress: Callable[[int], None] = lambda _: None
) -> Replayed:
    """Publish events in order. rate: rows a second, 0 = as fast as possible. Raises BrokerError if one is not taken.

    A key goes where every producer with Kafka's default partitioner (murmur2) puts it, so live and replayed events of one
    impression meet. Each partition gets the ticks, so that time stands still between events, and ends at the end.
    """
    began = time.monotonic()
    topic = settings.kafka.topic("events")
    sender = producer(settings.kafka, "replay")
    failed: list[BaseException] = []
    rows = events = last_us = last_row = 0
    try:
        partitions = sorted(sender.partitions_for(topic))

        def send(partition: int | None, key: bytes | None, value: bytes) -> None:
            sending: Any = sender.send(topic, value, key=key, partition=partition)
            sending.add_errback(failed.append)

        for record in records:
            if not events:
                for partition in partitions:
                    send(partition, None, opening_tick(record.time_us))
            if record.row != last_row:
                if rate:
                    time.sleep(max(0.0, began + rows / rate - time.monotonic()))
                rows += 1
                last_row = record.row
                progress(1)
            send(None, record.key, record.value)
            events += 1
            last_us = max(last_us, record.time_us)
            if failed:
                break
        if events:
            for partition in partitions:
                send(partition, None, closing_tick(settings, last_us))
        sender.flush(timeout=120)
    except KafkaError as wrong:
        raise refused(settings.kafka, f"replay stopped after {events} events", wrong) from wrong
    finally:
        sender.close(timeout=10)
    if failed:
        raise BrokerError(f"replay stopped: the broker did not take an event: {failed[0]}") from failed[0]
    return Replayed(rows=rows, events=events, partitions=len(partitions), seconds=time.monotonic() - began)
