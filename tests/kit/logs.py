"""Small event logs: values in, records of the topic `events` out, and a schema of two fields for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import orjson

from schemas import fields
from schemas.bags import Bags
from schemas.config import JoinConfig
from schemas.errors import BadEvent
from schemas.events import Impression, Tick, encoded, tick_bytes, time_text
from schemas.examples import Examples
from stream_trainer.joining.join import BEGINNING, JoinCore, Low
from stream_trainer.learning.intake import Batch, Intake

START_US = 1_700_000_000_000_000
SCHEMA = fields.parse(
    {
        "name": "tiny",
        "field": [
            {"name": "user", "number": 1, "kind": "categorical", "side": "context"},
            {"name": "item_id", "number": 2, "kind": "categorical", "side": "item"},
        ],
    },
    "tiny",
)
_ENCODER = fields.Encoder(SCHEMA, training=True)


def at(seconds: float) -> int:
    """Seconds of a test's own clock → microseconds since 1970."""
    return START_US + round(seconds * 1e6)


def impression(name: str, seconds: float, items: Sequence[str] = ("a", "b"), user: str = "") -> bytes:
    """A slate of these items."""
    return orjson.dumps({
        "impression_id": name, "time": time_text(at(seconds)), "context": {"user": user or f"u-{name}"},
        "items": [{"id": item} for item in items],
    })


def click(name: str, seconds: float, item: str = "a", action: str = "click", value: float = 1.0) -> bytes:
    """An action on one item of a slate."""
    return orjson.dumps({
        "impression_id": name, "action": action, "item": item, "time": time_text(at(seconds)), "value": value,
    })


def tick(seconds: float, end: bool = False, hold: bool = False) -> bytes:
    """Time in the log."""
    return tick_bytes(Tick(at(seconds), hold, end))


def encode(shown: Sequence[Impression]) -> list[Bags | BadEvent]:
    """Ids of the tiny schema."""
    return encoded(shown, _ENCODER.encode_all)


def core(config: JoinConfig, start: Low = BEGINNING, partition: int = 0) -> JoinCore:
    """A join of the tiny schema."""
    return JoinCore(partition, config, start, encode, SCHEMA.numbers, SCHEMA.digests)


FAR = 1 << 60


def join_all(log: Sequence[bytes], config: JoinConfig, kafka_time_us: int = FAR) -> list[Examples]:
    """What an undisturbed joiner writes for a log."""
    joiner = core(config)
    for offset, value in enumerate(log):
        joiner.feed(offset, kafka_time_us, value)
    return joiner.records(0, flush=True)


@dataclass(frozen=True, order=True)
class Row:
    """One learnt example, as tests compare it."""

    trigger: int
    impression: int
    item: int
    label: int
    stage: int = 0
    weight: float = 1.0


def rows_of(records: Sequence[Examples]) -> list[Row]:
    """Every example of the records, in their order."""
    found = []
    for record in records:
        ones = np.ones(len(record), np.float32)
        stage, weight = (default if own is None else own for own, default in ((record.stage, 0 * ones), (record.weight, ones)))
        found += [
            Row(int(t), int(i), int(n), int(y), int(s), round(float(w), 5))
            for t, i, n, y, s, w in zip(
                record.trigger, record.impression, record.item, record.label, stage, weight, strict=True
            )
        ]
    return found


def ends_of(records: Sequence[Examples]) -> list[tuple[int, int, int]]:
    """Every other end: (trigger, offset, reason)."""
    return [
        (int(t), int(o), int(r))
        for record in records
        for t, o, r in zip(record.ends.trigger, record.ends.offset, record.ends.reason, strict=True)
    ]


Learnt = tuple[int, int, int, float]


def learnt(topic: Sequence[Examples], batch_rows: int = 7) -> tuple[list[Learnt], Intake]:
    """What a trainer learns from a topic, as (its ids, label, stage, weight) in order; and its intake at the end."""
    intake = Intake(SCHEMA, batch_rows)
    seen: list[Learnt] = []
    for offset, record in enumerate(topic):
        intake.offer(0, offset, record)
        while (batch := intake.take()) is not None:
            seen += _seen(batch)
    while (batch := intake.take(force=True)) is not None:
        seen += _seen(batch)
    return seen, intake


def _seen(batch: Batch) -> list[Learnt]:
    ids = batch.bags.ids.reshape(len(batch), -1)
    stages = [0] * len(batch) if batch.seen is None else batch.seen.stage.tolist()
    weights = [1.0] * len(batch) if batch.weights is None else batch.weights.tolist()
    return [
        (int(row[0]) ^ int(row[1]), int(label), stage, weight)
        for row, label, stage, weight in zip(ids, batch.labels.tolist(), stages, weights, strict=True)
    ]
