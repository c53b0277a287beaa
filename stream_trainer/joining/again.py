"""A topic read again: given partitions from given places, beside the process's consumer and outside its group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from schemas.config import KafkaConfig
from schemas.kafka import client_settings
from stream_trainer.faust_driver import Position, Record, positions

MOST_RECORDS = 2_000   # handed over at once
MOST_BYTES = 8 << 20   # fetched ahead, a partition


class Again:
    """A consumer without a group of its own members: `group` only keeps the offsets that are stored in it."""

    def __init__(self, config: KafkaConfig, topic: str, group: str) -> None:
        self._topic = topic
        self._consumer: Any = AIOKafkaConsumer(
            **client_settings(config, "corrections"), group_id=group, enable_auto_commit=False, auto_offset_reset="none",
            max_partition_fetch_bytes=MOST_BYTES,
        )

    async def start(self, partitions: Iterable[int]) -> dict[int, Position]:
        """Take these partitions. Returns what is stored of them and which offsets exist; `seek` before `fetch`."""
        await self._consumer.start()
        tps = [TopicPartition(self._topic, partition) for partition in partitions]
        self._consumer.assign(tps)
        return await positions(self._consumer, tps)

    def seek(self, partition: int, offset: int) -> None:
        """Go on there."""
        self._consumer.seek(TopicPartition(self._topic, partition), offset)

    async def fetch(self, partitions: Iterable[int], wait_s: float) -> dict[int, list[Record]]:
        """The next records of these partitions, after at most so long a wait."""
        tps = [TopicPartition(self._topic, partition) for partition in partitions]
        if not tps:
            return {}
        got = await self._consumer.getmany(*tps, timeout_ms=round(wait_s * 1000), max_records=MOST_RECORDS)
        return {
            tp.partition: [Record(one.partition, one.offset, one.timestamp * 1000, one.value) for one in records]
            for tp, records in got.items()
        }

    async def commit(self, offsets: Mapping[int, tuple[int, str]]) -> None:
        """Store (offset, metadata) per partition."""
        await self._consumer.commit({
            TopicPartition(self._topic, partition): OffsetAndMetadata(*stored) for partition, stored in offsets.items()
        })

    async def stop(self) -> None:
        """Let go."""
        await self._consumer.stop()
