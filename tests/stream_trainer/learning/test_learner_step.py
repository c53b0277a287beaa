"""The learner's step against a slow one written out in float64, its own gradients, and what bf16 changes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, islice
from typing import Any

import numpy as np
import pytest
import structlog
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from ops import formats
from ops.offline.evaluate import evaluate
from schemas.bags import Bags
from schemas.config import LearnConfig, ModelConfig, Settings
from schemas.fields import parse
from schemas.models import MODELS, deepfm, ffm_stats
from schemas.models.layers import fm_second_order, product
from schemas.models.native import multiplies_bf16
from stream_trainer.learning import precision
from stream_trainer.learning.learner import Learner
from stream_trainer.learning.once import once
from tests.conftest import shared

Doubles = NDArray[np.float64]

FIELDS, FACTORS, BITS = 4, 3, 8
SCHEMA = parse(
    {"field": [{"name": f"f{n}", "number": n, "kind": "categorical", "side": "item"} for n in range(1, FIELDS + 1)]}, "test"
)
SMALL = ModelConfig(bits=BITS, factors=FACTORS, hidden=(8, 6), statistics=False, seed=3, init_scale=0.1)
LEARN = LearnConfig(device="cpu", row_rate=0.03, dense_rate=0.02)
BF16 = pytest.mark.skipif(not multiplies_bf16(torch.device("cpu")), reason="this CPU does not multiply bf16")


def a_batch(seed: int, rows: int = 24, values: int = 40) -> tuple[Bags, NDArray[np.float32]]:
    """Of few values, so that an id comes many times in a batch; clicks that depend on them."""
    rng = np.random.default_rng(seed)
    picked = rng.integers(0, values, (rows, FIELDS))
    truth = np.random.default_rng(0).normal(0, 1, (FIELDS, values))
    logit = truth[0, picked[:, 0]] + truth[1, picked[:, 1]] * truth[2, picked[:, 2]] - 0.5
    labels = (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.float32)
    ids = (picked + np.arange(FIELDS) * 1000).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return Bags(FIELDS, ids.reshape(-1)), labels


class Slow:
    """DeepFM with two hidden layers and Adagrad throughout, each derivative written out by hand in numpy, in float64."""

    def __init__(self, learner: Learner) -> None:
        """From the learner's state."""
        every = np.arange(1 << BITS)
        self.rows: Doubles = learner.table.rows_with_state(every).astype(np.float64)
        unseen = np.setdiff1d(every, learner.table.touched())
        self.rows[unseen, : 1 + FACTORS] = learner.model.new_rows(torch.from_numpy(unseen)).double().numpy()
        self.dense = {name: array.astype(np.float64) for name, array in learner.dense().items()}
        self.sums = {name: array.astype(np.float64) for name, array in learner.dense_state().items() if name.endswith("/sum")}

    def learn(self, bags: Bags, labels: NDArray[np.float32]) -> Doubles:
        """Scores, then one step."""
        at = (bags.ids % np.uint64(1 << BITS)).astype(int).reshape(-1, FIELDS)              # (B, F)
        w, v = self.rows[at, 0], self.rows[at, 1 : 1 + FACTORS]                             # (B, F), (B, F, K)
        one, two, out = (self.dense[f"mlp.layers.{place}.weight"] for place in (0, 2, 4))
        x = v.reshape(len(v), -1)
        h1 = np.maximum(x @ one.T + self.dense["mlp.layers.0.bias"], 0)
        h2 = np.maximum(h1 @ two.T + self.dense["mlp.layers.2.bias"], 0)
        pairs = sum((v[:, i] * v[:, j]).sum(axis=1) for i, j in combinations(range(FIELDS), 2))
        said: Doubles = 1 / (1 + np.exp(-(self.dense["bias"] + w.sum(axis=1) + pairs + (h2 @ out.T)[:, 0])))

        pull = said - labels                                                                # (B,)
        d2 = pull[:, None] * out * (h2 > 0)
        d1 = d2 @ two * (h1 > 0)
        by_factors = (d1 @ one).reshape(v.shape)
        for i in range(FIELDS):
            for j in range(FIELDS):
                by_factors[:, i] += pull[:, None] * v[:, j] * (i != j)
        gradients: dict[str, Doubles] = {
            "bias": np.array([pull.sum()]), "mlp.layers.4.weight": (pull @ h2)[None],
            "mlp.layers.0.weight": d1.T @ x, "mlp.layers.0.bias": d1.sum(axis=0),
            "mlp.layers.2.weight": d2.T @ h1, "mlp.layers.2.bias": d2.sum(axis=0),
        }
        for name, gradient in gradients.items():
            total = self.sums.setdefault(f"{name}/sum", np.full_like(gradient, 0.1))
            total += gradient**2
            self.dense[name] = self.dense[name] - LEARN.dense_rate * gradient / np.sqrt(total)

        by_row = np.zeros((1 << BITS, 1 + FACTORS))
        for example in range(len(at)):
            for field, row in enumerate(at[example]):
                by_row[row] += [pull[example], *by_factors[example, field]]
        self.rows[:, 1 + FACTORS :] += by_row**2
        self.rows[:, : 1 + FACTORS] -= LEARN.row_rate * by_row / np.sqrt(0.1 + self.rows[:, 1 + FACTORS :])
        return said


def test_each_of_1000_steps_is_the_one_written_out() -> None:
    """From equal state each step's scores, rows with their state and dense weights are those of float64 to 1e-6."""
    learner = Learner(SMALL, LEARN, SCHEMA)
    learner.load(learner.dense(), {}, 1, 0)  # past the first batch, which sets the bias
    for step in range(1000):
        slow = Slow(learner)
        batch = a_batch(step)
        expected = slow.learn(*batch)
        np.testing.assert_allclose(learner.learn(*batch), expected, rtol=0, atol=1e-6)
        rows = learner.table.touched()
        np.testing.assert_allclose(learner.table.rows_with_state(rows), slow.rows[rows], rtol=1e-6, atol=1e-6)
        for name, weight in slow.dense.items():
            np.testing.assert_allclose(learner.dense()[name], weight, rtol=0, atol=1e-6)


def test_a_whole_run_stays_with_the_one_in_float64() -> None:
    """1,000 steps after each other, compared at every one: float32's roundings do not add up to more than 1e-4."""
    learner = Learner(SMALL, LEARN, SCHEMA)
    learner.load(learner.dense(), {}, 1, 0)
    slow = Slow(learner)
    for step in range(1000):
        batch = a_batch(step)
        np.testing.assert_allclose(learner.learn(*batch), slow.learn(*batch), rtol=0, atol=1e-4)


# Round where the batch is filled up for sorting (stream_trainer/learning/once.py), and small.
SIZES = st.one_of(st.integers(1, 60), st.sampled_from([8191, 8192, 8193, 32767, 32768, 32769]))


@given(n=SIZES, rows=st.integers(1, 3000), seed=st.integers(0, 2**32))
def test_equal_rows_are_found_and_what_is_theirs_is_summed(n: int, rows: int, seed: int) -> None:
    """As numpy finds and sums them; the sum over whole numbers is exact. The largest row number is among them."""
    rng = np.random.default_rng(seed)
    numbers = 2**30 - 1 - rng.integers(0, rows, n) * 7
    expected, first, inverse, count = np.unique(numbers, return_index=True, return_inverse=True, return_counts=True)
    found = once(torch.from_numpy(numbers))
    np.testing.assert_array_equal(found.rows, expected)
    np.testing.assert_array_equal(found.where, inverse)
    np.testing.assert_array_equal(found.order, np.argsort(numbers, kind="stable"))
    np.testing.assert_array_equal(found.order[found.starts], first)
    each = rng.integers(-99, 99, (n, 3)).astype(np.float32)
    summed = np.zeros((len(expected), 3), np.float32)
    np.add.at(summed, inverse, each)
    np.testing.assert_array_equal(found.summed(torch.from_numpy(each)), summed)
    np.testing.assert_array_equal(found.summed(torch.ones(n, 1))[:, 0], count)
    np.testing.assert_array_equal(found.spread(torch.from_numpy(summed)), summed[inverse])


def test_finite_differences_of_the_product() -> None:
    """By its input, weights and bias, with and without one, in float64."""
    x, weight, bias = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((5, 3), (4, 3), (4,)))
    assert torch.autograd.gradcheck(lambda x, weight, bias: product(x, weight, bias, torch.float64), (x, weight, bias))
    assert torch.autograd.gradcheck(lambda x, weight: product(x, weight, None, torch.float64), (x, weight))


@pytest.mark.parametrize("crosses", [0, 2])
def test_finite_differences_of_what_stands_beside_the_network(crosses: int) -> None:
    """DeepFM's and ffm_stats' parts, whose gradients are written out: by rows, numbers and the numbers' weights, in float64."""
    generator = torch.Generator().manual_seed(1)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()

    numbers, weight = drawn(5, 4), drawn(4)
    rows = drawn(5, FIELDS + crosses, 1 + FACTORS + 2)           # two counts, which nothing reads
    assert torch.autograd.gradcheck(lambda *x: deepfm._Parts.apply(*x, FIELDS, FACTORS), (rows, numbers, weight))
    assert torch.autograd.gradcheck(lambda x: deepfm._Parts.apply(x, None, None, FIELDS, FACTORS), (rows,))
    rows = drawn(5, FIELDS + crosses, 1 + FIELDS * FACTORS + 2)
    assert torch.autograd.gradcheck(lambda *x: ffm_stats._Parts.apply(*x, FIELDS, FACTORS), (rows, numbers, weight))
    assert torch.autograd.gradcheck(fm_second_order, (drawn(5, FIELDS, FACTORS),))


def test_a_bf16_product_is_that_of_rounded_numbers_summed_in_float32() -> None:
    """Forward and all three gradients: float64's result on the rounded operands, but for one rounding to bf16's 8 bits at the
    end (2^-8 at most). A sum in bf16 would miss by far more: 1,000 terms of 1 stay at 256."""
    generator = torch.Generator().manual_seed(1)
    x, weight, gradient = (torch.rand(*shape, generator=generator) for shape in ((600, 1000), (40, 1000), (600, 40)))
    x.requires_grad_()
    weight.requires_grad_()
    bias = torch.rand(40, generator=generator).requires_grad_()
    found = product(x, weight, bias, torch.bfloat16)
    gradients = torch.autograd.grad(found, [x, weight, bias], gradient.bfloat16())

    def rounded(tensor: Tensor) -> Tensor:
        return tensor.detach().bfloat16().double()

    wide_x, wide_weight, wide_gradient = rounded(x), rounded(weight), rounded(gradient)
    torch.testing.assert_close(found.double(), wide_x @ wide_weight.T + rounded(bias), rtol=1.02 * 2**-8, atol=0)
    exact = (wide_gradient @ wide_weight, wide_gradient.T @ wide_x, wide_gradient.sum(dim=0))
    for one, expected in zip(gradients, exact, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one.double(), expected, rtol=1.02 * 2**-8, atol=0)


STEPS = 12


@BF16
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_in_bf16_too_the_same_run_gives_the_same_bits_killed_or_not(dropout: float, threads: int) -> None:
    """Twice the same run, and one that is stopped after 5 batches and goes on elsewhere, dropout's neurons among them."""
    model = ModelConfig(bits=12, factors=8, hidden=(96, 64), dropout=dropout)
    learn = LearnConfig(device="cpu", precision="bf16", threads=threads)
    try:
        undisturbed, again, first = (Learner(model, learn, SCHEMA) for _ in range(3))
        assert undisturbed.bf16_layers == 2
        said = [undisturbed.learn(*a_batch(step, 300)) for step in range(STEPS)]
        assert [again.learn(*a_batch(step, 300)).tobytes() for step in range(STEPS)] == [each.tobytes() for each in said]
        for step in range(5):
            first.learn(*a_batch(step, 300))
        torch.manual_seed(99)
        second = Learner(model, learn, SCHEMA)
        rows = first.table.touched()
        second.table.load(rows, first.table.rows_with_state(rows))
        second.load(first.dense(), first.dense_state(), first.batches_learnt, first.examples_learnt)
        for step in range(5, STEPS):
            np.testing.assert_array_equal(second.learn(*a_batch(step, 300)), said[step])
        assert second.digest() == undisturbed.digest() == again.digest()
    finally:
        torch.set_num_threads(1)


def variants() -> Iterator[dict[str, Any]]:
    """Every architecture, and whatever can stand between two layers."""
    yield from ({"architecture": name, "fnn_pretrain_rows": 0} for name in MODELS)
    yield from ({"activation": name} for name in ("tanh", "prelu", "dice"))
    yield from ({"batch_norm": True}, {"dropout": 0.2}, {"heads": 3}, {"statistics": True})
    yield from ({"architecture": "pnn", "product": "both"}, {"architecture": "nfm", "batch_norm": True, "dropout": 0.2})


@BF16
@pytest.mark.parametrize("variant", list(variants()), ids=lambda variant: "-".join(map(str, variant.values())))
def test_every_model_learns_in_bf16_what_it_learns_in_fp32(variant: dict[str, Any]) -> None:
    """Scores after 30 batches differ by what 8 bits of mantissa leave open in each step; the weights are float32."""
    settings: dict[str, Any] = {"bits": 12, "factors": 8, "hidden": (32, 16), "statistics": False, "init_scale": 0.1} | variant
    model = ModelConfig(**settings)
    whole, half = (Learner(model, LearnConfig(device="cpu", precision=name), SCHEMA) for name in ("fp32", "bf16"))
    assert whole.bf16_layers == 0
    for step in range(30):
        bags, labels = a_batch(step, 64)
        said, meant = half.learn(bags, labels), whole.learn(bags, labels)
    assert np.abs(said - meant).max() < 0.05
    assert (half.digest() != whole.digest()) == (half.bf16_layers > 0)
    assert all(weight.dtype == torch.float32 for weight in half.model.parameters())


@BF16
def test_what_a_bf16_trainer_says_a_scorer_in_fp32_says_to_two_decimals() -> None:
    """Of the same weights, after learning: the bound that ARCHITECTURE states."""
    model = ModelConfig(bits=12, factors=8, hidden=(400, 400), statistics=False)
    half, whole = (Learner(model, LearnConfig(device="cpu", precision=name), SCHEMA) for name in ("bf16", "fp32"))
    for step in range(100):
        half.learn(*a_batch(step, 64))
    rows = half.table.touched()
    whole.table.load(rows, half.table.rows_with_state(rows))
    whole.load(half.dense(), half.dense_state(), half.batches_learnt, half.examples_learnt)
    bags, _ = a_batch(1000, 500)
    assert 0 < np.abs(half.score(bags) - whole.score(bags)).max() < 0.01


@BF16
def test_in_bf16_a_criteo_sample_is_learnt_as_well() -> None:
    """Progressive AUC and log loss of 400-400-400 over the first 16,000 rows, each scored before it is learnt, within .001 of
    float32's; over all 60,000 within .0005 (docs/decisions/0009-the-step.md)."""
    path, found = shared("criteo_60k.tsv.gz"), []
    for name in ("fp32", "bf16"):
        asked = Settings(
            model=ModelConfig(schema="criteo", hidden=(400, 400, 400)), learn=LearnConfig(device="cpu", precision=name)
        )
        records = formats.read(path, "criteo", formats.row_interval_us(asked, None), asked.join.action)
        found.append(evaluate(asked, islice(records, 20_000)).figures)
    whole, half = found
    assert whole.auc is not None
    assert half.auc == pytest.approx(whole.auc, abs=0.001)
    assert half.log_loss == pytest.approx(whole.log_loss, abs=0.001)
    assert half.log_loss != whole.log_loss


@BF16
def test_auto_takes_bf16_where_it_pays() -> None:
    """The default network at its default batch stays float32, each bit as it was; the papers' network is multiplied in bf16."""
    small, large = ModelConfig(bits=8, hidden=(64,)), ModelConfig(bits=8, hidden=(400, 400, 400))
    assert Learner(small, LearnConfig(device="cpu"), SCHEMA).bf16_layers == 0
    assert Learner(large, LearnConfig(device="cpu"), SCHEMA).bf16_layers == 2     # 4 fields × 10 × 400 are too few
    assert Learner(large, LearnConfig(device="cpu", batch_rows=1024), SCHEMA).bf16_layers == 3
    assert Learner(large, LearnConfig(device="cpu", precision="fp32"), SCHEMA).bf16_layers == 0
    assert Learner(small, LearnConfig(device="cpu", precision="bf16"), SCHEMA).bf16_layers == 1


@pytest.mark.parametrize("asked", ["auto", "bf16"])
def test_a_machine_without_bf16_falls_back_and_says_so_once(asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line when the learner is made, none by the batch."""
    monkeypatch.setattr(precision, "multiplies_bf16", lambda device: False)
    model = ModelConfig(bits=8, hidden=(400, 400))
    with structlog.testing.capture_logs() as logs:
        learner = Learner(model, LearnConfig(device="cpu", precision=asked), SCHEMA)
        for step in range(3):
            learner.learn(*a_batch(step))
    assert learner.bf16_layers == 0
    assert [(line["event"], line["asked"]) for line in logs] == [("learner.no_bf16", asked)]


def test_rates_scaled_are_those_of_a_learner_made_with_them() -> None:
    """From the next batch on, with the state as it is, and always a share of what was asked for."""
    learner, other = Learner(SMALL, LEARN, SCHEMA), Learner(SMALL, LEARN, SCHEMA)
    for step in range(5):
        learner.learn(*a_batch(step))
        other.learn(*a_batch(step))
    learner.scale_rates(0.5)
    learner.scale_rates(0.25)
    slower = Learner(SMALL, LearnConfig(device="cpu", row_rate=0.03 / 4, dense_rate=0.02 / 4), SCHEMA)
    rows = other.table.touched()
    slower.table.load(rows, other.table.rows_with_state(rows))
    slower.load(other.dense(), other.dense_state(), 5, 120)
    for step in range(5, 10):
        np.testing.assert_array_equal(learner.learn(*a_batch(step)), slower.learn(*a_batch(step)))
    assert learner.digest() == slower.digest() != other.digest()
