"""One pass over a file without Kafka: the join, the intake and the learner of the stream, in one process.

Each row is scored before it is learnt. A replay of the same file with the same settings (one partition, batches by count)
leads to the same weights and figures, because it is the same code over the same events.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ops.formats import BadRow, Broken, EventRecord, closing_tick, opening_tick
from ops.judging import NO_GROUP
from schemas import fields
from schemas.bags import Bags
from schemas.config import Settings
from schemas.errors import ConfigError, FreshetError
from schemas.events import Impression
from schemas.fields import FieldSchema
from stream_trainer.intake import Batch, Intake
from stream_trainer.join import BEGINNING, DeadLetter, JoinCore
from stream_trainer.learner import Learner
from stream_trainer.progressive import Progressive, Window, figures
from stream_trainer.training import Training

FEED_EVERY = 256  # events between two looks for a batch: the join's records are cut by count, so it changes nothing
DAY_US = 86_400_000_000
Floats = NDArray[np.float32]


class NothingLearnt(FreshetError):
    """The file holds no example, or none that figures were asked for."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Evaluation:
    """figures: over the rows asked for, in the order in which they were learnt. windows: as the trainer logs them.

    probabilities, labels: (rows,) f32, of all rows in that order; with `days`, of the rows of the last day alone.
    groups: (rows,) numbers of their groups, NO_GROUP = none; None if no row names one. first: how many of those rows lie
    before the figures. rows_learnt: examples that were learnt.
    """

    figures: Window
    probabilities: Floats
    labels: Floats
    groups: NDArray[np.int64] | None
    first: int
    rows_learnt: int
    windows: list[Window]
    tallies: dict[str, int]
    dead_letters: list[DeadLetter]
    weights_digest: str
    seconds: float


@dataclass(slots=True)
class _Names:
    """Groups by number, in the order in which they came."""

    numbers: dict[str, int] = field(default_factory=dict)

    def number(self, group: str | None) -> int:
        return NO_GROUP if group is None else self.numbers.setdefault(group, len(self.numbers))


class _Events:
    """Events → batches, by the join and the intake of the stream. It also remembers the group of each row."""

    def __init__(self, settings: Settings, schema: FieldSchema, names: _Names, broken: Broken | None) -> None:
        encoder = fields.Encoder(schema, training=True)

        def encode(shown: Impression) -> Bags:
            return encoder.encode(shown.slate)[0]

        self.intake = Intake(schema, settings.learn.batch_rows)
        self.join = JoinCore(0, settings.join, BEGINNING, encode, schema.numbers, schema.digests)
        self._settings = settings
        self._names = names
        self._broken = broken
        self._last_us = 0
        self._written = 0
        self._group_of_event: list[int] = []                # by the event's offset
        self._groups: list[NDArray[np.int64]] = []          # of the rows, in the order in which they are cut into batches

    def feed(self, record: EventRecord) -> None:
        """The next event of the file."""
        if not self.join.next_offset:
            self._feed(record.time_us, opening_tick(record.time_us), NO_GROUP)
        unusable = len(self.join.dead_letters)
        self._feed(record.time_us, record.value, self._names.number(record.group))
        if self._broken is not None:
            for letter in self.join.dead_letters[unusable:]:
                self._broken.add(BadRow(record.row, letter.text))
        self._last_us = max(self._last_us, record.time_us)

    def close(self) -> None:
        """No more will come: every window closes, and so does the last batch."""
        if self._last_us:
            self._feed(self._last_us, closing_tick(self._settings, self._last_us), NO_GROUP)

    def offer(self, flush: bool = False) -> None:
        """Let the intake have what the join has made final."""
        for record in self.join.records(0, flush):
            self._groups.append(np.array([self._group_of_event[offset] for offset in record.impression.tolist()], np.int64))
            self.intake.offer(0, self._written, record)
            self._written += 1

    @property
    def groups(self) -> NDArray[np.int64]:
        """(rows,): of all rows offered."""
        return np.concatenate(self._groups) if self._groups else np.empty(0, np.int64)

    def _feed(self, time_us: int, value: bytes, group: int) -> None:
        self.join.feed(self.join.next_offset, time_us, value)
        self._group_of_event.append(group)


@dataclass(slots=True)
class _Scored:
    """What was said of which label, batch by batch."""

    said: list[Floats] = field(default_factory=list)
    labels: list[Floats] = field(default_factory=list)

    def add(self, said: Floats, batch: Batch) -> None:
        self.said.append(said)
        self.labels.append(batch.labels)


def evaluate(
    settings: Settings, records: Iterable[EventRecord], from_row: int = 0, progress: Callable[[int], None] = lambda _: None,
    *, days: int = 0, broken: Broken | None = None,
) -> Evaluation:
    """Learn a file's events and judge each score. from_row: figures only from this row on, counted from 0.

    days: learn so many times 24 hours from the first event on, then score the 24 hours that follow without learning them;
    0 = learn all. broken: takes events that turn out unusable only when they are joined, by the line of their file.
    Raises NothingLearnt, Diverged, BadRow.
    """
    if days and from_row:
        raise ConfigError(f"--from-row {from_row}: the days protocol judges the last day and nothing else")
    began = time.monotonic()
    schema = fields.load(settings.model.schema)
    names = _Names()
    events = _Events(settings, schema, names, broken)
    training = Training(
        events.intake, Learner(settings.model, settings.learn, schema), Progressive(settings.metrics.window_rows)
    )
    windows: list[Window] = []
    scored = _Scored()

    def learn(flush: bool = False) -> None:
        events.offer(flush)
        while (step := training.step()) is not None:
            scored.add(step.probabilities, step.batch)
            windows.extend(step.windows)
            progress(len(step.batch))

    # 1. Learn. The events of the day to be judged wait: the last windows of the days before close first.
    waiting: list[EventRecord] = []
    first_us: int | None = None
    for record in records:
        first_us = record.time_us if first_us is None else first_us
        if days and record.time_us >= first_us + days * DAY_US:
            if record.time_us < first_us + (days + 1) * DAY_US:
                waiting.append(record)
            continue
        events.feed(record)
        if events.join.next_offset % FEED_EVERY == 0:
            learn()
    events.close()
    learn(flush=True)
    judged, dead_letters = events, list(events.join.dead_letters)
    rows_learnt = training.intake.tallies["examples"]

    # 2. The day that is judged: joined by itself, scored, not learnt.
    if days:
        if not rows_learnt:
            raise NothingLearnt("there is no example in the days to learn")
        scored = _Scored()
        judged = _Events(settings, schema, names, broken)
        for record in waiting:
            judged.feed(record)
        judged.close()
        judged.offer(flush=True)
        while (batch := judged.intake.take(force=True)) is not None:
            scored.add(training.learner.score(batch.bags), batch)
            progress(len(batch))
        dead_letters += judged.join.dead_letters

    rows = sum(map(len, scored.said))
    if rows <= from_row:
        where = f"hour {24 * days} to {24 * days + 24} after the first event" if days else f"row {from_row:,} on"
        raise NothingLearnt(f"the file led to {rows:,} examples; figures were asked for from {where}")
    probabilities, label = np.concatenate(scored.said), np.concatenate(scored.labels)
    return Evaluation(
        figures=figures(from_row, probabilities[from_row:], label[from_row:]), windows=windows,
        probabilities=probabilities, labels=label, groups=judged.groups if names.numbers else None, first=from_row,
        rows_learnt=rows_learnt, tallies=dict(training.intake.tallies), dead_letters=dead_letters,
        weights_digest=training.learner.digest(), seconds=time.monotonic() - began,
    )


def with_architecture(settings: Settings, name: str) -> Settings:
    """The same, but for the model."""
    return replace(settings, model=replace(settings.model, architecture=name))
