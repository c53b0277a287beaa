"""Versions out of Kafka into a store of this machine: a scorer here then needs no file of the trainer's.

Read are the records of one model in `model-updates` (schemas/updates.py), in their order. A version is taken if it was sent
after the newest that is held; one that is held already was sent again, and is passed over. Whoever begins, or comes back when
what follows upon theirs is gone or is longer than a whole table, begins where the newest version says that the topic holds all
of it. Everything else is refused: a version of another sender, of another model, or with chunks missing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import structlog
from kafka.errors import KafkaError, OffsetOutOfRangeError

from schemas import fields
from schemas.config import Settings
from schemas.errors import BrokerError, SnapshotError
from schemas.journal import Journal
from schemas.snapshot import (
    Chunk,
    Manifest,
    chunk_place,
    described,
    model_identity,
    number_of,
    refuse_other_model,
)
from schemas.updates import Place, is_of, told
from scorer.signals import asked_to_end
from scorer.versions.replica import Replica
from scorer.versions.topic import Sent, connected, ends, newest, poll, position, seek

POLL_S = 0.5              # a poll returns as soon as anything comes
EXPIRE_EVERY_S = 10.0
STATUS_EVERY_S = 2.0

_log = structlog.get_logger("mirror")


class Mirror:
    """`begin`, then `step` again and again. For one thread."""

    def __init__(self, settings: Settings, now_us: Callable[[], int], consumer: Any) -> None:
        """consumer: of model-updates (scorer/versions/topic.py). Opens the store. Raises SnapshotError, ConfigError."""
        self._model, self._keep_s, self._now_us = settings.model.name, settings.snapshot.keep_s, now_us
        self._config, self._schema = settings.model, fields.load(settings.model.schema)
        self.replica = Replica(settings.store_dir)
        self._consumer, self._topic = consumer, settings.kafka.topic("model-updates")
        self._fresh = True                         # until the newest can be loaded whole: any version helps
        self._chunks: list[Chunk] = []             # of the version that is coming
        self._coming: int | None = None
        self._read_last: Place | None = None       # of the versions in the topic
        self._history = self.replica.place[0] if self.replica.place else 0
        self._older_until = -1                     # offsets up to which an earlier history is what was before
        self._pinned: tuple[int, ...] = ()
        self._expired_us = 0

    def close(self) -> None:
        """Let go of the store."""
        self.replica.close()

    def begin(self) -> None:
        """Choose where to read on. Raises BrokerError; SnapshotError where what is held and what was sent do not fit."""
        self._coming, self._chunks = None, []
        first, end = ends(self._consumer)
        sent = newest(self._consumer, self._model)
        if sent is not None and sent.told.history < self._history:
            raise SnapshotError(
                f"{self._topic} holds history {sent.told.history} of model {self._model!r}, this store is of a later "
                f"one, {self._history}: another Kafka, or its topic was restored. Move {self.replica.dir} away to take what is "
                "there"
            )
        at, last = self.replica.place, self.replica.taken_last
        whole = sent.told.whole if sent is not None else None
        if sent is not None:
            self._older_until = sent.offset
            if sent.told.history > self._history:
                self._anew(sent.told.history)
                at = None
        if at is not None and last is not None and first <= at[1] <= end and (whole is None or at[1] >= whole):
            self._read_last = (last.lineage, last.number)
            self._fresh = not self.replica.whole()
            seek(self._consumer, at[1])
            _log.info("mirror.goes_on", offset=at[1], holds=last.number)
            return
        self._fresh = True
        seek(self._consumer, first if whole is None else max(whole, first))
        if at is not None:
            _log.warning(
                "mirror.gap", holds=max(self.replica.manifests, default=None), newest=sent.manifest().number if sent else None,
                does="reads a whole table anew; scorers go on with what they have until it is there",
            )
        _log.info("mirror.begins", topic=self._topic, model=self._model, offset=position(self._consumer))

    def step(self, timeout_s: float = POLL_S) -> int:
        """Take what there is, wait for it a little; how many versions were taken. Raises as `begin` does."""
        try:
            records = poll(self._consumer, timeout_s)
        except OffsetOutOfRangeError:
            self.begin()
            return 0
        taken = 0
        for record in records:
            if not is_of(self._model, record.headers):
                continue
            if (place := chunk_place("version", record.key)) is not None:
                self._chunk(record, *place)
            elif number_of("version", record.key) is not None:
                taken += self._manifest(Sent(record.offset, record.key, record.value, told(record.headers)))
        if taken and not self._fresh and not 0 <= self._now_us() - self._expired_us < EXPIRE_EVERY_S * 1e6:
            self._expired_us = self._now_us()
            self.replica.expire(self._expired_us, self._keep_s, self._pinned)
        return taken

    def lag(self) -> int:
        """Records that were sent and not read."""
        return int(ends(self._consumer)[1] - position(self._consumer))

    def _chunk(self, record: Any, number: int, place: int) -> None:
        if not self._is_of_history(told(record.headers).history, record.offset) or number in self.replica.manifests:
            return
        if place == 0 or number != self._coming:
            self._coming, self._chunks = number, []
        if place == len(self._chunks):
            self._chunks.append(described(record.value))
            self.replica.put_chunk(record.key, record.value)

    def _manifest(self, sent: Sent) -> bool:
        manifest, said = sent.manifest(), sent.told
        if not self._is_of_history(said.history, sent.offset):
            return False
        self._pinned = said.pinned
        before, self._read_last = self._read_last, (manifest.lineage, manifest.number)
        held = self.replica.manifests.get(manifest.number)
        if held == manifest:
            return False                                                     # sent again
        name = f"version {manifest.number} of lineage {manifest.lineage[:8]}"
        if held is not None or not (self._fresh or said.after == before):
            sent_after, came_after = (f"{at[1]} of {at[0][:8]}" if at else "nothing" for at in (said.after, before))
            raise SnapshotError(
                f"{self._topic}, offset {sent.offset}: {name} was sent after {sent_after}, and comes after {came_after}. Two "
                f"trainers of model {self._model!r} may be sending: end one. The store stays at {came_after}"
            )
        self._refuse_other_model(manifest)
        chunks = self._chunks if self._coming == manifest.number else []
        self._coming, self._chunks = None, []
        if tuple(chunks) != manifest.chunks:
            if self._fresh:
                return False                                                 # begun in the middle of it
            raise SnapshotError(f"{self._topic}, offset {sent.offset}: {name} came without all of its chunks")
        self.replica.take(manifest, sent.key, sent.value, said.history, sent.offset + 1)
        if manifest.parent is not None and manifest.parent not in self.replica.manifests and not self._fresh:
            _log.warning("mirror.gap", version=manifest.number, parent=manifest.parent, why="its sender was away for long")
            self._fresh = not self.replica.whole()
        if self._fresh and self.replica.whole():
            self._fresh = False
            _log.info("mirror.whole", version=manifest.number, lineage=manifest.lineage[:8])
        return True

    def _refuse_other_model(self, manifest: Manifest) -> None:
        """As a scorer does, but without building the model, which takes torch: 0.5 GB for a process that copies. What follows
        from the settings alone, the width of a row and whether crosses are columns, is taken as it came."""
        crosses = self._schema.crosses if len(manifest.fields) > len(self._schema.fields) else ()
        refuse_other_model(
            manifest, model_identity(self._config, manifest.model.get("row_width", 0)),
            replace(self._schema, crosses=crosses).identity, "Give trainer and mirror the same [model] settings and schema.",
        )

    def _is_of_history(self, history: int, offset: int) -> bool:
        """False for what was there before this history was begun. A later one replaces what is held. Raises SnapshotError for
        a sender that goes on with an earlier one."""
        if history > self._history:
            self._anew(history)
        elif history < self._history and offset > self._older_until:
            raise SnapshotError(
                f"{self._topic}: a sender of history {history} of model {self._model!r} still writes after "
                f"{self._history} was begun. End that one"
            )
        return history == self._history

    def _anew(self, history: int) -> None:
        if self.replica.newest is not None:
            _log.warning("mirror.anew", history=history, does="forgets the line held; a sender began another")
            self.replica.forget()
        self._history, self._fresh = history, True
        self._coming, self._chunks = None, []


def run(settings: Settings) -> None:
    """Follow model-updates until SIGTERM or SIGINT. Raises as `Mirror` does."""
    asked = asked_to_end()
    journal = Journal(settings.metrics_dir / "mirror.jsonl")
    consumer = connected(settings.kafka, "mirror")
    mirror = Mirror(settings, lambda: time.time_ns() // 1000, consumer)
    status_at = 0.0
    try:
        mirror.begin()
        while not asked.is_set():
            mirror.step()
            if time.monotonic() >= status_at:
                status_at = time.monotonic() + STATUS_EVERY_S
                newest_held = mirror.replica.newest
                journal.write({
                    "event": "mirror.status", "version": newest_held.number if newest_held else None,
                    "lineage": newest_held.lineage if newest_held else None, "whole": mirror.replica.whole(),
                    "lag_records": mirror.lag(),
                })
    except KafkaError as failed:
        raise BrokerError(f"{settings.kafka.topic('model-updates')} cannot be read: {failed}") from failed
    finally:
        mirror.close()
        consumer.close()
        journal.close()
