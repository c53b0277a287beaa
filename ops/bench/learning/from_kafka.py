"""From `examples` in Kafka to weights: `freshet trainer` reads what was written before it started, everything on one machine.

The trainer is the one that users run, with its guard, its versions every half second and its checkpoints; what it did is
read off its journal, from its first status line with examples to its last before the end. Or it is fed slowly for an hour,
and its memory looked at.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil

from ops.bench.learning.child import RECORD_ROWS, Rows, record
from ops.bench.measuring.turns import TurnFailed
from ops.broker import start_broker
from ops.kafka.cluster import admin, producer
from ops.kafka.topics import ensure_topics
from ops.machine.processes import end, tied
from ops.settings import Loaded, broker_is_ours, load
from schemas.errors import BrokerError
from schemas.journal import newest

STOP_TIMEOUT_S = 60.0
LOOK_EVERY_S = 0.1
SLICE_S = 0.25             # that one of several trainers runs while the others stand still
STALLED_S = 60.0           # nothing learnt for so long
SAMPLE_S = 20.0            # between two looks at a steady trainer's memory
STEADY_BITS = 18           # of its table: full after some minutes


class FromKafka:
    """A broker with examples in it, and trainers that learn them, one after the other."""

    def __init__(self, loaded: Loaded, folder: Path, model: Mapping[str, Any], say: Callable[[str], None]) -> None:
        """folder: holds the generated rows and their schema. model: settings of the trainer; may name another schema."""
        self._loaded, self._folder, self._model, self._say = loaded, folder, model, say
        self._name = f"bench-{secrets.token_hex(3)}"
        self._bootstrap: str | None = None
        self._examples = 0
        self._broker_pid: int | None = None

    @contextmanager
    def broker(self, examples: int, values: Iterable[bytes] | None = None) -> Iterator[None]:
        """Kafka of our own, or the one that FRESHET_KAFKA names, with so many examples written, maybe none. values: records
        that hold them; None = of the generated rows. Raises BrokerError."""
        node = None
        try:
            if broker_is_ours(self._loaded, os.environ):
                node = start_broker(self._folder / "broker")
                self._bootstrap, self._broker_pid = node.bootstrap, node.pid
            if examples:
                if values is None:
                    rows, records = Rows(self._folder), examples // RECORD_ROWS
                    values = (record(rows, number, ends=number == records - 1) for number in range(records))
                    examples = records * RECORD_ROWS
                self._write(values, examples)
            yield
        finally:
            if node is not None:
                node.stop()
                shutil.rmtree(self._folder / "broker", ignore_errors=True)
            else:
                self._drop_topics()

    def steady(self, minutes: float, per_s: int) -> dict[str, Any]:
        """Memory of a trainer that is fed so many examples a second for so long, every SAMPLE_S, in MiB; new ids come all the
        while, in a table that soon is full. Raises TurnFailed."""
        rows, loaded = Rows(self._folder), self._with("steady", bits=STEADY_BITS)
        settings, ids, samples = loaded.settings, rows.ids, list[float]()
        ensure_topics(settings)
        sender, topic = producer(settings.kafka, "bench"), settings.kafka.topic("examples")
        a_pass = len(rows.labels) // RECORD_ROWS          # records until the rows begin again, under other ids
        self._say(f"steady: {per_s:,} examples/s for {minutes:g} minutes")
        journal, asked = settings.metrics_dir / "trainer.jsonl", time.monotonic()
        with self._trainer("steady", loaded) as child:
            while newest(journal, "trainer.status") is None:
                if child.poll() is not None or time.monotonic() - asked > STALLED_S:
                    raise TurnFailed(f"the trainer did not start: {_end_of(self._folder / 'steady.log')}")
                time.sleep(LOOK_EVERY_S)
            began, sent = time.monotonic(), 0
            while (spent := time.monotonic() - began) < 60 * minutes:
                if sent * RECORD_ROWS < spent * per_s:
                    if sent % a_pass == 0:
                        rows.ids = ids ^ np.random.default_rng(sent).integers(0, 1 << 64, dtype=np.uint64)
                    sender.send(topic, record(rows, sent, ends=False), partition=0).get(timeout=60)
                    sent += 1
                if spent > SAMPLE_S * (len(samples) + 1):
                    samples.append(_memory_mib(child.pid))
                    self._say(f"steady: {spent / 60:.1f} min, {samples[-1]:,.1f} MiB")
                if child.poll() is not None:
                    raise TurnFailed(f"the trainer ended after {spent:.0f} s: {_end_of(self._folder / 'steady.log')}")
                time.sleep(LOOK_EVERY_S)
            row = newest(journal, "trainer.status") or {}
        sender.close(timeout=10)
        learnt = int(row.get("examples_learnt", 0))
        sixths = [float(np.median(part)) for part in np.array_split(samples, 6) if len(part)]
        found = {
            "minutes": minutes, "examples_per_s": learnt / (60 * minutes), "examples": learnt, "first_mib": samples[0],
            "last_mib": samples[-1], "most_mib": max(samples), "sixths_mib": sixths,
        }
        self._say(
            f"steady: {learnt:,} of {sent * RECORD_ROWS:,} examples learnt; {samples[0]:,.1f} MiB at first, {samples[-1]:,.1f} "
            f"at last, {max(samples):,.1f} at most; medians of the sixths " + ", ".join(f"{part:,.1f}" for part in sixths)
        )
        return found

    def run(self, threads: int) -> dict[str, Any]:
        """Examples a second that a new trainer learnt, how many cores it and the broker took, and what share of the time its
        learner waited for examples. Raises TurnFailed."""
        return self.race(threads, {"learn": {}})["learn"]

    def race(self, threads: int, own: Mapping[str, Mapping[str, Any]], after: int = 0) -> dict[str, dict[str, Any]]:
        """The same of several, each with settings of its own: one runs while the others stand still, SLICE_S after SLICE_S, so
        that whatever else the machine does meets all of them alike. own: name, once in a bench, → settings; after: of the first
        so many examples nothing is counted. Raises TurnFailed."""
        with ExitStack() as stack:
            racers = []
            for name, settings in own.items():
                loaded = self._with(f"{name}{threads}", threads, own=settings)
                child = stack.enter_context(self._trainer(f"{name}{threads}", loaded))
                racers.append(racer := _Racer(child, loaded, self._examples, self._folder / f"{name}{threads}.log"))
                stack.callback(racer.go)                  # one that stands still cannot be told to end
                racer.stand()
            while running := [racer for racer in racers if not racer.done]:
                for racer in running:
                    racer.go()
                    until = time.monotonic() + SLICE_S
                    while not racer.done and (time.monotonic() < until or len(running) == 1):
                        time.sleep(SLICE_S)
                        racer.look(self._broker_pid)
                    racer.stand()
        found = {}
        for name, racer in zip(own, racers, strict=True):
            found[name] = one = {"threads": threads, **racer.speed(after)}
            self._say(
                f"from Kafka, {name}, {threads} threads: {one['examples_per_s']:,.0f} examples/s, trainer "
                f"{one['trainer_cores']:.2f} cores, broker {one['broker_cores']:.2f}, its learner idle {one['idle']:.0%}"
            )
        return found

    @contextmanager
    def _trainer(self, name: str, loaded: Loaded) -> Iterator[subprocess.Popen[bytes]]:
        """The trainer as users run it, its words in NAME.log."""
        with (self._folder / f"{name}.log").open("wb") as errors:
            child = subprocess.Popen(
                [sys.executable, "-m", "ops.cli", "trainer"], env=loaded.child_environment(os.environ),
                stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, preexec_fn=tied(), process_group=0,
            )
        try:
            yield child
        finally:
            end(child, STOP_TIMEOUT_S)
            shutil.rmtree(loaded.settings.store_dir, ignore_errors=True)

    def _with(
        self, name: str, threads: int = 1, bits: int | None = None, own: Mapping[str, Any] | None = None
    ) -> Loaded:
        """Settings of a model that has learnt nothing yet."""
        own = {
            "model.schema": self._folder / "schema.toml", **self._model, **(own or {}), "kafka.prefix": f"{self._name}-",
            "kafka.example_partitions": 1, "kafka.event_partitions": 1, "model.name": f"{self._name}-{name}",
            "learn.threads": threads, "var": self._folder / "var",
        }
        if bits is not None:
            own["model.bits"] = bits
        if self._bootstrap is not None:
            own["kafka.bootstrap"] = self._bootstrap
        flags = dict(self._loaded.overrides) | {
            key: ",".join(map(str, value)) if isinstance(value, tuple) else str(value) for key, value in own.items()
        }
        return load(self._loaded.file, [f"{key}={value}" for key, value in flags.items()], os.environ)

    def _write(self, values: Iterable[bytes], examples: int) -> None:
        settings, failed = self._with("any").settings, list[BaseException]()
        ensure_topics(settings)
        sender = producer(settings.kafka, "bench")
        try:
            for value in values:
                sender.send(settings.kafka.topic("examples"), value, partition=0).add_errback(failed.append)
            sender.flush(timeout=120)
        finally:
            sender.close(timeout=10)
        if failed:
            raise BrokerError(f"the broker did not take a record: {failed[0]}") from failed[0]
        self._examples = examples
        self._say(f"from Kafka: {self._examples:,} examples written")

    def _drop_topics(self) -> None:
        """Leave a Kafka that is not ours as it was."""
        with admin(self._with("any").settings.kafka) as client:
            ours = [name for name in client.list_topics() if name.startswith(f"{self._name}-")]
            if ours:
                client.delete_topics(ours)


class _Row(NamedTuple):
    """What a trainer's journal said. Seconds: wall clock, CPU of it and the broker, and that its learner waited."""

    examples: int
    time_s: float
    trainer_s: float
    broker_s: float
    idle_s: float


class _Racer:
    """A trainer that can be made to stand still."""

    def __init__(self, child: subprocess.Popen[bytes], loaded: Loaded, examples: int, log: Path) -> None:
        """examples: until which it learns. log: its words."""
        self._child, self._examples, self._log = child, examples, log
        self._journal = loaded.settings.metrics_dir / "trainer.jsonl"
        self._rows: list[_Row] = []
        self._ran: list[tuple[float, float]] = []       # from, to, wall clock
        self._since: float | None = time.time()
        self._moved_s = 0.0                             # of its running time, when it last learnt

    @property
    def done(self) -> bool:
        """Whether all is learnt."""
        return bool(self._rows) and self._rows[-1].examples >= self._examples

    def stand(self) -> None:
        """Still."""
        if self._since is not None:
            self._signal(signal.SIGSTOP)
            self._ran.append((self._since, time.time()))
            self._since = None

    def go(self) -> None:
        """On."""
        if self._since is None:
            self._since = time.time()
            self._signal(signal.SIGCONT)

    def look(self, broker: int | None) -> None:
        """At its journal, while it runs. broker: its process, where it is ours. Raises TurnFailed."""
        row = newest(self._journal, "trainer.replay_ended") or newest(self._journal, "trainer.status")
        now = self._running(0.0, time.time())
        if row is not None and row["examples_learnt"] > (self._rows[-1].examples if self._rows else -1):
            cpu, broker_s = _cpu_s(self._child.pid), _cpu_s(broker)
            self._rows.append(_Row(row["examples_learnt"], row["time_us"] / 1e6, cpu, broker_s, row["idle_s"]))
            self._moved_s = now
        if self._child.poll() is not None or now - self._moved_s > STALLED_S:
            raise TurnFailed(
                f"the trainer learnt {self._rows[-1].examples if self._rows else 0:,} of {self._examples:,} examples, its exit "
                f"code is {self._child.poll()}:\n{_end_of(self._log)}"
            )

    def speed(self, after: int) -> dict[str, Any]:
        """Of the examples from there on. What the first second learnt was waiting already, and the end waits for a last
        version: where there are enough lines between, those two are left out. Raises TurnFailed."""
        rows = [row for row in self._rows if row.examples >= after]
        if len(rows) < 2:
            raise TurnFailed(f"{len(rows)} status lines from example {after:,} to {self._examples:,}: give the trainer more")
        first, last = (rows[1], rows[-2]) if len(rows) > 4 else (rows[0], rows[-1])
        seconds, examples = self._running(first.time_s, last.time_s), last.examples - first.examples
        return {
            "examples": examples, "seconds": seconds, "examples_per_s": examples / seconds,
            "trainer_cores": (last.trainer_s - first.trainer_s) / seconds,
            "broker_cores": (last.broker_s - first.broker_s) / seconds, "idle": (last.idle_s - first.idle_s) / seconds,
        }

    def _running(self, start: float, stop: float) -> float:
        """Seconds that it ran of that time."""
        ran = self._ran if self._since is None else [*self._ran, (self._since, stop)]
        return sum(max(0.0, min(end, stop) - max(begin, start)) for begin, end in ran)

    def _signal(self, what: signal.Signals) -> None:
        """To it and those below it, at once: looking for them takes 1.5 ms of a core that a trainer wants."""
        with suppress(ProcessLookupError):
            os.killpg(self._child.pid, what)


def _cpu_s(pid: int | None) -> float:
    """CPU seconds of a process and of those below it; 0 where it is not ours."""
    try:
        own = psutil.Process(pid or 0)
        return float(sum(sum(one.cpu_times()[:2]) for one in (own, *own.children()))) if pid else 0.0
    except psutil.Error:
        return 0.0


def _memory_mib(pid: int) -> float:
    """Resident memory of a process."""
    return float(psutil.Process(pid).memory_info().rss) / 2**20


def _end_of(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-6:])
