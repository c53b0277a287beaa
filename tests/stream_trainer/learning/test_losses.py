"""Labels that are not final, values, sampled negatives: what the learner believes in the end is the truth of all examples."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from schemas import fields
from schemas.bags import Bags, concat
from schemas.config import JoinConfig, JoinMode, LearnConfig, ModelConfig, NegativeCorrection
from schemas.errors import ConfigError
from schemas.examples import Stage
from schemas.hashing import is_kept
from stream_trainer.learning.guard import Guard
from stream_trainer.learning.intake import Intake
from stream_trainer.learning.learner import Learner
from stream_trainer.learning.losses import Seen, log_losses, loss_weights
from tests.kit.logs import SCHEMA, at, click, core, impression, rows_of, tick

MODEL = ModelConfig(name="t", architecture="lr", bits=10, seed=1)
LEARN = LearnConfig(device="cpu", row_optimiser="sgd", row_rate=0.02, dense_rate=0.005, guard=False)


def seen_as(stage: Stage | list[Stage], rows: int, late: float = 0.0, rate: float = 1.0) -> Seen:
    return Seen(np.full(rows, stage, np.uint8), np.full(rows, late, np.float32), np.full(rows, rate, np.float32))


def pull(f: float, rows: list[tuple[float, int, Stage]], late: float = 0.0) -> float:
    """Gradient of the loss by the logit where the model says f: rows are (how often, label, stage)."""
    logits = torch.full((len(rows),), math.log(f / (1 - f)), dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([float(label) for _, label, _ in rows], dtype=torch.float64)
    weights = loss_weights(logits, labels, Seen(
        np.array([stage for *_, stage in rows], np.uint8), np.full(len(rows), late, np.float32), np.ones(len(rows), np.float32)
    )) * torch.tensor([often for often, *_ in rows], dtype=torch.float64)
    torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, weights, reduction="sum").backward()
    assert logits.grad is not None
    return float(logits.grad.sum())


@pytest.mark.parametrize("early", [0.0, 0.4])
@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.8])
def test_fake_negatives_leave_the_truth_as_the_one_place_of_rest(p: float, early: float) -> None:
    """Every impression a 0, every click a 1 besides; a share `early` of the clicks came first, and are one row with their
    impression. Below the truth the model is pulled up, above it down, also at the trap p = 1; unweighted it would rest at
    p / (1 + p)."""
    rows = [
        (1 - p * early, 0, Stage.IMMEDIATE), (p * (1 - early), 1, Stage.IMMEDIATE), (p * early, 1, Stage.IMMEDIATE_BOTH),
    ]
    assert pull(p, rows) == pytest.approx(0, abs=1e-6)
    assert pull(0.8 * p, rows) < 0
    for above in (1.1 * p, 0.97, 0.9999):
        assert pull(above, rows) > 1e-3 * p
    if not early:
        naive = p / (1 + p)
        assert pull(naive, [(1, 0, Stage.FINAL), (p, 1, Stage.FINAL)]) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("late", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("p", [0.01, 0.2, 0.8])
def test_examples_learnt_twice_leave_the_truth_as_the_one_place_of_rest(p: float, late: float) -> None:
    """Each once as it was seen, without the late share of the actions, and once as it is in the end."""
    rows = [
        (p * (1 - late), 1, Stage.OBSERVED), (1 - p * (1 - late), 0, Stage.OBSERVED),
        (p * (1 - late), 1, Stage.TRUE), (p * late, 1, Stage.TRUE_LATE), (1 - p, 0, Stage.TRUE),
    ]
    assert pull(p, rows, late) == pytest.approx(0, abs=1e-6)
    assert pull(0.8 * p, rows, late) < 0
    for above in (1.1 * p, 0.97, 0.9999):
        assert pull(above, rows, late) > 1e-4 * p


@pytest.mark.parametrize("p", [0.05, 0.3])
@pytest.mark.parametrize(("stages", "late", "rate"), [
    ({Stage.FINAL: 1.0}, 0.0, 1.0), ({Stage.FINAL: 1.0}, 0.0, 0.1), ({Stage.OBSERVED: 0.6}, 0.4, 1.0),
    ({Stage.IMMEDIATE: 1.0}, 0.0, 1.0), ({Stage.IMMEDIATE: 0.5, Stage.IMMEDIATE_BOTH: 0.5}, 0.0, 1.0),
])
def test_the_losses_that_the_guard_compares_are_least_at_the_truth(
    p: float, stages: dict[Stage, float], late: float, rate: float
) -> None:
    """What two models said is compared by labels as they are seen, so the guard does not prefer the one that believes in fake
    negatives, or in a sample's click rate."""
    rows = []
    if Stage.IMMEDIATE in stages:
        both = stages.get(Stage.IMMEDIATE_BOTH, 0.0)
        rows = [(1 - p * both, 0, Stage.IMMEDIATE), (p * (1 - both), 1, Stage.IMMEDIATE), (p * both, 1, Stage.IMMEDIATE_BOTH)]
    else:
        (stage, share), = stages.items()
        rows = [(p * share, 1, stage), ((1 - p * share) * rate, 0, stage)]
    labels = np.array([label for _, label, _ in rows], np.float32)
    seen = Seen(
        np.array([stage for *_, stage in rows], np.uint8), np.full(len(rows), late, np.float32),
        np.full(len(rows), rate, np.float32),
    )

    def expected(f: float) -> float:
        often = np.array([often for often, *_ in rows])
        return float((often * log_losses(np.full(len(rows), f, np.float32), labels, None, seen)).sum())

    tried = np.linspace(0.6 * p, 1.6 * p, 201)
    assert tried[np.argmin([expected(f) for f in tried])] == pytest.approx(p, rel=0.01)


def stream(join: JoinConfig, rounds: int = 12_000, seed: int = 5) -> NDArray[np.float64]:
    """What a learner says of two users with known click rates, on average over the second half of their joined stream."""
    encoder = fields.Encoder(SCHEMA, training=False)
    both = concat([encoder.encode(fields.Slate(["a"], {"user": f"u{kind}"}, {}, None))[0] for kind in (0, 1)])
    said = []
    rng = np.random.default_rng(seed)
    joiner, intake = core(join), Intake(SCHEMA, 64)
    learner = Learner(MODEL, LEARN, SCHEMA)
    waiting: list[tuple[float, bytes]] = []
    now, offset = 0.0, 0

    def feed(value: bytes) -> None:
        nonlocal offset
        joiner.feed(offset, 1 << 60, value)
        offset += 1

    for number in range(rounds):
        now += 0.05
        while waiting and waiting[0][0] <= now:
            feed(waiting.pop(0)[1])
        kind = number % 2
        feed(impression(f"i{number}", now, ("a",), user=f"u{kind}"))
        if rng.random() < RATES[kind]:
            due = now + float(rng.exponential(2.0))
            waiting.append((due, click(f"i{number}", due, "a", value=3.0)))
            waiting.sort()
        for record in joiner.records(0):
            intake.offer(0, offset, record)
        while (batch := intake.take()) is not None:
            learner.learn(batch.bags, batch.labels, batch.weights, batch.seen)
            if number > rounds / 2:
                said.append(learner.score(both))
    mean: NDArray[np.float64] = np.mean(said, axis=0, dtype=np.float64)
    return mean


RATES = (0.05, 0.3)
JOIN = JoinConfig(window_s=10, mode="eager")


@pytest.mark.parametrize("join", [
    JOIN, replace(JOIN, mode="wait"), replace(JOIN, mode="immediate"),
    replace(JOIN, negative_rate=0.2), replace(JOIN, negative_rate=0.2, negative_correction="serving"),
    replace(JOIN, mode="immediate", negative_rate=0.3),
], ids=["eager", "wait", "immediate", "weight", "serving", "immediate_weight"])
def test_what_is_served_is_the_true_rate_in_every_mode(join: JoinConfig) -> None:
    """12,000 impressions of two users that click at 5 % and 30 %: what the learner says, and so the scorer, is theirs.

    Without its correction immediate would say .048 and .23, a sample of a fifth .21 and .68."""
    assert stream(join) == pytest.approx(RATES, rel=0.1)


def test_values_weigh_the_positives() -> None:
    """A value of 3 triples the odds of what is learnt."""
    assert stream(replace(JOIN, value_as_weight=True)) == pytest.approx([3 * p / (3 * p + 1 - p) for p in RATES], rel=0.1)


def test_weights_and_a_serving_correction_never_meet() -> None:
    """A sampled negative carries 1/rate or its record says the rate; the setting has room for one of them, and modes that put
    labels right later refuse the second."""
    log = [impression(f"i{n}", n / 10, ("a",)) for n in range(40)] + [tick(60)]
    tried: tuple[tuple[NegativeCorrection, float, float], ...] = (("weight", 2.0, 0.0), ("serving", 1.0, 0.5))
    for correction, weight, rate in tried:
        joiner = core(JoinConfig(window_s=10, mode="wait", negative_rate=0.5, negative_correction=correction))
        for offset, value in enumerate(log):
            joiner.feed(offset, 1 << 60, value)
        (record,) = joiner.records(0, flush=True)
        assert {row.weight for row in rows_of([record])} == {weight}
        assert record.negative_rate == rate
    modes: tuple[JoinMode, ...] = ("immediate", "corrected")
    for mode in modes:
        with pytest.raises(ConfigError, match="negative_correction=weight"):
            replace(JOIN, mode=mode, negative_rate=0.5, negative_correction="serving")
        with pytest.raises(ConfigError, match="eager or wait"):
            replace(JOIN, mode=mode, value_as_weight=True)


def test_the_sample_is_a_share_of_identities_and_always_the_same() -> None:
    """Of 20,000 identities a tenth is kept within four standard errors, the same ones each time, others with another seed."""
    kept = [is_kept(f"i{n}", "a", 0.1, 1) for n in range(20_000)]
    assert abs(sum(kept) - 2000) < 4 * math.sqrt(20_000 * 0.1 * 0.9)
    assert kept == [is_kept(f"i{n}", "a", 0.1, 1) for n in range(20_000)]
    assert 150 < sum(a and b for a, b in zip(kept, [is_kept(f"i{n}", "a", 0.1, 2) for n in range(20_000)], strict=True)) < 250
    assert all(is_kept(f"i{n}", "a", 0.3, 1) for n in range(20_000) if kept[n])   # a larger sample holds the smaller


@pytest.mark.parametrize(("value", "reason"), [(-1.0, "bad_value"), (2e6, "bad_value"), (math.nan, None)])
def test_a_value_that_is_no_weight_is_a_dead_letter(value: float, reason: str | None) -> None:
    """Only where values are weights; a value that is no number is one in any case."""
    for as_weight in (True, False):
        joiner = core(JoinConfig(window_s=10, mode="wait", value_as_weight=as_weight))
        log = [impression("x", 0), click("x", 1, value=value), tick(20)]
        for offset, record in enumerate(log):
            joiner.feed(offset, at(100), record)
        expected = [reason or "wrong_type"] if as_weight or reason is None else []
        assert [letter.reason for letter in joiner.dead_letters] == expected
        assert [row.label for row in rows_of(joiner.records(0, flush=True))] == [0 if expected else 1, 0]


def test_the_guard_learns_what_is_seen_again_as_it_was_seen() -> None:
    """Its buffer, and the checkpoint of it, keep how each label came about: a guard restored half way goes on to the same
    weights."""
    rng = np.random.default_rng(3)
    batches = [
        (Bags(2, rng.integers(0, 50, 128, dtype=np.uint64)), (rng.random(64) < 0.2).astype(np.float32),
         seen_as(Stage.IMMEDIATE, 64) if n % 3 else None)
        for n in range(24)
    ]
    learn = replace(LEARN, guard=True, guard_rows=256, guard_floor=0.25, row_rate=0.5, dense_rate=0.5)
    whole, parts = Guard(Learner(MODEL, learn, SCHEMA)), Guard(Learner(MODEL, learn, SCHEMA))
    for place, (bags, labels, seen) in enumerate(batches):
        whole.learn(bags, labels, None, seen)
        parts.learn(bags, labels, None, seen)
        state = parts.state()
        if place == 13:
            assert "stage" in state
        parts.restore(state)
    assert whole.learner.digest() == parts.learner.digest()
