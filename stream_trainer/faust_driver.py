"""The one file that knows Faust and its Kafka driver: records of one topic in, offsets and records out.

What it works around, each measured (faust-streaming 0.15.3, aiokafka 0.14.0):
- Faust acknowledges and commits by its own rules, some of which lose records: the topic is read with `acks=False`, and the
  handler commits itself, with metadata, whenever it knows that it may.
- After a rebalance Faust goes on from the position in memory, not from the stored one: `seek_to_committed` is overridden,
  and every assignment starts where the handler says.
- An exception inside an agent loses the batch in hand and goes on: here it ends the process, which is safe at any line.
- Faust makes four tasks and an event of each record, 57 µs of one core, and sleeps a second when its buffer is full: what
  was fetched goes round its streams, in pieces, and waiting for the handler is what holds the flow back.
- aiokafka packs lz4 at level 9: 1.5 ms for a record of 1,024 examples, where level 1 takes 0.2 ms and 4 % more bytes.
- A consumer can stop without a word: a watchdog ends the process when records wait and none comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, NoReturn, Protocol

import faust
import structlog
from aiokafka.codec import lz4_encode
from aiokafka.errors import (
    CommitFailedError,
    IllegalGenerationError,
    NoOffsetForPartitionError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)
from aiokafka.partitioner import murmur2
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from schemas.config import KafkaConfig
from schemas.errors import BrokerError
from schemas.kafka import client_settings

PIECE_RECORDS = 128    # handed over at once: some ms of work, then the event loop has its turn
PIECE_BYTES = 256 << 10
FETCH_WAIT_S = 1.0     # for records, where none is there; nobody waits for its end
IDLE_S = 0.1           # between two looks for partitions, where none is ours
STALLED_S = 60.0       # records wait and none came for so long: the consumer is dead
STOP_TIMEOUT_S = 10.0  # for the handler to come to rest
CLOSE_TIMEOUT_S = 5.0  # for Faust to close its clients after that
CRASHED = 70           # exit status; the supervisor starts the process again

log = structlog.get_logger()

vars(sys.modules[DefaultRecordBatchBuilder.__module__])["lz4_encode"] = partial(lz4_encode, level=1)


class Record(NamedTuple):
    """One record of the topic. kafka_time_us: the broker's or producer's timestamp of it."""

    partition: int
    offset: int
    kafka_time_us: int
    value: bytes | None
    key: bytes | None = None

    @property
    def event(self) -> tuple[int, int, bytes | None]:
        """As JoinCore.feed_all takes it."""
        return self[1:4]


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

    async def records(self, records: Sequence[Record]) -> None:
        """The next records of one assigned partition, at least one. Waiting here holds the flow back."""

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

    async def offsets_at(self, time_us: int, partitions: Iterable[int]) -> dict[int, int]:
        """First record of each partition whose Kafka timestamp is that time or later; of those that have one."""
        thread = self._app.consumer._thread
        wanted = {TopicPartition(self._topic, partition): -(-time_us // 1000) for partition in partitions}
        found = await thread.call_thread(thread._ensure_consumer().offsets_for_times, wanted)
        return {place.partition: at.offset for place, at in found.items() if at is not None}

    def behind(self, next_offsets: Mapping[int, int]) -> dict[int, int]:
        """How many records wait in each partition from that offset on, as the newest answer of the broker knows them; of those
        that it has answered of."""
        found = {}
        for partition, next_offset in next_offsets.items():
            with contextlib.suppress(AssertionError):          # aiokafka's word for: assigned to us no more
                end = self._app.consumer.highwater(TP(self._topic, partition))
                if end is not None:
                    found[partition] = max(end - next_offset, 0)
        return found

    async def partitions(self, topic: str) -> int:
        """How many partitions a topic has. Raises BrokerError if it does not exist."""
        count = len(await self._app.producer._producer.partitions_for(topic))
        if not count:
            raise BrokerError(f"topic {topic} does not exist; create it with `freshet topics`")
        return count


def run(kafka: KafkaConfig, topic: str, group: str, member: str, handler: Handler) -> None:
    """Read `topic` in `group` under the name `member`, until SIGTERM or SIGINT. An unexpected error ends the process."""
    app = _app(kafka, topic, group, member, handler)
    _work(app)


def _work(app: Any) -> None:
    worker = app.Worker(loglevel="ERROR", redirect_stdouts=False, override_logging=False, quiet=True)
    worker.spinner = None                        # it writes terminal codes into logs
    worker.execute_from_commandline()


def _brokers(config: KafkaConfig) -> list[str]:
    return [f"kafka://{address.strip()}" for address in config.bootstrap.split(",")]


def run_stock(kafka: KafkaConfig, topic: str, group: str, records: int, done: Callable[[float, float], NoReturn]) -> None:
    """Faust as it comes, reading a topic from its beginning and doing nothing: what `freshet bench join` compares with.

    done: called after that many records with the seconds they took, from the first on, and the process's CPU seconds.
    """
    app = faust.App(
        group, broker=_brokers(kafka), broker_credentials=_credentials(kafka), store="memory://", datadir="var/faust",
        web_enabled=False, topic_allow_declare=False, topic_disable_leader=True, consumer_auto_offset_reset="earliest",
    )

    @app.agent(app.topic(topic, value_type=bytes, value_serializer="raw", key_serializer="raw"))
    async def read(stream: Any) -> None:
        seen, began, cpu = 0, 0.0, 0.0
        async for _ in stream:
            if not seen:
                began, cpu = time.monotonic(), time.process_time()
            seen += 1
            if seen == records:
                done(time.monotonic() - began, time.process_time() - cpu)

    _work(app)


def crash(error: BaseException) -> NoReturn:
    """End here and now. Nothing needs closing: whoever starts again goes on from what is durable."""
    log.critical("process.crashed", error=f"{type(error).__name__}: {error}", trace=traceback.format_exc())
    os._exit(CRASHED)


def _leave() -> NoReturn:
    """All is durable and the handler is at rest: what is not closed by now may stay open."""
    log.warning("process.left", reason=f"the Kafka client did not close in {CLOSE_TIMEOUT_S:.0f} s")
    os._exit(0)


def _app(config: KafkaConfig, topic_name: str, group: str, member: str, handler: Handler) -> Any:
    app = faust.App(
        group,
        broker=_brokers(config),
        broker_credentials=_credentials(config),
        broker_client_id=f"{config.client_id}-{member}",
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
        stream_wait_empty=False,
    )
    kafka = Kafka(app, topic_name)
    watch = _Watch()
    done = asyncio.Event()

    class Consumer(driver.Consumer):
        turn = 0        # goes up when partitions are taken or given: what was fetched before is not handed on after it
        placed = False  # until the handler has said where to start, aiokafka fetches from places of its own choice

        async def on_partitions_revoked(self, revoked: set[TP]) -> None:
            self.turn += 1
            self.placed = False
            await super().on_partitions_revoked(revoked)

        async def seek_to_committed(self) -> Mapping[TP, int]:
            try:
                assigned = sorted(self.assignment())
                starts = await handler.assigned(kafka, await _positions(self._thread, assigned))
                offsets = {tp: starts[tp.partition] for tp in assigned}
                await self._thread.call_thread(self._seek_all, offsets)
                watch.restart()
                return offsets
            except Exception as error:  # noqa: BLE001 whatever it is, ending here loses nothing
                crash(error)

        async def on_start(self) -> None:
            await super().on_start()
            self.add_future(self._heed_refusals())

        async def _heed_refusals(self) -> None:
            """End when the broker refuses the group, by an ACL say: aiokafka keeps the error, and Faust never asks for it."""
            while not self.should_stop:
                consumer = self._thread._consumer
                coordinator = consumer._coordinator if consumer is not None else None   # None until the consumer has started
                refused = coordinator._pending_exception if coordinator is not None else None
                if refused is not None:
                    crash(BrokerError(f"group {group} on {topic_name}: {refused}; docs/kafka.md lists the rights needed"))
                await self.sleep(1.0)

        async def _seek_all(self, offsets: Mapping[TP, int]) -> None:
            """In the consumer's thread, where `_fetch` runs too: no fetch falls between the new turn and the new places."""
            self.turn += 1
            self.placed = True
            await self._thread._seek_wait(self._thread._ensure_consumer(), offsets)

        async def _fetch(self, partitions: set[TP]) -> tuple[int, Mapping[TP, Sequence[Any]]]:
            """In the consumer's thread: what has come from the broker, and in whose turn it was taken."""
            consumer = self._thread._ensure_consumer()
            try:
                fetched = await self._thread._fetch_records(consumer, partitions, timeout=FETCH_WAIT_S)
            except NoOffsetForPartitionError:
                if self.placed:
                    raise
                fetched = {}
            return self.turn, fetched if self.placed else {}

        async def _drain_messages(self, fetcher: Any) -> None:
            try:
                while not (self.should_stop or fetcher.should_stop):
                    if not self.flow_active:
                        await self.wait(self.can_resume_flow.wait())
                    elif partitions := set(self._get_active_partitions()):
                        await self._hand_on(*await self._thread.call_thread(self._fetch, partitions))
                    else:
                        await self.sleep(IDLE_S)
            except asyncio.CancelledError:
                if not app.should_stop:
                    raise
            except Exception as error:  # noqa: BLE001 as above
                if not (app.should_stop and isinstance(error, self.consumer_stopped_errors)):
                    crash(error)

        async def _hand_on(self, turn: int, fetched: Mapping[TP, Sequence[Any]]) -> None:
            for piece in pieces(fetched):
                if turn != self.turn or watch.stopping:
                    return
                watch.busy = True
                await handler.records(piece)
                watch.saw(piece[-1].partition, piece[-1].offset)
                await asyncio.sleep(0)

    class Transport(driver.Transport):
        pass

    Transport.Consumer = Consumer
    app.transport = Transport(app.conf.broker_consumer, app, loop=app.loop)
    topic = app.topic(topic_name, value_type=bytes, value_serializer="raw", key_serializer="raw", acks=False)

    @app.agent(topic, name=f"{group}-reader")
    async def subscribe(stream: Any) -> None:
        """Has Faust subscribe to the topic; its records go another way."""
        async for _ in stream:
            pass

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
        watch.stopping = True
        try:
            await handler.stopping()
            await asyncio.wait_for(done.wait(), STOP_TIMEOUT_S)   # the producer closes next: nobody may be using it
            closing = threading.Timer(CLOSE_TIMEOUT_S, _leave)    # Faust waits for ever where its consumer's thread has died
            closing.daemon = True
            closing.start()
        except Exception as error:  # noqa: BLE001 as above
            crash(error)

    return app


def _credentials(config: KafkaConfig) -> Any:
    """What proves to the brokers who we are, as Faust hands it to its driver; None = nothing need be proven."""
    ours = client_settings(config, "")
    context = ours.get("ssl_context")
    if config.sasl:
        return faust.SASLCredentials(
            username=ours["sasl_plain_username"], password=ours["sasl_plain_password"], ssl_context=context,
            mechanism=ours["sasl_mechanism"],
        )
    return faust.SSLCredentials(context) if context else None


def partition_of(key: bytes, partitions: int) -> int:
    """Where Kafka's own partitioner puts a key: murmur2, without its sign, modulo."""
    return int(murmur2(key) & 0x7FFFFFFF) % partitions


def pieces(fetched: Mapping[TP, Sequence[Any]]) -> Iterator[list[Record]]:
    """What aiokafka fetched, by partition → records of one partition at a time, the partitions in turns."""
    turns = deque(_pieces(records) for records in fetched.values())
    while turns:
        piece = next(turns[0], None)
        if piece is None:
            turns.popleft()
        else:
            yield piece
            turns.rotate(-1)


def _pieces(records: Sequence[Any]) -> Iterator[list[Record]]:
    piece: list[Record] = []
    size = 0
    for record in records:
        piece.append(Record(record.partition, record.offset, record.timestamp * 1000, record.value, record.key))
        size += len(record.value or b"")
        if len(piece) >= PIECE_RECORDS or size >= PIECE_BYTES:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


class _Watch:
    """When did the last record come."""

    def __init__(self) -> None:
        self.next_offset: dict[int, int] = {}
        self.busy = False
        self.stopping = False
        self._last_s = time.monotonic()

    def restart(self) -> None:
        self._last_s = time.monotonic()

    def saw(self, partition: int, offset: int) -> None:
        self.next_offset[partition] = offset + 1
        self.busy = False
        self._last_s = time.monotonic()

    def idle_s(self) -> float:
        return 0.0 if self.busy else time.monotonic() - self._last_s


async def positions(consumer: Any, partitions: Sequence[TopicPartition]) -> dict[int, Position]:
    """Stored offset with its metadata, first and last offset of each of a topic's partitions, as the broker has them now.
    consumer: aiokafka's, in whose loop this runs."""
    committed = await consumer._coordinator.fetch_committed_offsets(partitions)   # `committed` leaves out the metadata
    earliest, end = await consumer.beginning_offsets(partitions), await consumer.end_offsets(partitions)
    found = {}
    for tp in partitions:
        stored = committed.get(tp)
        known = stored is not None and stored.offset >= 0
        found[tp.partition] = Position(
            committed=stored.offset if known else None, metadata=stored.metadata if known else "",
            earliest=earliest[tp], end=end[tp],
        )
    return found


async def _positions(thread: Any, tps: Sequence[TP]) -> dict[int, Position]:
    """The same of what Faust has assigned, asked in its consumer's thread."""
    if not tps:
        return {}
    partitions = [TopicPartition(tp.topic, tp.partition) for tp in tps]

    async def ask() -> dict[int, Position]:
        return await positions(thread._ensure_consumer(), partitions)

    found: dict[int, Position] = await asyncio.wait_for(thread.call_thread(ask), timeout=60)
    return found
