"""Weights that are no numbers any more, by too long a step or a device that errs: the trainer ends and publishes none of it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from stream_trainer.faust_driver import CRASHED
from stream_trainer.store import SnapshotStore
from tests.ops.offline.test_evaluate import ROWS
from tests.ops.offline.test_evaluate import path as path

PROGRAM = textwrap.dedent("""
    import asyncio
    import sys
    import time
    from pathlib import Path
    from ops import formats
    from ops.offline.file_events import FileEvents
    from ops.terminal.logging import configure
    from schemas import fields
    from schemas.config import Source, build
    from schemas.examples import encode
    from stream_trainer.faust_driver import Position, Record
    from stream_trainer.trainer import Trainer

    class NoOrders:
        def waiting(self): return []
        def poll(self, timeout_s): return time.sleep(timeout_s) or []

    class OnePartition:
        async def partitions(self, topic): return 1

    file, var, guard, rate = sys.argv[1:]
    configure()
    settings, _ = build(Source("test", {
        "var": var, "model.schema": "criteo", "model.bits": 12, "model.hidden": "8", "learn.batch_rows": 20,
        "learn.row_optimiser": "sgd", "learn.row_rate": rate, "learn.dense_rate": rate, "learn.guard": guard,
        "snapshot.version_every_s": 0.05, "snapshot.checkpoint_every_s": 0.1, "join.suspect_labels": 0,
        "model.factors": 40, "model.init_scale": 1.0,
    }))
    events = FileEvents(settings, fields.load("criteo"), None, None)
    for event in formats.read(Path(file), "criteo", 10_000_000, "click"):
        events.feed(event)
    events.close()
    records = [Record(0, at, 0, encode(one)) for at, one in enumerate(events.join.records(0, flush=True))]
    trainer = Trainer(settings, NoOrders())

    async def live():
        await trainer.assigned(OnePartition(), {0: Position(None, "", 0, len(records))})
        await trainer.records(records)
        await trainer.stopping()
        print("ended well")

    asyncio.run(live())
""")


def lived(path: Path, var: Path, guard: bool, rate: float) -> subprocess.CompletedProcess[str]:
    """A trainer over the whole file, in a process that may end as it likes."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path), str(var), str(guard).lower(), str(rate)], capture_output=True, text=True,
        timeout=120, check=False, env={**os.environ, "PYTHONPATH": "."},
    )


@pytest.mark.parametrize("guard", [False, True])
def test_a_trainer_whose_loss_is_no_number_ends_without_publishing_it(path: Path, tmp_path: Path, guard: bool) -> None:
    """Plain SGD with a rate of 1: the process ends by itself, and all that its store holds is finite and loads."""
    done = lived(path, tmp_path, guard, 1.0)
    assert done.returncode == CRASHED, done.stderr
    assert "ended well" not in done.stdout
    assert "Diverged" in done.stderr
    with SnapshotStore(tmp_path / "models" / "appstore" / "store") as store:
        newest = store.newest_version()
        assert newest is not None
        assert newest.examples_learnt < ROWS
        for whole in (store.load_version(), *([store.load_checkpoint()] if store.newest_checkpoint() else [])):
            assert np.isfinite(whole.floats).all()
            assert all(np.isfinite(array).all() for array in whole.dense.values())


def test_the_same_trainer_with_a_shorter_step_ends_well(path: Path, tmp_path: Path) -> None:
    """So it was the step."""
    done = lived(path, tmp_path, False, 0.001)
    assert (done.returncode, done.stdout) == (0, "ended well\n"), done.stderr
    with SnapshotStore(tmp_path / "models" / "appstore" / "store") as store:
        newest = store.newest_version()
        assert newest is not None
        assert newest.examples_learnt == ROWS
