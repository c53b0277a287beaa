"""One pass over a file without Kafka: the join, the intake and the learner of the stream, in one process.

Each row is scored before it is learnt. A replay of the same file with the same settings (one partition, batches by count)
leads to the same weights and figures, because it is the same code over the same events.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from ops.formats import BadRow, Broken, EventRecord, closing_tick, opening_tick
from ops.judging import NO_GROUP
from schemas import fields
from schemas.bags import Bags
from schemas.config import Settings
from schemas.errors import ConfigError, FreshetError
from schemas.events import Impression
from schemas.fields import FieldSchema, Slate
from stream_trainer.corrections import SecondPass
from stream_trainer.intake import Intake
from stream_trainer.join import BEGINNING, DeadLetter, JoinCore
from stream_trainer.learner import Learner
from stream_trainer.progressive import Progressive, Window, figures
from stream_trainer.training import Training
from stream_trainer.verdicts import Judged, Verdicts, joined

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
            if not self._fits:
                self._look(shown.slate)
            return encoder.encode(shown.slate)[0]

        self._known = {spec.name for spec in schema.fields} - {"item_id", "position"}   # these two come of themselves
        self._fits = not self._known                        # a field of the schema has come
        self._foreign: dict[str, None] = {}                 # what came before that, in its order
        self.intake = Intake(schema, settings.learn.batch_rows)
        self.join = JoinCore(0, settings.join, BEGINNING, encode, schema.numbers, schema.digests)
        self._second = SecondPass(
            0, settings.join, BEGINNING, encode, schema.numbers, schema.digests
        ) if settings.join.mode == "corrected" else None
        self._behind: deque[tuple[int, int, bytes]] = deque()   # what the second pass has read ahead and not joined
        self._settings = settings
        self._names = names
        self._broken = broken
        self._last_us = 0
        self._written = 0
        self._group_of_event: list[int] = []                # by the event's offset

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
        """Let the intake have what the join has made final. Raises ConfigError for events of another schema altogether."""
        if self._foreign and not self._fits:
            raise ConfigError(
                f"model.schema={self._settings.model.schema}: none of its fields ({_some(sorted(self._known))}) is in this "
                f"file, which has {_some(self._foreign)}. Set model.schema to one that names them"
            )
        for record in [*self.join.records(0, flush), *(self._second.records(0, flush) if self._second else ())]:
            self.intake.offer(0, self._written, record)
            self._written += 1

    def _look(self, slate: Slate) -> None:
        names = [*slate.context, *slate.columns]
        self._fits = not self._known.isdisjoint(names)
        self._foreign.update(dict.fromkeys(names))

    def groups(self, impressions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of rows, by the offsets of their impressions."""
        return np.array(self._group_of_event, np.int64)[impressions]

    def _feed(self, time_us: int, value: bytes, group: int) -> None:
        offset = self.join.next_offset
        self.join.feed(offset, time_us, value)
        self._group_of_event.append(group)
        if self._second is not None:
            self._second.ahead(offset, time_us, value)
            self._behind.append((offset, time_us, value))
            while self._behind and self._second.may_follow(*self._behind[0]):
                self._second.behind(*self._behind.popleft())


@dataclass(slots=True)
class _Scored:
    """What was said of which final label."""

    parts: list[Judged] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(map(len, self.parts))


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
    settings = replace(settings, join=replace(settings.join, suspect_labels=0.0))  # a file has all the labels it will have
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
            scored.parts.append(step.judged)
            windows.extend(step.windows)
            progress(len(step.probabilities))

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
        judged = _Events(_finally(settings), schema, names, broken)
        for record in waiting:
            judged.feed(record)
        judged.close()
        judged.offer(flush=True)
        while (batch := judged.intake.take(force=True)) is not None:
            scored.parts.append(Verdicts().judge(batch, training.learner.score(batch.bags), [], []))
            progress(len(batch))
        dead_letters += judged.join.dead_letters

    rows = len(scored)
    if rows <= from_row:
        where = f"hour {24 * days} to {24 * days + 24} after the first event" if days else f"row {from_row:,} on"
        raise NothingLearnt(f"the file led to {rows:,} examples; figures were asked for from {where}")
    found = joined(scored.parts)
    return Evaluation(
        figures=figures(from_row, found.probabilities[from_row:], found.labels[from_row:], found.weights[from_row:]),
        windows=windows, probabilities=found.probabilities, labels=found.labels,
        groups=judged.groups(found.impression) if names.numbers else None, first=from_row,
        rows_learnt=rows_learnt, tallies=dict(training.intake.tallies), dead_letters=dead_letters,
        weights_digest=training.learner.digest(), seconds=time.monotonic() - began,
    )


def _some(names: Iterable[str], most: int = 4) -> str:
    """The first few."""
    few = list(islice(names, most + 1))
    return ", ".join(few[:most]) + (" …" if len(few) > most else "")


def _finally(settings: Settings) -> Settings:
    """The same, with every example once, by its final label."""
    return replace(settings, join=replace(settings.join, mode="wait", negative_rate=1.0))
