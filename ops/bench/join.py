"""The joiner's speed beside a Faust that does nothing, where its time goes, and what an open impression costs in memory.

All events are in Kafka before anything is measured. Each contender reads them in a process of its own on one core, the broker
has another, and they take turns for several rounds, so that whatever else the machine does meets all of them. What the joiner
did is read off the topic it wrote to: offsets of events and the broker's clock, from the first example to the last.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kafka import TopicPartition

from ops.bench.joining.traffic import Traffic, events
from ops.broker import start_broker
from ops.formats import closing_tick, opening_tick
from ops.kafka.cluster import admin, consumer, producer
from ops.kafka.topics import ensure_topics
from ops.machine.processes import end, tie_to_parent
from ops.settings import Loaded, broker_is_ours, load
from ops.watching.journals import last
from schemas import fields
from schemas.config import Settings
from schemas.errors import BrokerError, FreshetError
from schemas.examples import decode

CLICKS_PER_ITEM = 0.025     # 0.5 a slate of 20
LEAD = 100_000              # events written and not read, where they are written meanwhile
STOP_TIMEOUT_S = 60.0
SLATES_WANTED = 120_000     # examples a second, of slates of 20, on one core
OF_STOCK_WANTED = 0.9       # of what stock Faust reads, of slates of one item
WITH_BARS = ("single", "slates")   # run in every round, the other shapes in the first


class BenchFailed(FreshetError):
    """A contender ended before it was done."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """What one topic of events holds. slates: how many; the first window of them leads to no examples yet."""

    name: str
    traffic: Traffic
    slates: int


@dataclass(slots=True)
class Run:
    """What one contender did in one round, as its topics and the system tell."""

    records_per_s: float
    examples_per_s: float = 0.0
    cpu_share: float = 0.0                 # of its core
    bytes_per_open: float | None = None    # of the process's memory, per impression that waits for its label
    open_most: int = 0


@dataclass(slots=True)
class _Memory:
    """The process's memory beside how many impressions it held."""

    seen: list[tuple[int, int]] = field(default_factory=list)   # (open impressions, bytes)

    def per_open(self) -> float | None:
        """Slope between the least and the most that were open."""
        if len(self.seen) < 2:
            return None
        (few, low), (many, high) = min(self.seen), max(self.seen)
        return (high - low) / (many - few) if many > few and high > low else None   # too few to stand out: not known


class Bench:
    """A broker with the events of all shapes, and contenders that read them one after the other."""

    def __init__(self, loaded: Loaded, shapes: Sequence[Shape], seed: int, say: Callable[[str], None]) -> None:
        self._name = f"bench-{secrets.token_hex(3)}"
        self._loaded, self._shapes, self._seed, self._say = loaded, {shape.name: shape for shape in shapes}, seed, say
        self._dir = loaded.settings.var.resolve() / "bench" / self._name
        self._bootstrap: str | None = None
        self._runs = 0
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self._cores = cores if len(cores) > 1 else []

    @property
    def pinned(self) -> bool:
        """Whether broker and contender have a core each."""
        return bool(self._cores)

    @contextmanager
    def broker(self) -> Iterator[None]:
        """Kafka of our own, on the first core with this process, or the one that FRESHET_KAFKA names."""
        self._dir.mkdir(parents=True)
        node = None
        try:
            if self._cores:
                os.sched_setaffinity(0, {self._cores[0]})
            if broker_is_ours(self._loaded, os.environ):
                node = start_broker(self._dir / "broker")
                self._bootstrap = node.bootstrap
            yield
        finally:
            if self._cores:
                os.sched_setaffinity(0, set(self._cores))
            if node is not None:
                node.stop()
            else:
                self._drop_topics()
            shutil.rmtree(self._dir, ignore_errors=True)

    def settings(self, shape: str, model: str = "publisher") -> Loaded:
        """Topics of one shape; a model's name makes a group that has read nothing yet."""
        own = {
            "kafka.prefix": f"{self._name}-{shape}-", "model.name": model, "model.schema": "appstore", "var": str(self._dir),
            "kafka.event_partitions": "1", "kafka.example_partitions": "1",
        }
        if self._bootstrap is not None:
            own["kafka.bootstrap"] = self._bootstrap
        flags = dict(self._loaded.overrides) | own
        return load(self._loaded.file, [f"{key}={value}" for key, value in flags.items()], os.environ)

    def publish(self, name: str) -> int:
        """Write a shape's events, between an opening and a closing tick. Returns how many records there are then."""
        shape, settings = self._shapes[name], self.settings(name).settings
        began, count = time.monotonic(), 0
        for count in self._publishing(shape, settings):  # noqa: B007 the last one is what is wanted
            pass
        self._say(f"{name}: {count:,} events written in {time.monotonic() - began:.0f} s")
        return count + 2

    def _publishing(self, shape: Shape, settings: Settings) -> Iterator[int]:
        """Write event after event; how many there are, after each."""
        count = time_us = 0
        ensure_topics(settings)
        topic, failed = settings.kafka.topic("events"), list[BaseException]()
        sender = producer(settings.kafka, "bench")
        try:
            for key, value, time_us in events(shape.traffic, fields.load(settings.model.schema), shape.slates, self._seed):
                if not count:
                    sender.send(topic, opening_tick(time_us), partition=0)
                sender.send(topic, value, key=key, partition=0).add_errback(failed.append)
                count += 1
                yield count
            sender.send(topic, closing_tick(settings, time_us), partition=0)
            sender.flush(timeout=120)
        finally:
            sender.close(timeout=10)
        if failed:
            raise BrokerError(f"the broker did not take an event: {failed[0]}") from failed[0]

    def stock(self, name: str, records: int) -> Run:
        """Stock Faust on a shape's events."""
        settings = self.settings(name).settings
        with self._child(name, "stock", "-m", "ops.bench.joining.child", "stock", settings.kafka.topic("events"),
                         f"{settings.kafka.prefix}stock-{self._next()}", str(records)) as child:
            out, _ = child.communicate(timeout=600)
        if child.returncode or not out:
            raise BenchFailed(f"stock Faust ended with {child.returncode}; its last lines are in {self._dir / 'stock.log'}")
        told = json.loads(out)
        return Run(records_per_s=records / told["seconds"], cpu_share=told["cpu_seconds"] / told["seconds"])

    def joiner(self, name: str, records: int) -> Run:
        """Our joiner on a shape's events, as `freshet joiner` runs it."""
        model = f"joiner{self._next()}"
        loaded = self.settings(name, model)
        written = self._end(loaded.settings)
        with self._child(name, model, "-m", "ops.cli", "joiner") as child:
            memory, cpu_share = self._watch(child, loaded.settings, records)
        run = self._read(loaded.settings, written, records - 1)
        run.bytes_per_open, run.open_most, run.cpu_share = memory.per_open(), max(memory.seen, default=(0, 0))[0], cpu_share
        return run

    def stages(self, name: str, records: int) -> dict[str, float]:
        """µs of CPU per record, by stage, of a joiner that is watched."""
        model = f"stages{self._next()}"
        loaded = self.settings(name, model)
        with self._child(name, model, "-m", "ops.bench.joining.child", "stages") as child:
            self._watch(child, loaded.settings, records)
        found: dict[str, float] = json.loads((self._dir / "stages.json").read_text())["us_per_record"]
        return found

    def memory(self, shape: Shape, count: int, points: int, told: Callable[[dict[str, int]], None]) -> None:
        """A joiner's memory at so many points, while events are written for it."""
        model = f"memory{self._next()}"
        settings = self.settings(shape.name, model).settings
        ensure_topics(settings)
        due, lead = count / points, min(LEAD, max(1000, count // (2 * points)))
        with self._child(shape.name, model, "-m", "ops.cli", "joiner") as child:
            for written in self._publishing(shape, settings):
                while written % 1000 == 0:
                    if child.poll() is not None:
                        raise BenchFailed(f"the joiner ended with {child.returncode}: {self._dir / model}.log")
                    status = last(settings, "joiner", "joiner.status")
                    read = sum(status["counts"].get(kind, 0) for kind in ("impressions", "actions")) if status else 0
                    if status and read >= due:
                        due += count / points
                        told({"events": read, "open": status["open"], "bytes": _memory_bytes(child.pid)})
                        self._say(f"memory: {read:,} events, {_memory_bytes(child.pid) / 1e6:,.0f} MB")
                    if written - read < lead:
                        break
                    time.sleep(0.05)
            self._watch(child, settings, count)
            told({"events": count, "open": 0, "bytes": _memory_bytes(child.pid)})

    # --- children ---

    def _next(self) -> int:
        self._runs += 1
        return self._runs

    @contextmanager
    def _child(self, shape: str, model: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """A Python process on the core that is the contenders'. It is told to end when the block does."""
        env = self.settings(shape, model).child_environment(os.environ) | {"OMP_NUM_THREADS": "1"}
        parent, core = os.getpid(), self._cores[1:2]

        def prepare() -> None:
            tie_to_parent(parent)
            if core:
                os.sched_setaffinity(0, core)

        with (self._dir / f"{model}.log").open("wb") as log:
            child = subprocess.Popen(
                [sys.executable, *arguments], env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
                preexec_fn=prepare,
            )
        try:
            yield child
        finally:
            end(child, STOP_TIMEOUT_S)

    def _watch(self, child: subprocess.Popen[bytes], settings: Settings, records: int) -> tuple[_Memory, float]:
        """Wait until a joiner has come to the closing tick; its memory on the way, and its share of its core."""
        memory, status_us, begun = _Memory(), 0, None
        while True:
            time.sleep(0.05)
            status = last(settings, "joiner", "joiner.status")
            if child.poll() is not None:
                raise BenchFailed(f"the joiner ended with {child.returncode}: {(self._dir / settings.model.name)}.log")
            if status is None or status["time_us"] == status_us or not status["counts"]:
                continue
            status_us = status["time_us"]
            cpu_s = _cpu_s(child.pid)
            begun = begun or (time.monotonic(), cpu_s)
            if status["counts"].get("flush"):
                return memory, (cpu_s - begun[1]) / max(time.monotonic() - begun[0], 1e-9)
            memory.seen.append((status["open"], _memory_bytes(child.pid)))

    # --- what the topics say ---

    def _end(self, settings: Settings) -> int:
        reader = consumer(settings.kafka, "bench")
        try:
            place = TopicPartition(settings.kafka.topic("examples"), 0)
            return int(reader.end_offsets([place])[place])
        finally:
            reader.close()

    def _read(self, settings: Settings, start: int, closing: int) -> Run:
        """Speed between the first and the last example that came before the closing tick's."""
        reader = consumer(settings.kafka, "bench")
        place = TopicPartition(settings.kafka.topic("examples"), 0)
        seen: list[tuple[int, int, int]] = []                    # (broker's clock in ms, last trigger, examples)
        try:
            reader.assign([place])
            end = reader.end_offsets([place])[place]
            reader.seek(place, start)
            while reader.position(place) < end:
                for record in reader.poll(timeout_ms=1000).get(place, []):
                    rows = decode(record.value)
                    if len(rows) and rows.trigger[-1] < closing:
                        seen.append((record.timestamp, int(rows.trigger[-1]), len(rows)))
        finally:
            reader.close()
        if len(seen) < 2 or seen[-1][0] == seen[0][0]:
            raise BenchFailed("too few examples to measure: give it more slates")
        seconds = (seen[-1][0] - seen[0][0]) / 1000
        return Run(
            records_per_s=(seen[-1][1] - seen[0][1]) / seconds, examples_per_s=sum(rows for _, _, rows in seen[1:]) / seconds
        )

    def _drop_topics(self) -> None:
        """Leave a Kafka that is not ours as it was."""
        kafka = self.settings("any").settings.kafka
        with admin(kafka) as client:
            ours = [name for name in client.list_topics() if name.startswith(f"{self._name}-")]
            if ours:
                client.delete_topics(ours)


def _cpu_s(pid: int) -> float:
    """CPU seconds of a process; 0 where the system has no /proc."""
    try:
        times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")


def _memory_bytes(pid: int) -> int:
    """Resident memory of a process."""
    told = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return int(told or 0) * 1024


def shapes_of(slates: int, singles: int) -> list[Shape]:
    """What is measured: slates of 20, in three forms, and slates of one item. Rates of event time are those of the bars."""
    def twenty(name: str, **more: Any) -> Shape:
        traffic = Traffic(items=20, clicks=20 * CLICKS_PER_ITEM, slates_per_s=SLATES_WANTED / 20, **more)
        return Shape(name=name, traffic=traffic, slates=slates)

    single = Traffic(items=1, clicks=CLICKS_PER_ITEM, slates_per_s=15_000)
    return [
        Shape(name="single", traffic=single, slates=singles), twenty("slates"), twenty("echo", echo=True),
        twenty("json", form="json"),
    ]


def compare(loaded: Loaded, slates: int, singles: int, rounds: int, seed: int, say: Callable[[str], None]) -> dict[str, Any]:
    """The contenders in turns, shapes without a bar in the first round only; medians. Raises BenchFailed, BrokerError."""
    shapes = shapes_of(slates, singles)
    bench = Bench(loaded, shapes, seed, say)
    stock: list[Run] = []
    ours: dict[str, list[Run]] = {shape.name: [] for shape in shapes}
    with bench.broker():
        records = {shape.name: bench.publish(shape.name) for shape in shapes}
        for turn in range(rounds):
            stock.append(bench.stock("single", records["single"]))
            names = [shape.name for shape in shapes if not turn or shape.name in WITH_BARS]
            for name in names:
                ours[name].append(bench.joiner(name, records[name]))
            said = ", ".join(f"{name} {ours[name][-1].records_per_s:,.0f}" for name in names)
            say(f"round {turn + 1} of {rounds}, records/s: stock Faust {stock[-1].records_per_s:,.0f}, {said}")
        stages = {name: bench.stages(name, records[name]) for name in ("single", "slates")}
    return report(stock, ours, stages) | {"rounds": rounds, "slates": slates, "singles": singles, "pinned": bench.pinned}


def report(
    stock: Sequence[Run], ours: Mapping[str, Sequence[Run]], stages: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """Medians and ratios. …_per_cpu_s: by the CPU time that the process got, for a machine that others use too."""
    def median(runs: Sequence[Run], figure: Callable[[Run], float | None]) -> float | None:
        known = [value for value in map(figure, runs) if value is not None]
        return statistics.median(known) if known else None

    def per_cpu(run: Run) -> float | None:
        return run.records_per_s / run.cpu_share if run.cpu_share else None

    shapes = {
        name: {
            "records_per_s": median(runs, lambda run: run.records_per_s),
            "examples_per_s": median(runs, lambda run: run.examples_per_s),
            "examples_per_cpu_s": median(runs, lambda run: run.examples_per_s / run.cpu_share if run.cpu_share else None),
            "cpu_share": median(runs, lambda run: run.cpu_share),
            "bytes_per_open_impression": median(runs, lambda run: run.bytes_per_open),
            "open_impressions": max(run.open_most for run in runs),
        }
        for name, runs in ours.items()
    }
    return {
        "records_per_s": shapes["single"]["records_per_s"],
        "stock_faust_records_per_s": median(stock, lambda run: run.records_per_s),
        "of_stock_faust": statistics.median(
            run.records_per_s / beside.records_per_s for run, beside in zip(ours["single"], stock, strict=True)
        ),
        "of_stock_faust_by_cpu": (median(ours["single"], per_cpu) or 0.0) / (median(stock, per_cpu) or 1.0),
        "examples_per_s": shapes["slates"]["examples_per_s"],
        "bytes_per_open_impression": shapes["slates"]["bytes_per_open_impression"],
        "bars": {"examples_per_s": SLATES_WANTED, "of_stock_faust": OF_STOCK_WANTED},
        "shapes": shapes, "us_per_record": {name: dict(found) for name, found in stages.items()},
    }


def table(found: Mapping[str, Any]) -> str:
    """The report for a person."""
    lines = [
        f"slates of 20      {found['examples_per_s']:>10,.0f} examples/s   wanted {SLATES_WANTED:,}",
        f"slates of one     {found['records_per_s']:>10,.0f} records/s    {found['of_stock_faust']:.2f} of stock Faust doing "
        f"nothing ({found['stock_faust_records_per_s']:,.0f}), wanted {OF_STOCK_WANTED}; "
        f"by CPU time {found['of_stock_faust_by_cpu']:.2f}",
        "", f"{'':<8}{'records/s':>11}{'examples/s':>12}{'per CPU s':>12}{'of a core':>11}{'bytes per open impression':>27}",
    ]
    for name, shape in found["shapes"].items():
        each = "unknown" if shape["bytes_per_open_impression"] is None else f"{shape['bytes_per_open_impression']:,.0f}"
        per_cpu = "unknown" if shape["examples_per_cpu_s"] is None else f"{shape['examples_per_cpu_s']:,.0f}"
        lines.append(
            f"{name:<8}{shape['records_per_s']:>11,.0f}{shape['examples_per_s']:>12,.0f}{per_cpu:>12}{shape['cpu_share']:>11.0%}"
            f"{each:>27}"
        )
    names = list(found["us_per_record"])
    lines += ["", f"{'CPU µs per record':<18}" + "".join(f"{name:>16}" for name in names)]
    totals = {name: sum(found["us_per_record"][name].values()) for name in names}
    for stage in found["us_per_record"][names[0]]:
        cells = [(found["us_per_record"][name][stage], totals[name]) for name in names]
        lines.append(f"{stage:<18}" + "".join(f"{f'{us:.1f}  {us / total:>4.0%}':>16}" for us, total in cells))
    return "\n".join(lines)


def memory_over(
    loaded: Loaded, count: int, seed: int, say: Callable[[str], None], points: int = 10
) -> list[dict[str, int]]:
    """The joiner's memory while so many events pass through it: {events, open, bytes} at so many points.

    Slates of one item at 1,000 a second of event time, so that what is open stays the same. They are written while it reads,
    at most LEAD of them ahead. Raises BenchFailed, BrokerError.
    """
    traffic = Traffic(items=1, clicks=CLICKS_PER_ITEM, slates_per_s=1000)
    shape = Shape(name="memory", traffic=traffic, slates=round(count / (1 + CLICKS_PER_ITEM)))
    bench = Bench(loaded, [shape], seed, say)
    seen: list[dict[str, int]] = []
    with bench.broker():
        bench.memory(shape, count, points, seen.append)
    return seen


def missed(found: Mapping[str, Any]) -> str:
    """Which bars were not reached; empty: none."""
    short = []
    if found["examples_per_s"] < SLATES_WANTED:
        short.append(f"{found['examples_per_s']:,.0f} examples/s of slates of 20, wanted {SLATES_WANTED:,}")
    if found["of_stock_faust"] < OF_STOCK_WANTED:
        short.append(f"slates of one item run at {found['of_stock_faust']:.2f} of stock Faust, wanted {OF_STOCK_WANTED}")
    return "; ".join(short)
