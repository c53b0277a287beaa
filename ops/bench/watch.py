"""What watching costs, on records of a simulated store.

The trainer, as users run it, learns them from Kafka, again and again from nothing, with all watching and with none, both at
once: one runs for a quarter of a second while the other stands still (SIGSTOP), so that both meet whatever else the machine
does. The median of the turns' own ratios, by the clock and by CPU time per example: by the clock it is what the bar is on.

And its way from records to weights alone, from memory at full speed, with none of it and with one part after the other, in
one process: one has its turn while the others rest, a window of examples each, which closes in the middle of it, for many
rounds; who is first changes with each. A turn ends when the window is closed. The answer is the median of the
rounds' own ratios: by the clock, by the CPU time of the learner's thread, and by that of all threads, and of the process that
closes windows. CPU times hold on a machine that others use too; the clock does not.
"""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import psutil

from ops.bench.labels import STORE, store_log
from ops.bench.learning.from_kafka import FromKafka
from ops.settings import Loaded
from schemas import fields
from schemas.bags import Bags
from schemas.config import Settings
from schemas.errors import BadEvent, ConfigError
from schemas.events import Impression, encoded
from schemas.examples import Examples, encode
from schemas.fields import FieldSchema
from stream_trainer.joining.join import BEGINNING, JoinCore
from stream_trainer.learning.guard import Guard
from stream_trainer.learning.intake import Intake
from stream_trainer.learning.learner import Learner
from stream_trainer.publishing.gate import Gate
from stream_trainer.publishing.publisher import Publisher
from stream_trainer.store import SnapshotStore
from stream_trainer.training import Step, Training
from stream_trainer.watching.lookout import Lookout
from stream_trainer.watching.progressive import Progressive

BAR = 0.05             # of the throughput that watching may cost
STORE_S = 300.0        # of the simulated store: about 120,000 examples, learnt again and again
KAFKA_S = 1200.0       # of it in Kafka: about 480,000 examples, some ten seconds of a trainer's work
FIRST_WINDOWS = 4      # of a new trainer, not counted: with the first of them the detectors' library is loaded, once
LINEAGE = "ab" * 16
EVERYTHING: Mapping[str, Mapping[str, Any]] = {"off": {"metrics.watch": False, "gate.on": False}, "on": {}}
WAYS = {               # each with those before it
    "off": "windows alone (metrics.watch=false)", "watch": "slices, groups, what was served, fields, detectors",
    "gate": "before versions", "reference": "a version beside (metrics.reference)",
}


@dataclass(frozen=True, slots=True)
class Turn:
    """Seconds that the same examples took: by the clock, of the learner's thread, of all threads."""

    wall: float
    thread: float
    process: float


def records(schema: FieldSchema, settings: Settings, seconds: float) -> list[Examples]:
    """What a joiner writes of a store's log; all of it was served with some score."""
    encoder = fields.Encoder(schema, training=True)

    def encode(shown: Sequence[Impression]) -> list[Bags | BadEvent]:
        return encoded(shown, encoder.encode_all)

    join = JoinCore(0, settings.join, BEGINNING, encode, schema.numbers, schema.digests)
    events = store_log(STORE, seconds).events
    join.feed_all([(offset, time_us, value) for offset, (time_us, value) in enumerate(events)])
    random = np.random.default_rng(1)
    return [
        replace(record, served_probability=random.beta(1, 8, len(record)).astype(np.float32))
        for record in join.records(0, flush=True) if len(record)
    ]


class Way:
    """A trainer's threads and processes, without Kafka and store."""

    def __init__(self, what: str, settings: Settings, schema: FieldSchema, given: Sequence[Examples], folder: Path) -> None:
        """what: one of WAYS. folder: for what is logged."""
        parts = list(WAYS)[1 : list(WAYS).index(what) + 1]
        metrics = replace(
            settings.metrics, watch="watch" in parts, trainer_port=-1, reference="1" if "reference" in parts else ""
        )
        self._settings = settings = replace(settings, var=folder / what, metrics=metrics)
        self._schema, self._given = schema, given
        self._lookout = Lookout(settings, schema)
        self._learner = Learner(settings.model, settings.learn, schema)
        self._guard = Guard(self._learner)
        self._gate = Gate(settings.gate, schema, self._learner.score) if "gate" in parts else None
        self._steps = self._learnt()
        self._spent_s = self._began_s = 0.0                  # of the learner's thread: stands for the clock of a quiet machine
        self._settle_s = self._version_s = 0.0
        self._learnt_rows = self._asked_rows = 0
        with SnapshotStore(settings.store_dir) as store:
            if "reference" in parts:
                self._publish(store)
            self._lookout.begin(LINEAGE, frozenset(), store)

    def turn(self, examples: int) -> Turn:
        """Learn so many, to the batch, with those of earlier turns."""
        wall, thread, process = time.perf_counter(), time.thread_time(), _process_s()
        self._began_s = thread
        self._asked_rows += examples
        while self._learnt_rows < self._asked_rows:
            self._learnt_rows += next(self._steps)
        if self._now_s() >= self._settle_s:
            self._settle_s = self._now_s() + self._settings.snapshot.checkpoint_every_s
            self._lookout.settle()
        else:
            self._lookout.rest()
        turn = Turn(time.perf_counter() - wall, time.thread_time() - thread, _process_s() - process)
        self._spent_s += turn.thread
        return turn

    def digest(self) -> str:
        """Of its weights."""
        return self._learner.digest()

    def close(self) -> None:
        """End its threads and processes."""
        self._lookout.unexpose()
        self._lookout.close()

    def _learnt(self) -> Iterator[int]:
        """Examples of each step, for ever."""
        while True:
            marker = self._lookout.marker
            keys = partial(marker.keys, places=self._learner.table.places) if marker else None
            values = self._gate.values if self._gate else None
            intake = Intake(self._schema, self._settings.learn.batch_rows, keys=keys, values=values)
            training = Training(intake, self._learner, self._lookout.progressive, self._guard, marker)
            for offset, record in enumerate(self._given):
                intake.offer(0, offset, record)
                while (step := training.step()) is not None:
                    if self._gate is not None:
                        self._ask(self._gate, step)
                    yield 0 if step.batch is None else len(step.batch)

    def _ask(self, gate: Gate, step: Step) -> None:
        """As the trainer does: with each step, and before each version."""
        now_us = time.time_ns() // 1000
        gate.learnt(step, now_us)
        if self._now_s() >= self._version_s:
            self._version_s = self._now_s() + self._settings.snapshot.version_every_s
            gate.holds(now_us)
        gate.take()

    def _now_s(self) -> float:
        return self._spent_s + time.thread_time() - self._began_s

    def _publish(self, store: SnapshotStore) -> None:
        """Version 1: this model after its first examples."""
        self._learnt_rows = sum(next(self._steps) for _ in range(40))
        settings, learner = self._settings, self._learner
        snapshot = replace(settings.snapshot, rotation=learner.table.rotation)
        publisher = Publisher(store, learner, Progressive(settings.metrics.window_rows), snapshot, LINEAGE)
        publisher.restore()
        publisher.maybe_publish(1, force=True)


def _process_s() -> float:
    """CPU seconds of this process and of those below it (these to a hundredth)."""
    below = (one.cpu_times() for one in psutil.Process().children())
    return time.process_time() + sum(times.user + times.system for times in below)


@contextmanager
def ways(settings: Settings, seconds: float) -> Iterator[dict[str, Way]]:
    """All of them, warmed up."""
    schema = fields.load(settings.model.schema)
    given = records(schema, settings, seconds)
    (settings.var / "bench").mkdir(parents=True, exist_ok=True)
    folder = Path(mkdtemp(prefix="watch-", dir=settings.var / "bench"))
    made: dict[str, Way] = {}
    try:
        for what in WAYS:
            made[what] = Way(what, settings, schema, given, folder)
        yield made
    finally:
        for way in made.values():
            way.close()
        shutil.rmtree(folder, ignore_errors=True)


def compare(settings: Settings, rounds: int, seconds: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Turns of all ways, and what they come to."""
    examples = settings.metrics.window_rows
    turns: dict[str, list[Turn]] = {what: [] for what in WAYS}
    with ways(settings, seconds) as made:
        for way in made.values():
            way.turn(examples * 5 // 2)          # memory and caches; from here on windows close in the middle of turns
        for number in range(rounds):
            order = [*WAYS][number % len(WAYS) :] + [*WAYS][: number % len(WAYS)]
            for what in order if number % 2 else reversed(order):
                turns[what].append(made[what].turn(examples))
            last = ", ".join(f"{what} {examples / turns[what][-1].wall:,.0f}" for what in WAYS)
            say(f"round {number + 1} of {rounds}, examples/s: {last}")
    return report(turns, examples) | {"rounds": rounds, "cores": os.cpu_count(), "load": list(os.getloadavg())}


def report(turns: dict[str, list[Turn]], examples: int) -> dict[str, Any]:
    """Examples a second of each way; and what each costs of the throughput of the way without, by each clock."""
    found: dict[str, Any] = {"examples_per_turn": examples, "examples_per_s": {}, "cost": {}}
    for what, own in turns.items():
        found["examples_per_s"][what] = statistics.median(examples / turn.wall for turn in own)
        if what == "off":
            continue
        found["cost"][what] = {
            clock: _cost([getattr(turn, clock) for turn in turns["off"]], [getattr(turn, clock) for turn in own])
            for clock in ("wall", "thread", "process")
        }
    return found


def from_kafka(
    loaded: Loaded, turns: int, say: Callable[[str], None], seconds: float = KAFKA_S, own: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What the whole trainer loses: so many turns of a new one with everything beside one with nothing. own: settings of both.

    Raises TurnFailed, BrokerError."""
    settings = loaded.settings
    given = records(fields.load(settings.model.schema), settings, seconds)
    examples = sum(map(len, given)) // settings.learn.batch_rows * settings.learn.batch_rows
    (settings.var / "bench").mkdir(parents=True, exist_ok=True)
    folder = Path(mkdtemp(prefix="watch-", dir=settings.var / "bench"))
    runs: dict[str, list[dict[str, Any]]] = {what: [] for what in EVERYTHING}
    try:
        kafka = FromKafka(loaded, folder, {"model.schema": settings.model.schema, **(own or {})}, say)
        with kafka.broker(examples, map(encode, given)):
            for number in range(turns):
                order = sorted(EVERYTHING, reverse=bool(number % 2))
                raced = kafka.race(
                    settings.learn.threads, {f"{what}{number}-": EVERYTHING[what] for what in order},
                    FIRST_WINDOWS * settings.metrics.window_rows,
                )
                for what in order:
                    runs[what].append(raced[f"{what}{number}-"])
                cost = 1 - runs["on"][-1]["examples_per_s"] / runs["off"][-1]["examples_per_s"]
                say(f"turn {number + 1} of {turns}: {cost:.1%} lost by the clock")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return of_trainers(runs)


def of_trainers(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """runs: of each of EVERYTHING, turn by turn, as FromKafka.run gives them. Medians, and what of the throughput is lost by
    their own ratios."""
    each = {
        "wall": {what: [1 / run["examples_per_s"] for run in own] for what, own in runs.items()},
        "process": {what: [run["trainer_cores"] / run["examples_per_s"] for run in own] for what, own in runs.items()},
    }
    return {
        "examples_per_s": {what: 1 / statistics.median(own) for what, own in each["wall"].items()},
        "cpu_us_per_example": {what: 1e6 * statistics.median(own) for what, own in each["process"].items()},
        "cost": {clock: _cost(own["off"], own["on"]) for clock, own in each.items()},
        "turns": {what: [run["examples_per_s"] for run in own] for what, own in runs.items()},
        "cores": os.cpu_count(), "load": list(os.getloadavg()),
    }


def judged(alone: Mapping[str, Any] | None, trainer: Mapping[str, Any] | None) -> dict[str, Any]:
    """All that was measured, and the bar: on the whole trainer, or on its learner alone where that is all there is. Raises
    ConfigError where nothing is."""
    if trainer is not None:
        seen = trainer["cost"]["wall"]["median"]
    elif alone is not None:
        seen = alone["cost"][[*WAYS][-1]]["wall"]["median"]
    else:
        raise ConfigError("--turns 0 --rounds 0: nothing is left to measure. Give one of them")
    return {**(alone or {}), "from_kafka": trainer, "bar": {"wanted": BAR, "seen": seen, "met": seen <= BAR}}


def _cost(without: Sequence[float], with_: Sequence[float]) -> dict[str, float]:
    """Share of the throughput that is lost: of the rounds' own, the median and the quarters; of the shortest turns."""
    each = [1 - one / other for one, other in zip(without, with_, strict=True)]
    low, median, high = statistics.quantiles(each, n=4) if len(each) > 1 else each * 3
    return {"median": median, "quarter": low, "three_quarters": high, "least": 1 - min(without) / min(with_)}


def _told(cost: Mapping[str, float]) -> str:
    return f"{cost['median']:.1%} ({cost['quarter']:.1%} to {cost['three_quarters']:.1%})"


def table(found: dict[str, Any]) -> str:
    """The report for a person."""
    lines = []
    if "cost" in found:
        lines = [f"{'':<12}{'examples/s':>12}   lost of it, median (quarters): by the clock, the learner's thread, all threads"]
    for what, speed in found.get("examples_per_s", {}).items():
        costs = "".join(f"{_told(cost):>26}" for cost in found["cost"].get(what, {}).values())
        lines.append(f"{what:<12}{speed:>12,.0f}   {costs}")
    if trainer := found["from_kafka"]:
        speed, cost = trainer["examples_per_s"], trainer["cost"]
        lines.append(
            f"The trainer from Kafka: {speed['off']:,.0f} examples/s without, {speed['on']:,.0f} with everything, "
            f"{_told(cost['wall'])} lost by the clock, {_told(cost['process'])} by CPU time per example"
        )
    verdict = "met" if found["bar"]["met"] else "MISSED"
    return "\n".join([*lines, f"{verdict}: {found['bar']['seen']:.1%} lost, {BAR:.0%} allowed"])
