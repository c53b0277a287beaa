"""Going back in the store: the weights of then, learnt on from there, wherever the process is killed.

The oracle is a learner that was never near a store: it learns the batches that count, in their order.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from schemas.control import ControlError, Order, Then
from schemas.errors import SnapshotError
from schemas.snapshot import Kind, Manifest
from stream_trainer.learning.guard import Guard
from stream_trainer.learning.learner import Learner
from stream_trainer.publishing.branch import SKIPPED, go_back, lineage_after
from stream_trainer.publishing.control import Control, Given
from stream_trainer.publishing.publisher import Publisher
from stream_trainer.store import SnapshotStore
from stream_trainer.watching.progressive import Progressive
from tests.stream_trainer.publishing.test_publisher import BATCH_ROWS, LEARN, MODEL, SCHEMA, SNAPSHOT, batch

CHECKPOINTS = (4, 9, 14)      # batches learnt when one is written
LEARNT = 17                   # before the order
LOG = 24                      # batches in the log


class Life:
    """A trainer over the log of batches, from one kill to the next: a version after every batch."""

    def __init__(self, directory: Path) -> None:
        self.store = SnapshotStore(directory)
        self.learner = Learner(MODEL, LEARN, SCHEMA, SNAPSHOT.rotation)
        guard = Guard(self.learner)
        self.publisher = Publisher(self.store, self.learner, Progressive(100), SNAPSHOT, "11fe" * 8, guard)
        restored = self.publisher.restore()
        self.guard = guard
        self.next = restored.cursors[0][0] + 1 if restored else 0
        self.tallies = restored.tallies if restored else {"examples": 0, "late": 0}
        self.publish()

    def learn(self) -> None:
        bags, labels = batch(self.next)
        self.guard.learn(bags, labels)
        self.next += 1
        self.tallies = {**self.tallies, "examples": self.tallies["examples"] + BATCH_ROWS, "late": self.tallies["late"] + 1}
        self.publish()

    def publish(self) -> None:
        self.publisher.maybe_publish(0, **self.place, force=True)

    def checkpoint(self) -> None:
        self.publisher.maybe_checkpoint(0, **self.place, force=True)

    @property
    def place(self) -> dict[str, Any]:
        return {"cursors": {0: (self.next - 1, 0, 0)}, "offsets": {0: self.next}, "tallies": self.tallies}

    def until(self, learnt: int) -> Life:
        while self.next < learnt:
            self.learn()
            if self.next in CHECKPOINTS:
                self.checkpoint()
        return self


def digest_of(batches: Iterable[int]) -> str:
    """Of a learner that learnt those and no others."""
    learner = Learner(MODEL, LEARN, SCHEMA, SNAPSHOT.rotation)
    guard = Guard(learner)
    for number in batches:
        guard.learn(*batch(number))
    return learner.digest()


def order(version: Manifest, then: Then, offset: int = 0, **earliest: int) -> Given:
    """To go back to that version."""
    told = Order(what="rollback", model="m", lineage=version.lineage, version=version.number, then=then)
    return Given(offset, told, {0: earliest.get("earliest", 0)})


def lived(directory: Path) -> Life:
    """Up to the order, with a checkpoint of that moment, as the trainer writes one when an order comes."""
    life = Life(directory).until(LEARNT)
    life.checkpoint()
    return life


def after(life: Life, learnt: int) -> Manifest:
    """The version published when so many batches were learnt."""
    return next(v for v in life.store.manifests("version").values() if v.examples_learnt == learnt * BATCH_ROWS)


@pytest.mark.parametrize("learnt", [4, 7, 9, 13, LEARNT])
@pytest.mark.parametrize("then", ["replay", "skip"])
def test_the_first_version_has_the_bits_of_the_one_gone_back_to(tmp_path: Path, learnt: int, then: Then) -> None:
    """At a checkpoint, between two, the newest: a whole version, child of none, under a new number."""
    life = lived(tmp_path)
    version, last = after(life, learnt), after(life, LEARNT)
    first = go_back(life.store, order(version, then), Control(1), 5)
    assert (first.number, first.parent, first.back_to) == (last.number + 1, None, version.number)
    assert first.lineage == lineage_after(last.lineage, 0) != last.lineage
    assert life.store.load_version(first.number).weights_digest() == digest_of(range(learnt))
    life.store.close()


@pytest.mark.parametrize("learnt", [4, 7, 9, 13, LEARNT])
def test_a_replay_ends_as_if_nothing_had_happened(tmp_path: Path, learnt: int) -> None:
    """Learnt again from the checkpoint at or before the version: every bit and every end as in a run that never went back;
    nothing is published before the version's place is passed, then each version is the trainer's own."""
    life = lived(tmp_path)
    go_back(life.store, order(after(life, learnt), "replay"), Control(1), 5)
    life.store.close()
    again = Life(tmp_path)
    assert again.next == max(at for at in (*CHECKPOINTS, LEARNT) if at <= learnt)
    while again.next < LOG:
        published = again.store.newest_version()
        again.learn()
        newest = again.store.newest_version()
        assert published is not None
        assert newest is not None
        assert (newest.number > published.number) == (again.next > learnt)
        if again.next > learnt:
            assert again.store.load_version().weights_digest() == again.learner.digest() == digest_of(range(again.next))
    assert again.tallies == {"examples": LOG * BATCH_ROWS, "late": LOG}
    again.store.close()


@pytest.mark.parametrize("learnt", [9, 13])
def test_a_skip_leaves_out_what_came_since(tmp_path: Path, learnt: int) -> None:
    """It goes on where the order came, counts what it leaves out, and what was never learnt is in no bit of it: at a
    checkpoint the weights are those of a learner that only saw the rest."""
    life = lived(tmp_path)
    go_back(life.store, order(after(life, learnt), "skip"), Control(1), 5)
    life.store.close()
    again = Life(tmp_path)
    assert (again.next, again.learner.digest()) == (LEARNT, digest_of(range(learnt)))
    again.until(LOG)
    if learnt in CHECKPOINTS:
        assert again.learner.digest() == digest_of([*range(learnt), *range(LEARNT, LOG)])
    assert again.store.load_version().weights_digest() == again.learner.digest()
    rest = LOG - LEARNT + learnt
    assert again.tallies == {"examples": rest * BATCH_ROWS, SKIPPED: (LEARNT - learnt) * BATCH_ROWS, "late": LOG}
    again.store.close()


def test_going_back_from_going_back(tmp_path: Path) -> None:
    """To a later version of the line that was left, while the trainer is still learning again: no example twice, each
    either in the weights or counted as left out."""
    life = lived(tmp_path)
    late = after(life, LEARNT)
    go_back(life.store, order(after(life, 4), "replay"), Control(1), 5)
    life.store.close()
    again = Life(tmp_path).until(6)
    again.checkpoint()
    go_back(again.store, order(late, "skip", 1), Control(2), 6)
    again.store.close()
    third = Life(tmp_path)
    assert (third.next, third.learner.digest()) == (LEARNT, digest_of(range(LEARNT)))
    assert third.until(LOG).learner.digest() == digest_of(range(LOG))
    assert third.tallies == {"examples": LOG * BATCH_ROWS, SKIPPED: 0, "late": LOG}
    third.store.close()


class Killed(Exception):
    """Stands for SIGKILL."""


@pytest.mark.parametrize("then", ["replay", "skip"])
@pytest.mark.parametrize("written", [0, 1])
def test_killed_between_any_two_writes_the_order_is_obeyed_once(
    tmp_path: Path, then: Then, written: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the version, and between the version and the checkpoint: the next start obeys it again, with the same end and
    one first version."""
    life = lived(tmp_path)
    version, offset = after(life, 7), 3
    writes: list[Kind] = []

    def write(self: SnapshotStore, manifest: Manifest, chunks: Iterable[bytes], sync: bool) -> Manifest:
        if len(writes) == written:
            raise Killed
        writes.append(manifest.kind)
        return real(self, manifest, chunks, sync)

    real = SnapshotStore._write
    with monkeypatch.context() as patched:
        patched.setattr(SnapshotStore, "_write", write)
        with pytest.raises(Killed):
            go_back(life.store, order(version, then, offset), Control(offset + 1), 5)
    life.store.close()

    with SnapshotStore(tmp_path) as store:
        before = Control.of(store.newest_checkpoint())
        assert before == Control(0)                                       # it is still to be obeyed
        given = order(version, then, offset)
        first = go_back(store, given, before.after(given, store.manifests("version")), 9)
        assert Control.of(store.newest_checkpoint()) == Control(offset + 1)
        assert [v.number for v in store.manifests("version").values() if v.lineage == first.lineage] == [first.number]
        assert store.load_version().weights_digest() == digest_of(range(7))
    again = Life(tmp_path).until(LOG)
    if then == "replay":
        assert again.learner.digest() == digest_of(range(LOG))
    again.store.close()


def test_what_cannot_be_gone_back_to_is_refused(tmp_path: Path) -> None:
    """Examples that are gone from Kafka, a version older than any checkpoint: named, and nothing is written."""
    life = lived(tmp_path)
    with pytest.raises(ControlError, match="no checkpoint before it"):
        go_back(life.store, order(after(life, 3), "skip"), Control(1), 5)
    version = after(life, 7)
    last = life.store.newest_version()
    with pytest.raises(ControlError, match=r"from offset 4 of partition 0 \(the first there is: 6\).*then skip"):
        go_back(life.store, order(version, "replay", earliest=6), Control(1), 5)
    assert life.store.newest_version() == last
    life.store.close()


def test_a_pinned_version_outlives_its_time_with_what_going_back_needs(tmp_path: Path) -> None:
    """An hour later all others of its time are gone; it still loads, and can be gone back to."""
    life = lived(tmp_path)
    version = after(life, 7)
    life.store.expire(3_600_000_000, 10, {version.number})
    kept = life.store.manifests("version")
    assert version.number in kept
    assert version.number + 1 not in kept
    first = go_back(life.store, order(version, "replay"), Control(1), 5)
    assert life.store.load_version(first.number).weights_digest() == digest_of(range(7))
    life.store.expire(3_600_000_000, 10)
    assert version.number not in life.store.manifests("version")
    with pytest.raises(SnapshotError):
        life.store.load_version(version.number)
    life.store.close()
