"""Trainer and scorer meet in the store alone: what one learnt is what the other says, to 1e-6."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.bags import Bags, concat
from schemas.config import LearnConfig, Settings, SnapshotConfig
from schemas.fields import Encoder, Slate, load
from scorer.answers.engine import Blueprint
from scorer.client import ScorerClient
from scorer.metrics import Metrics
from scorer.versions.follower import Follower
from scorer.versions.reader import SnapshotReader
from stream_trainer.learning.learner import Learner
from stream_trainer.publishing.publisher import Publisher
from stream_trainer.store import SnapshotStore
from stream_trainer.watching.progressive import Progressive
from tests.kit.scorer import ScorerServer
from tests.scorer.lineage import small

SCHEMA = load("appstore")
LEARN = LearnConfig(device="cpu", row_rate=0.05, dense_rate=0.01)

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.integration


def slate(seed: int, items: int = 8) -> Slate:
    random = np.random.default_rng(seed)
    context = {"user": f"u{random.integers(50)}", "hour": int(random.integers(24)), "installed": ["games", "food"]}
    columns: dict[str, list[Any]] = {
        "category": [f"c{random.integers(9)}" for _ in range(items)],
        "price": [None if random.random() < 0.3 else round(float(random.gamma(1)), 2) for _ in range(items)],
        "tags": [[f"t{tag}" for tag in range(random.integers(4))] for _ in range(items)],
    }
    return Slate([f"app{n}" for n in random.permutation(60)[:items]], context, columns, list(range(1, items + 1)))


def encoded(first: int, slates: int, training: bool) -> Bags:
    encoder = Encoder(SCHEMA, training=training)
    return concat([encoder.encode(slate(seed))[0] for seed in range(first, first + slates)])


class Trained:
    """A trainer over a store, without Kafka."""

    def __init__(self, store_dir: Path, rotation: int = 4) -> None:
        config = SnapshotConfig(rotation=rotation, keep_s=0)
        self.learner = Learner(small(), LEARN, SCHEMA, rotation)
        self.store = SnapshotStore(store_dir)
        self.publisher = Publisher(self.store, self.learner, Progressive(1000), config, "c" * 32)
        restored = self.publisher.restore()
        self.at = restored.cursors[0][0] if restored else 0

    def learn(self) -> None:
        labels = np.random.default_rng(self.at).integers(0, 2, 80).astype(np.float32)
        self.learner.learn(encoded(10 * self.at, 10, training=True), labels)
        self.at += 1

    def publish(self, now_us: int, **more: Any) -> int | None:
        manifest = self.publisher.maybe_publish(now_us, force=True, **more)
        return manifest.number if manifest else None

    def checkpoint(self, now_us: int) -> None:
        self.publisher.maybe_checkpoint(now_us, cursors={0: (self.at, 0, 0)}, offsets={0: self.at}, tallies={}, force=True)


def follower_of(reader: SnapshotReader) -> Follower:
    return Follower(reader, Blueprint(small(), SCHEMA), 0.001, Metrics(), lambda: 1)


def assert_same(trained: Trained, follower: Follower) -> None:
    """Rows seen and rows never seen, encoded as requests are: the same probability from both."""
    bags = encoded(0, 200, training=False)
    assert follower.engine is not None
    scores = follower.engine.score(bags)
    np.testing.assert_allclose(scores.probabilities, trained.learner.score(bags), atol=1e-6, rtol=0)
    assert float(np.ptp(scores.probabilities)) > 0.05  # not all the same, so that the comparison says something


def test_both_sides_give_the_same_probability(tmp_path):
    """Version after version, and from a cold start, through the store that the trainer writes and expires."""
    with SnapshotReader(tmp_path / "store", tmp_path / "secondary") as reader:
        follower = follower_of(reader)
        trained = Trained(tmp_path / "store")
        for moment in range(12):
            trained.learn()
            number = trained.publish(moment * 1_000_000)
            assert follower.step()
            assert follower.engine is not None
            assert follower.engine.version is not None
            assert follower.engine.version.number == number
            assert_same(trained, follower)
            if moment % 5 == 4:
                trained.checkpoint(moment * 1_000_000)
        assert len(reader.numbers()) < 12  # old versions did go
        with SnapshotReader(tmp_path / "store", tmp_path / "cold") as cold_reader:
            cold = follower_of(cold_reader)
            assert cold.step()
            assert_same(trained, cold)
            assert cold_reader.whole(cold_reader.numbers()[-1]).rows.tolist() == trained.learner.table.touched().tolist()
        trained.store.close()


def test_a_trainer_killed_and_started_again_is_followed_without_a_load(tmp_path):
    """It goes back to its checkpoint while the scorer holds later versions; after it has caught up, both agree again."""
    with SnapshotReader(tmp_path / "store", tmp_path / "secondary") as reader:
        follower = follower_of(reader)
        trained = Trained(tmp_path / "store", rotation=16)
        for moment in range(6):
            trained.learn()
            trained.publish(moment * 1_000_000)
            follower.step()
            if moment == 2:
                trained.checkpoint(moment * 1_000_000)
        trained.store.close()
        del trained

        again = Trained(tmp_path / "store", rotation=16)
        assert again.at == 3
        for moment in range(6, 12):
            again.learn()
            published = again.publish(moment * 1_000_000)
            assert (published is not None) == (again.at > 6)
            if published is not None:
                assert follower.step()
                assert_same(again, follower)
        assert follower._metrics.totals()["loads"] == 1
        again.store.close()


def test_a_click_learnt_is_in_the_next_answer(make_settings: Callable[..., Settings]):
    """Learn, publish, ask over gRPC: the answer is the learner's own, and the trace of the click comes out complete."""
    model = {"model.bits": 9, "model.factors": 3, "model.hidden": "8,4", "model.init_scale": 0.1,
             "model.statistics": False}
    settings = make_settings(**model, **{"score.poll_s": 0.002, "snapshot.rotation": 4})
    trained = Trained(settings.store_dir)
    trained.publish(0)
    server = ScorerServer(settings)
    server.start()
    one = slate(3)
    items = [
        {"id": item, "features": {name: column[place] for name, column in one.columns.items()}}
        for place, item in enumerate(one.item_ids)
    ]
    with ScorerClient(f"127.0.0.1:{server.port}") as client:
        client.wait_ready(10)
        for moment in range(1, 5):
            trained.learn()
            trained.publish(moment, traces=[{"click_us": moment, "joined_us": moment, "learnt_us": moment}])
            scored = client.score(one.context, items)
            while scored.version <= moment:
                scored = client.score(one.context, items)
            expected = trained.learner.score(Encoder(SCHEMA, training=False).encode(one)[0])
            np.testing.assert_allclose([item.probability for item in scored.items], expected, atol=1e-6, rtol=0)

        report = verb("score", settings, "--target", client.target, "--example", "--json")
        assert (report["version"], report["lineage"], report["warnings"]) == (5, "c" * 32, [])
        assert sorted(item["rank"] for item in report["items"]) == [1, 2, 3]
    server.stop()
    lines = [json.loads(line) for line in (settings.metrics_dir / "freshness.jsonl").read_text().splitlines()]
    assert [(line["version"], line["click_us"], line["published_us"]) for line in lines] == [
        (moment + 1, moment, moment) for moment in range(1, 5)
    ]

    trained.checkpoint(5)
    shown = verb("snapshot", settings, "show", "--json")
    assert shown["weights_digest"] == trained.learner.digest()
    assert shown["examples_learnt"] == 320
    assert verb("snapshot", settings, "show", "--kind", "checkpoint", "--json")["weights_digest"] == shown["weights_digest"]
    assert [one["number"] for one in verb("snapshot", settings, "list", "--json")["snapshots"]][-1] == 5
    verified = verb("snapshot", settings, "verify", "--json")
    assert (verified["broken"], verified["whole"]) == ([], 4)
    trained.store.close()


def verb(name: str, settings: Settings, *arguments: str) -> dict[str, Any]:
    """What `freshet NAME … --json` prints."""
    done = subprocess.run(
        [sys.executable, "-m", "ops.cli", name, *arguments, "--set", f"var={settings.var}"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found
