"""The trainer's process: examples in, weights out. One thread learns; the event loop reads records and hands it examples.

The learner's thread owns the table, the store and the device. Per batch: (1) learn it, which moves the cursors, (2) if it is
time, publish a version, (3) if it is time, write a checkpoint with cursors and weights of the same moment. A kill between
any two leaves the last checkpoint, from which the same batches follow again.

Orders (pin, unpin, rollback) are read beside that, and obeyed between two batches. After a rollback the process begins anew
from what the store then holds, by the way that it takes after a kill: there is no other.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import secrets
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, NoReturn, Protocol

import numpy as np
import structlog

from schemas import fields
from schemas.config import Settings
from schemas.control import ControlError
from schemas.errors import BrokerError, SnapshotError
from schemas.examples import Cursor, ExamplesError, decode
from schemas.journal import Journal
from stream_trainer import faust_driver
from stream_trainer.faust_driver import Kafka, Position, Record
from stream_trainer.learning.guard import Guard
from stream_trainer.learning.intake import Batch, Intake, Ready
from stream_trainer.learning.learner import Learner
from stream_trainer.learning.memory import check_learner
from stream_trainer.publishing.branch import go_back, told
from stream_trainer.publishing.control import Control, Given
from stream_trainer.publishing.gate import Gate
from stream_trainer.publishing.publisher import Publisher
from stream_trainer.slots import take_slot
from stream_trainer.store import SnapshotStore
from stream_trainer.training import Training
from stream_trainer.watching.lookout import Lookout
from stream_trainer.watching.windows import Window

WAITING_RECORDS = 64       # handed over and not learnt: about 64,000 examples, a second's work
TRACES_PER_VERSION = 32    # clicks followed from their event to the score that used them
FOLLOWED = 512             # of them, the newest, for how long it takes until a click is learnt
STATUS_EVERY_S = 1.0
ORDERS_EVERY_S = 0.2
STOP_TIMEOUT_S = 20.0      # a last checkpoint takes tens of ms; ten million rows take seconds

log = structlog.get_logger()


class Orders(Protocol):
    """Where orders to this model come from. For one thread at a time."""

    def waiting(self) -> Sequence[Given]:
        """All that there are and were not told yet."""

    def poll(self, timeout_s: float) -> Sequence[Given]:
        """Those that come next; none, where none comes in time."""


def run(settings: Settings, orders: Orders) -> None:
    """Learn until asked to stop."""
    trainer = Trainer(settings, orders)
    group = f"{settings.kafka.prefix}freshet-trainer-{settings.model.name}"
    member = take_slot(settings.var / "slots", f"{settings.model.name}-trainer")
    faust_driver.run(settings.kafka, settings.kafka.topic("examples"), group, member, trainer)


class Trainer:
    """The handler of `examples`, and the thread that learns them."""

    def __init__(self, settings: Settings, orders: Orders) -> None:
        """Takes the store as it is, after the orders that wait."""
        schema = fields.load(settings.model.schema)
        check_learner(settings.model, settings.learn, schema, "the trainer's table")
        self._settings = settings
        self._journal = Journal(settings.metrics_dir / "trainer.jsonl")
        self._lookout = Lookout(settings, schema)
        store = SnapshotStore(settings.store_dir)
        for number, why in store.set_aside_broken_checkpoints().items():
            log.error("checkpoint.broken", number=number, why=why, does="goes on from the one before, learns more again")
        control, self._untold = obey(store, Control.of(store.newest_checkpoint()), orders.waiting())

        learner = Learner(settings.model, settings.learn, schema, settings.snapshot.rotation)
        guard = Guard(learner)
        self._gate = Gate(settings.gate, schema, learner.score)
        self._publisher = Publisher(
            store, learner, self._lookout.progressive, settings.snapshot, secrets.token_hex(16), guard, self._gate
        )
        restored = self._publisher.restore()
        self._publisher.control = control
        marker = self._lookout.marker
        keys = partial(marker.keys, places=learner.table.places) if marker else None
        values = self._gate.values if settings.gate.on else None
        intake = Intake(
            schema, settings.learn.batch_rows,
            {p: Cursor(*place) for p, place in restored.cursors.items()}, restored.tallies, restored.offsets, keys, values,
        ) if restored else Intake(schema, settings.learn.batch_rows, keys=keys, values=values)
        self._lookout.begin(self._publisher.lineage, control.pinned, store)
        self._next: dict[int, int] = {}       # partition → the offset after the newest record that was read
        self._read_us = self._joined_us = 0   # its time in Kafka; when the newest example that was learnt was joined
        self._behind: dict[str, int] = {}     # partition → records that wait
        self._ways: deque[int] = deque(maxlen=FOLLOWED)              # µs from a click to its being learnt
        self._stop = asyncio.Event()
        self._tell_gate()
        for alarm in self._gate.forgotten(self._lookout.alarms.open, time.time_ns() // 1000):
            self._lookout.alarms.raise_(alarm)
        self._training = Training(intake, learner, self._lookout.progressive, guard, marker)
        self._records: queue.Queue[tuple[int, int, Ready] | None] = queue.Queue()
        self._traces: list[dict[str, int]] = []
        self._replays = intake.tallies["flush"]
        self._status_at = 0.0
        self._idle_s = 0.0                    # that the learner's thread waited for examples
        self._orders = orders
        self._heard: queue.SimpleQueue[Given] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._learn, name="learner", daemon=True)
        log.info("trainer.ready", examples_learnt=learner.examples_learnt, batches_learnt=learner.batches_learnt,
                 device=str(learner.device), resumed=restored is not None)

    # --- the driver's calls, in the event loop ---

    async def assigned(self, kafka: Kafka, found: Mapping[int, Position]) -> dict[int, int]:
        """Go on where the weights are. The one trainer of a model needs every partition."""
        topic = self._settings.kafka.topic("examples")
        wanted = await kafka.partitions(topic)
        if len(found) != wanted:
            raise BrokerError(
                f"this trainer was given {len(found)} of {wanted} partitions of {topic}: another trainer of model "
                f"{self._settings.model.name} is running. Stop one, or give them different names (model.name)."
            )
        starts = await self._starts(kafka, topic, found)
        if not self._thread.is_alive():
            self._training.intake.resume.update(starts)   # in the first checkpoint already: latest is decided once
            self._thread.start()
            threading.Thread(target=self._hear, name="orders", daemon=True).start()
        log.info("trainer.assigned", starts=starts)
        return starts

    async def _starts(self, kafka: Kafka, topic: str, found: Mapping[int, Position]) -> dict[int, int]:
        """Where each partition goes on. learn.start_at counts where the model has read no partition yet: one that was added
        later is read from its beginning."""
        resume, start_us = self._training.intake.resume, self._settings.learn.start_us
        if resume:
            return {partition: _goes_on(topic, partition, at, resume.get(partition)) for partition, at in found.items()}
        if start_us is not None:
            first = await kafka.offsets_at(start_us, found)
            starts = {partition: first.get(partition, at.end) for partition, at in found.items()}
        else:
            latest = self._settings.learn.start_at == "latest"
            starts = {partition: at.end if latest else at.earliest for partition, at in found.items()}
        log.info("trainer.begins", start_at=self._settings.learn.start_at, starts=starts)
        return starts

    async def records(self, records: Sequence[Record]) -> None:
        for record in records:
            while self._records.qsize() >= WAITING_RECORDS:
                await asyncio.sleep(0.002)
            self.hand_over(record)

    def hand_over(self, record: Record) -> None:
        """Read it, here, while the learner's thread learns what came before it."""
        self._next[record.partition], self._read_us = record.offset + 1, record.kafka_time_us
        try:
            examples = decode(record.value or b"")
        except ExamplesError as wrong:
            log.error("examples.unreadable", partition=record.partition, offset=record.offset, error=str(wrong))
        else:
            self._records.put((record.partition, record.offset, self._training.intake.ready(examples)))

    async def running(self, kafka: Kafka) -> None:
        """See that all goes well; what there is to do is done in the learner's thread."""
        while not self._stop.is_set():
            self._behind = {str(partition): records for partition, records in kafka.behind(self._next).items()}
            self._lookout.look()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), STATUS_EVERY_S)

    async def stopping(self) -> None:
        """Learn what was handed over as far as batches are full, write a last version and checkpoint."""
        self._stop.set()
        self._lookout.unexpose()
        if self._thread.is_alive():
            self._records.put(None)
            await asyncio.to_thread(self._thread.join, STOP_TIMEOUT_S)

    # --- the learner's thread ---

    def _learn(self) -> None:
        try:
            self._loop()
        except Exception as error:  # noqa: BLE001 whatever it is, ending here loses nothing
            faust_driver.crash(error)

    def _loop(self) -> None:
        self._publish()                       # a new model serves its first guess rather than nothing
        self._answer()
        wait_s = self._settings.learn.batch_wait_s
        waits_since: float | None = None      # monotonic time since which rows wait for a full batch
        while True:
            due = self._wake_s() if waits_since is None or not wait_s else min(self._wake_s(), wait_s / 4)
            began = time.monotonic()
            try:
                record = self._records.get(timeout=due)
            except queue.Empty:
                self._idle_s += time.monotonic() - began
            else:
                self._idle_s += time.monotonic() - began
                if record is None:
                    self._publish(force=True)
                    self._publisher.store.close()
                    self._lookout.close()
                    return
                self._training.intake.offer(*record)
            while self._step(force=False):
                waits_since = None
            now = time.monotonic()
            if not self._training.intake.rows:
                waits_since = None
            elif waits_since is None:
                waits_since = now
            elif wait_s and now - waits_since >= wait_s:
                self._step(force=True)
                waits_since = None
            self._listen()
            self._publish()
            self._report()

    def _hear(self) -> None:
        """On a thread of its own."""
        try:
            while True:
                for given in self._orders.poll(ORDERS_EVERY_S):
                    self._heard.put(given)
        except Exception as error:  # noqa: BLE001 whatever it is, ending here loses nothing
            faust_driver.crash(error)

    def _listen(self) -> None:
        """Obey the orders that came since the last batch."""
        heard = []
        while not self._heard.empty():
            heard.append(self._heard.get())
        if not heard:
            return
        if any(given.order.what == "rollback" for given in heard):
            self._publish(force=True)             # where the order found us: it is obeyed from here, killed or not
        self._publisher.control, self._untold = obey(self._publisher.store, self._publisher.control, heard)
        self._tell_gate()
        if any("first" in answer for answer in self._untold):
            self._publisher.store.close()
            self._lookout.close()
            self._answer()
            begin_anew()
        self._publish(force=True)
        self._answer()

    def _tell_gate(self) -> None:
        """Those of the orders just obeyed that are the gate's; not those that a rollback has overtaken."""
        for answer in since_rollback(self._untold):
            if answer["order"] in ("hold", "release"):
                self._gate.obey(answer["order"], time.time_ns() // 1000)

    def _answer(self) -> None:
        """Say what came of orders, once a checkpoint knows it."""
        for answer in self._untold:
            log.warning("trainer.order", **answer)
            self._journal.write({"event": "trainer.order", **answer})
        self._untold = []

    def _wake_s(self) -> float:
        return min(self._settings.snapshot.version_every_s / 2, 0.25)

    def _step(self, force: bool) -> bool:
        """Whether a batch was learnt."""
        step = self._training.step(force)
        if step is None:
            return False
        self._gate.learnt(step, time.time_ns() // 1000)
        if step.batch is not None:
            self._trace(step.batch)
            self._joined_us = int(step.batch.joined_us[-1])
        if step.divergence is not None:
            self._journal.write({"event": "trainer.diverged", **asdict(step.divergence)})
        for window in step.windows:
            log.info("progressive.window", **window.as_dict())
        self._publish()
        return step.batch is not None

    def _trace(self, batch: Batch) -> None:
        """Follow some of the clicks: those that counted at once, not those of a log's first window; in mode wait none does."""
        if len(self._traces) < TRACES_PER_VERSION:
            learnt_us = time.time_ns() // 1000
            clicked = batch.click_time_us if self._settings.join.mode == "wait" else batch.at_once
            for row in clicked.nonzero()[0][: TRACES_PER_VERSION - len(self._traces)].tolist():
                self._traces.append({
                    "click_us": int(batch.click_time_us[row]), "joined_us": int(batch.joined_us[row]), "learnt_us": learnt_us,
                })
                self._ways.append(learnt_us - int(batch.click_time_us[row]))

    def _publish(self, force: bool = False) -> None:
        intake = self._training.intake
        ended = intake.tallies["flush"] > self._replays
        force = force or ended
        now_us = time.time_ns() // 1000
        self._gate.passed(now_us)
        cursors = {partition: (at.trigger, at.offset, at.item) for partition, at in intake.cursors.items()}
        if self._publisher.maybe_publish(
            now_us, cursors=cursors, offsets=intake.resume, tallies=intake.tallies, traces=self._traces,
            force=force or self._publisher.checkpoint_due(now_us),
        ):
            self._traces = []
        for alarm in self._gate.take():
            self._lookout.alarms.raise_(alarm)
            force = True                      # a hold begins or ends once, and with the same patience, killed or not
        if force or self._publisher.checkpoint_due(now_us):
            self._lookout.settle()            # a window that the checkpoint holds is not learnt again
        self._publisher.maybe_checkpoint(
            now_us, cursors=cursors, offsets=intake.resume, tallies=intake.tallies, force=force
        )
        if ended:
            self._replays = intake.tallies["flush"]
            self._journal.write({
                "event": "trainer.replay_ended", **self._figures(self._training.progressive.lifetime()),
                "weights_digest": self._training.learner.digest(),
            })

    def _report(self) -> None:
        now = time.monotonic()
        if now < self._status_at:
            return
        self._status_at = now + STATUS_EVERY_S
        figures = self._figures(self._training.progressive.lately())
        self._lookout.reported(figures)
        self._journal.write({"event": "trainer.status", **figures})

    def _figures(self, lifetime: Window | None) -> dict[str, Any]:
        intake = self._training.intake
        version = self._publisher.store.newest_version()
        seen = self._lookout.figures()
        lost = f"{self._journal.path}: {self._journal.lost:,} rows are lost" if self._journal.lost else None
        ways = np.percentile(self._ways, (50, 99)).tolist() if self._ways else []
        return {
            "newest_version": version.number if version else 0,
            "newest_version_us": version.created_us if version else 0, "newest_joined_us": self._joined_us,
            "unpublished": self._training.learner.examples_learnt - (version.examples_learnt if version else 0),
            "lag": self._behind, "read_age_s": (time.time_ns() // 1000 - self._read_us) / 1e6 if self._read_us else None,
            "click_to_learnt_s": {of: us / 1e6 for of, us in zip(("0.5", "0.99"), ways, strict=False)},
            "unwritten": seen["windows_unwritten"] or lost, **seen,
            "examples_learnt": intake.tallies["examples"], "positives": intake.tallies["positives"],
            "tallies": dict(intake.tallies), "dropped": intake.dropped, "gaps": intake.gaps, "waiting_rows": intake.rows,
            "batches_learnt": self._training.learner.batches_learnt, "lifetime": lifetime.as_dict() if lifetime else None,
            "gate": self._gate.status(), "rate_factor": self._training.guard.rate_factor, "idle_s": round(self._idle_s, 3),
        }


def _goes_on(topic: str, partition: int, at: Position, resume: int | None) -> int:
    """resume: None = a partition that the weights know nothing of. Raises BrokerError where it is not there any more."""
    if resume is None:
        return at.earliest
    if not at.earliest <= resume <= at.end:
        raise BrokerError(
            f"{topic}/{partition}: the weights go on at offset {resume}, the topic holds {at.earliest} to {at.end}. Either "
            f"it was deleted and made again, or its retention is shorter than the trainer was away. Nothing is skipped "
            f"silently: start a new model (model.name), or restore the topic."
        )
    return resume


def obey(store: SnapshotStore, control: Control, heard: Sequence[Given]) -> tuple[Control, list[dict[str, Any]]]:
    """Obey orders on the store, one after the other. Returns what the next checkpoint is to know of them, and what came of
    each; one that has `first` went back, and the newest checkpoint knows it already."""
    answers = []
    for given in heard:
        if control.knows(given):
            continue
        answer: dict[str, Any] = {"offset": given.offset, **told(given.order), "refused": None}
        try:
            after = control.after(given, store.manifests("version"))
            if given.order.what == "rollback":
                first = go_back(store, given, after, time.time_ns() // 1000)
                answer |= {"first": first.number, "lineage": first.lineage}
        except (ControlError, SnapshotError) as no_way:
            after = control.past(given)
            answer["refused"] = str(no_way)
        control = after
        answers.append(answer)
    return control, answers


def since_rollback(answers: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """Those after the last one that went back."""
    back = [place for place, answer in enumerate(answers) if "first" in answer]
    return answers[back[-1] + 1 :] if back else answers


def begin_anew() -> NoReturn:
    """This process again from its first line, under the same pid."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 ourselves
