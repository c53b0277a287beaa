"""The learner's speed beside DeepCTR-Torch, FuxiCTR and the limit: its network's matrix products and nothing else.

All learn the same generated rows. Each is a process of its own that waits while another has its turn of about a second, and
they take turns for several rounds, so that whatever else the machine does meets all of them; a ratio is the median of the
rounds' own ratios.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ops.bench.measuring.turns import Contender, Turn, close
from ops.bench.peers import environment
from ops.settings import Loaded
from schemas.config import the_one, value_of
from schemas.errors import ConfigError

FIELDS, VALUES = 39, 1_000_000     # all fields together
EXPONENT = 1.1                     # P(rank) ~ rank^−1.1: 17,500 different values in 1,024 rows; in Criteo's 10,100
ROWS = 131_072                     # generated, and learnt again and again
TURN_S = 0.8
BATCH, BITS = 1024, 22             # where nothing else is said

# The model that all have, and the optimiser of its network that the libraries' defaults name. What is set by hand comes before
# it; factors and hidden layers are then those of all.
MODEL: Mapping[str, Any] = {
    "model.architecture": "deepfm", "model.factors": 10, "model.hidden": (400, 400, 400), "model.statistics": False,
    "learn.dense_optimiser": "adam", "learn.dense_rate": 0.001,
}
PEERS = {"deepctr": "DeepCTR-Torch", "fuxi": "FuxiCTR"}
OWN = ("model.schema", "model.name", "model.bits", "learn.threads", "learn.batch_rows")   # not for the caller to set
PARTS = ("peers", "limit", "tables", "stream", "kafka", "phases")
STEADY, STEADY_PER_S = "steady", 1_500   # what is measured alone, and its examples a second


@dataclass(frozen=True, slots=True)
class Bar:
    """figure: its key in the report. least: what it must reach; or most, what it may. device: where it counts."""

    figure: str
    shown: str
    least: float | None = None
    most: float | None = None
    device: str = "cpu"

    def met(self, value: float) -> bool:
        """Whether the figure is good enough."""
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)


# On two threads at batch 1,024, unless it says otherwise; on a GPU they were meant for an H200.
BARS = (
    Bar("over_deepctr", "× DeepCTR-Torch", least=9.0),
    Bar("over_fuxi", "× FuxiCTR", least=7.0),
    Bar("of_limit_bf16", "of the limit in bf16", least=0.45),
    Bar("one_thread", "one thread's share of two's", least=0.55),
    Bar("batch_256", "batch 256's share of batch 1,024's", least=0.5),
    Bar("from_kafka", "examples/s from Kafka", least=60_000),
    Bar("tables", "fastest table over slowest, 2^18 to 2^24 rows", most=1.3),
    Bar("batch_1024_per_s", "examples/s at batch 1,024", least=1_000_000, device="cuda"),
    Bar("batch_16384_per_s", "examples/s at batch 16,384", least=5_000_000, device="cuda"),
    Bar("bytes_per_s", "examples/s from records in memory", least=1_000_000, device="cuda"),
)


def codes(rows: int, seed: int) -> tuple[NDArray[np.int32], list[int]]:
    """(rows, F) places in each field's vocabulary, and how many values each has; each field by Zipf's law."""
    rng = np.random.default_rng(seed)
    sizes = [VALUES // FIELDS + (at < VALUES % FIELDS) for at in range(FIELDS)]
    found = np.empty((rows, FIELDS), np.int32)
    for at, size in enumerate(sizes):
        chance = np.cumsum(np.arange(1, size + 1) ** -EXPONENT)
        found[:, at] = np.searchsorted(chance / chance[-1], rng.random(rows)).clip(max=size - 1)
    return found, sizes


def labels(found: NDArray[np.int32], sizes: Sequence[int], seed: int) -> NDArray[np.float32]:
    """(rows,) clicks that depend on every value a little: there is something to learn, and no divergence for the guard."""
    rng = np.random.default_rng(seed)
    logit = sum(rng.normal(0, 0.15, size)[column] for size, column in zip(sizes, found.T, strict=True)) - 1.5
    clicked: NDArray[np.float32] = (rng.random(len(found)) < 1 / (1 + np.exp(-logit))).astype(np.float32)
    return clicked


def schema_text() -> str:
    """A field schema of that many categories."""
    return 'name = "bench"\n' + "".join(
        f'\n[[field]]\nname = "f{at}"\nnumber = {at + 1}\nkind = "categorical"\nside = "item"\n' for at in range(FIELDS)
    )


class Bench:
    """The contenders, and the folder that they read their rows from."""

    def __init__(self, loaded: Loaded, device: str, parts: Sequence[str], say: Callable[[str], None], seed: int = 1) -> None:
        self._loaded, self._parts, self._say = loaded, parts, say
        self._settings = {**MODEL, "learn.device": device, "learn.batch_rows": BATCH, **_set_by_hand(loaded)}
        var = loaded.settings.var.resolve()
        self._peers = var / "peers"
        (var / "bench").mkdir(parents=True, exist_ok=True)
        self._dir = Path(mkdtemp(prefix="learn-", dir=var / "bench"))
        found, sizes = codes(ROWS, seed)
        np.save(self._dir / "codes.npy", found)
        np.save(self._dir / "labels.npy", labels(found, sizes, seed + 1))
        (self._dir / "schema.toml").write_text(schema_text())
        model = {"factors": self._settings["model.factors"], "hidden": self._settings["model.hidden"]}
        (self._dir / "task.json").write_text(json.dumps({**model, "sizes": sizes, "device": device}))
        self.turns: dict[str, list[Turn]] = {}
        self._started: list[Contender] = []

    @contextmanager
    def contenders(self) -> Iterator[None]:
        """Start them; the libraries are installed first, if they never were."""
        try:
            self._ours = self._start("ours", [sys.executable, "-m", "ops.bench.learning.child"], dict(os.environ))
            self._others = {}
            if "peers" in self._parts:
                environment.make(self._peers, self._say)
                python = str(environment.python_of(self._peers))
                self._others = {
                    name: self._start(name, [python, "-m", "ops.bench.peers.speed", name], environment.variables())
                    for name in PEERS
                }
            yield
        finally:
            self.rest()
            shutil.rmtree(self._dir, ignore_errors=True)

    def _start(self, name: str, command: list[str], env: Mapping[str, str]) -> Contender:
        self._started.append(Contender(name, [*command, str(self._dir)], env, self._dir / f"{name}.log"))
        return self._started[-1]

    def round(self, cells: Sequence[tuple[int, int]], tables: Sequence[int]) -> None:
        """Everybody's turn in each cell: (threads, batch)."""
        for threads, batch in cells:
            self._turn(_name("ours", threads, batch), self._ours, self._task("learner", threads, batch))
            for name, other in self._others.items():
                self._turn(_name(name, threads, batch), other, {"threads": threads, "batch": batch})
            if "limit" in self._parts:
                task = self._task("learner", threads, batch, precision="fp32")
                self._turn(_name("ours_fp32", threads, batch), self._ours, task)
                for precision in ("bf16", "fp32"):
                    task = {"what": "limit", "threads": threads, "batch": batch, "precision": precision}
                    self._turn(_name(f"limit_{precision}", threads, batch), self._ours, task)
        threads = max(threads for threads, _ in cells)
        if "stream" in self._parts:
            for what in ("guarded", "bytes"):
                self._turn(_name(what, threads, BATCH), self._ours, self._task(what, threads, BATCH))
        for bits in tables:
            self._turn(f"2^{bits}", self._ours, self._task("learner", threads, BATCH, bits))

    def rest(self) -> None:
        """No more turns: memory and cores are free."""
        close(self._started)
        self._started = []

    def phases(self, threads: int, batch: int) -> dict[str, float]:
        """Share of each phase of our step."""
        return self._ours.ask({**self._task("learner", threads, batch), "ask": "phases"}, 0)

    def _task(self, what: str, threads: int, batch: int, bits: int = BITS, precision: str = "") -> dict[str, Any]:
        own = self._settings | ({"learn.precision": precision} if precision else {})
        return {"what": what, "threads": threads, "batch": batch, "bits": bits, "settings": own}

    def from_kafka(self, threads: Sequence[int], examples: int) -> list[dict[str, Any]]:
        """The trainer on so many examples in Kafka, once for each number of threads."""
        from ops.bench.learning.from_kafka import FromKafka

        model = {key: value for key, value in self._settings.items() if key != "learn.threads"} | {"model.bits": BITS}
        kafka = FromKafka(self._loaded, self._dir, model, self._say)
        with kafka.broker(examples):
            return [kafka.run(number) for number in threads]

    def steady(self, minutes: float) -> dict[str, Any]:
        """The trainer's memory over so long a stream, and nothing else."""
        from ops.bench.learning.from_kafka import FromKafka

        kafka = FromKafka(self._loaded, self._dir, self._settings, self._say)
        try:
            with kafka.broker(0):
                return kafka.steady(minutes, STEADY_PER_S)
        finally:
            shutil.rmtree(self._dir, ignore_errors=True)

    def _turn(self, name: str, contender: Contender, task: Mapping[str, Any]) -> None:
        self.turns.setdefault(name, []).append(contender.turn(task, TURN_S))


def cells_of(threads: Sequence[int], batches: Sequence[int]) -> list[tuple[int, int]]:
    """(threads, batch): the most threads with each batch, fewer threads with one batch."""
    most = max(threads)
    one = BATCH if BATCH in batches else batches[0]
    return [(number, batch) for number in sorted(threads, reverse=True) for batch in batches if number == most or batch == one]


def compare(
    loaded: Loaded, *, device: str, threads: Sequence[int], batches: Sequence[int], tables: Sequence[int], rounds: int,
    parts: Sequence[str], examples: int, say: Callable[[str], None],
) -> dict[str, Any]:
    """All of it. Raises TurnFailed, PeerError."""
    bench, cells = Bench(loaded, device, parts, say), cells_of(threads, batches)
    with bench.contenders():
        for turn in range(rounds):
            bench.round(cells, tables if "tables" in parts else ())
            last = {name: turns[-1].rate for name, turns in bench.turns.items()}
            say(f"round {turn + 1} of {rounds}, examples/s: " + ", ".join(f"{name} {rate:,.0f}" for name, rate in last.items()))
        phases = {
            f"{number} threads, batch {batch}": bench.phases(number, batch) for number, batch in cells
        } if "phases" in parts else {}
        bench.rest()
        kafka = bench.from_kafka(sorted(threads), examples) if "kafka" in parts else []
    return report(bench.turns, cells, tables if "tables" in parts else (), kafka, device) | {
        "phases": phases, "rounds": rounds, "device": device, "load": list(os.getloadavg()), "cores": os.cpu_count(),
    }


def together(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of several reports the median of each figure that a bar asks for, its least and most, and the bars by the medians."""
    figures = {
        bar.figure: [run[bar.figure] for run in runs] for bar in BARS if all(bar.figure in run["bars"] for run in runs)
    }
    found = {
        key: {"median": statistics.median(seen), "least": min(seen), "most": max(seen)} for key, seen in figures.items()
    }
    bars = {
        bar.figure: {
            "wanted": bar.least or bar.most, "seen": found[bar.figure]["median"], "met": bar.met(found[bar.figure]["median"]),
        }
        for bar in BARS if bar.figure in found
    }
    return {"runs": list(runs), "figures": found, "bars": bars}


def steady(loaded: Loaded, *, device: str, minutes: float, say: Callable[[str], None]) -> dict[str, Any]:
    """A trainer's memory over so long a stream, in MiB. Raises TurnFailed."""
    return Bench(loaded, device, [], say).steady(minutes)


def report(
    turns: Mapping[str, Sequence[Turn]], cells: Sequence[tuple[int, int]], tables: Sequence[int],
    kafka: Sequence[Mapping[str, Any]] = (), device: str = "cpu",
) -> dict[str, Any]:
    """Medians, spreads and ratios. …_by_cpu: by the CPU time that each was given, for a machine that others use too."""
    speeds = {name: _speed(found) for name, found in turns.items()}
    most = max(threads for threads, _ in cells)
    ratios: dict[str, dict[str, float]] = {}
    for threads, batch in cells:
        ours = _name("ours", threads, batch)
        cell = {}
        for other, shown in _SHOWN.items():
            beside = _name(other, threads, batch)
            one = _name("ours_fp32", threads, batch) if other == "limit_fp32" else ours
            if beside in turns:
                cell[shown] = _ratio(turns[one], turns[beside])
                cell[f"{shown}_by_cpu"] = _ratio(turns[one], turns[beside], by_cpu=True)
        ratios[_name("", threads, batch).strip()] = cell
    found: dict[str, Any] = {"examples_per_s": speeds, "ratios": ratios}
    here = _name("ours", most, BATCH)
    found |= ratios.get(_name("", most, BATCH).strip(), {})
    if here in turns:
        if most > 1 and (one := _name("ours", 1, BATCH)) in turns:
            found["one_thread"] = _ratio(turns[one], turns[here])
        if (small := _name("ours", most, 256)) in turns:
            found["batch_256"] = _ratio(turns[small], turns[here])
    if tables:
        each = [_ratio(turns[f"2^{bits}"], turns[f"2^{tables[0]}"]) for bits in tables]
        found["tables"] = max(each) / min(each)
    for batch in (BATCH, 16_384):
        if (ours := _name("ours", most, batch)) in turns:
            found[f"batch_{batch}_per_s"] = speeds[ours]["median"]
    if (whole := _name("bytes", most, BATCH)) in turns:
        found["bytes_per_s"] = speeds[whole]["median"]
    if kafka:
        found["from_kafka"] = max(run["examples_per_s"] for run in kafka)
        found["from_kafka_runs"] = list(kafka)
    found["bars"] = {
        bar.figure: {"wanted": bar.least or bar.most, "seen": found[bar.figure], "met": bar.met(found[bar.figure])}
        for bar in BARS if bar.figure in found and bar.device == device
    }
    return found


# Who stands beside, and what the ratio is called; beside the limit in fp32 stands ours in fp32.
_SHOWN = {"deepctr": "over_deepctr", "fuxi": "over_fuxi", "limit_bf16": "of_limit_bf16", "limit_fp32": "of_limit_fp32"}


def _name(who: str, threads: int, batch: int) -> str:
    return f"{who} {threads} threads batch {batch}"


def _speed(turns: Sequence[Turn]) -> dict[str, float]:
    rates = [turn.rate for turn in turns]
    return {
        "median": statistics.median(rates), "least": min(rates), "most": max(rates),
        "per_cpu_s": statistics.median(turn.examples / turn.cpu_s for turn in turns),
    }


def _ratio(ours: Sequence[Turn], others: Sequence[Turn], by_cpu: bool = False) -> float:
    """Median of the rounds' own ratios."""
    def speed(turn: Turn) -> float:
        return turn.examples / turn.cpu_s if by_cpu else turn.rate

    return statistics.median(speed(one) / speed(other) for one, other in zip(ours, others, strict=True))


def table(found: Mapping[str, Any]) -> str:
    """The report for a person."""
    lines = [f"{'examples/s':<34}{'median':>10}{'least':>10}{'most':>10}{'per CPU s':>11}"]
    for name, speed in found["examples_per_s"].items():
        lines.append(
            f"{name:<34}{speed['median']:>10,.0f}{speed['least']:>10,.0f}{speed['most']:>10,.0f}{speed['per_cpu_s']:>11,.0f}"
        )
    lines += ["", f"{'ours over':<24}" + "".join(f"{name:>17}" for name in _SHOWN)]
    for cell, ratios in found["ratios"].items():
        shown = [f"{ratios[key]:.2f} ({ratios[f'{key}_by_cpu']:.2f})" if key in ratios else "" for key in _SHOWN.values()]
        lines.append(f"{cell:<24}" + "".join(f"{text:>17}" for text in shown))
    lines.append("(in brackets: by CPU time)")
    if found["phases"]:
        names = list(found["phases"])
        lines += ["", f"{'share of a step':<16}" + "".join(f"{name:>24}" for name in names)]
        for phase in found["phases"][names[0]]:
            cells = [found["phases"][name][phase] for name in names]
            lines.append(f"{phase:<16}" + "".join(f"{cell:>24.2f}" if phase == "ms" else f"{cell:>24.0%}" for cell in cells))
    lines.append("")
    bars = {bar.figure: bar for bar in BARS}
    for key, judged in found["bars"].items():
        verdict, word = "met" if judged["met"] else "MISSED", "at least" if bars[key].least is not None else "at most"
        lines.append(f"{verdict:<8}{judged['seen']:>8.2f}  {word} {judged['wanted']:<6} {bars[key].shown}")
    return "\n".join(lines)


def spread(found: Mapping[str, Any]) -> str:
    """What `together` found, for a person, below each run's own report."""
    shown = {bar.figure: bar.shown for bar in BARS}
    lines = [f"{'of ' + str(len(found['runs'])) + ' runs':<50}{'median':>10}{'least':>10}{'most':>10}{'wanted':>10}"]
    for key, seen in found["figures"].items():
        numbers = (seen["median"], seen["least"], seen["most"], found["bars"][key]["wanted"])
        lines.append(f"{shown[key]:<50}" + "".join(f"{number:>10,.2f}" for number in numbers))
    return "\n".join([*(f"{table(run)}\n" for run in found["runs"]), *lines])


def missed(found: Mapping[str, Any]) -> str:
    """Which bars were not reached; empty: none."""
    shown = {bar.figure: bar.shown for bar in BARS}
    return "; ".join(
        f"{judged['seen']:.2f} {shown[key]}, wanted {judged['wanted']}"
        for key, judged in found["bars"].items() if not judged["met"]
    )


def numbers(option: str, text: str) -> list[int]:
    """"1,2" → [1, 2]. Raises ConfigError."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise ConfigError(f"{option} {text}: whole numbers from 1 on, like 256,1024")
    return found


def parts_of(only: str) -> list[str]:
    """What to measure beside ours. Raises ConfigError naming the nearest."""
    named = [name.strip() for name in only.split(",") if name.strip()]
    if named == [STEADY]:
        return named
    for name in named:
        the_one("--only", name, dict.fromkeys(PARTS))
    return [name for name in PARTS if name in named or not named]


def _set_by_hand(loaded: Loaded) -> dict[str, Any]:
    """What was given for the model and the learner, by flag, variable or file: it comes before MODEL."""
    return {
        key: value_of(loaded.settings, key) for key, origin in loaded.origins.items()
        if key.startswith(("model.", "learn.")) and key not in OWN and not origin.startswith("default")
    }
