"""The whole loop in one process, in event time, without Kafka: store → join → training → versions → scores → store.

The parts are the stream's own; here is what stands in for topics, threads and the store of versions. Time moves by one version
at a time: whoever comes meanwhile is scored by the version served, then what happened is joined and learnt, then the gate is
asked whether the next version goes live. A slate is always shown in random order, so that the served scores stand beside the
oracle's on every one; no model decides what is learnt from.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from ops.simulator.options import StoreOptions
from ops.simulator.oracle import Ledger, auc
from ops.simulator.slates import Request, Scored, Simulator
from schemas import fields
from schemas.bags import Bags, concat
from schemas.config import Settings
from schemas.errors import BadEvent
from schemas.events import Impression, encoded
from schemas.fields import FieldSchema, Slates
from stream_trainer.joining.join import BEGINNING, JoinCore
from stream_trainer.learning.intake import Intake
from stream_trainer.learning.learner import Learner
from stream_trainer.publishing.gate import Gate
from stream_trainer.training import Training
from stream_trainer.watching.alarms import Alarm
from stream_trainer.watching.drift import Drift
from stream_trainer.watching.marks import Marker
from stream_trainer.watching.progressive import Progressive
from stream_trainer.watching.sampling import Sampler
from stream_trainer.watching.watch import Table, Watch
from stream_trainer.watching.windows import Windows

START_US = 1_767_225_600_000_000
LEDGER_ROWS = 1_000_000
Floats = NDArray[np.float32]


class Heard(NamedTuple):
    """An alarm, and when it was raised: event time, and events by then."""

    alarm: Alarm
    time_us: int
    events: int


class Served:
    """The newest version that went live: a learner that learns nothing."""

    def __init__(self, settings: Settings, schema: FieldSchema) -> None:
        self._learner = Learner(settings.model, settings.learn, schema)
        self.version = 0

    def take(self, newest: Learner) -> None:
        """What changed in the rows since the last version, and the dense weights."""
        rows = newest.table.drain("version", self.version % newest.table.rotation)
        self._learner.table.load(rows, newest.table.rows_with_state(rows))
        self._learner.model.load_state_dict(newest.model.state_dict())
        self.version += 1

    def score(self, bags: Bags) -> Floats:
        """(B,) probabilities."""
        return self._learner.score(bags)


class Loop:
    """One store, one stream. copy.deepcopy of it goes on as it would have, by itself."""

    def __init__(self, settings: Settings, options: StoreOptions, rate: float) -> None:
        """rate: slates a second."""
        self.simulator = Simulator(replace(options, random_share=1.0), START_US)
        self.now_us = START_US
        self.events = self.examples = 0
        self.heard: list[Heard] = []
        self.drift = Drift()
        self._period_us = 1e6 / rate
        self._step_us = round(settings.snapshot.version_every_s * 1e6)
        self._visits = 0
        schema = fields.load(settings.model.schema)
        shown, asked = fields.Encoder(schema, training=True), fields.Encoder(schema, training=False)
        self._asked = asked

        def encode(impressions: Sequence[Impression]) -> list[Bags | BadEvent]:
            return encoded(impressions, shown.encode_all)

        self.join = JoinCore(0, settings.join, BEGINNING, encode, schema.numbers, schema.digests)
        self.learner = Learner(settings.model, settings.learn, schema)
        self.served = Served(settings, schema)
        marker = Marker(schema, settings.metrics)
        progressive = Progressive(
            settings.metrics.window_rows, Windows(Watch(marker, settings.metrics, self._closed)),
            sampler=Sampler(settings.metrics.sample, settings.model.bits) if settings.metrics.sample else None,
        )
        intake = Intake(schema, settings.learn.batch_rows, keys=partial(marker.keys, places=self.learner.table.places))
        self.training = Training(intake, self.learner, progressive, marker=marker)
        self.gate = Gate(settings.gate, schema, self.learner.score)
        self._due: list[tuple[int, int, bytes]] = []        # clicks that will come
        self._queued = self._records = 0
        self._stopped = False
        self.forget()

    def forget(self) -> None:
        """What was said and clicked until now counts no more."""
        self.simulator.ledger = Ledger(LEDGER_ROWS)
        self._free: list[Floats] = []

    def run(self, until_us: int) -> None:
        """Go on until that time."""
        while self.now_us < until_us:
            self.step()

    def step(self) -> None:
        """The time of one version."""
        end_us = self.now_us + self._step_us
        events = self._visitors(end_us)
        self.now_us = end_us
        while self._due and self._due[0][0] < end_us:
            time_us, _, value = heapq.heappop(self._due)
            events.append((time_us, value))
        events.sort(key=lambda event: event[0])
        self.join.feed_all([(self.events + place, time_us, value) for place, (time_us, value) in enumerate(events)])
        self.events += len(events)
        self._pulse()
        for record in self.join.records(end_us, flush=True):
            self.training.intake.offer(0, self._records, record)
            self._records += 1
        while (step := self.training.step()) is not None:
            self.gate.learnt(step, end_us)
            self.examples += 0 if step.batch is None else len(step.batch)
        if not self.gate.holds(end_us):
            self.served.take(self.learner)
        self._hear(self.gate.take())

    def aucs(self) -> tuple[float, float, float]:
        """Since `forget`: of what was served, of what would have been had no version been held back, of the truth."""
        _, served, oracle, _, clicked = self.simulator.ledger.columns()
        return auc(served, clicked), auc(np.concatenate(self._free)[-len(clicked) :], clicked), auc(oracle, clicked)

    # --- inside ---

    def _visitors(self, end_us: int) -> list[tuple[int, bytes]]:
        """Those who come before end_us: their impressions; clicks go to those that will come."""
        requests: list[Request] = []
        while (time_us := START_US + round(self._visits * self._period_us)) < end_us:
            self._visits += 1
            if self.simulator.visited(time_us):
                requests.append(self.simulator.next_request(time_us))
        if not requests:
            return []
        bags = self._bags(requests)
        said = self.served.score(bags)
        free = self.learner.score(bags) if self.gate.held else said
        events, start = [], 0
        for request in requests:
            stop = start + len(request.candidates)
            scored = Scored(said[start:stop].tolist(), "loop", "", self.served.version)
            impression, clicks = self.simulator.show(request, scored)
            events.append((request.time_us, orjson.dumps(impression)))
            for due_us, click in clicks:
                self._queued += 1
                heapq.heappush(self._due, (due_us, self._queued, orjson.dumps(click)))
            self._free.append(free[start:stop][request.shuffled])
            start = stop
        return events

    def _bags(self, requests: Sequence[Request]) -> Bags:
        """Of all their candidates, as a scorer makes them."""
        items = [item for request in requests for item in request.candidates]
        context = {name: [request.context.get(name) for request in requests] for name in _names(r.context for r in requests)}
        columns = {name: [item["features"].get(name) for item in items] for name in _names(item["features"] for item in items)}
        made = self._asked.encode_all(Slates(
            [len(request.candidates) for request in requests], [item["id"] for item in items], context, columns,
        ))
        return concat([one for one in made if isinstance(one, Bags)])

    def _closed(self, windows: Table, by_field: Table) -> None:
        """A window is complete."""
        self._hear(self.drift.closed(windows, by_field, self.now_us))

    def _pulse(self) -> None:
        """What the joiner would raise."""
        stopped = self.join.pulse.stopped
        if stopped != self._stopped:
            self._stopped = stopped
            text = "clicks have stopped" if stopped else "clicks come again"
            self._hear([Alarm(what="labels.stopped", state="raised" if stopped else "over", time_us=self.now_us, text=text)])

    def _hear(self, alarms: Sequence[Alarm]) -> None:
        self.heard += [Heard(alarm, self.now_us, self.events) for alarm in alarms]


def _names(rows: Any) -> dict[str, None]:
    return {name: None for row in rows for name in row}
