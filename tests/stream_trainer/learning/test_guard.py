"""The guard against divergence: it fires where learning hurts, not where the traffic changes, and a kill changes no bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.bags import Bags
from schemas.config import LearnConfig, ModelConfig, SnapshotConfig
from schemas.errors import ConfigError
from schemas.fields import parse
from stream_trainer.learning.guard import ASKED, LEAST_BATCHES, ONE_IN, Divergence, Guard
from stream_trainer.learning.learner import Diverged, Learner
from stream_trainer.publishing.publisher import Publisher
from stream_trainer.store import SnapshotStore
from stream_trainer.watching.progressive import Progressive

FIELDS = 4
SCHEMA = parse(
    {"field": [{"name": f"f{n}", "number": n, "kind": "categorical", "side": "item"} for n in range(1, FIELDS + 1)]}, "test"
)
MODEL = ModelConfig(bits=12, factors=4, hidden=(16, 8), statistics=False)
SOUND = LearnConfig(device="cpu", batch_rows=32, guard_rows=1024, dense_optimiser="adam", dense_rate=0.001)
WILD = replace(SOUND, row_optimiser="adam", row_rate=0.1, dense_rate=0.1)   # ends worse than saying the click rate


def stream(rows: int, seed: int = 0, change_at: int | None = None, batch_rows: int = 32) -> Iterator[tuple[Bags, np.ndarray]]:
    """Clicks that depend on every field's value, at a rate of one in five or so, twice that from change_at on."""
    rng = np.random.default_rng(seed)
    truth = np.random.default_rng(99).normal(0, 0.5, (FIELDS, 100))
    for start in range(0, rows, batch_rows):
        picked = (100 * rng.random((batch_rows, FIELDS)) ** 2).astype(int)
        more = 0.9 if change_at is not None and start >= change_at else 0.0
        logit = truth[np.arange(FIELDS), picked].sum(axis=1) - 1.5 + more
        labels = (rng.random(batch_rows) < 1 / (1 + np.exp(-logit))).astype(np.float32)
        ids = (picked + np.arange(FIELDS) * 1000).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        yield Bags(FIELDS, ids.reshape(-1)), labels


def learnt(
    learn: LearnConfig, batches: Iterator[tuple[Bags, np.ndarray]], **model: Any
) -> tuple[Guard, list[Divergence], float]:
    """The guard after those batches, what it did, and the log loss of the last third of what was said."""
    guard = Guard(Learner(replace(MODEL, **model), learn, SCHEMA))
    did, losses = [], []
    for bags, labels in batches:
        said, found = guard.learn(bags, labels)
        did += [found] if found else []
        p = np.clip(said.astype(float), 1e-7, 1 - 1e-7)
        losses.append(-np.log(np.where(labels > 0.5, p, 1 - p)).mean())
    return guard, did, float(np.mean(losses[-len(losses) // 3 :]))


class Nans:
    """The learner, as if the next so many losses were no numbers."""

    def __init__(self, guard: Guard, times: int) -> None:
        self.learner, self.left = guard.learner, times

    def __enter__(self) -> None:
        real = self.learner.learn

        def learn(*batch: Any) -> Any:
            if self.left:
                self.left -= 1
                raise Diverged("the loss is nan")
            return real(*batch)

        vars(self.learner)["learn"] = learn

    def __exit__(self, *_: object) -> None:
        del vars(self.learner)["learn"]


def test_a_step_too_large_is_noticed_and_made_smaller():
    """Unguarded the loss stays high; guarded it comes down to near that of a sound step, and it is said how."""
    without = learnt(replace(WILD, guard=False), stream(16_000))[2]
    guard, did, guarded = learnt(WILD, stream(16_000))
    sound = learnt(SOUND, stream(16_000))[2]
    assert did
    assert guard.rate_factor == did[-1].rate_factor <= 0.5
    assert did[0].excess > 4 * did[0].error
    assert did[0].good_at + did[0].relearnt == did[0].noticed_at
    assert guarded - sound < 0.5 * (without - sound)


def test_every_example_is_learnt_once():
    """After going back, the weights are those of a learner that took the same batches from the good state by smaller steps."""
    guard = Guard(Learner(MODEL, WILD, SCHEMA))
    batches = list(stream(16_000))
    number, found = next((at, told) for at, batch in enumerate(batches) if (told := guard.learn(*batch)[1]))
    assert found.good_at == 1024  # after the first window, whose gain over new weights is beyond doubt
    assert guard.learner.batches_learnt == number + 1
    assert guard.learner.examples_learnt == 32 * (number + 1)
    once = Learner(MODEL, replace(WILD, guard=False), SCHEMA)
    for bags, labels in batches[: found.good_at // 32]:
        once.learn(bags, labels)
    slower = replace(WILD, guard=False, row_rate=0.1 * found.rate_factor, dense_rate=0.1 * found.rate_factor)
    other = Learner(MODEL, slower, SCHEMA)
    rows = once.table.touched()
    other.table.load(rows, once.table.rows_with_state(rows))
    other.load(once.dense(), once.dense_state(), once.batches_learnt, once.examples_learnt)
    for place, (bags, labels) in enumerate(batches[: number + 1]):
        if place >= found.good_at // 32:
            other.learn(bags, labels)
    assert guard.learner.digest() == other.digest()


def test_the_good_state_is_asked_without_disturbing_anybody():
    """What it says of rows old and new is what a learner says that never went on; table and model are as they were."""
    guard, once = Guard(Learner(MODEL, SOUND, SCHEMA)), Learner(MODEL, replace(SOUND, guard=False), SCHEMA)
    batches = list(stream(2 * 1024 - 64))
    for number, (bags, labels) in enumerate(batches):
        guard.learn(bags, labels)
        if 32 * number < 1024:
            once.learn(bags, labels)
    before = guard.learner.digest()
    for bags, _ in [batches[0], batches[-1], next(stream(32, seed=7))]:
        assert (guard._good_scores(bags) == once.score(bags)).all()
        assert (guard.learner.score(bags) != once.score(bags)).any()
    assert guard.learner.digest() == before


def test_of_large_batches_a_part_is_asked_about():
    """The window is eight batches long then; still the good state scores as many of its examples as of a window of small ones,
    a step too large is noticed, and a sound one left alone."""
    assert ONE_IN * ASKED // LEAST_BATCHES == 4          # 2 of 8 batches, an eighth of guard_rows each: a quarter of guard_rows
    large = replace(WILD, batch_rows=512, row_rate=0.3, dense_rate=0.3)
    _, did, guarded = learnt(large, stream(12_288, seed=1, batch_rows=512))
    without = learnt(replace(large, guard=False), stream(12_288, seed=1, batch_rows=512))[2]
    assert did[0].noticed_at == 4096
    assert guarded < without - 0.05
    sound, none, _ = learnt(replace(SOUND, batch_rows=512), stream(4096 + 6 * 512, batch_rows=512))
    assert not none
    assert sound.buffered_rows == 6 * 512
    assert sound._asked == 2 * 1024 // ASKED


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_sound_step_is_left_alone(seed):
    """No alarm, and the very weights of a learner without a guard."""
    guard, did, _ = learnt(SOUND, stream(20_000, seed), dropout=0.1)
    bare, _, _ = learnt(replace(SOUND, guard=False), stream(20_000, seed), dropout=0.1)
    assert not did
    assert guard.learner.digest() == bare.learner.digest()


@pytest.mark.parametrize("seed", [1, 2])
def test_traffic_that_changes_is_no_divergence(seed):
    """The click rate doubles within a window: whoever stands still is worse off, so the guard keeps quiet."""
    assert not learnt(SOUND, stream(12_000, seed, change_at=6_100))[1]


def test_an_infinite_loss_goes_back_instead_of_ending():
    """A number that is none, here from a broken value, is answered with smaller steps as long as there are any."""
    guard = Guard(Learner(MODEL, SOUND, SCHEMA))
    for bags, labels in stream(1500, batch_rows=30):
        guard.learn(bags, labels)
    with Nans(guard, times=1):
        said, found = guard.learn(bags, labels)
    assert found
    assert found.rate_factor == 0.5
    assert np.isnan(found.excess)
    assert np.isfinite(said).all()
    assert guard.learner.examples_learnt == 1530
    before = guard.learner.digest()
    with Nans(guard, times=1000), pytest.raises(Diverged):
        guard.learn(bags, labels)
    assert guard.learner.digest() == before


class Life:
    """What the trainer does with guard and publisher."""

    def __init__(self, directory: Path) -> None:
        self.store = SnapshotStore(directory)
        self.learner = Learner(MODEL, WILD, SCHEMA, 4)
        self.guard = Guard(self.learner)
        config = SnapshotConfig(rotation=4)
        self.publisher = Publisher(self.store, self.learner, Progressive(1000), config, "11fe" * 8, self.guard)
        self.restored = self.publisher.restore()
        self.next = self.restored.batches_learnt if self.restored else 0


def test_killed_anywhere_it_ends_with_the_same_bits_and_served_rows(tmp_path):
    """Checkpoints and kills inside windows, before and after going back: same weights, same rates, same alarms; and the
    newest version holds the trainer's weights, rows that were set back among them."""
    batches = list(stream(16_000))
    undisturbed, alarms, _ = learnt(WILD, iter(batches))
    assert alarms
    cuts = [7, 100, 161, 163, 250, 311, 420, 499]
    life, found = Life(tmp_path / "store"), []
    for number in cuts:
        while life.next <= number:
            told = life.guard.learn(*batches[life.next])[1]
            found += [told] if told else []
            life.next += 1
            if life.next % 37 == 0:
                life.publisher.maybe_publish(0, force=True)
        life.publisher.maybe_checkpoint(0, cursors={0: (number, 0, 0)}, offsets={0: number}, tallies={}, force=True)
        for bags, labels in batches[life.next : life.next + 5]:  # learnt in vain: the kill takes it back
            life.guard.learn(bags, labels)
        life.store.close()
        life = Life(tmp_path / "store")
    assert life.next == len(batches)
    assert life.learner.digest() == undisturbed.learner.digest()
    assert life.guard.rate_factor == undisturbed.rate_factor
    assert repr(found) == repr(alarms)
    life.guard.learn(*batches[0])
    published = life.publisher.maybe_publish(1, force=True)
    assert published
    rows = life.learner.table.touched()
    served: dict[int, bytes] = {}
    for manifest in sorted(life.store.manifests("version").values(), key=lambda one: one.number):
        for numbers, floats in life.store.read(manifest).rows:
            served.update(zip(numbers.tolist(), (row.tobytes() for row in floats), strict=True))
    weights = life.learner.table.weights(rows)
    assert served == dict(zip(rows.tolist(), (row.tobytes() for row in weights), strict=True))
    life.store.close()


def test_bounds_of_the_settings():
    """What makes no sense is refused with its name."""
    wrongs: list[dict[str, Any]] = [{"guard_rows": 3}, {"guard_margin": -1}, {"guard_floor": 0}, {"guard_floor": 2}]
    for wrong in wrongs:
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            LearnConfig(**wrong)
