"""The joiner's process: events in, examples and dead letters out, over the pure join of stream_trainer/joining/join.py.

What is held in memory is only what the log from the committed offset on leads to. So every assignment forgets all and reads
from there, and the order of each commit is: (1) take the low offsets, (2) wait until all that was emitted before is
durable, (3) store the low offsets with the watermarks that held there.
"""

from __future__ import annotations

import asyncio
import base64
import gc
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import structlog

from schemas import examples, fields
from schemas.bags import Bags
from schemas.config import Settings
from schemas.echo import TrainingFields, to_bags
from schemas.errors import BadEvent, BrokerError
from schemas.events import Impression, Tick, encoded, tick_bytes
from schemas.journal import Journal
from stream_trainer import faust_driver
from stream_trainer.faust_driver import Kafka, Position, Record
from stream_trainer.joining import pulse
from stream_trainer.joining.corrections import SECOND
from stream_trainer.joining.corrector import Corrector
from stream_trainer.joining.holding import Holding
from stream_trainer.joining.join import BEGINNING, NO_TIME, DeadLetter, JoinCore, Low
from stream_trainer.slots import take_slot
from stream_trainer.watching import exposition, health
from stream_trainer.watching.alarms import Alarms

KEPT_BYTES = 256 << 10   # of an unusable record; the source offset finds the rest
STATUS_EVERY_S = 1.0
CHECK_EVERY = 64         # records between two looks at a key's partition: murmur2 in Python costs 10 µs
ALARM_EVERY = 1000       # misplaced records between two log lines
CORRECTION_TICKS = 1000  # most ticks in a quiet partition until its last example is corrected
# What is held is a great many small things without cycles: looking through all of them for some took a fifth of the time.
GC_THRESHOLDS = (50_000, 50, 1_000)

log = structlog.get_logger()


def run(settings: Settings) -> None:
    """Join until asked to stop."""
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    schema = fields.load(settings.model.schema)
    member = take_slot(settings.var / "slots", f"{settings.model.name}-joiner")
    handler = Joiner(settings, schema, int(member.rpartition("-")[2]))
    topic = settings.kafka.topic("events")
    faust_driver.run(settings.kafka, topic, group_of(settings), member, handler)


def group_of(settings: Settings) -> str:
    """The consumer group: two models can learn from one stream."""
    return f"{settings.kafka.prefix}freshet-joiner-{settings.model.name}"


class Joiner:
    """One worker: a JoinCore per assigned partition."""

    def __init__(self, settings: Settings, schema: fields.FieldSchema, slot: int = 0) -> None:
        """slot: which of this machine's joiners of the model it is."""
        self._settings = settings
        self._schema = schema
        self._encoder = fields.Encoder(schema, training=True)
        self._true = TrainingFields(schema)
        self._cores: dict[int, JoinCore] = {}
        self._quiet_since: dict[int, float] = {}     # partition → monotonic time of its last record
        self._ticked_us: dict[int, int] = {}         # partition → time of the last tick we wrote
        self._unacknowledged: list[asyncio.Future[Any]] = []
        self._committed: dict[int, Low] = {}
        self._example_partitions = self._event_partitions = 0
        self._unchecked = CHECK_EVERY
        self._totals: Counter[str] = Counter()       # of cores that were dropped
        self._holding = Holding(settings.join)
        self._journal = Journal(settings.metrics_dir / "joiner.jsonl")
        self._alarms = Alarms(
            settings.alarms, settings.alarms_file, model=settings.model.name, process=f"joiner-{slot}" if slot else "joiner"
        )
        self._health = health.Health(self._alarms.open)
        self._minute = health.Minute()
        self._read_us = 0                            # Kafka's time of the newest record that was read
        self._figures: dict[str, Any] | None = None  # as they were last reported
        port = settings.metrics.joiner_port
        self._exposition = exposition.Exposition(
            "metrics.joiner_port", port + slot if port > 0 else port,
            lambda: exposition.of_joiner(self._figures, self._alarms.open),
        )
        self._kafka: Kafka | None = None
        self._stopping = False
        self._in_order = asyncio.Lock()              # records leave in the order in which they were made
        self._corrector = Corrector(
            settings, schema, group_of(settings), self._encode, self._send_second, start_of, metadata_of
        ) if settings.join.mode == "corrected" else None

    # --- the driver's calls ---

    async def assigned(self, kafka: Kafka, found: Mapping[int, Position]) -> dict[int, int]:
        """Forget all, and start each partition at its stored offset with the watermark that held there."""
        self._kafka = kafka
        for core in self._cores.values():
            self._totals.update(core.counts)
        self._example_partitions = await kafka.partitions(self._settings.kafka.topic("examples"))
        self._event_partitions = await kafka.partitions(self._settings.kafka.topic("events"))
        self._cores, self._committed, self._unacknowledged = {}, {}, []
        for partition, at in found.items():
            start = start_of(self._settings.kafka.topic("events"), partition, at)
            self._committed[partition] = start
            self._cores[partition] = JoinCore(
                partition, self._settings.join, start, self._encode, self._schema.numbers, self._schema.digests
            )
            self._quiet_since[partition] = time.monotonic()
            self._ticked_us[partition] = NO_TIME
        if self._corrector is not None:
            await self._corrector.assigned(found)
        log.info("joiner.assigned", partitions=sorted(found), starts={p: c.next_offset for p, c in self._cores.items()})
        return {partition: core.next_offset for partition, core in self._cores.items()}

    async def records(self, records: Sequence[Record]) -> None:
        partition = records[0].partition
        core = self._cores.get(partition)
        if core is None:
            return
        self._check_place(records)
        self._read_us = records[-1].kafka_time_us
        core.feed_all([record.event for record in records if record.offset >= core.next_offset])
        self._quiet_since[partition] = time.monotonic()
        self._check_memory()
        await self._emit(core)

    def _check_memory(self) -> None:
        """Raises MemoryLimit, which ends the process: labels that it cannot hold it must not lose unsaid."""
        cores = [core for core in self._cores.values() if core.open]
        self._holding.check(
            sum(core.open for core in cores),
            max((core.watermark_us - max(core.low().watermark_us, core.flowing_since_us) for core in cores), default=0),
        )

    def _check_place(self, records: Sequence[Record]) -> None:
        """Whether a producer's partitioner is Kafka's: where it is not, a click need not meet its impression. A sample: one
        record of every 64 or more."""
        self._unchecked += len(records)
        if self._unchecked < CHECK_EVERY:
            return
        record = next((record for record in records if record.key is not None), None)
        if record is None or record.key is None:
            return
        self._unchecked = 0
        self._totals["places_checked"] += 1
        right = faust_driver.partition_of(record.key, self._event_partitions)
        if right == record.partition:
            return
        self._totals["misplaced"] += 1
        if self._totals["misplaced"] % ALARM_EVERY == 1:
            log.error(
                "event.misplaced", partition=record.partition, offset=record.offset, belongs_to=right,
                misplaced=self._totals["misplaced"], of=self._totals["places_checked"],
                does="joins what is there; clicks elsewhere are lost: set the producer's partitioner=murmur2_random",
            )

    async def running(self, kafka: Kafka) -> None:
        """Flush, tick, commit and report, each in its own rhythm."""
        join = self._settings.join
        commit_at = status_at = tick_at = 0.0
        while not self._stopping:
            await asyncio.sleep(join.linger_s)
            now = time.monotonic()
            self._acknowledge()
            for core in list(self._cores.values()):
                if core.pending and self._cores.get(core.partition) is core:
                    await self._emit(core, flush=True)
            if now >= tick_at:
                tick_at = now + join.tick_every_s / 2
                await self._tick(kafka, now)
            if now >= commit_at:
                commit_at = now + join.commit_every_s
                await self._commit(kafka)
            if now >= status_at:
                status_at = now + STATUS_EVERY_S
                self._report(kafka)

    async def stopping(self) -> None:
        self._stopping = True
        if self._corrector is not None:
            await self._corrector.stop()
        if self._kafka is not None:
            await self._commit(self._kafka)
            self._report(self._kafka)
        self._exposition.close()
        self._alarms.close()

    # --- out ---

    async def _emit(self, core: JoinCore, flush: bool = False) -> None:
        """Hand what is complete to the producer, in order."""
        kafka = self._kafka
        if kafka is None:
            return
        async with self._in_order:
            letters, core.dead_letters = core.dead_letters, []
            for letter in letters:
                key, value = dead_letter_record(core.partition, letter)
                await self._send(kafka, "dead-letters", None, key, value)
            for record in core.records(time.time_ns() // 1000, flush):
                partition = core.partition % self._example_partitions
                await self._send(kafka, "examples", partition, None, examples.encode(record))

    async def _send(self, kafka: Kafka, topic: str, partition: int | None, key: bytes | None, value: bytes) -> None:
        self._unacknowledged.append(await kafka.send(self._settings.kafka.topic(topic), partition, key, value))

    async def _send_second(self, record: examples.Examples) -> asyncio.Future[Any]:
        """What the second pass made; the producer closes after it was stopped."""
        assert self._kafka is not None
        partition = record.source_partition % SECOND % self._example_partitions
        return await self._kafka.send(self._settings.kafka.topic("examples"), partition, None, examples.encode(record))

    def _acknowledge(self) -> None:
        """Let go of what is durable. Raises what went wrong: a record that is lost would be a gap."""
        waiting = []
        for sent in self._unacknowledged:
            if sent.done():
                sent.result()
            else:
                waiting.append(sent)
        self._unacknowledged = waiting

    async def _commit(self, kafka: Kafka) -> None:
        """Store the low offsets, behind everything they promise."""
        cores = dict(self._cores)
        lows = {partition: core.low() for partition, core in cores.items()}      # 1. what we may start from again
        if all(self._committed.get(partition) == low for partition, low in lows.items()):
            return
        for core in cores.values():
            await self._emit(core, flush=True)
        waiting, self._unacknowledged = self._unacknowledged, []
        await asyncio.gather(*waiting)                                           # 2. all of it is durable; raises
        if any(self._cores.get(partition) is not core for partition, core in cores.items()):
            return                                                               #    reassigned meanwhile
        stored = {partition: (low.offset, metadata_of(low)) for partition, low in lows.items()}
        if await kafka.commit(stored):                                           # 3. stored
            self._committed.update(lows)

    async def _tick(self, kafka: Kafka, now: float) -> None:
        """Write time into partitions that are quiet while something waits in them."""
        join = self._settings.join
        for partition, core in self._cores.items():
            quiet_s = now - self._quiet_since[partition]
            patience_s = join.hold_timeout_s if core.holding else join.tick_every_s
            if not core.open:
                patience_s = max(patience_s, join.correct_after_s / CORRECTION_TICKS)
            waits = core.open or (self._corrector is not None and self._corrector.waits(partition))
            if not waits or quiet_s < patience_s or core.watermark_us == NO_TIME:
                continue
            time_us = core.watermark_us + round(quiet_s * 1e6)
            if time_us <= self._ticked_us[partition]:
                continue
            self._ticked_us[partition] = time_us
            await self._send(kafka, "events", partition, None, tick_bytes(Tick(time_us)))

    def _encode(self, shown: Sequence[Impression]) -> list[Bags | BadEvent]:
        """The ids that were scored, where the event brings them back; else made from its features."""
        scored = [None if one.echo is None else self._scored(one.echo) for one in shown]
        anew = iter(encoded([one for one, bags in zip(shown, scored, strict=True) if bags is None], self._encoder.encode_all))
        true = iter(encoded([one for one, bags in zip(shown, scored, strict=True) if isinstance(bags, Bags)], self._true.of))
        found: list[Bags | BadEvent] = []
        for bags in scored:
            if isinstance(bags, Bags):
                own = next(true)
                bags = own if isinstance(own, BadEvent) else self._true.put(own, bags)
            found.append(next(anew) if bags is None else bags)
        self._holding.add([one for one in found if isinstance(one, Bags)])
        return found

    def _scored(self, echoes: Sequence[bytes]) -> Bags | BadEvent | None:
        """What Score returned for a slate's items; None where another schema made it."""
        try:
            bags = to_bags(echoes, self._schema)
        except BadEvent as bad:
            return bad
        self._totals["echoes" if bags is not None else "echoes_stale"] += 1
        return bags

    def _report(self, kafka: Kafka) -> None:
        """Say how it goes, and what is not as it should be."""
        counts, cores = Counter(self._totals), list(self._cores.values())
        for core in cores:
            counts.update(core.counts)
        now_s, now_us = time.monotonic(), time.time_ns() // 1000
        known = [core.watermark_us for core in cores if core.watermark_us != NO_TIME]
        pulses = {core.partition: core.pulse for core in cores}
        self._figures = {
            "partitions": sorted(self._cores), "open": sum(core.open for core in cores),
            "bytes_per_open": round(self._holding.bytes_per_impression),
            "counts": dict(counts), "unknown_fields": dict(self._encoder.unknown),
            "rates": health.joiner_rates(self._minute.of(counts, now_s)),
            "lag": {str(p): n for p, n in kafka.behind({core.partition: core.next_offset for core in cores}).items()},
            "read_age_s": (now_us - self._read_us) / 1e6 if self._read_us else None,
            "event_age_s": (now_us - min(known)) / 1e6 if known else None,
            "labels": {
                "stopped": sorted(p for p, one in pulses.items() if one.stopped),
                "missing": max((one.silent for one in pulses.values()), default=0.0),
                "usual": sum(one.labels for one in pulses.values()) / max(sum(one.items for one in pulses.values()), 1.0),
            },
            "unwritten": f"{self._journal.path}: {self._journal.lost:,} rows are lost" if self._journal.lost else None,
            "metrics_port": self._exposition.port, "alarms_dropped": self._alarms.dropped,
            **({} if self._corrector is None else {"actions_held": self._corrector.held}),
        }
        self._journal.write({"event": "joiner.status", **self._figures})
        for alarm in self._health.look(health.of_joiner(self._figures, self._settings.alarms), now_s, now_us):
            self._alarms.raise_(alarm)


def start_of(topic: str, partition: int, at: Position) -> Low:
    """Where a new core starts. Raises BrokerError where the stored offset does not exist any more."""
    if at.committed is None:
        return BEGINNING._replace(offset=at.earliest)
    if not at.earliest <= at.committed <= at.end:
        raise BrokerError(
            f"{topic}/{partition}: the joiner left off at offset {at.committed}, the topic holds {at.earliest} to {at.end}. "
            f"Either it was deleted and made again, or its retention is shorter than the joiner was away. Nothing is skipped "
            f"silently: reset the group's offsets (kafka-consumer-groups.sh --reset-offsets) to go on from what is there."
        )
    return low_from(at.committed, at.metadata)


def metadata_of(low: Low) -> str:
    """What a commit keeps beside the offset."""
    return f"v2 {low.watermark_us} {int(low.holding)} {low.flowing_since_us} {low.shown_us} {pulse.to_text(low.pulse)}"


def low_from(offset: int, metadata: str) -> Low:
    """A commit read back. Offsets that somebody else set (a tool's reset) carry no watermark: time starts anew there."""
    match metadata.split(" "):
        case ["v2", watermark, holding, flowing_since, shown, labels]:
            return Low(offset, int(watermark), holding == "1", int(flowing_since), int(shown), pulse.from_text(labels))
    return BEGINNING._replace(offset=offset)


def dead_letter_record(partition: int, letter: DeadLetter) -> tuple[bytes, bytes]:
    """(key, value) for the topic `dead-letters`. The key names the source, so that a letter written twice is one."""
    key = f"{partition}/{letter.offset}".encode()
    value = orjson.dumps({
        "source_partition": partition, "source_offset": letter.offset, "reason": letter.reason, "text": letter.text,
        "size_bytes": len(letter.value), "value_base64": base64.b64encode(letter.value[:KEPT_BYTES]).decode(),
    })
    return key, value
