"""How long a trainer takes to be where its newest checkpoint was.

    .venv/bin/python -m tests.kit.resume 10000000 24     # rows touched, of 2^24; takes 3 GB of memory and 2 GB under /tmp

One process writes a store whose table has so many rows touched, with a few versions and checkpoints after the first; each of
three more opens it, checks it, and loads it, as a trainer does at its start. Import and the making of an empty learner apart.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from schemas import fields
from schemas.config import LearnConfig, ModelConfig, SnapshotConfig
from stream_trainer.learning.guard import Guard
from stream_trainer.learning.learner import Learner
from stream_trainer.publishing.publisher import Publisher
from stream_trainer.store import SnapshotStore
from stream_trainer.watching.progressive import Progressive

PIECE_ROWS = 1 << 18
LATER = 4            # versions and checkpoints after the first
LATER_ROWS = 20_000  # touched before each


def publisher_of(store: SnapshotStore, bits: int) -> Publisher:
    """Of a learner that knows nothing yet: DeepFM with Adagrad, 24 floats a row."""
    config = SnapshotConfig()
    model = ModelConfig(schema="criteo", bits=bits)
    learner = Learner(model, LearnConfig(device="cpu"), fields.load("criteo"), config.rotation)
    return Publisher(store, learner, Progressive(1000), config, "ab" * 16, Guard(learner))


def write(store_dir: Path, rows: int, bits: int) -> None:
    """A life of a trainer, shortened."""
    random = np.random.default_rng(1)
    touched = np.sort(random.permutation(1 << bits)[:rows])
    with SnapshotStore(store_dir) as store:
        publisher = publisher_of(store, bits)
        learner = publisher.learner
        for start in range(0, rows, PIECE_ROWS):
            some = touched[start : start + PIECE_ROWS]
            learner.table.load(some, random.random((len(some), learner.table.wide), np.float32))
        learner.examples_learnt = learner.batches_learnt = 1
        publisher.begin(1, {})
        for at in range(LATER):
            learner.table.touch(touched[random.permutation(rows)[:LATER_ROWS]])
            learner.examples_learnt += 1
            learner.batches_learnt += 1
            publisher.maybe_publish(at, force=True)
            publisher.maybe_checkpoint(at, cursors={0: (at, 0, 0)}, offsets={0: at}, tallies={}, force=True)


def resume(store_dir: Path, bits: int) -> None:
    """Print how long it took, by the wall and by the CPU."""
    with SnapshotStore(store_dir) as store:
        publisher = publisher_of(store, bits)
        wall, cpu = time.perf_counter(), time.process_time()
        store.set_aside_broken_checkpoints()
        checked = time.perf_counter() - wall
        restored = publisher.restore()
        assert restored is not None
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        print(
            f"{restored.rows:,} rows of 2^{bits}, {LATER + 1} checkpoints: {wall:.2f} s ({checked:.2f} s to check them), "
            f"{cpu:.2f} s of CPU", flush=True,
        )


def main() -> None:
    """Write once, resume three times, each in a process of its own."""
    if sys.argv[1] in ("write", "resume"):
        what, store_dir, rows, bits = sys.argv[1:]
        if what == "write":
            write(Path(store_dir), int(rows), int(bits))
        else:
            resume(Path(store_dir), int(bits))
        return
    with tempfile.TemporaryDirectory() as folder:
        for what in ("write", "resume", "resume", "resume"):
            subprocess.run([sys.executable, "-m", "tests.kit.resume", what, f"{folder}/store", *sys.argv[1:3]], check=True)


if __name__ == "__main__":
    main()
