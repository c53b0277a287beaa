"""When versions wait and when they go: scripted streams, times passed in, a learner where the weights matter."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from schemas.bags import Bags
from schemas.config import GateConfig
from schemas.control import Order, Then
from schemas.errors import ConfigError
from stream_trainer.learning.guard import Guard
from stream_trainer.learning.intake import Batch
from stream_trainer.learning.learner import Learner
from stream_trainer.publishing.branch import go_back
from stream_trainer.publishing.control import Control, Given
from stream_trainer.publishing.gate import Gate, _lost
from stream_trainer.publishing.publisher import Publisher
from stream_trainer.store import SnapshotStore
from stream_trainer.training import Step
from stream_trainer.watching.progressive import Progressive
from stream_trainer.watching.verdicts import Verdicts
from tests.stream_trainer.publishing.test_plausible import SCHEMA, ids
from tests.stream_trainer.publishing.test_publisher import BATCH_ROWS, LEARN, MODEL, SNAPSHOT, batch
from tests.stream_trainer.publishing.test_publisher import SCHEMA as PUBLISHED

CONFIG = GateConfig(rows=1024, history_rows=8192, longest_s=60, calm_s=2, reference_s=20)
SECOND = 1_000_000
START = 1_767_225_600 * SECOND


class Stream:
    """Batches of 256 in a steady world, four a second; a model that says the right rate, until told otherwise."""

    def __init__(self, gate: Gate | None = None, config: GateConfig = CONFIG, seed: int = 1) -> None:
        self.said: float | NDArray[Any] = 0.1
        self.says_now = 0.1
        self.now = START
        self.gate = gate or Gate(config, SCHEMA, self.score)
        self.rng = np.random.default_rng(seed)
        self.batches = 0
        self.went: list[bool] = []

    def score(self, bags: Bags) -> np.ndarray:
        return np.full(len(bags), self.says_now, np.float32)

    def go(self, batches: int, rate: float = 0.1) -> Stream:
        for _ in range(batches):
            self.now += SECOND // 4
            self.gate.learnt(self.step(rate), self.now)
            self.went.append(not self.gate.holds(self.now))
        return self

    def step(self, rate: float) -> Step:
        self.batches += 1
        user, app = self.rng.integers(0, 400, 256), self.rng.integers(0, 200, 256)
        columns = np.column_stack([
            ids(user), ids(10_000 + user % 8), ids(20_000 + user % 24), ids(30_000 + app), ids(50_000 + app % 16),
            ids(60_000 + user % 6), ids(70_000 + app % 30),
        ])
        n = 256
        learnt = Batch(
            Bags(7, columns.reshape(-1)), (self.rng.random(n) < rate).astype(np.float32), None, np.zeros(n, np.int64),
            np.zeros(n, np.uint8), np.zeros(n, np.int64), np.full(n, np.nan, np.float32), np.zeros(n, np.int64),
            np.repeat(self.batches, n), np.zeros(n, np.uint16),
        )
        said = np.full(n, self.said, np.float32)
        return Step(learnt, said, Verdicts().judge(learnt, said, [], []), [])


def test_a_steady_stream_and_a_new_model_pass() -> None:
    """Every version goes, from the first on."""
    assert all(Stream().go(400).went)


def test_a_hold_begins_soon_and_ends_when_all_is_plausible_for_a_while() -> None:
    """Labels flip for ten seconds: versions stop within two, and go again seconds after the labels are right again."""
    stream = Stream().go(60)
    stream.went.clear()
    stream.go(40, rate=0.9)
    assert stream.went.index(False) <= 8
    assert not any(stream.went[stream.went.index(False) :])
    hold = stream.gate.held
    assert hold is not None
    assert (hold.reason, hold.until_us - hold.since_us) == ("labels", 60 * SECOND)
    stream.went.clear()
    stream.go(100)
    assert stream.went[:8] == [False] * 8
    assert stream.went[-1]
    assert [(one.what, one.state) for one in stream.gate.take()] == [
        ("gate.held", "raised"), ("gate.held", "over"), ("gate.released", "over"),
    ]


def test_it_gives_way_once_and_takes_what_comes_for_the_usual() -> None:
    """A rate that stays doubled is held for a minute, then never again."""
    stream = Stream().go(60)
    stream.went.clear()
    stream.go(340, rate=0.3)
    first = stream.went.index(False)
    assert stream.went.count(False) == pytest.approx(60 * 4, abs=2)
    assert all(stream.went[first + 60 * 4 + 2 :])
    assert "gave way" in stream.gate.take()[-1].text


def test_an_order_releases_at_once_and_the_same_reason_passes_for_as_long() -> None:
    """Released while labels are still flipped: the next version goes, and those after it."""
    stream = Stream().go(60).go(20, rate=0.9)
    assert stream.gate.held is not None
    stream.gate.obey("release", stream.now)
    stream.went.clear()
    stream.go(60, rate=0.9)
    assert all(stream.went)
    assert "labels" in stream.gate.status()["forgiven"]


def test_an_operators_hold_has_no_end_of_its_own() -> None:
    """Not by plausible examples, not by time; only by the other order."""
    stream = Stream().go(50)
    stream.gate.obey("hold", stream.now)
    stream.went.clear()
    stream.go(100)
    assert not any(stream.went)
    assert stream.gate.held_versions == 100
    stream.gate.obey("release", stream.now)
    assert stream.go(1).went[-1]


def test_scores_that_jump_are_held_though_the_stream_is_as_ever() -> None:
    """The weights say .6 of everything that they gave .1 a minute ago."""
    stream = Stream().go(140)
    stream.says_now, stream.went = 0.6, []
    stream.go(2)
    assert stream.went[-1] is False
    assert stream.gate.held is not None
    assert (stream.gate.held.reason, stream.gate.held.now) == ("jump", 1.0)


def test_scores_that_are_sure_of_themselves_and_wrong_are_held_though_right_on_average() -> None:
    """A tenth of them say .91 and the others .01, and a tenth of either is clicked: as many clicks as were said."""
    stream = Stream().go(60)
    stream.said, stream.went = np.where(np.arange(256) % 10 == 0, 0.91, 0.01), []
    stream.go(20)
    hold = stream.gate.held
    assert stream.went.index(False) <= 12
    assert hold is not None
    assert hold.reason == "loss"
    assert hold.was == pytest.approx(1, rel=0.1)
    assert hold.now is not None
    assert hold.now > 1.4


def test_expected_loss_is_the_entropy_of_what_was_said() -> None:
    """A click that was said with .2, and two zeros of .1 and .5, the second of which counts threefold: by hand."""
    f32 = partial(np.array, dtype=np.float32)
    found = _lost(f32([1]), f32([0.2]), f32([1, 3]), f32([0.1, 0.5]))
    assert found.seen == pytest.approx(-math.log(0.2) - math.log(0.9) - 3 * math.log(0.5), rel=1e-6)
    entropy = [-(p * math.log(p) + (1 - p) * math.log(1 - p)) for p in (0.2, 0.1, 0.5)]
    assert found.expected == pytest.approx(entropy[0] + entropy[1] + 3 * entropy[2], rel=1e-6)


@pytest.mark.parametrize("young", [True, False])
def test_scores_that_are_no_numbers_never_go_live(young: bool) -> None:
    """From the first example on."""
    stream = Stream().go(2 if young else 140)
    stream.said, stream.says_now, stream.went = 0.1 if not young else float("nan"), float("nan"), []
    stream.go(8)
    assert stream.went[-1] is False
    assert stream.gate.held is not None
    assert stream.gate.held.reason == "not finite"


def test_off_holds_nothing_but_what_an_operator_holds() -> None:
    """gate.on=false."""
    stream = Stream(config=replace(CONFIG, on=False)).go(60).go(40, rate=0.9)
    assert all(stream.went)
    stream.gate.obey("hold", stream.now)
    assert stream.go(1).went[-1] is False


@pytest.mark.parametrize("kill_after", [0, 7, 8, 30])
def test_a_kill_changes_neither_the_reason_nor_the_end_of_patience(kill_after: int) -> None:
    """Its state, taken up by another gate so many batches after the labels flipped: held as one that lived on."""
    living = Stream().go(60).go(kill_after, rate=0.9)
    heir = Stream(seed=2)
    heir.gate.restore(living.gate.state())
    heir.rng, heir.now, heir.batches = np.random.default_rng(5), living.now, living.batches
    living.rng = np.random.default_rng(5)
    for stream in (living, heir):
        stream.went.clear()
        stream.go(40, rate=0.9)
    assert heir.went == living.went
    assert heir.gate.held == living.gate.held
    assert heir.gate.held is not None
    for stream in (living, heir):
        stream.go(60)
    assert heir.went == living.went
    assert heir.gate.held is None


def publisher(directory: Path, gate: Gate) -> tuple[Publisher, Guard]:
    learner = Learner(MODEL, LEARN, PUBLISHED, SNAPSHOT.rotation)
    guard = Guard(learner)
    return Publisher(SnapshotStore(directory), learner, Progressive(100), SNAPSHOT, "11fe" * 8, guard, gate), guard


def test_while_held_no_version_is_written_but_the_first_and_the_next_holds_everything(tmp_path: Path) -> None:
    """The first version of a model, a forced one, a checkpoint, a kill; then the release, with the learner's own weights."""
    gate = Gate(CONFIG, PUBLISHED, lambda bags: np.zeros(len(bags), np.float32))
    made, guard = publisher(tmp_path, gate)
    made.restore()
    gate.obey("hold", 1)
    place: dict[str, Any] = {"cursors": {0: (0, 0, 0)}, "offsets": {0: 1}, "tallies": {"examples": 3 * BATCH_ROWS}}
    first = made.maybe_publish(1, force=True, **place)
    assert first is not None
    for number in range(3):
        guard.learn(*batch(number))
        assert made.maybe_publish(2 + number, force=True, **place) is None
    assert made.maybe_checkpoint(9, force=True, **place) is not None
    made.store.close()

    other = Gate(CONFIG, PUBLISHED, lambda bags: np.zeros(len(bags), np.float32))
    again, _ = publisher(tmp_path, other)
    again.restore()
    assert other.held is not None
    assert again.maybe_publish(10, force=True, **place) is None
    other.obey("release", 11)
    released = again.maybe_publish(12, force=True, **place)
    assert released is not None
    assert (released.parent, released.examples_learnt) == (first.number, 3 * BATCH_ROWS)
    whole = again.store.load_version(released.number)
    np.testing.assert_array_equal(whole.floats, again.learner.table.weights(whole.rows))
    assert set(again.learner.table.touched().tolist()) <= set(whole.rows.tolist())
    again.store.close()


@pytest.mark.parametrize("then", ["replay", "skip"])
def test_a_rollback_ends_the_hold(tmp_path: Path, then: Then) -> None:
    """Whoever goes back wants what follows to be served; what is usual is not forgotten."""
    gate = Gate(CONFIG, PUBLISHED, lambda bags: np.zeros(len(bags), np.float32))
    made, guard = publisher(tmp_path, gate)
    made.restore()
    place: dict[str, Any] = {"cursors": {0: (0, 0, 0)}, "offsets": {0: 1}, "tallies": {"examples": BATCH_ROWS}}
    guard.learn(*batch(0))
    made.maybe_checkpoint(1, force=True, **place)
    version = made.maybe_publish(2, force=True, **place)
    assert version is not None
    gate.obey("hold", 3)
    guard.learn(*batch(1))
    made.maybe_checkpoint(4, force=True, **place)
    order = Order(what="rollback", model="m", lineage=version.lineage, version=version.number, then=then)
    go_back(made.store, Given(0, order, {0: 0}), Control(1), 5)
    made.store.close()

    heir = Gate(CONFIG, PUBLISHED, lambda bags: np.zeros(len(bags), np.float32))
    again, _ = publisher(tmp_path, heir)
    again.restore()
    again.store.close()
    assert heir.held is None
    stands = [one for one in gate.take() if one.state == "raised"]
    assert [(one.what, one.state) for one in heir.forgotten(stands, 6)] == [("gate.held", "over"), ("gate.released", "over")]


def test_scoring_a_sample_between_two_batches_changes_no_bit_of_the_weights() -> None:
    """With dropout and batch norm, where scoring and learning are two modes."""
    def digest(looked_at: bool) -> str:
        learner = Learner(replace(MODEL, dropout=0.2, batch_norm=True), LEARN, PUBLISHED, SNAPSHOT.rotation)
        for number in range(6):
            learner.learn(*batch(number))
            if looked_at:
                learner.score(batch(number + 100)[0])
        return learner.digest()

    assert digest(looked_at=True) == digest(looked_at=False)


def test_an_order_to_the_gate_needs_no_version_and_is_known_once() -> None:
    """Both have one key: a later one makes the earlier obsolete."""
    hold, release = (Order(what=what, model="m") for what in ("hold", "release"))
    assert hold.key == release.key
    control = Control().after(Given(4, hold), {})
    assert control.knows(Given(4, hold))
    assert not control.knows(Given(5, release))


@pytest.mark.parametrize(("key", "value"), [
    ("rows", 100), ("history_rows", 1024), ("evidence", 1), ("jump_share", 0), ("longest_s", 0), ("rate_factor", 1),
])
def test_settings_that_make_no_sense_are_refused(key: str, value: float) -> None:
    """Each names itself."""
    chosen: dict[str, Any] = {key: value}
    with pytest.raises(ConfigError, match=f"gate.{key}={value}"):
        GateConfig(**chosen)
