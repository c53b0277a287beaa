"""The second pass of mode corrected, beside the joiner: reads the joiner's partitions twice more and emits second examples.

It keeps what the joiner keeps: nothing but memory, and per partition a stored offset with the watermark that held there, in a
group of its own. A commit stands behind what was emitted, so whoever takes the partition over writes the same names again. Two
correctors of one partition, while a stalled joiner does not know that it lost it, write the same.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import structlog

from schemas.config import Settings
from schemas.examples import Examples
from schemas.fields import FieldSchema
from stream_trainer import faust_driver
from stream_trainer.faust_driver import Position, Record
from stream_trainer.joining.again import Again
from stream_trainer.joining.corrections import SecondPass
from stream_trainer.joining.join import Encode, Low

WAIT_S = 0.1   # for records, when there is nothing to join

log = structlog.get_logger()

Send = Callable[[Examples], Coroutine[Any, Any, asyncio.Future[Any]]]


class Corrector:
    """The second passes of the partitions that are assigned. send: hands a record to the producer."""

    def __init__(
        self, settings: Settings, schema: FieldSchema, group: str, encode: Encode, send: Send,
        start_of: Callable[[str, int, Position], Low], metadata_of: Callable[[Low], str],
    ) -> None:
        self.passes: dict[int, SecondPass] = {}
        self._settings, self._schema, self._group = settings, schema, f"{group}-corrections"
        self._encode, self._send, self._start_of, self._metadata_of = encode, send, start_of, metadata_of
        self._task: asyncio.Task[None] | None = None

    @property
    def held(self) -> int:
        """Actions in memory, over all partitions."""
        return sum(one.held for one in self.passes.values())

    def waits(self, partition: int) -> bool:
        """Whether anything there is yet to be corrected, so that time must go on."""
        return partition in self.passes and self.passes[partition].waits

    async def assigned(self, partitions: Iterable[int]) -> None:
        """Forget all, and begin with these."""
        await self.stop()
        self._task = asyncio.create_task(self._run(sorted(partitions)))

    async def stop(self) -> None:
        """Come to rest."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self.passes = {}

    async def _run(self, partitions: list[int]) -> None:
        topic = self._settings.kafka.topic("events")
        ahead, behind = (Again(self._settings.kafka, topic, self._group) for _ in range(2))
        try:
            await ahead.start(partitions)
            for partition, at in (await behind.start(partitions)).items():
                start = self._start_of(topic, partition, at)
                for reader in (ahead, behind):
                    reader.seek(partition, start.offset)
                self.passes[partition] = SecondPass(
                    partition, self._settings.join, start, self._encode, self._schema.numbers, self._schema.digests
                )
            log.info("corrections.assigned", starts={p: one.core.next_offset for p, one in self.passes.items()})
            await self._read(ahead, behind)
        except Exception as error:  # noqa: BLE001 whatever it is, ending here loses nothing
            faust_driver.crash(error)
        finally:
            await asyncio.gather(ahead.stop(), behind.stop(), return_exceptions=True)

    async def _read(self, ahead: Again, behind: Again) -> None:
        """Read ahead all there is; follow as far as may be; emit; commit."""
        waiting: dict[int, deque[Record]] = {partition: deque() for partition in self.passes}
        sent: list[asyncio.Future[Any]] = []
        committed: dict[int, Low] = {}
        commit_at, joined = 0.0, True
        while True:
            # 1. Ahead; records that wait behind are fetched only as they are used up.
            for partition, records in (await ahead.fetch(self.passes, 0.0 if joined else WAIT_S)).items():
                self.passes[partition].ahead(*(record.event for record in records))
            idle = [
                partition for partition, queued in waiting.items()
                if not queued and self.passes[partition].core.next_offset < self.passes[partition].ahead_offset
            ]
            for partition, records in (await behind.fetch(idle, WAIT_S)).items():
                waiting[partition].extend(records)

            # 2. Behind.
            joined = False
            for partition, second in self.passes.items():
                queued = waiting[partition]
                piece: list[tuple[int, int, bytes | None]] = []
                while queued and len(piece) < faust_driver.PIECE_RECORDS and second.may_follow(*queued[0].event):
                    piece.append(queued.popleft().event)
                second.behind(*piece)
                joined = joined or bool(piece)
                sent += await self._emit(second, flush=second.core.pending > 0 and not queued)
            await asyncio.sleep(0)

            # 3. As the joiner: what we may start from again, all before it durable, stored.
            if time.monotonic() >= commit_at:
                commit_at = time.monotonic() + self._settings.join.commit_every_s
                lows = {partition: second.low() for partition, second in self.passes.items()}
                if lows != committed:
                    for second in self.passes.values():
                        sent += await self._emit(second, flush=True)
                    await asyncio.gather(*sent)
                    sent = []
                    await behind.commit({p: (low.offset, self._metadata_of(low)) for p, low in lows.items()})
                    committed = lows

    async def _emit(self, second: SecondPass, flush: bool) -> list[asyncio.Future[Any]]:
        """Hand over what is complete, in order."""
        return [await self._send(record) for record in second.records(time.time_ns() // 1000, flush)]
