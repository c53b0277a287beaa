"""The learner against a dense reference in float64, and against itself interrupted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from schemas.bags import Bags
from schemas.config import LearnConfig, ModelConfig
from schemas.errors import ConfigError, ShapeError, SnapshotError
from schemas.fields import FieldSchema, parse
from schemas.models import build
from stream_trainer.learning.learner import Diverged, Learner
from stream_trainer.watching.windows import figures

ONE_HOT = parse(
    {"field": [{"name": f"f{n}", "number": n, "kind": "categorical", "side": "item"} for n in (1, 2, 3)]}, "test"
)
MIXED = parse(
    {
        "field": [
            {"name": "a", "number": 1, "kind": "categorical", "side": "context"},
            {"name": "b", "number": 2, "kind": "set", "side": "item"},
            {"name": "c", "number": 3, "kind": "set", "side": "item", "pool": "sum"},
            {"name": "d", "number": 4, "kind": "numeric", "side": "item", "transform": "raw"},
        ]
    },
    "test",
)
MODEL = ModelConfig(bits=12, factors=4, hidden=(16, 8), seed=5, statistics=False)
LEARN = LearnConfig(device="cpu", row_optimiser="adagrad", row_rate=0.05, dense_optimiser="adam", dense_rate=0.01)


def one_hot(rows: int, seed: int, values: int = 30) -> tuple[Bags, np.ndarray]:
    """Three fields of few values, so that a batch has many duplicates; clicks that depend on them."""
    rng = np.random.default_rng(seed)
    picked = rng.integers(0, values, (rows, 3))
    truth = np.random.default_rng(0).normal(0, 1, (3, values))
    logit = truth[0, picked[:, 0]] + truth[1, picked[:, 1]] * truth[2, picked[:, 2]] - 0.5
    labels = (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.float32)
    ids = (picked + np.arange(3) * 1000).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return Bags(3, ids.reshape(-1)), labels


def mixed(rows: int, seed: int) -> tuple[Bags, np.ndarray]:
    """Sets of one to four ids, and a number."""
    rng = np.random.default_rng(seed)
    lengths = np.ones((rows, 4), np.uint16)
    lengths[:, 1:3] = rng.integers(1, 5, (rows, 2))
    count = int(lengths.sum())
    values = np.ones(count, np.float32)
    values[np.cumsum(lengths)[3::4].astype(int) - 1] = rng.normal(0, 1, rows)
    ids = rng.integers(0, 50, count).astype(np.uint64)
    return Bags(4, ids, values, lengths.reshape(-1)), (rng.random(rows) < 0.3).astype(np.float32)


class Reference:
    """The same model over a dense table in float64, pooled bag by bag, learnt by torch's own optimisers."""

    def __init__(self, learner: Learner, adam: bool) -> None:
        self.schema = learner.schema
        self.model = build(learner.model_config, len(learner.schema.fields)).double()
        self.model.load_state_dict({name: weight.double() for name, weight in learner.model.state_dict().items()})
        self.mask = (1 << learner.model_config.bits) - 1
        self.table = nn.Parameter(self.model.new_rows(torch.arange(self.mask + 1)).double())
        self.dense = torch.optim.Adam(self.model.parameters(), lr=learner.learn_config.dense_rate)
        rate = learner.learn_config.row_rate
        self.rows: torch.optim.Optimizer = (
            torch.optim.SparseAdam([self.table], lr=rate) if adam
            else torch.optim.Adagrad([self.table], lr=rate, initial_accumulator_value=0.1)
        )
        self.adam = adam

    def logits(self, bags: Bags) -> torch.Tensor:
        """Bag by bag."""
        lengths = bags.all_lengths().reshape(len(bags), -1)
        ids, values, at, rows, numbers = bags.ids, bags.all_values(), 0, [], []
        for row in lengths:
            fields = []
            for spec, length in zip(self.schema.fields, row, strict=True):
                bag = self.table[[int(i) & self.mask for i in ids[at : at + int(length)]]]
                fields.append(bag.mean(0) if spec.pool == "mean" else bag.sum(0))
                numbers.append(float(values[at]))
                at += int(length)
            rows.append(torch.stack(fields))
        logits: torch.Tensor = self.model(
            torch.stack(rows), torch.tensor(numbers, dtype=torch.float64).view(len(bags), -1)
        )
        return logits

    def learn(self, bags: Bags, labels: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
        """Scores, then one step on Σ w · log loss."""
        logits = self.logits(bags)
        p, y = logits.sigmoid(), torch.from_numpy(labels).double()
        losses = -(y * p.log() + (1 - y) * (1 - p).log())
        (losses if weights is None else losses * torch.from_numpy(weights).double()).sum().backward()
        if self.adam:
            assert self.table.grad is not None
            self.table.grad = self.table.grad.to_sparse(1)
        for optimiser in (self.rows, self.dense):
            optimiser.step()
            optimiser.zero_grad()
        return p.detach().numpy()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("schema", "batch", "optimiser"),
    [(ONE_HOT, one_hot, "adagrad"), (MIXED, mixed, "adagrad"), (MIXED, mixed, "adam")],
)
def test_it_learns_what_a_dense_reference_learns(
    schema: FieldSchema, batch: Any, optimiser: str, weighted: bool
) -> None:
    """Scores and weights after 20 batches with duplicates, sets and numbers, against float64 and torch's optimisers.

    Torch's SparseAdam counts steps for all rows together; so every row of the reference is in every batch.
    """
    learn = LearnConfig(
        device="cpu", row_optimiser=optimiser, row_rate=0.02, dense_optimiser="adam", dense_rate=0.01,  # type: ignore[arg-type]
    )
    learner = Learner(MODEL, learn, schema)
    first = batch(40, 0)
    learner.learn(*first)  # the first batch sets the bias and is learnt; the reference begins after it
    learner = _forgetting(learner, schema, learn)
    reference = Reference(learner, optimiser == "adam")
    for step in range(20):
        bags, labels = batch(40, 0 if optimiser == "adam" else step)
        weights = np.random.default_rng(step).uniform(0.5, 3, 40).astype(np.float32) if weighted else None
        expected = reference.learn(bags, labels, weights)
        np.testing.assert_allclose(learner.learn(bags, labels, weights), expected, rtol=0, atol=1e-5)
    rows = learner.table.touched()
    np.testing.assert_allclose(learner.table.weights(rows), reference.table.detach()[rows], rtol=0, atol=2e-5)
    untouched = np.setdiff1d(np.arange(4096), rows)
    assert torch.equal(reference.table.detach()[untouched].float(), learner.model.new_rows(torch.from_numpy(untouched)))
    for name, weight in reference.model.state_dict().items():
        np.testing.assert_allclose(learner.dense()[name], weight, rtol=0, atol=1e-4)


def _forgetting(learner: Learner, schema: FieldSchema, learn: LearnConfig) -> Learner:
    """A learner with the same dense weights, nothing else learnt, past its first batch."""
    fresh = Learner(MODEL, learn, schema)
    fresh.load(learner.dense(), {}, 1, 40)
    return fresh


def test_scores_are_those_before_learning() -> None:
    """`learn` returns what `score` would have said just before, and changes what it says after."""
    learner = Learner(MODEL, LEARN, ONE_HOT)
    for step in range(5):
        bags, labels = one_hot(64, step)
        before = learner.score(bags)
        np.testing.assert_allclose(learner.learn(bags, labels), before, rtol=0, atol=1e-6)
        assert np.abs(learner.score(bags) - before).max() > 1e-4
    assert (learner.batches_learnt, learner.examples_learnt) == (5, 320)


def test_a_weight_of_two_is_the_example_twice() -> None:
    """The same step, whether an example comes twice or weighs two."""
    bags, labels = one_hot(32, 1)
    doubled, weighted = Learner(MODEL, LEARN, ONE_HOT), Learner(MODEL, LEARN, ONE_HOT)
    for learner in (doubled, weighted):
        learner.load(learner.dense(), {}, 1, 0)
    twice = np.repeat(np.arange(32), 2)
    doubled.learn(bags.take(twice), labels[twice])
    weighted.learn(bags, labels, np.full(32, 2, np.float32))
    np.testing.assert_allclose(doubled.score(bags), weighted.score(bags), rtol=0, atol=1e-6)


def test_it_learns_what_is_there_to_learn() -> None:
    """A product of two fields, which no linear model sees: the AUC over the last quarter nears what the truth gives."""
    learner = Learner(MODEL, LEARN, ONE_HOT)
    bags, labels = one_hot(20_000, 1)
    said = np.concatenate(
        [learner.learn(bags.slice(at, at + 100), labels[at : at + 100]) for at in range(0, 20_000, 100)]
    )
    last, first = figures(0, said[15_000:], labels[15_000:]).auc, figures(0, said[:2000], labels[:2000]).auc
    assert last is not None
    assert first is not None
    assert last > 0.74 > first


def test_the_first_batch_sets_the_bias() -> None:
    """To the log-odds of its clicks, smoothed by one of each: rare clicks are not learnt one step at a time."""
    rng = np.random.default_rng(1)
    bags = Bags(3, rng.integers(0, 2**63, 3 * 1000).astype(np.uint64))
    labels = np.zeros(1000, np.float32)
    labels[:20] = 1
    learner = Learner(MODEL, LEARN, ONE_HOT)
    said = learner.learn(bags, labels)
    assert abs(float(said.mean()) - 0.5) < 0.05
    assert float(learner.score(Bags(3, rng.integers(0, 2**63, 300).astype(np.uint64))).mean()) == pytest.approx(
        21 / 1002, rel=0.5
    )


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("optimiser", ["adam", "adagrad"])
def test_stopped_and_restored_is_never_interrupted(dropout: float, optimiser: str) -> None:
    """State saved after 7 batches and loaded elsewhere gives the same bits after 15 as no interruption, and twice the
    same run gives the same bits; dropout draws the same neurons."""
    model = replace(MODEL, dropout=dropout)
    learn = LearnConfig(device="cpu", row_optimiser=optimiser, row_rate=0.01)  # type: ignore[arg-type]
    undisturbed, again, first = (Learner(model, learn, ONE_HOT) for _ in range(3))
    said = [undisturbed.learn(*one_hot(50, step)) for step in range(15)]
    assert [again.learn(*one_hot(50, step)).tobytes() for step in range(15)] == [each.tobytes() for each in said]

    for step in range(7):
        first.learn(*one_hot(50, step))
    torch.manual_seed(99)  # what others draw does not matter
    second = Learner(model, learn, ONE_HOT)
    rows = first.table.touched()
    second.table.load(rows, first.table.rows_with_state(rows))
    second.load(first.dense(), first.dense_state(), first.batches_learnt, first.examples_learnt)
    assert second.digest() == first.digest()
    for step in range(7, 15):
        np.testing.assert_array_equal(second.learn(*one_hot(50, step)), said[step])
    assert second.digest() == undisturbed.digest() == again.digest()
    assert second.examples_learnt == 750


def test_with_dropout_scores_are_without_it() -> None:
    """What is served is the whole network; so is what is measured."""
    learner = Learner(ModelConfig(bits=12, factors=4, hidden=(16,), dropout=0.5), LEARN, ONE_HOT)
    for step in range(3):
        bags, labels = one_hot(64, step)
        before = learner.score(bags)
        np.testing.assert_array_equal(learner.learn(bags, labels), before)


def test_a_loss_that_is_no_number_stops_it_before_anything_is_learnt() -> None:
    """The batch that shows it changes neither rows nor dense weights."""
    learner = Learner(MODEL, LEARN, MIXED)
    learner.learn(*mixed(40, 1))
    before = learner.digest()
    bags, labels = mixed(40, 2)
    values = bags.all_values().copy()
    values[np.cumsum(bags.all_lengths())[3].astype(int) - 1] = np.inf
    with pytest.raises(Diverged, match=r"batch 1 is (nan|inf) after 40 examples.*row_rate \(0\.05\)"):
        learner.learn(Bags(4, bags.ids, values, bags.lengths), labels)
    assert learner.digest() == before
    assert learner.batches_learnt == 1


def test_what_does_not_fit_is_refused() -> None:
    """Empty batches, labels and weights of another length, devices that are not there, another model's weights."""
    learner = Learner(MODEL, LEARN, ONE_HOT)
    bags, labels = one_hot(10, 1)
    for labels_given, weights in ((labels[:9], None), (labels, labels[:3])):
        with pytest.raises(ShapeError, match="a batch of 10 rows"):
            learner.learn(bags, labels_given, weights)
    with pytest.raises(ShapeError, match="a batch of 0 rows"):
        learner.learn(bags.slice(0, 0), labels[:0])
    for device in ("abacus", "cuda:77"):
        with pytest.raises(ConfigError, match=f"learn.device={device}"):
            Learner(MODEL, LearnConfig(device=device), ONE_HOT)
    with pytest.raises(SnapshotError, match="do not fit the model"):
        learner.load(Learner(ModelConfig(hidden=(9,)), LEARN, ONE_HOT).dense(), {}, 1, 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_learns_the_same() -> None:
    """From equal state, to 1e-5 in float32 after one step each."""
    cpu, gpu = Learner(MODEL, LEARN, MIXED), Learner(MODEL, LearnConfig(device="cuda", row_optimiser="adagrad"), MIXED)
    for step in range(10):
        bags, labels = mixed(40, step)
        np.testing.assert_allclose(gpu.learn(bags, labels), cpu.learn(bags, labels), atol=1e-4)
