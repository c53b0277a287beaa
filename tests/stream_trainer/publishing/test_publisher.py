"""Versions and checkpoints of a trainer that is killed: what scorers end with, and what it learns, as if it never was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.bags import Bags
from schemas.config import LearnConfig, ModelConfig, SnapshotConfig
from schemas.errors import SnapshotError
from schemas.fields import parse
from schemas.snapshot import Manifest, chain, weights_digest
from scorer.answers.engine import Blueprint, load
from stream_trainer.learning.learner import Diverged, Learner
from stream_trainer.publishing.publisher import Publisher, Restored
from stream_trainer.store import SnapshotStore
from stream_trainer.watching.progressive import Progressive
from stream_trainer.watching.windows import Window

SCHEMA = parse(
    {"field": [{"name": f"f{n}", "number": n, "kind": "categorical", "side": "item"} for n in (1, 2)]}, "test"
)
MODEL = ModelConfig(bits=8, factors=2, hidden=(4,), dropout=0.2, statistics=False)
LEARN = LearnConfig(device="cpu", row_optimiser="adagrad", row_rate=0.05)
SNAPSHOT = SnapshotConfig(version_every_s=0.5, checkpoint_every_s=10, rotation=4, keep_s=5)
S = 1_000_000
BATCH_ROWS = 6


def batch(number: int) -> tuple[Bags, np.ndarray]:
    """The log: batch by number, always the same."""
    rng = np.random.default_rng(number)
    ids = rng.integers(0, 12 + 3 * number, (BATCH_ROWS, 2)).astype(np.uint64)
    return Bags(2, ids.reshape(-1)), (rng.random(BATCH_ROWS) < 0.4).astype(np.float32)


class Trainer:
    """What the trainer app does with the publisher, over a log of batches."""

    def __init__(self, directory: Path, lineage: str = "11fe" * 8, **changes: Any) -> None:
        self.store = SnapshotStore(directory)
        model = replace(MODEL, **changes.get("model", {}))
        snapshot = changes.get("snapshot", SNAPSHOT)
        self.learner = Learner(model, changes.get("learn", LEARN), changes.get("schema", SCHEMA), snapshot.rotation)
        self.progressive = Progressive(100)
        self.publisher = Publisher(self.store, self.learner, self.progressive, snapshot, lineage)
        self.windows: list[Window] = []
        self.restored = self.publisher.restore()
        self.next = self.restored.cursors[0][0] + 1 if self.restored else 0

    def learn(self) -> None:
        """The next batch of the log."""
        bags, labels = batch(self.next)
        self.windows += self.progressive.add(self.learner.learn(bags, labels), labels)
        self.next += 1

    def publish(self, now_us: int = 0, force: bool = True) -> Manifest | None:
        """As the app calls it."""
        return self.publisher.maybe_publish(now_us, cursors={0: (self.next - 1, 0, 0)}, force=force)

    def checkpoint(self, now_us: int = 0, force: bool = True) -> Manifest | None:
        """As the app calls it."""
        return self.publisher.maybe_checkpoint(
            now_us, cursors={0: (self.next - 1, 0, 0)}, offsets={0: self.next},
            tallies={"learnt": self.learner.examples_learnt}, force=force,
        )

    def kill(self) -> None:
        """Nothing is saved; RocksDB's own lock is let go, as the system does for a dead process."""
        self.store.close()


class Follower:
    """A scorer: applies each version onto its parent, loads afresh where it cannot."""

    def __init__(self) -> None:
        self.at: Manifest | None = None
        self.table: dict[int, bytes] = {}
        self.dense: dict[str, np.ndarray] = {}

    def follow(self, store: SnapshotStore) -> None:
        """To the newest version there is."""
        newest = store.newest_version()
        if newest is None:
            return
        ahead: list[int] = []
        at: int | None = newest.number
        while at is not None and (self.at is None or at > self.at.number) and at in store.manifests("version"):
            ahead.append(at)
            at = store.manifests("version")[at].parent
        if self.at is None or at != self.at.number:
            self.table = {}
            ahead = chain(store.manifests("version"), newest.number)[::-1]
        for number in reversed(ahead):
            content = store.read(store.manifests("version")[number])
            for rows, floats in content.rows:
                self.table.update(zip(rows.tolist(), (row.tobytes() for row in floats), strict=True))
            self.dense = content.dense
        self.at = newest

    def digest(self) -> str:
        """Of all rows that it was ever sent."""
        assert self.at is not None
        rows = sorted(self.table)
        floats = np.frombuffer(b"".join(self.table[row] for row in rows), np.float32).reshape(-1, self.at.width)
        return weights_digest(np.array(rows), floats, self.dense)


def undisturbed(tmp_path: Path, batches: int) -> Trainer:
    """A trainer that was never killed."""
    trainer = Trainer(tmp_path / "undisturbed")
    for _ in range(batches):
        trainer.learn()
    return trainer


history = st.lists(
    st.sampled_from(["learn"] * 6 + ["publish"] * 3 + ["checkpoint", "kill", "follow", "expire"]), max_size=70
)


@settings(max_examples=25)
@given(history)
def test_any_life_of_kills_ends_as_if_there_had_been_none(
    tmp_path_factory: pytest.TempPathFactory, history: list[str]
) -> None:
    """Whatever order of learning, publishing, checkpoints and kills:

    every published version loads as the trainer's weights of that moment; a follower that was there all the time, one
    that looks now and then, and one that loads afresh hold the same; numbers rise by one along one lineage; at the end
    the weights and windows are the bits of a trainer never killed.
    """
    directory = tmp_path_factory.mktemp("life")
    trainer = Trainer(directory / "store")
    always, seldom, now_us, published, checkpointed = Follower(), Follower(), 0, 0, -1
    for what in [*history, *["learn"] * 12, "publish"]:
        now_us += S
        if what == "learn":
            trainer.learn()
        elif what == "publish":
            version = trainer.publish(now_us)
            if version is None:
                continue
            published += 1
            assert version.number == published
            assert version.parent == (published - 1 or None)
            assert version.lineage == "11fe" * 8
            always.follow(trainer.store)
            fresh = Follower()
            fresh.follow(trainer.store)
            assert always.digest() == fresh.digest() == trainer.learner.digest()
            assert trainer.store.load_version().weights_digest() == trainer.learner.digest()
        elif what == "checkpoint":
            if trainer.checkpoint(now_us):
                checkpointed = trainer.next
        elif what == "expire":
            trainer.store.expire(now_us, 3)
        elif what == "follow":
            seldom.follow(trainer.store)
            if seldom.at:
                assert seldom.digest() == always.digest()
        else:
            trainer.kill()
            trainer = Trainer(directory / "store", lineage="another, not to be used" if published else "11fe" * 8)
            assert trainer.next == max(checkpointed, 0)
    seldom.follow(trainer.store)
    assert seldom.digest() == always.digest() == trainer.learner.digest()

    reference = undisturbed(directory, trainer.next)
    assert reference.learner.digest() == trainer.learner.digest()
    assert reference.progressive.lifetime() == trainer.progressive.lifetime()
    assert reference.windows[len(reference.windows) - len(trainer.windows):] == trainer.windows
    reference.kill()
    trainer.kill()


def test_nothing_is_published_before_it_is_past_what_was(tmp_path: Path) -> None:
    """After a kill: at the examples of the newest version still nothing, one batch later its child with all its rows."""
    trainer = Trainer(tmp_path)
    for _ in range(3):
        trainer.learn()
    trainer.checkpoint()
    trainer.publish()
    for _ in range(3):
        trainer.learn()
    second = trainer.publish()
    assert second is not None
    trainer.kill()

    trainer = Trainer(tmp_path)
    assert trainer.restored == Restored(
        checkpoint=1, lineage="11fe" * 8, cursors={0: (2, 0, 0)}, offsets={0: 3}, tallies={"learnt": 18},
        examples_learnt=18, batches_learnt=3, rows=len(trainer.learner.table), republish_after=36,
    )
    for _ in range(3):
        assert trainer.publish() is None
        trainer.learn()
    assert trainer.publish() is None
    trainer.learn()
    third = trainer.publish()
    assert third is not None
    assert (third.number, third.parent, third.examples_learnt) == (3, 2, 42)
    held = {int(row) for rows, _ in trainer.store.read(second).rows for row in rows}
    assert held <= {int(row) for rows, _ in trainer.store.read(third).rows for row in rows}
    trainer.kill()


def test_a_follower_is_right_even_if_the_second_life_learns_other_examples_first(tmp_path: Path) -> None:
    """Several partitions come in another order after a kill: rows that only the first life had touched go back too."""
    trainer, follower = Trainer(tmp_path), Follower()
    trainer.learn()
    trainer.publish()
    trainer.checkpoint()
    trainer.learn()
    trainer.publish()
    follower.follow(trainer.store)
    trainer.kill()

    trainer = Trainer(tmp_path)
    for trainer.next in (30, 31):
        bags, labels = batch(trainer.next)
        trainer.learner.learn(bags, labels)
    third = trainer.publish()
    assert third is not None
    assert third.parent == 2
    follower.follow(trainer.store)
    assert follower.at == third
    assert follower.digest() == trainer.learner.digest() == trainer.store.load_version().weights_digest()
    trainer.kill()


def test_the_first_version_needs_no_example(tmp_path: Path) -> None:
    """Scorers can serve, and ask for clicks, before anything was learnt; the second needs some."""
    trainer = Trainer(tmp_path)
    first = trainer.publish()
    assert first is not None
    assert (first.number, first.parent, first.rows, first.examples_learnt) == (1, None, 0, 0)
    assert trainer.store.read(first).dense.keys() == trainer.learner.dense().keys()
    assert trainer.publish() is None
    trainer.learn()
    assert trainer.publish() is not None
    trainer.kill()


def test_a_scorer_gives_the_trainer_s_probabilities(tmp_path: Path) -> None:
    """From the published versions alone, for rows learnt and rows never seen: to 1e-6."""
    trainer = Trainer(tmp_path)
    for _ in range(6):
        trainer.learn()
        trainer.publish()
    versions = trainer.store.manifests("version")
    parts = [(versions[number], trainer.store.read(versions[number])) for number in chain(versions, 6)]
    engine = load(Blueprint(MODEL, SCHEMA), lambda: 0, parts)
    ids = np.random.default_rng(9).integers(0, 256, 200).astype(np.uint64)  # most rows of the table
    scores = engine.score(Bags(2, ids))
    assert scores.version.number == 6
    np.testing.assert_allclose(scores.probabilities, trainer.learner.score(Bags(2, ids)), rtol=0, atol=1e-6)
    trainer.kill()


def test_each_is_written_when_due(tmp_path: Path) -> None:
    """By the clock passed in; a clock set back does not hold it up; a checkpoint needs a change, not an example."""
    trainer = Trainer(tmp_path)
    times = []
    for now_us in [0, S // 4, S // 2, S // 2 + 1, S, S // 10, S]:
        trainer.learn()
        if trainer.publish(now_us, force=False):
            times.append(now_us)
    assert times == [0, S // 2, S, S // 10, S]
    trainer.next = 7
    assert trainer.checkpoint(0, force=False) is not None
    assert trainer.checkpoint(20 * S, force=False) is None
    trainer.next = 8  # a tick moved the cursor
    assert trainer.checkpoint(9 * S, force=False) is None
    assert trainer.checkpoint(10 * S, force=False) is not None
    trainer.kill()


def test_a_snapshot_costs_what_was_touched(tmp_path: Path) -> None:
    """Of 4,000 rows ever touched, a version after one batch carries that batch's and a fourth of the others."""
    trainer = Trainer(tmp_path, model={"bits": 16})
    rng = np.random.default_rng(1)
    ids = rng.permutation(2**16)[:4000].astype(np.uint64)
    trainer.learner.learn(Bags(2, ids), np.zeros(2000, np.float32))
    first = trainer.publish()
    trainer.learner.learn(Bags(2, ids[:20]), np.zeros(10, np.float32))
    second = trainer.publish()
    assert first is not None
    assert second is not None
    assert first.rows == 4000
    quarter = set(ids[ids % 4 == 1].tolist())
    assert second.rows == len(quarter | set(ids[:20].tolist()))
    trainer.kill()


def test_what_the_manifest_says(tmp_path: Path) -> None:
    """Cursors, tallies, traces and the model travel with a version; a checkpoint names the newest version."""
    trainer = Trainer(tmp_path)
    trainer.learn()
    trace = {"click_us": 1, "joined_us": 2, "learnt_us": 3}
    version = trainer.publisher.maybe_publish(
        5, cursors={0: (7, 6, 5)}, offsets={2: 9}, tallies={"late": 2}, traces=[trace], force=True
    )
    assert version is not None
    assert (version.cursors, version.offsets, version.tallies) == ({0: (7, 6, 5)}, {2: 9}, {"late": 2})
    assert (version.traces, version.created_us, version.batches_learnt) == ((trace,), 5, 1)
    assert version.model["row_width"] == 3
    assert version.fields == tuple(zip(SCHEMA.numbers, SCHEMA.digests, strict=True))
    checkpoint = trainer.checkpoint()
    assert checkpoint is not None
    assert (checkpoint.version, checkpoint.width) == (1, 6)
    trainer.kill()


OTHER = parse({"field": [{"name": "f1", "number": 1, "kind": "set", "side": "item"}, {
    "name": "f2", "number": 2, "kind": "categorical", "side": "item"}]}, "test")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": {"bits": 9}}, "model.bits is 8 there and 9 here"),
        ({"model": {"seed": 2}}, "model.seed is 1 there and 2 here"),
        ({"schema": OTHER}, "field 1 is .* there and .* here"),
        ({"learn": replace(LEARN, row_optimiser="adam")}, "'adagrad'.* this trainer has .*'adam'"),
    ],
)
def test_another_model_s_store_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    """Naming what differs on both sides, and what to do."""
    trainer = Trainer(tmp_path)
    trainer.learn()
    trainer.publish()
    trainer.checkpoint()
    trainer.kill()
    with pytest.raises(SnapshotError, match=said) as refused:
        Trainer(tmp_path, **changes)
    assert "another model.name, or move the directory away" in str(refused.value)


def test_the_rotation_may_change_between_two_lives(tmp_path: Path) -> None:
    """The table is whole whatever it was before, and is now."""
    for life, rotation in enumerate((4, 7, 1, 3)):
        trainer = Trainer(tmp_path, snapshot=replace(SNAPSHOT, rotation=rotation))
        for _ in range(5):
            trainer.learn()
            trainer.publish()
            trainer.checkpoint()
        assert trainer.store.load_version().weights_digest() == trainer.learner.digest()
        assert trainer.learner.batches_learnt == 5 * (life + 1)
        digest = trainer.learner.digest()
        trainer.kill()
    trainer = Trainer(tmp_path)
    assert trainer.learner.digest() == digest
    trainer.kill()


def test_weights_that_are_no_numbers_do_not_go_out(tmp_path: Path) -> None:
    """Neither as a version nor as a checkpoint."""
    trainer = Trainer(tmp_path)
    trainer.learn()
    row = trainer.learner.table.touched()[:1]
    trainer.learner.table.load(row, np.full((1, trainer.learner.table.wide), np.inf, np.float32))
    with pytest.raises(Diverged, match="no version is written"):
        trainer.publish()
    with pytest.raises(Diverged, match="no checkpoint is written"):
        trainer.checkpoint()
    assert trainer.store.newest_version() is None
    trainer.kill()


def test_restore_comes_first(tmp_path: Path) -> None:
    """Writing before looking at what is there would cut the line."""
    with SnapshotStore(tmp_path) as store:
        publisher = Publisher(store, Learner(MODEL, LEARN, SCHEMA, 4), Progressive(100), SNAPSHOT, "11fe")
        with pytest.raises(SnapshotError, match="restore"):
            publisher.maybe_publish(0, force=True)
