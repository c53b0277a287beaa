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

from ops.formats import Broken, EventRecord
from ops.offline.file_events import FileEvents, Groups, for_files
from schemas import fields
from schemas.config import Settings
from schemas.errors import ConfigError, FreshetError
from stream_trainer.joining.join import DeadLetter
from stream_trainer.learning.learner import Learner
from stream_trainer.learning.memory import check_learner
from stream_trainer.training import Training
from stream_trainer.watching.progressive import Progressive
from stream_trainer.watching.verdicts import Judged, Verdicts, joined
from stream_trainer.watching.windows import Window, figures

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
    Raises NothingLearnt, DoesNotFit, Diverged, BadRow.
    """
    if days and from_row:
        raise ConfigError(f"--from-row {from_row}: the days protocol judges the last day and nothing else")
    began = time.monotonic()
    settings = for_files(settings)
    schema = fields.load(settings.model.schema)
    check_learner(settings.model, settings.learn, schema)
    names = Groups()
    events = FileEvents(settings, schema, names, broken)
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
        if events.feed(record):
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
        judged = FileEvents(_finally(settings), schema, names, broken)
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


def _finally(settings: Settings) -> Settings:
    """The same, with every example once, by its final label."""
    return replace(settings, join=replace(settings.join, mode="wait", negative_rate=1.0))
