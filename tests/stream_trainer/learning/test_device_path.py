"""What is done on a GPU, done here on CPU tensors: nothing by numpy on the device's memory. That it runs on a GPU is for tests
marked `gpu`; this machine may have none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from schemas.bags import Bags
from schemas.config import LearnConfig, ModelConfig, SnapshotConfig
from schemas.fields import load
from schemas.models import ffm_stats
from stream_trainer.learning import once, table
from stream_trainer.learning.guard import Guard
from stream_trainer.learning.learner import Learner
from stream_trainer.publishing.publisher import Publisher
from stream_trainer.store import SnapshotStore
from stream_trainer.watching.progressive import Progressive

SCHEMA = load("criteo")
STEPS, ROWS = 22, 256          # 49 columns of 256 examples: as many ids as are filled up for sorting on a CPU


def a_life(directory: Path, architecture: str) -> tuple[str, bytes, dict[str, np.ndarray]]:
    """Learn, guarded, with versions and checkpoints on the way; go on elsewhere from the last. Digest, scores, the version."""
    model = ModelConfig(architecture=architecture, bits=12, factors=4, hidden=(16,))
    learn = LearnConfig(device="cpu", row_optimiser="adam", row_rate=0.05, dense_rate=0.02, batch_rows=ROWS, guard_rows=1024)
    said, truth = [], np.random.default_rng(5).normal(0, 1, 60)
    for part in range(2):
        with SnapshotStore(directory) as store:
            learner = Learner(model, learn, SCHEMA, 4)
            guard = Guard(learner)
            publisher = Publisher(store, learner, Progressive(1000), SnapshotConfig(rotation=4), "ab" * 16, guard)
            publisher.restore()
            for step in range(part * STEPS // 2, (part + 1) * STEPS // 2):
                rng = np.random.default_rng(step)
                picked = rng.integers(0, 60, (ROWS, len(SCHEMA.fields)))
                labels = (rng.random(ROWS) < 1 / (1 + np.exp(1 - truth[picked[:, 0]] - truth[picked[:, 1]]))).astype(np.float32)
                ids = (picked + np.arange(len(SCHEMA.fields)) * 1000).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
                said.append(guard.learn(Bags(len(SCHEMA.fields), ids.reshape(-1)), labels)[0])
                if step % 7 == 6:
                    publisher.maybe_publish(step, force=True)
            publisher.maybe_publish(step, force=True)
            publisher.maybe_checkpoint(step, cursors={0: (step, 0, 0)}, offsets={0: step}, tallies={}, force=True)
            loaded = store.load_version()
            assert loaded.weights_digest() == learner.digest()
    return learner.digest(), np.concatenate(said).tobytes(), {"rates": np.array(guard.rate_factor)}


@pytest.mark.parametrize("architecture", ["deepfm", "ffm_stats"])
def test_the_way_of_a_gpu_gives_the_same_bits_on_a_cpu(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps, guard, versions, a checkpoint and the life after it."""
    here = a_life(tmp_path / "numpy", architecture)
    for module in (table, once, ffm_stats):
        monkeypatch.setattr(module, "numpy_reaches", lambda device: False)
    assert a_life(tmp_path / "torch", architecture) == here
