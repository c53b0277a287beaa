"""What is judged, when, by which label: each example once, by its final one."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.config import JoinConfig
from schemas.examples import Examples
from stream_trainer.learning.intake import Intake
from stream_trainer.watching.progressive import Progressive
from stream_trainer.watching.verdicts import Judged, Verdicts, joined
from tests.kit.logs import SCHEMA, click, impression, join_all, tick
from tests.stream_trainer.joining.test_join import EVERY, IMMEDIATE, WAIT, histories

ALL = tick(1000)


def judged(records: list[Examples], batch_rows: int, verdicts: Verdicts | None = None) -> Judged:
    """Of a topic; what is said of a row is its impression's offset and place, so that it can be told."""
    intake, verdicts = Intake(SCHEMA, batch_rows), verdicts or Verdicts()
    found = []
    for offset, record in enumerate([*records, None]):
        if record is not None:
            intake.offer(0, offset, record)
        while True:
            batch, settled = intake.take(force=record is None), intake.settled()
            if batch is None and not any(settled):
                break
            said = np.empty(0, np.float32) if batch is None else (batch.impression * 100 + batch.item).astype(np.float32)
            found.append(verdicts.judge(batch, said, *settled))
    return joined(found) if found else Verdicts().judge(None, np.empty(0, np.float32), [], [])


def outcome(found: Judged) -> Counter[tuple[float, float]]:
    return Counter(zip(found.probabilities.tolist(), found.labels.tolist(), strict=True))


@pytest.mark.parametrize(
    "config", [IMMEDIATE, EVERY["immediate_lateness"], EVERY["eager"]], ids=["immediate", "lateness", "eager"]
)
@settings(max_examples=100)
@given(log=histories(), batch_rows=st.integers(1, 9))
def test_each_example_is_judged_once_by_its_final_label(config: JoinConfig, log: list[bytes], batch_rows: int) -> None:
    """Mode immediate is judged by the same labels as mode wait, though it learns every impression as a 0."""
    verdicts = Verdicts()
    found = judged(join_all([*log, ALL], config), batch_rows, verdicts)
    assert outcome(found) == outcome(judged(join_all([*log, ALL], replace(config, mode="wait")), batch_rows))
    assert len(verdicts) == 0


@settings(max_examples=100)
@given(log=histories(), batch_rows=st.integers(1, 9), record_rows=st.integers(1, 40))
def test_the_order_of_judgements_does_not_depend_on_how_records_were_cut(
    log: list[bytes], batch_rows: int, record_rows: int
) -> None:
    """A window of figures holds the same rows live and in a replay."""
    found = judged(join_all([*log, ALL], IMMEDIATE), batch_rows)
    other = judged(join_all([*log, ALL], replace(IMMEDIATE, record_rows=record_rows)), batch_rows)
    assert found.probabilities.tolist() == other.probabilities.tolist()
    assert found.labels.tolist() == other.labels.tolist()


def test_a_sample_counts_for_all() -> None:
    """A negative kept at a rate of a half counts twice, whether its example was weighted or not; a click once."""
    log = [impression(f"i{n}", n / 10, ("a",)) for n in range(200)] + [click("i150", 20, "a"), ALL]
    weights = []
    for config in (replace(WAIT, negative_rate=0.5), replace(WAIT, negative_rate=0.5, negative_correction="serving")):
        found = judged(join_all(log, config), 64)
        weights.append(found.weights.tolist())
        assert set(found.weights[found.labels < 0.5].tolist()) == {2.0}
        assert found.weights[found.labels > 0.5].tolist() == [1.0]
    assert weights[0] == weights[1]


def test_what_waits_is_part_of_a_checkpoint() -> None:
    """Progressive figures restored between an impression and its verdict are those of a run that was never stopped."""
    log = [impression(f"i{n}", n, ("a", "b")) for n in range(40)] + [click("i35", 36, "b"), click("i30", 36, "a"), ALL]
    records = join_all(log, replace(IMMEDIATE, record_rows=5))
    intake, whole, parts = Intake(SCHEMA, 4), Progressive(10), Progressive(10)
    waited = 0
    for offset, record in enumerate(records):
        intake.offer(0, offset, record)
        while True:
            batch, settled = intake.take(force=offset == len(records) - 1), intake.settled()
            if batch is None and not any(settled):
                break
            said = np.empty(0, np.float32) if batch is None else (1 / (2 + batch.impression)).astype(np.float32)
            for progressive in (whole, parts):
                one = progressive.verdicts.judge(batch, said, *settled)
                progressive.add(one.probabilities, one.labels, one.weights)
            fresh = Progressive(10)
            fresh.restore(parts.state())
            parts = fresh
            waited = max(waited, len(parts.verdicts))
    assert waited >= 10
    assert whole.lifetime() == parts.lifetime()
    assert whole.rows == 80


@pytest.mark.parametrize("config", [IMMEDIATE, EVERY["eager"]], ids=["immediate", "eager"])
def test_what_was_served_and_what_is_watched_stay_with_their_example(config: JoinConfig) -> None:
    """Also while it waits for its label, and through checkpoints meanwhile: a judgement has the marks of its own row."""
    log = [impression(f"i{n}", n, ("a", "b")) for n in range(40)] + [click("i35", 36, "b"), click("i30", 36, "a"), ALL]
    intake, verdicts, found = Intake(SCHEMA, 4), Verdicts(), []
    for offset, record in enumerate([*join_all(log, replace(config, record_rows=5)), None]):
        if record is not None:
            intake.offer(0, offset, record)
        while True:
            batch, settled = intake.take(force=record is None), intake.settled()
            if batch is None and not any(settled):
                break
            name = np.empty(0) if batch is None else batch.impression * 100 + batch.item
            if batch is not None:
                keys = np.stack([name + 7, name + 8], axis=1).astype(np.uint64)
                batch = replace(batch, served_probability=(name / 10_000).astype(np.float32), keys=keys)
            found.append(verdicts.judge(batch, (name / 5000).astype(np.float32), *settled))
            restored = Verdicts()
            restored.restore(verdicts.state())
            verdicts = restored
    whole = joined(found)
    assert len(whole) == 80
    name = np.round(whole.probabilities.astype(np.float64) * 5000)
    np.testing.assert_array_equal(name // 100, whole.impression)
    np.testing.assert_array_equal(whole.keys, np.stack([name + 7, name + 8], axis=1))
    np.testing.assert_allclose(whole.served, name / 10_000, rtol=1e-6)


def test_a_checkpoint_from_before_there_were_weights_is_read() -> None:
    """Its rows count for 1 each."""
    rng = np.random.default_rng(2)
    said, labels = rng.random(150, np.float32), (rng.random(150) < 0.3).astype(np.float32)
    progressive = Progressive(100)
    progressive.add(said, labels)
    state = progressive.state()
    old = {name: array for name, array in state.items() if name not in ("weights", "held_names", "held_numbers")}
    old["sums"] = state["sums"][:3]
    restored = Progressive(100)
    restored.restore(old)
    assert restored.lifetime() == progressive.lifetime()


def test_weighted_figures_are_those_of_rows_that_come_so_often() -> None:
    """A weight of 3 is the row three times: AUC, log loss, entropy and calibration of both."""
    rng = np.random.default_rng(4)
    said, labels = rng.random(500).round(2).astype(np.float32), (rng.random(500) < 0.3).astype(np.float32)
    weights = rng.integers(1, 4, 500).astype(np.float32)
    weighted, repeated = Progressive(10_000), Progressive(10_000)
    weighted.add(said, labels, weights)
    times = weights.astype(np.int64)
    repeated.add(np.repeat(said, times), np.repeat(labels, times))
    one, other = weighted.partial(), repeated.partial()
    assert one is not None
    assert other is not None
    for name in ("auc", "log_loss", "normalized_entropy", "calibration", "click_rate"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-9)
    assert (one.rows, one.clicks) == (500, int(labels.sum()))
