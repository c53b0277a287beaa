"""One partition of Kafka in memory, with the calls of kafka-python that are used of it: records in order, offsets that stay, an
end that retention moves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kafka import TopicPartition
from kafka.errors import OffsetOutOfRangeError

POLL_RECORDS = 7


class Killed(BaseException):
    """The process is gone in the middle of it."""


@dataclass(frozen=True)
class Record:
    offset: int
    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]]
    timestamp: int


@dataclass(frozen=True)
class Delivered:
    """What kafka-python's future gives."""

    offset: int

    def get(self, timeout: float) -> Delivered:
        return self


class MemoryTopic:
    """The log, and a producer of it. sends_left: so many records are taken before the sender is Killed; None = any number."""

    def __init__(self) -> None:
        self.place = TopicPartition("model-updates", 0)
        self.records: list[Record] = []
        self.first = 0
        self.now_ms = 0
        self.sends_left: int | None = None

    @property
    def end(self) -> int:
        return self.first + len(self.records)

    def send(self, topic: str, value: bytes, key: bytes, headers: list[tuple[str, bytes]], partition: int) -> Delivered:
        if self.sends_left is not None:
            if self.sends_left == 0:
                raise Killed
            self.sends_left -= 1
        self.records.append(Record(self.end, key, value, list(headers), self.now_ms))
        return Delivered(self.end - 1)

    def truncate(self, count: int) -> None:
        """Retention takes the oldest."""
        self.records = self.records[count:]
        self.first += count


class MemoryConsumer:
    """Reads a MemoryTopic from wherever it was told to."""

    def __init__(self, topic: MemoryTopic) -> None:
        self._topic = topic
        self._at = 0

    def assignment(self) -> set[TopicPartition]:
        return {self._topic.place}

    def beginning_offsets(self, places: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(places, self._topic.first)

    def end_offsets(self, places: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(places, self._topic.end)

    def seek(self, place: TopicPartition, offset: int) -> None:
        self._at = offset

    def position(self, place: TopicPartition) -> int:
        return self._at

    def poll(self, timeout_ms: int) -> dict[TopicPartition, list[Any]]:
        if not self._topic.first <= self._at <= self._topic.end:
            raise OffsetOutOfRangeError
        since = self._at - self._topic.first
        found = self._topic.records[since : since + POLL_RECORDS]
        self._at += len(found)
        return {self._topic.place: found} if found else {}
