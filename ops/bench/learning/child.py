"""What `freshet bench learn` runs in a process of its own: `python -m ops.bench.learning.child FOLDER` takes turns
(ops/bench/measuring/turns.py) as our learner, as our trainer's way from a record's bytes to weights, or as the machine's
limit."""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ops.bench.measuring.meters import Meters
from ops.bench.measuring.turns import Step, Task, Work, serve
from ops.terminal.logging import configure
from schemas import fields
from schemas.bags import Bags, Floats
from schemas.config import Settings, Source, build
from schemas.examples import End, Ends, Examples, after_all_of, decode, empty_ends, encode
from stream_trainer.learning import learner as learner_module
from stream_trainer.learning.guard import Guard
from stream_trainer.learning.intake import Intake
from stream_trainer.learning.learner import Learner
from stream_trainer.learning.once import Once
from stream_trainer.learning.optimisers import DenseOptimiser
from stream_trainer.learning.table import Table
from stream_trainer.training import Training
from stream_trainer.watching.progressive import Progressive

RECORD_ROWS = 1024         # of a record of `examples`, as the joiner makes them
RECORDS = 64               # of those that the way from bytes is measured with, round and round
IMPRESSION_ITEMS = 32      # of an impression in them
PHASES_S = 1.0             # the phases are measured over so long

PHASES = ("unique", "gather", "forward", "backward", "rows back", "dense step", "score")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class Rows:
    """The generated rows as our learner takes them: (n, F) random 64-bit ids, one for each value of each field."""

    def __init__(self, folder: Path) -> None:
        self.options: dict[str, Any] = json.loads((folder / "task.json").read_text())
        codes, self.labels = np.load(folder / "codes.npy"), np.load(folder / "labels.npy")
        self.ids_of = values(self.options["sizes"])
        starts = np.concatenate(([0], np.cumsum(self.options["sizes"])[:-1]))
        self.ids: NDArray[np.uint64] = self.ids_of[codes + starts]                          # (n, F)
        self.schema = fields.load(str(folder / "schema.toml"))

    def batches(self, rows: int) -> Iterator[tuple[Bags, Floats]]:
        """Batches of so many rows, round and round."""
        wide = self.ids.shape[1]
        cut = [
            (Bags(wide, self.ids[start : start + rows].reshape(-1)), self.labels[start : start + rows])
            for start in range(0, len(self.labels) - rows + 1, rows)
        ]
        return itertools.cycle(cut)

    def records(self) -> list[bytes]:
        """Records of `examples` with the first of these rows, from one source partition."""
        last = min(len(self.labels) // RECORD_ROWS, RECORDS)
        return [record(self, number, number == last - 1) for number in range(last)]


def values(sizes: list[int]) -> NDArray[np.uint64]:
    """An id for each value of each field, field after field."""
    return np.random.default_rng(7).integers(0, 1 << 64, sum(sizes), np.uint64)


def record(rows: Rows, number: int, ends: bool) -> bytes:
    """Stretch `number` of the rows, round and round, as a record; ends: the replay ends with it."""
    start = number * RECORD_ROWS % (len(rows.labels) // RECORD_ROWS * RECORD_ROWS)
    part = slice(start, start + RECORD_ROWS)
    at, labels = np.arange(number * RECORD_ROWS, (number + 1) * RECORD_ROWS), rows.labels[part]
    impression, item = at // IMPRESSION_ITEMS, at % IMPRESSION_ITEMS
    time_us = 1_767_225_600_000_000 + at * 10
    final = int(impression[-1])
    return encode(Examples(
        source_partition=0, after=after_all_of(int(impression[0]) - 1), through=after_all_of(final),
        field_numbers=rows.schema.numbers, field_digests=rows.schema.digests, trigger=impression, impression=impression,
        item=item.astype(np.uint16), label=labels, event_time_us=time_us,
        click_time_us=np.where(labels > 0.5, time_us + 1_000_000, 0), bags=Bags(rows.ids.shape[1], rows.ids[part].reshape(-1)),
        ends=Ends(np.array([final]), np.array([final + 1]), np.array([End.FLUSH], np.uint8)) if ends else empty_ends(),
        joined_us=int(time_us[-1]) + 2_000_000, served_probability=np.full(RECORD_ROWS, 0.03, np.float32),
        served_version=np.full(RECORD_ROWS, 841, np.uint64),
    ))


class Ours:
    """Learners, one for each choice of settings, and what they are fed with."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._learners: dict[str, Learner] = {}
        self._guards: dict[int, Guard] = {}

    def make(self, task: Task) -> Step:
        """what: learner (alone), guarded (with the guard), bytes (the trainer's way from a record's bytes to weights, guard
        and progressive figures included), or a limit."""
        if task["what"] == "limit":
            return limit(task, self._rows.options)
        learner = self._learner(task)
        made: Callable[[], Step] = {
            "learner": lambda: self._alone(learner, task), "guarded": lambda: self._guarded(learner, task),
            "bytes": lambda: self._bytes(learner, task),
        }[task["what"]]
        step = made()
        for _ in range(3):
            step()
        return step

    def phases(self, task: Task, _: float) -> dict[str, float]:
        """Share of each phase in a step of the learner alone; other: what is none of them."""
        learner = self._learner(task)
        batches = self._rows.batches(task["batch"])
        clock = _device_clock(learner.device)
        meters = Meters(clock)
        places = [
            (learner_module, "once", "unique"), (Table, "gather", "gather"), (Once, "spread", "gather"),
            (type(learner.model), "forward", "forward"), (Tensor, "backward", "backward"),
            (Once, "summed", "rows back"), (Table, "apply", "rows back"), (DenseOptimiser, "step", "dense step"),
            (Learner, "_score", "score"),
        ]
        torch.set_num_threads(task["threads"])
        with meters.over(places):
            began, steps = clock(), 0
            while clock() - began < PHASES_S:
                learner.learn(*next(batches))
                steps += 1
            whole = clock() - began
        found = {phase: meters.seconds[phase] / whole for phase in PHASES}
        return {**found, "other": 1 - sum(found.values()), "ms": 1e3 * whole / steps}

    def _learner(self, task: Task) -> Learner:
        """Every value was seen before, as it is in a model at work."""
        chosen = {**task["settings"], "model.bits": task["bits"], "learn.threads": task["threads"]}
        key = json.dumps([task["what"] != "learner", chosen], sort_keys=True)
        if key not in self._learners:
            settings = settings_of(chosen)
            made = Learner(settings.model, settings.learn, self._rows.schema, settings.snapshot.rotation)
            rows = np.unique(made.table.numbers(self._rows.ids_of).cpu().numpy())
            made.table.touch(rows)
            made.table.drain("version", 0)
            made.table.drain("checkpoint", 0)
            self._learners[key] = made
        return self._learners[key]

    def _guard(self, learner: Learner) -> Guard:
        return self._guards.setdefault(id(learner), Guard(learner))

    def _alone(self, learner: Learner, task: Task) -> Step:
        batches = self._rows.batches(task["batch"])

        def step() -> int:
            torch.set_num_threads(task["threads"])
            return len(learner.learn(*next(batches)))

        return step

    def _guarded(self, learner: Learner, task: Task) -> Step:
        batches, guard = self._rows.batches(task["batch"]), self._guard(learner)

        def step() -> int:
            torch.set_num_threads(task["threads"])
            return len(guard.learn(*next(batches))[0])

        return step

    def _bytes(self, learner: Learner, task: Task) -> Step:
        records, guard, progressive = self._rows.records(), self._guard(learner), Progressive(20_000)
        trainings = (
            (Training(Intake(self._rows.schema, task["batch"]), learner, progressive, guard), enumerate(records))
            for _ in itertools.count()
        )
        current = [next(trainings)]

        def step() -> int:
            torch.set_num_threads(task["threads"])
            training, left = current[0]
            number, value = next(left, (0, b""))
            if not value:
                current[0] = next(trainings)
                return step()
            training.intake.offer(0, number, decode(value))
            learnt = 0
            while (done := training.step()) is not None:
                learnt += 0 if done.batch is None else len(done.batch)
            return learnt

        return step


def limit(task: Task, options: Mapping[str, Any]) -> Step:
    """The matrix products of the hidden layers and nothing else: of each layer the outputs, the gradients of its inputs and of
    its weights, into memory that is there. The output's one column is left out: a thousandth of the work."""
    device, dtype, batch = torch.device(options["device"]), DTYPES[task["precision"]], task["batch"]
    widths = [len(options["sizes"]) * options["factors"], *options["hidden"]]

    def made(*shape: int) -> Tensor:
        return torch.randn(shape).to(device, dtype)

    layers = [
        (made(batch, wide), made(out, wide), made(batch, out), made(batch, out), made(batch, wide), made(out, wide))
        for wide, out in itertools.pairwise(widths)
    ]

    @torch.inference_mode()
    def step() -> int:
        torch.set_num_threads(task["threads"])
        for x, w, y, grad_y, grad_x, grad_w in layers:
            torch.mm(x, w.t(), out=y)
            torch.mm(grad_y, w, out=grad_x)
            torch.mm(grad_y.t(), x, out=grad_w)
        return int(batch)

    for _ in range(3):
        step()
    return step


def settings_of(values: Mapping[str, Any]) -> Settings:
    """From dotted keys; JSON has no tuples."""
    return build(Source("bench", {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}))[0]


def _device_clock(device: torch.device) -> Callable[[], float]:
    """Wall seconds, with all done that was asked of the device."""
    if device.type != "cuda":
        return time.perf_counter

    def clock() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return clock


def main(folder: Path) -> None:
    """Take turns."""
    def start() -> Work:
        configure()
        rows = Rows(folder)
        ours = Ours(rows)
        finish = torch.cuda.synchronize if rows.options["device"] == "cuda" else lambda: None
        return Work(ours.make, finish, {"phases": ours.phases})

    serve(start)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
