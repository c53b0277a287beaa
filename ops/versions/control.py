"""model-control over Kafka: orders written, orders read, and until when what a version needs can be read again."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import structlog
from kafka import TopicPartition
from kafka.errors import KafkaError

from ops.kafka.cluster import admin, consumer, producer, refused
from ops.kafka.topics import describe
from ops.watching.journals import wait_for_order
from schemas.config import Settings
from schemas.control import ControlError, Order, decode, encode
from schemas.errors import BrokerError
from stream_trainer.publishing.control import Given

SEND_TIMEOUT_S = 40.0   # kafka-python wants it above its request timeout, 30 s
READ_TIMEOUT_S = 30.0

log = structlog.get_logger()


def give(settings: Settings, order: Order) -> int:
    """Write an order. Returns its offset, by which the trainer knows it. Raises BrokerError."""
    topic = settings.kafka.topic("model-control")
    sender = producer(settings.kafka, "control", SEND_TIMEOUT_S)
    try:
        sent = sender.send(topic, encode(order), key=order.key, partition=0).get(timeout=SEND_TIMEOUT_S)
        return int(sent.offset)
    except KafkaError as failed:
        raise refused(settings.kafka, f"the order was not taken by {topic}", failed) from failed
    finally:
        sender.close(timeout=5)


def ordered(settings: Settings, order: Order, wait_s: float) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """Write an order and wait for what the trainer says: what is reported of any order, and its answer, empty if it said
    nothing in time. Raises BrokerError."""
    offset = give(settings, order)
    answer = wait_for_order(settings, offset, wait_s) or {}
    obeyed = bool(answer) and not answer["refused"]
    return {"order": order.what, "offset": offset, "obeyed": obeyed, "refused": answer.get("refused")}, answer


def order_text(what: str, report: Mapping[str, Any], wait_s: float) -> str:
    """What came of it. what: the order, for people."""
    what = f"{what} (order {report['offset']})"
    if report["refused"]:
        return f"{what} is refused: {report['refused']}"
    if not report["obeyed"]:
        return f"{what} is written; no trainer here has answered in {wait_s:.0f} s. It is obeyed as soon as one runs."
    return f"{what} is obeyed"


class Orders:
    """The orders to one model, from the first there is; those to others and what is no order are passed over. For one
    thread at a time."""

    def __init__(self, settings: Settings) -> None:
        """Raises BrokerError."""
        self._settings = settings
        self._reader = consumer(settings.kafka, "control")
        self._place = TopicPartition(settings.kafka.topic("model-control"), 0)
        self._reader.assign([self._place])
        self._reader.seek_to_beginning(self._place)

    def waiting(self) -> list[Given]:
        """All that there are and were not told yet. Raises BrokerError where they cannot be read."""
        deadline = time.monotonic() + READ_TIMEOUT_S
        found: list[Given] = []
        try:
            end = self._reader.end_offsets([self._place])[self._place]
            while self._reader.position(self._place) < end:
                found += self.poll(0.5)
                if time.monotonic() > deadline:
                    raise BrokerError(f"{self._place.topic} cannot be read to its end in {READ_TIMEOUT_S:.0f} s")
        except KafkaError as failed:
            raise refused(self._settings.kafka, f"{self._place.topic} cannot be read", failed) from failed
        return found

    def poll(self, timeout_s: float) -> list[Given]:
        """Those that come next; none, where none comes in time or the broker is away."""
        found = []
        for record in self._reader.poll(timeout_ms=int(1000 * timeout_s)).get(self._place, []):
            try:
                order = decode(record.value)
            except ControlError as wrong:
                log.error("order.unreadable", topic=self._place.topic, offset=record.offset, error=str(wrong))
                continue
            if order.model == self._settings.model.name:
                found.append(Given(record.offset, order, self._earliest() if order.then == "replay" else {}))
        return found

    def _earliest(self) -> dict[int, int]:
        return offsets(self._settings, self._reader)[0]


def offsets(settings: Settings, reader: Any) -> tuple[dict[int, int], dict[int, int]]:
    """First offset there is, and the one behind the last, of each partition of `examples`."""
    topic = settings.kafka.topic("examples")
    places = [TopicPartition(topic, number) for number in sorted(reader.partitions_for_topic(topic) or ())]
    earliest, end = reader.beginning_offsets(places), reader.end_offsets(places)
    return {place.partition: earliest[place] for place in places}, {place.partition: end[place] for place in places}


class Retention:
    """Until when stretches of `examples` can be read again. For one call of one verb."""

    def __init__(self, settings: Settings) -> None:
        """Raises BrokerError."""
        topic = settings.kafka.topic("examples")
        with admin(settings.kafka, 2.0) as client:
            config = describe(client, [topic]).get(topic, (0, {}))[1]
        self._keep_ms = int(config.get("retention.ms") or -1)
        self._reader = consumer(settings.kafka, "retention")
        self._topic = topic
        self._earliest, self._end = offsets(settings, self._reader)

    def close(self) -> None:
        """Let go of the broker."""
        self._reader.close()

    def replayable(self, starts: Mapping[int, int]) -> dict[str, Any]:
        """Whether all from those offsets on is there, and until which wall time it surely is (µs; None = for ever, or for
        as long as nothing that is needed has been written)."""
        if any(at < self._earliest.get(partition, 0) for partition, at in starts.items()):
            return {"replayable": False, "replayable_until_us": None}
        times = [self._time_ms(partition, at) for partition, at in starts.items() if at < self._end.get(partition, 0)]
        until = min((at_ms for at_ms in times if at_ms is not None), default=None)
        known = until is not None and self._keep_ms >= 0
        return {"replayable": True, "replayable_until_us": (until + self._keep_ms) * 1000 if known and until else None}

    def _time_ms(self, partition: int, offset: int) -> int | None:
        place = TopicPartition(self._topic, partition)
        self._reader.assign([place])
        self._reader.seek(place, offset)
        deadline = time.monotonic() + READ_TIMEOUT_S
        while time.monotonic() < deadline:
            for record in self._reader.poll(timeout_ms=500, max_records=1).get(place, []):
                return int(record.timestamp)
        return None


