"""One pass over a file without Kafka: the join, the intake and the learner of the stream, in one process.

Each row is scored before it is learnt. A replay of the same file with the same settings (one partition, batches by count)
leads to the same weights and figures, because it is the same code over the same events.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ops.formats import EventRecord, closing_tick, opening_tick
from schemas import fields
from schemas.bags import Bags
from schemas.config import Settings
from schemas.errors import FreshetError
from schemas.events import Impression
from stream_trainer.intake import Intake
from stream_trainer.join import BEGINNING, DeadLetter, JoinCore
from stream_trainer.learner import Learner
from stream_trainer.progressive import Progressive, Window, figures
from stream_trainer.training import Training

FEED_EVERY = 256  # events between two looks for a batch: the join's records are cut by count, so it changes nothing


class NothingLearnt(FreshetError):
    """The file holds no example."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Evaluation:
    """figures: over the rows asked for, in the order in which they were learnt. windows: as the trainer logs them.

    probabilities, labels: (rows,) f32, of all rows in that order.
    """

    figures: Window
    probabilities: NDArray[np.float32]
    labels: NDArray[np.float32]
    windows: list[Window]
    tallies: dict[str, int]
    dead_letters: list[DeadLetter]
    weights_digest: str
    seconds: float


def evaluate(
    settings: Settings, records: Iterable[EventRecord], from_row: int = 0, progress: Callable[[int], None] = lambda _: None
) -> Evaluation:
    """Learn a file's events and judge each score. from_row: figures only from this row on, counted from 0.

    Raises NothingLearnt, Diverged.
    """
    began = time.monotonic()
    schema = fields.load(settings.model.schema)
    encoder = fields.Encoder(schema, training=True)

    def encode(shown: Impression) -> Bags:
        return encoder.encode(shown.slate)[0]

    join = JoinCore(0, settings.join, BEGINNING, encode, schema.numbers, schema.digests)
    training = Training(
        Intake(schema, settings.learn.batch_rows), Learner(settings.model, settings.learn, schema),
        Progressive(settings.metrics.window_rows),
    )
    windows: list[Window] = []
    said: list[NDArray[np.float32]] = []
    labels: list[NDArray[np.float32]] = []
    written = 0

    def learn(flush: bool = False) -> None:
        nonlocal written
        for record in join.records(0, flush):
            training.intake.offer(0, written, record)
            written += 1
        while (step := training.step()) is not None:
            said.append(step.probabilities)
            labels.append(step.batch.labels)
            windows.extend(step.windows)
            progress(len(step.batch))

    last_us = 0
    for record in records:
        if not join.next_offset:
            join.feed(0, record.time_us, opening_tick(record.time_us))
        join.feed(join.next_offset, record.time_us, record.value)
        last_us = max(last_us, record.time_us)
        if join.next_offset % FEED_EVERY == 0:
            learn()
    if last_us:
        join.feed(join.next_offset, last_us, closing_tick(settings, last_us))
    learn(flush=True)

    rows = sum(map(len, said))
    if rows <= from_row:
        raise NothingLearnt(f"the file led to {rows:,} examples; figures were asked for from row {from_row:,} on")
    probabilities, label = np.concatenate(said), np.concatenate(labels)
    return Evaluation(
        figures=figures(from_row, probabilities[from_row:], label[from_row:]), windows=windows,
        probabilities=probabilities, labels=label,
        tallies=dict(training.intake.tallies), dead_letters=join.dead_letters,
        weights_digest=training.learner.digest(), seconds=time.monotonic() - began,
    )
