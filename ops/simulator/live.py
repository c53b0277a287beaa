"""What ties a store to the world: the scorer over gRPC, Kafka, a file."""

from __future__ import annotations

import gzip
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, cast

from kafka.errors import KafkaError

from ops.kafka.cluster import producer
from ops.simulator.slates import Scored
from ops.simulator.store import EventLog
from schemas.config import Settings
from schemas.errors import BrokerError, ConfigError
from scorer.client import ScorerClient, ScorerUnavailable
from scorer.client.access import PLAIN, Access

TIMEOUT_S = 0.25         # a slate waits this long for its scores, then it is shown in random order
PROBE_S = 0.05           # the same while the scorer is away: visitors should not all wait for it
PROBE_EVERY_S = 0.25     # wall seconds between two looks for a scorer that is away
FLUSH_S = 15             # a store that is told to end has 25 s (ops/running/run.py) before it is killed
KAFKA_PATIENCE_S = 600   # a broker may be away this long before an event counts as lost


class GrpcRanker:
    """A scorer that may be away: then there are no scores, and a short look now and then whether it is back."""

    def __init__(self, address: str, model: str, access: Access = PLAIN) -> None:
        self._client = ScorerClient(address, access)
        self._model = model
        self._away_until_s = 0.0
        self._away = True

    def score(
        self, context: Mapping[str, Any], candidates: Sequence[Mapping[str, Any]], request_id: str
    ) -> Scored | None:
        """None while the scorer is away. Raises RequestError if it refuses what a store sends (wrong model name)."""
        if self._away and time.monotonic() < self._away_until_s:
            return None
        timeout_s = PROBE_S if self._away else TIMEOUT_S
        try:
            answer = self._client.score(context, candidates, self._model, request_id, timeout_s)
        except ScorerUnavailable:
            self._away, self._away_until_s = True, time.monotonic() + PROBE_EVERY_S
            return None
        self._away = False
        return Scored(
            probabilities=[item.probability for item in answer.items], model=answer.model, lineage=answer.lineage,
            version=answer.version, echoes=[item.echo for item in answer.items],
        )

    def close(self) -> None:
        """End the connection."""
        self._client.close()


class KafkaLog:
    """The topic `events`. Order is kept through retries, and nothing is lost unsaid."""

    def __init__(self, settings: Settings) -> None:
        self._topic = settings.kafka.topic("events")
        self._failed: list[BaseException] = []
        self._producer = producer(settings.kafka, "appstore", KAFKA_PATIENCE_S)

    def send(self, key: str, event: bytes) -> None:
        """The key decides the partition (murmur2), so a click meets its impression."""
        self._raise_failed()
        try:
            self._producer.send(self._topic, event, key=key.encode()).add_errback(self._failed.append)
        except KafkaError as failed:
            raise BrokerError(f"the broker took no event for {KAFKA_PATIENCE_S} s: {failed}") from failed

    def close(self) -> None:
        """Return when the broker has all events."""
        try:
            self._producer.flush(timeout=FLUSH_S)
        except KafkaError as failed:
            raise BrokerError(f"events were left unsent at the end: {failed}") from failed
        finally:
            self._producer.close(timeout=5)
        self._raise_failed()

    def _raise_failed(self) -> None:
        if self._failed:
            raise BrokerError(f"the broker did not take an event: {self._failed[0]}") from self._failed[0]


class Record:
    """Every event as a line of a file (.gz is packed), then to the next log: what `freshet replay FILE` reads."""

    def __init__(self, path: Path | None, then: EventLog | None = None) -> None:
        self._then = then
        self._packed: BinaryIO | None = None
        self._file: BinaryIO | None = None
        try:
            if path is not None and path.suffix == ".gz":
                # No name and no time in the header: the same events make the same file.
                self._packed = path.open("wb")
                self._file = cast(BinaryIO, gzip.GzipFile(filename="", mode="wb", fileobj=self._packed, mtime=0))
            elif path is not None:
                self._file = path.open("wb")
        except OSError as wrong:
            raise ConfigError(f"--record {path}: {wrong.strerror}") from wrong

    def send(self, key: str, event: bytes) -> None:
        """Write, then hand on."""
        if self._file is not None:
            self._file.write(event + b"\n")
        if self._then is not None:
            self._then.send(key, event)

    def close(self) -> None:
        """The file is whole, and the next log closed."""
        try:
            if self._file is not None:
                self._file.close()
            if self._packed is not None:
                self._packed.close()
        finally:
            if self._then is not None:
                self._then.close()

    def __enter__(self) -> Record:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
