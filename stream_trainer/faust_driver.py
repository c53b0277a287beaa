"""The one file that knows Faust and its Kafka driver: records of one topic in, offsets and records out.

What it works around, each measured (faust-streaming 0.15.3, aiokafka 0.14.0):
- Faust acknowledges and commits by its own rules, some of which lose records: the topic is read with `acks=False`, and the
  handler commits itself, with metadata, whenever it knows that it may.
- After a rebalance Faust goes on from the position in memory, not from the stored one: `seek_to_committed` is overridden,
  and every assignment starts where the handler says.
- An exception inside an agent loses the batch in hand and goes on: here it ends the process, which is safe at any line.
- A consumer can stop without a word: a watchdog ends the process when records wait and none comes.
"""

from __future__ import annotations

import asyncio
import os
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn, Protocol

import faust
import structlog
from aiokafka.errors import CommitFailedError, IllegalGenerationError, RebalanceInProgressError, UnknownMemberIdError
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from schemas.config import KafkaConfig
from schemas.errors import BrokerError

STALLED_S = 60.0       # records wait and none came for so long: the consumer is dead
STOP_TIMEOUT_S = 10.0  # for the handler to come to rest
CRASHED = 70           # exit status; the supervisor starts the process again

log = structlog.get_logger()


class Record(NamedTuple):
    """One record of the topic. kafka_time_us: the broker's or producer's timestamp of it."""

    partition: int
    offset: int
    kafka_time_us: int
    value: bytes | None


@dataclass(frozen=True, slots=True)
class Position:
    """What Kafka knows of a partition. committed: None = nothing was; earliest, end: offsets that exist."""

    committed: int | None
    metadata: str
    earliest: int
    end: int


class Handler(Protocol):
    """What an app does with its topic. All methods run in one event loop, never two at once but where they await."""

    async def assigned(self, kafka: Kafka, found: Mapping[int, Position]) -> dict[int, int]:
        """These partitions, and no others, are ours from here on. Returns the offset each starts at."""

    async def record(self, record: Record) -> None:
        """The next record of an assigned partition. Waiting here holds the flow back."""

    async def running(self, kafka: Kafka) -> None:
        """Runs beside, from the first assignment until `stopping`, then returns."""

    async def stopping(self) -> None:
        """The process was asked to end."""


class Kafka:
    """What a handler may ask of the broker."""

    def __init__(self, app: Any, topic: str) -> None:
        self._app = app
        self._topic = topic

    async def send(self, topic: str, partition: int | None, key: bytes | None, value: bytes) -> asyncio.Future[Any]:
        """Hand a record to the producer; the future that comes back ends when all replicas have it."""
        sent: asyncio.Future[Any] = await self._app.producer.send(topic, key, value, partition, None, None)
        return sent

    async def commit(self, offsets: Mapping[int, tuple[int, str]]) -> bool:
        """Store (offset, metadata) per partition. False: the group has moved on, and the next assignment sorts it out."""
        thread = self._app.consumer._thread
        wanted = {TopicPartition(self._topic, p): OffsetAndMetadata(*stored) for p, stored in offsets.items()}
        try:
            await thread.call_thread(thread._ensure_consumer().commit, wanted)
        except (CommitFailedError, IllegalGenerationError, UnknownMemberIdError, RebalanceInProgressError) as moved:
            log.info("kafka.commit_refused", topic=self._topic, reason=type(moved).__name__)
            return False
        return True

    async def partitions(self, topic: str) -> int:
        """How many partitions a topic has. Raises BrokerError if it does not exist."""
        count = len(await self._app.producer._producer.partitions_for(topic))
        if not count:
            raise BrokerError(f"topic {topic} does not exist; create it with `freshet topics`")
        return count


def run(kafka: KafkaConfig, topic: str, group: str, member: str, handler: Handler) -> None:
    """Read `topic` in `group` under the name `member`, until SIGTERM or SIGINT. An unexpected error ends the process."""
    app = _app(kafka, topic, group, member, handler)
    worker = app.Worker(loglevel="ERROR", redirect_stdouts=False, override_logging=False, quiet=True)
    worker.spinner = None                        # it writes terminal codes into logs
    worker.execute_from_commandline()


def crash(error: BaseException) -> NoReturn:
    """End here and now. Nothing needs closing: whoever starts again goes on from what is durable."""
    log.critical("process.crashed", error=f"{type(error).__name__}: {error}", trace=traceback.format_exc())
    os._exit(CRASHED)


def _app(config: KafkaConfig, topic_name: str, group: str, member: str, handler: Handler) -> Any:
    app = faust.App(
        group,
        broker=[f"kafka://{address.strip()}" for address in config.bootstrap.split(",")],
        store="memory://",
        consumer_group_instance_id=member,
        datadir="var/faust",                    # never written: no tables
        web_enabled=False,                      # it would listen on 0.0.0.0 without a password
        topic_allow_declare=False,
        topic_disable_leader=True,
        table_standby_replicas=0,
        broker_session_timeout=config.session_timeout_s,
        broker_heartbeat_interval=min(config.session_timeout_s / 4, 3.0),
        broker_request_timeout=30.0,
        consumer_auto_offset_reset="none",      # never skip silently: the handler says where to start
        producer_acks=-1,
        producer_compression_type="lz4",
        producer_max_request_size=8 << 20,
        producer_request_timeout=60.0,
        stream_buffer_maxsize=65536,            # a smaller one makes the fetcher sleep a whole second when it fills
        stream_wait_empty=False,
    )
    kafka = Kafka(app, topic_name)
    watch = _Watch()
    done = asyncio.Event()

    class Consumer(driver.Consumer):
        async def seek_to_committed(self) -> Mapping[TP, int]:
            try:
                found = await _positions(self._thread, sorted(self.assignment()))
                starts = await handler.assigned(kafka, {tp.partition: at for tp, at in found.items()})
                offsets = {tp: starts[tp.partition] for tp in found}
                await self._thread.seek_wait(offsets)
                watch.restart()
                return offsets
            except Exception as error:  # noqa: BLE001 whatever it is, ending here loses nothing
                crash(error)

    class Transport(driver.Transport):
        pass

    Transport.Consumer = Consumer
    app.transport = Transport(app.conf.broker_consumer, app, loop=app.loop)
    topic = app.topic(topic_name, value_type=bytes, value_serializer="raw", key_serializer="raw", acks=False)

    @app.agent(topic, name=f"{group}-reader")
    async def read(stream: Any) -> None:
        try:
            async for event in stream.events():
                message = event.message
                watch.busy = True
                await handler.record(
                    Record(message.partition, message.offset, round((message.timestamp or 0) * 1e6), message.value)
                )
                watch.saw(message.partition, message.offset)
        except Exception as error:  # noqa: BLE001 as above
            crash(error)

    @app.task  # type: ignore[untyped-decorator]
    async def run_beside() -> None:
        try:
            await handler.running(kafka)
            done.set()
        except Exception as error:  # noqa: BLE001 as above
            crash(error)

    @app.timer(5.0)  # type: ignore[untyped-decorator]
    async def look() -> None:
        for tp in app.consumer.assignment():
            waiting = (app.consumer.highwater(tp) or 0) - watch.next_offset.get(tp.partition, 1 << 62)
            if waiting > 0 and watch.idle_s() > STALLED_S:
                crash(BrokerError(f"{waiting} records wait in {tp.topic}/{tp.partition}, none came for {STALLED_S:.0f} s"))

    @app.on_before_shutdown.connect
    async def stop(*_: Any, **__: Any) -> None:
        try:
            await handler.stopping()
            await asyncio.wait_for(done.wait(), STOP_TIMEOUT_S)   # the producer closes next: nobody may be using it
        except Exception as error:  # noqa: BLE001 as above
            crash(error)

    return app


class _Watch:
    """When did the last record come."""

    def __init__(self) -> None:
        self.next_offset: dict[int, int] = {}
        self.busy = False
        self._last_s = time.monotonic()

    def restart(self) -> None:
        self._last_s = time.monotonic()

    def saw(self, partition: int, offset: int) -> None:
        self.next_offset[partition] = offset + 1
        self.busy = False
        self._last_s = time.monotonic()

    def idle_s(self) -> float:
        return 0.0 if self.busy else time.monotonic() - self._last_s


async def _positions(thread: Any, tps: list[Any]) -> dict[Any, Position]:
    """Stored offset with its metadata, first and last offset of each partition, as the broker has them now."""
    if not tps:
        return {}
    topic_partitions = [TopicPartition(tp.topic, tp.partition) for tp in tps]

    async def ask() -> tuple[Any, Any, Any]:
        consumer = thread._ensure_consumer()
        return (
            await consumer._coordinator.fetch_committed_offsets(topic_partitions),
            await consumer.beginning_offsets(topic_partitions),
            await consumer.end_offsets(topic_partitions),
        )

    committed, earliest, end = await asyncio.wait_for(thread.call_thread(ask), timeout=60)
    found = {}
    for tp, ours in zip(topic_partitions, tps, strict=True):
        stored = committed.get(tp)
        known = stored is not None and stored.offset >= 0
        found[ours] = Position(
            committed=stored.offset if known else None, metadata=stored.metadata if known else "",
            earliest=earliest[tp], end=end[tp],
        )
    return found
