"""`freshet updates`: the store's versions into model-updates, for scorers on other machines.

A process beside the trainer, which reads the store as scorers do: what is sent was written before, so no crash leaves a version
that only the topic knows. What was sent is read from the topic's end: killed anywhere, it goes on behind the last whole version
there; chunks that were sent without their manifest are sent again, and receivers take only the last.

The topic holds all that the newest version is made of at any time: before retention may take a part of it, it is sent again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import structlog
from kafka.errors import KafkaError, MessageSizeTooLargeError, RecordListTooLargeError

from ops.kafka.cluster import admin, producer, refused
from ops.kafka.topics import describe
from schemas.config import Settings
from schemas.errors import BrokerError, ConfigError, SnapshotError
from schemas.journal import Journal
from schemas.snapshot import Manifest, chain
from schemas.updates import Told, chunk_headers, manifest_headers
from scorer.signals import asked_to_end
from scorer.versions.reader import SnapshotReader, own_secondary_dir
from scorer.versions.topic import Sent, between, connected, ends, newest

POLL_S = 0.02          # 2 % of a core while nothing comes
WATCH_EVERY_S = 1.0    # for what retention has taken
STATUS_EVERY_S = 2.0
SEND_TIMEOUT_S = 60.0

log = structlog.get_logger("updates")


class OtherHistory(ConfigError):
    """What the topic holds was not sent from this store. Somebody has to decide."""


class Sender:
    """`begin` until it is true, then `step` again and again. For one thread. Raises BrokerError, SnapshotError."""

    def __init__(
        self, settings: Settings, now_us: Callable[[], int], consumer: Any, producer: Any, keep_us: int, anew: bool = False
    ) -> None:
        """consumer: of model-updates (scorer/versions/topic.py); producer: kafka-python's. keep_us: the topic's retention,
        below 0 = for ever. anew: begin another history there, whatever it holds."""
        self._settings, self._now_us, self._anew = settings, now_us, anew
        self._topic, self._model = settings.kafka.topic("model-updates"), settings.model.name
        parent = settings.store_dir.parent / "secondaries"
        self._reader = SnapshotReader(settings.store_dir, own_secondary_dir(parent, "updates"))
        self._checkpoints = SnapshotReader(
            settings.store_dir, own_secondary_dir(parent, "updates-checkpoints"), "checkpoint"
        )
        self._consumer, self._producer, self._keep_us = consumer, producer, keep_us
        self._history = 0
        self._last: tuple[str, int] | None = None
        self._there: dict[int, Manifest] = {}                 # what the store holds and can be read
        self._sent: dict[int, tuple[int, int]] = {}           # version → offset of its first record, when it was sent
        self._before: tuple[int, int] | None = None           # the same of all that the last version before this process needs
        self._broken: set[int] = set()
        self._watched_us = 0

    def close(self) -> None:
        """Let go of the store."""
        self._reader.close()
        self._checkpoints.close()

    def begin(self) -> bool:
        """Find out what was sent. False while the store has no version. Raises OtherHistory."""
        if not self._look():
            return False
        sent = newest(self._consumer, self._model)
        if sent is None or self._anew:
            if sent is not None:
                self._refuse_same_lineage(sent)
            self._history = max(self._now_us(), sent.told.history + 1 if sent else 0)
            log.info("updates.begins", topic=self._topic, history=self._history)
            return True
        self._refuse_other(sent)
        manifest = sent.manifest()
        self._history, self._last = sent.told.history, (manifest.lineage, manifest.number)
        if (whole := sent.told.whole) is not None and whole >= ends(self._consumer)[0]:
            first = next(between(self._consumer, whole, whole + 1), None)
            self._before = None if first is None else (whole, 1000 * int(first.timestamp))
        log.info("updates.goes_on", topic=self._topic, history=self._history, after=manifest.number)
        return True

    def step(self) -> int:
        """Send all versions that are new, or those that retention is about to take; how many. Raises OtherHistory."""
        if not self._look():
            return 0
        last = 0 if self._last is None else self._last[1]
        if max(self._there) < last:
            raise OtherHistory(self._other(self._last))
        wanted = [number for number in self._there if number > last]
        if self._last is None or self._is_gap(wanted) or self._to_be_sent_again(last):
            wanted = self._whole()
        return sum(self._send(number) for number in wanted)

    def status(self) -> dict[str, Any]:
        """For the journal."""
        return {"version": self._last[1] if self._last else None, "lineage": self._last[0] if self._last else None,
                "history": self._history}

    def _look(self) -> bool:
        """See what the store holds; whether it holds anything."""
        newest_there = self._reader.poll()
        if newest_there is None:
            return False
        if newest_there in self._there or newest_there in self._broken:
            return bool(self._there)
        found: dict[int, Manifest] = {}
        for number in self._reader.numbers():
            try:
                found[number] = self._there.get(number) or self._reader.manifest(number)
            except SnapshotError as broken:
                self._skip(number, broken)
        self._there = {number: manifest for number, manifest in found.items() if number not in self._broken}
        self._sent = {number: at for number, at in self._sent.items() if number in self._there}
        return bool(self._there)

    def _is_gap(self, new: Sequence[int]) -> bool:
        """Whether what the first new version follows upon was never sent: this process was away for longer than keep_s."""
        parent = self._there[new[0]].parent if new else None
        gap = parent is not None and self._last is not None and parent > self._last[1]
        if gap:
            log.warning("updates.gap", sent=self._last, first=new[0], does="sends a whole table")
        return gap

    def _whole(self) -> list[int]:
        """All that the newest version is made of; all there is where that is not whole."""
        try:
            return chain(self._there, max(self._there))
        except SnapshotError:
            return list(self._there)

    def _to_be_sent_again(self, last: int) -> bool:
        """Looks every second whether the topic still holds, for half of its retention yet, all that the last version needs."""
        now_us = self._now_us()
        if 0 <= now_us - self._watched_us < WATCH_EVERY_S * 1e6:
            return False
        self._watched_us = now_us
        try:
            chain(self._there, last)
        except SnapshotError:
            return False                       # nor does the store
        since, begins = self._whole_since(last), ends(self._consumer)[0]
        again = since is None or since[0] < begins or (self._keep_us >= 0 and now_us - since[1] > self._keep_us / 2)
        if again:
            log.info("updates.again", version=last, why="retention takes, or is about to take, a part of the whole table")
        return again

    def _whole_since(self, number: int) -> tuple[int, int] | None:
        """Offset and time from which on the topic holds all that a version is made of; None where it does not."""
        try:
            numbers = chain(self._there, number)
        except SnapshotError:
            return None
        known = [self._sent[one] for one in numbers if one in self._sent]
        return min(known) if len(known) == len(numbers) else self._before

    def _send(self, number: int) -> bool:
        """One version: chunks, then, when those are there, the manifest."""
        manifest = self._there[number]
        try:
            *chunks, (key, value) = self._reader.pairs(manifest)
        except SnapshotError as broken:
            self._skip(number, broken)
            return False
        headers, now_us = chunk_headers(self._model, self._history), self._now_us()
        futures = [self._producer.send(self._topic, data, place, headers, partition=0) for place, data in chunks]
        self._sent[number] = (min(self._delivered(future) for future in futures), now_us)
        since = self._whole_since(number)
        said = Told(self._model, self._history, self._last, None if since is None else since[0], self._pinned())
        self._delivered(self._producer.send(self._topic, value, key, manifest_headers(said), partition=0))
        self._last = (manifest.lineage, number)
        return True

    def _skip(self, number: int, broken: SnapshotError) -> None:
        """What cannot be read is not sent; versions after it stand without it until a whole table has followed."""
        if number not in self._broken:
            log.error("updates.skipped", version=number, error=str(broken))
        self._broken.add(number)
        self._there.pop(number, None)

    def _pinned(self) -> tuple[int, ...]:
        """As the newest checkpoint has it."""
        number = self._checkpoints.poll()
        return () if number is None else self._checkpoints.manifest(number).pinned

    def _delivered(self, future: Any) -> int:
        """The record's offset. Raises BrokerError."""
        try:
            return int(future.get(timeout=SEND_TIMEOUT_S).offset)
        except (MessageSizeTooLargeError, RecordListTooLargeError) as large:
            raise BrokerError(
                f"{self._topic} takes no chunk of a version: {large}. kafka-configs --alter --topic {self._topic} --add-config "
                "max.message.bytes=8388608"
            ) from large
        except KafkaError as failed:
            raise refused(self._settings.kafka, f"{self._topic} takes no version", failed) from failed

    def _refuse_other(self, sent: Sent) -> None:
        """Raise OtherHistory unless what was sent last is in this store, or was."""
        manifest = sent.manifest()
        here = self._there.get(manifest.number)
        known = any(one.lineage == manifest.lineage for one in self._there.values())
        if here != manifest and not (here is None and known and manifest.number < max(self._there)):
            raise OtherHistory(self._other((manifest.lineage, manifest.number)))

    def _refuse_same_lineage(self, sent: Sent) -> None:
        """A new history with other content under numbers of a lineage that scorers hold would be taken for what they hold."""
        theirs, mine = sent.manifest(), self._there[max(self._there)]
        if mine.lineage == theirs.lineage and self._there.get(theirs.number) != theirs and theirs.number > min(self._there):
            raise OtherHistory(
                f"{self._topic} holds version {theirs.number} of lineage {theirs.lineage[:8]}, this store has that lineage "
                f"up to {mine.number} and not that version (the machine lost power?). Go back first, which begins a lineage: "
                f"`freshet snapshot rollback --to {mine.number} --then replay`; then `freshet updates --anew`"
            )

    def _other(self, there: tuple[str, int] | None) -> str:
        lineage, number = there or ("", 0)
        return (
            f"{self._topic} holds version {number} of lineage {lineage[:8]} of model {self._model!r}, this store holds "
            f"{min(self._there)} to {max(self._there)}, not that one: another trainer of that name sends there, or the store "
            "was made anew, or the machine lost power. End the other, or choose another model.name; `freshet updates --anew` "
            "begins a new history, which all mirrors then take over"
        )


def run(settings: Settings, anew: bool = False) -> None:
    """Send until SIGTERM or SIGINT. Raises as `Sender` does."""
    asked = asked_to_end()
    journal = Journal(settings.metrics_dir / "updates.jsonl")
    topic = settings.kafka.topic("model-updates")
    with admin(settings.kafka) as client:
        config = describe(client, [topic]).get(topic, (0, {}))[1]
    consumer, sends = connected(settings.kafka, "updates"), producer(settings.kafka, "updates", SEND_TIMEOUT_S)
    keep_us = 1000 * int(config.get("retention.ms") or -1)
    sender = Sender(settings, lambda: time.time_ns() // 1000, consumer, sends, keep_us, anew)
    begun, status_at = False, 0.0
    try:
        while not asked.wait(POLL_S):
            if not begun:
                begun = sender.begin()
                continue
            sender.step()
            if time.monotonic() >= status_at:
                status_at = time.monotonic() + STATUS_EVERY_S
                journal.write({"event": "updates.status", **sender.status()})
    except KafkaError as failed:
        raise refused(settings.kafka, f"{topic} failed", failed) from failed
    finally:
        sends.close(timeout=5)
        consumer.close()
        sender.close()
        journal.close()
