"""What a table takes of the system's memory once all its rows are touched, beside what stream_trainer/learning/memory.py says.

    .venv/bin/python -m tests.kit.table_memory 17 18 20 22 24

For each: a process of its own learns batches that name every row once, through the guard, with versions and checkpoints
taken on the way as the trainer takes them. The difference of its memory before and after is the table's.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import typing
from dataclasses import replace
from typing import Any

import numpy as np
import psutil

from schemas.config import LearnConfig, ModelConfig, RowOptimiserName

FIELDS, BATCH_ROWS = 64, 16      # 1,024 rows of the table in a batch: what the guard keeps is small beside the table
WARM_UP_BITS = 15


def measure(bits: int, optimiser: RowOptimiserName) -> dict[str, Any]:
    """In this process, which should have done nothing else."""
    from schemas.bags import Bags
    from schemas.fields import parse
    from stream_trainer.learning.guard import Guard
    from stream_trainer.learning.learner import Learner
    from stream_trainer.learning.memory import wanted

    one = {"kind": "categorical", "side": "item"}
    schema = parse({"field": [{**one, "name": f"f{at}", "number": at} for at in range(1, FIELDS + 1)]}, "test")
    learn = LearnConfig(device="cpu", row_optimiser=optimiser, guard_rows=64, row_rate=1e-4, dense_rate=1e-4)
    labels = (np.arange(BATCH_ROWS) % 4 == 0).astype(np.float32)

    def touch_all(model: ModelConfig) -> tuple[Learner, Guard]:
        learner = Learner(model, learn, schema)
        guard = Guard(learner)
        ids = np.arange(1 << model.bits, dtype=np.uint64).reshape(-1, FIELDS * BATCH_ROWS)
        for at, batch in enumerate(ids):
            guard.learn(Bags(FIELDS, batch.copy()), labels)   # a copy: the guard keeps some
            if at % 256 == 255:
                learner.table.drain("version", 0)
                learner.table.drain("checkpoint", 0)
        return learner, guard

    model = ModelConfig(bits=bits, hidden=(4,))
    touch_all(replace(model, bits=WARM_UP_BITS))     # what torch and others take once
    _give_back()
    before = psutil.Process().memory_info().rss
    learner, guard = touch_all(model)
    _give_back()
    taken = psutil.Process().memory_info().rss - before
    table = wanted(model, learn, schema, "it")
    assert len(learner.table) == table.rows
    assert guard.learner is learner
    return {"bits": bits, "rows": table.rows, "row_bytes": table.row_bytes, "wanted_bytes": table.bytes, "rss_bytes": taken}


def _give_back() -> None:
    """What was freed, to the system: glibc keeps up to 64 MB of it for itself, which would hide small tables."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def in_a_process(bits: int, optimiser: RowOptimiserName = "adagrad") -> dict[str, Any]:
    """The same in a new one. Raises CalledProcessError."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.kit.table_memory", "--here", str(bits), "--optimiser", optimiser],
        stdout=subprocess.PIPE, text=True, check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    """One line per size."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("bits", type=int, nargs="+")
    options.add_argument("--optimiser", default="adagrad", choices=typing.get_args(RowOptimiserName))
    options.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.here:
        print(json.dumps(measure(given.bits[0], given.optimiser)))
        return
    for bits in given.bits:
        found = in_a_process(bits, given.optimiser)
        print(
            f"2^{bits}: {found['row_bytes']} bytes a row, wanted {found['wanted_bytes'] / 2**20:,.1f} MiB, "
            f"taken {found['rss_bytes'] / 2**20:,.1f} MiB ({found['rss_bytes'] / found['wanted_bytes']:.2f})", flush=True,
        )


if __name__ == "__main__":
    main()
