"""A first model from a file: learnt as `freshet evaluate` learns it, then put into a store as what a stream goes on from.

The store gets a version and a checkpoint at once or nothing, so a kill on the way leaves it as it was. The checkpoint has no
cursor: where the stream begins is the trainer's setting, learn.start_at.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ops.formats import Broken, EventRecord
from ops.offline.evaluate import NothingLearnt
from ops.offline.file_events import FileEvents, for_files
from schemas import fields
from schemas.config import Settings
from schemas.errors import ConfigError
from schemas.snapshot import Manifest
from stream_trainer.joining.join import DeadLetter
from stream_trainer.learning.guard import Guard
from stream_trainer.learning.learner import Learner
from stream_trainer.learning.memory import check_learner
from stream_trainer.publishing.publisher import Publisher
from stream_trainer.store import SnapshotStore
from stream_trainer.training import Training
from stream_trainer.watching.progressive import Progressive
from stream_trainer.watching.windows import Window


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """figures: over all rows, each scored before it was learnt. windows: as the trainer logs them. version, checkpoint: what
    the store has now. rows_touched: of the table. newest_us: event time of the newest event."""

    figures: Window
    windows: list[Window]
    version: Manifest
    checkpoint: Manifest
    rows_touched: int
    rows_learnt: int
    tallies: dict[str, int]
    dead_letters: list[DeadLetter]
    newest_us: int
    seconds: float


def train(
    settings: Settings, records: Iterable[EventRecord], store_dir: Path, *, replace: bool = False,
    progress: Callable[[int], None] = lambda _: None, window: Callable[[Window], None] = lambda _: None,
    broken: Broken | None = None, now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
) -> Trained:
    """Learn a file's events in one pass and write the store. replace: also where it has a model; a new lineage then begins
    there. progress: told of examples, window: of figures, as they come.

    Raises ConfigError where the store has a model, DoesNotFit, SnapshotError where another process writes the store,
    NothingLearnt, Diverged, BadRow: then it is as it was.
    """
    began = time.monotonic()
    settings = for_files(settings)
    schema = fields.load(settings.model.schema)
    check_learner(settings.model, settings.learn, schema)
    with SnapshotStore(store_dir) as store:   # held all the time: no trainer starts on it meanwhile
        if not replace:
            _refuse_used(store)
        learner = Learner(settings.model, settings.learn, schema, settings.snapshot.rotation)
        guard = Guard(learner)
        events = FileEvents(settings, schema, None, broken)
        training = Training(events.intake, learner, Progressive(settings.metrics.window_rows), guard)
        windows: list[Window] = []

        def learn(flush: bool = False) -> None:
            events.offer(flush)
            while (step := training.step()) is not None:
                for found in step.windows:
                    windows.append(found)
                    window(found)
                progress(len(step.probabilities))

        # 1. Learn.
        newest_us = 0
        for record in records:
            newest_us = max(newest_us, record.time_us)
            if events.feed(record):
                learn()
        events.close()
        learn(flush=True)
        figures = training.progressive.lifetime()
        if figures is None:
            raise NothingLearnt("the file led to no example: nothing was written")

        # 2. Write.
        publisher = Publisher(store, learner, training.progressive, settings.snapshot, secrets.token_hex(16), guard)
        tallies = {end: count for end, count in training.intake.tallies.items() if end != "flush"}   # counts a topic's replays
        version, checkpoint = publisher.begin(now_us(), tallies)
    return Trained(
        figures=figures, windows=windows, version=version, checkpoint=checkpoint, rows_touched=len(learner.table),
        rows_learnt=tallies["examples"], tallies=tallies,
        dead_letters=list(events.join.dead_letters), newest_us=newest_us, seconds=time.monotonic() - began,
    )


def _refuse_used(store: SnapshotStore) -> None:
    newest = store.newest_checkpoint() or store.newest_version()
    if newest is not None:
        raise ConfigError(
            f"{store.dir} has a model already: {newest.kind} {newest.number}, of {newest.examples_learnt:,} examples. With "
            f"--replace a new line of weights begins there and is served from then on; --out DIR or model.name=NAME begin "
            f"one elsewhere"
        )
