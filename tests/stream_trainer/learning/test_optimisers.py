"""Row optimisers against dense references over the same batches."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from schemas.bags import Bags
from schemas.config import LearnConfig, ModelConfig, Source, build
from schemas.errors import ConfigError
from schemas.fields import parse
from stream_trainer.learning.learner import Learner
from stream_trainer.learning.optimisers import (
    Adagrad,
    Adam,
    Clipped,
    Decayed,
    DenseOptimiser,
    Ftrl,
    RowOptimiser,
    RowwiseAdagrad,
    Sgd,
    Split,
    row_optimiser,
)
from stream_trainer.learning.table import Table

ALL: list[RowOptimiser] = [
    Sgd(0.05), Adagrad(0.05), RowwiseAdagrad(0.05), Adam(0.01), Ftrl(0.1), Ftrl(0.1, l1=0.3, l2=0.2),
    Split(1, Ftrl(0.1, l1=0.1), Adagrad(0.05)), Split(2, Adam(0.01), Sgd(0.1)), Clipped(Adam(0.01), 0.5),
]


def batches(rows: int, width: int, count: int) -> list[Tensor]:
    """Gradients of every row, batch after batch, of very different sizes."""
    generator = torch.Generator().manual_seed(4)
    return [
        torch.randn(rows, width, generator=generator) * 10 ** (3 * torch.rand(rows, 1, generator=generator) - 2)
        for _ in range(count)
    ]


def learnt(optimiser: RowOptimiser, start: Tensor, gradients: list[Tensor]) -> Tensor:
    """The rows after these batches."""
    weights, state = start.clone(), start.new_zeros(len(start), optimiser.state_width(start.shape[1]))
    for gradient in gradients:
        optimiser.step(weights, state, gradient.to(start.dtype))
    return weights


@pytest.mark.parametrize("name", ["sgd", "adam", "adagrad"])
def test_rows_in_every_batch_learn_as_in_torch(name: str) -> None:
    """50 batches, to 1e-6 of torch.optim's own."""
    start, gradients = torch.randn(6, 5, generator=torch.Generator().manual_seed(1)), batches(6, 5, 50)
    reference = torch.nn.Parameter(start.clone())
    ours: RowOptimiser
    theirs: torch.optim.Optimizer
    if name == "sgd":
        ours, theirs = Sgd(0.02), torch.optim.SGD([reference], lr=0.02)
    elif name == "adam":
        ours, theirs = Adam(0.01), torch.optim.Adam([reference], lr=0.01)
    else:
        ours, theirs = Adagrad(0.05), torch.optim.Adagrad([reference], lr=0.05, initial_accumulator_value=0.1)
    for gradient in gradients:
        reference.grad = gradient.clone()
        theirs.step()
    torch.testing.assert_close(learnt(ours, start, gradients), reference.detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("optimiser", ALL, ids=str)
def test_a_row_seen_seldom_learns_as_if_only_its_batches_had_been(optimiser: RowOptimiser) -> None:
    """What a row becomes depends on its own gradients alone, not on when they came."""
    start, gradients = torch.zeros(3, 4), batches(3, 4, 6)
    together = learnt(optimiser, start, gradients)
    for row in range(3):
        alone = learnt(optimiser, start[row : row + 1], [gradient[row : row + 1] for gradient in gradients])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=0)


def test_the_first_step_of_a_row_by_hand() -> None:
    """Adam: the rate, whatever the gradient. Adagrad: rate · g / √(initial + g²)."""
    gradient = torch.tensor([[2.0, -0.5]])
    np.testing.assert_allclose(learnt(Adam(0.01), torch.zeros(1, 2), [gradient]), [[-0.01, 0.01]], rtol=1e-5)
    expected = [[-0.05 * 2 / np.sqrt(0.1 + 4), 0.05 * 0.5 / np.sqrt(0.1 + 0.25)]]
    np.testing.assert_allclose(learnt(Adagrad(0.05), torch.zeros(1, 2), [gradient]), expected, rtol=1e-5)


@pytest.mark.parametrize("optimiser", ALL, ids=str)
def test_no_gradient_moves_nothing(optimiser: RowOptimiser) -> None:
    """A row that is in a batch with gradient 0 stays where it is, from the start, to the last bit."""
    start = torch.tensor([[0.3, -0.7, 0.0], [1.0, 1e-3, -5.0]])
    assert torch.equal(learnt(optimiser, start, [torch.zeros(2, 3)] * 3), start)


@pytest.mark.parametrize(("l1", "l2"), [(0.0, 0.0), (0.5, 0.0), (0.0, 0.7), (0.5, 0.7)])
@pytest.mark.parametrize("start", [0.0, 0.8, -0.3])
def test_ftrl_is_the_paper_s_algorithm_coordinate_by_coordinate(start: float, l1: float, l2: float) -> None:
    """Against a scalar loop, in doubles to 1e-12, in floats to what 50 rounded steps leave; from 0 as in the paper, and from
    elsewhere with the z that gives it."""
    rate, beta = 0.1, 1.0
    gradients = [gradient.clamp(-3, 3) for gradient in batches(6, 5, 50)]
    found = learnt(Ftrl(rate, beta, l1, l2), torch.full((6, 5), start), gradients)
    exact = learnt(Ftrl(rate, beta, l1, l2), torch.full((6, 5), start, dtype=torch.float64), gradients)
    expected = torch.zeros(6, 5, dtype=torch.float64)
    for row in range(6):
        for column in range(5):
            n, w = 0.0, start
            z = -w * (beta / rate + l2) - math.copysign(l1, w) if w else 0.0
            for gradient in gradients:
                g = float(gradient[row, column])
                sigma = (math.sqrt(n + g * g) - math.sqrt(n)) / rate
                z, n = z + g - sigma * w, n + g * g
                w = 0.0 if abs(z) <= l1 else -(z - math.copysign(l1, z)) / ((beta + math.sqrt(n)) / rate + l2)
            expected[row, column] = w
    torch.testing.assert_close(exact, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    if l1 and not start:
        assert ((found == 0) == (expected == 0)).all()


def test_ftrl_without_penalties_from_zero_is_adagrad_s_schedule() -> None:
    """One coordinate with equal gradients: step t is rate · g / (beta + √(t·g²)) (McMahan et al., section 3.1)."""
    found = learnt(Ftrl(0.1), torch.zeros(1, 1), [torch.tensor([[2.0]])])
    assert float(found) == pytest.approx(-0.1 * 2 / (1 + 2), rel=1e-6)


def test_l1_makes_weights_exactly_zero() -> None:
    """A weight whose gradients only wobble is 0, one that is always pushed is not."""
    generator = torch.Generator().manual_seed(3)
    wobble = [torch.stack([torch.randn((), generator=generator) * 0.1, torch.tensor(1.0)])[None] for _ in range(30)]
    found = learnt(Ftrl(0.1, l1=2.0), torch.zeros(1, 2), wobble)
    assert float(found[0, 0]) == 0
    assert float(found[0, 1]) < -0.1


def test_rowwise_adagrad_by_a_loop() -> None:
    """One sum per row, of the mean square of its gradient, in doubles to 1e-8; equal gradients make it Adagrad."""
    start, gradients = torch.zeros(3, 4, dtype=torch.float64), batches(3, 4, 30)
    found = learnt(RowwiseAdagrad(0.05), start, gradients)
    for row in range(3):
        total, weights = 0.0, [0.0] * 4
        for gradient in gradients:
            g = gradient[row].tolist()
            total += sum(one * one for one in g) / 4
            weights = [w - 0.05 * one / math.sqrt(0.1 + total) for w, one in zip(weights, g, strict=True)]
        np.testing.assert_allclose(found[row], weights, rtol=1e-8, atol=1e-8)
    same = [torch.full((2, 4), float(step + 1)) for step in range(5)]
    torch.testing.assert_close(
        learnt(RowwiseAdagrad(0.05), torch.zeros(2, 4), same), learnt(Adagrad(0.05), torch.zeros(2, 4), same)
    )


def test_split_is_each_optimiser_on_its_columns() -> None:
    """Bit for bit, with the state of one never read by the other."""
    start, gradients = torch.randn(4, 5, generator=torch.Generator().manual_seed(2)), batches(4, 5, 20)
    both = Split(2, Ftrl(0.1, l1=0.01), Adam(0.02))
    assert both.state_width(5) == 2 * 2 + 2 * 3 + 1
    found = learnt(both, start, gradients)
    left = learnt(both.first, start[:, :2], [gradient[:, :2] for gradient in gradients])
    right = learnt(both.rest, start[:, 2:], [gradient[:, 2:] for gradient in gradients])
    assert torch.equal(found, torch.cat([left, right], dim=1))
    assert torch.equal(learnt(Split(1, Adam(0.1), Sgd(1)), start[:, :1], [gradients[0][:, :1]]),
                       learnt(Adam(0.1), start[:, :1], [gradients[0][:, :1]]))  # LR: nothing but first-order weights


def test_a_row_s_long_gradient_is_shortened_and_a_short_one_is_not() -> None:
    """To the norm, in its direction; the other rows of the batch do not matter."""
    gradient = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    found = learnt(Clipped(Sgd(1.0), 1.0), torch.zeros(3, 2), [gradient])
    torch.testing.assert_close(found, -torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]))


def test_decay_is_a_share_of_the_weight_for_rows_in_the_batch() -> None:
    """w (1 − rate·decay) before the step, whatever the gradient; torch's AdamW does the same."""
    start, gradients = torch.randn(4, 3, generator=torch.Generator().manual_seed(2)).double(), batches(4, 3, 20)
    reference = nn.Parameter(start.clone())
    theirs = torch.optim.AdamW([reference], lr=0.01, weight_decay=0.3)
    for gradient in gradients:
        reference.grad = gradient.double()
        theirs.step()
    ours = row_optimiser(LearnConfig(row_optimiser="adam", row_rate=0.01, decay=0.3))
    torch.testing.assert_close(learnt(ours, start, gradients), reference.detach(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("optimiser", ALL, ids=str)
def test_through_the_table_only_rows_of_the_batch_move(optimiser: RowOptimiser) -> None:
    """Neither weights nor state of the others; and the table's steps are the optimiser's."""
    table = Table(6, 3, optimiser, lambda rows: torch.ones(len(rows), 3) * rows[:, None] / 100, 4)
    learn = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    for rows in ([1, 5, 9, 30], [5, 9, 31, 60]):
        table.apply(torch.tensor(rows), learn)
    before = table.rows_with_state(table.touched()).copy()
    table.apply(torch.tensor([5, 60]), learn[:2])
    after = table.rows_with_state(table.touched())
    moved = np.flatnonzero((before != after).any(axis=1))
    assert table.touched()[moved].tolist() == [5, 60]
    alone = learnt(optimiser, torch.full((1, 3), 0.05), [learn[1:2], learn[0:1], learn[0:1]])
    np.testing.assert_array_equal(table.weights(np.array([5])), alone)


@pytest.mark.parametrize("name", ["sgd", "adagrad", "rowwise_adagrad", "adam", "ftrl"])
def test_a_row_that_came_twice_takes_one_step_with_the_sum(name: Any) -> None:
    """LR on a batch where id 7 stands in both rows: one step of the optimiser with Σ (p − y), not two."""
    schema = parse({"field": [{"name": "f", "number": 1, "kind": "categorical", "side": "item"}]}, "test")
    learn = LearnConfig(device="cpu", row_optimiser=name, row_rate=0.1)
    learner = Learner(ModelConfig(architecture="lr", bits=8), learn, schema)
    bags, labels = Bags(1, np.array([7, 7, 9], np.uint64)), np.array([1, 0, 0], np.float32)
    for _ in range(3):
        weights = torch.from_numpy(learner.table.gather(torch.tensor([7])).numpy().copy())
        state = torch.from_numpy(learner.table.rows_with_state(np.array([7]))[:, 1:].copy())
        learner.score(bags)
        if learner.batches_learnt == 0:                  # the first batch sets the bias before it is learnt
            bias = math.log((1 + 1) / (3 - 1 + 1))
        else:
            bias = float(learner.dense()["bias"][0])
        p = 1 / (1 + math.exp(-(bias + float(weights))))
        row_optimiser(learn).step(weights, state, torch.tensor([[(p - 1) + (p - 0)]]))
        learner.learn(bags, labels)
        np.testing.assert_allclose(learner.table.weights(np.array([7])), weights, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(learner.table.rows_with_state(np.array([7]))[:, 1:], state, rtol=1e-4, atol=1e-6)


class Two(nn.Module):
    """A matrix and a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.ones(2, 3))
        self.bias = nn.Parameter(torch.ones(2))


def dense_steps(optimiser: Any, model: Two, gradients: list[Tensor]) -> None:
    for gradient in gradients:
        model.matrix.grad, model.bias.grad = gradient[:, :3].clone(), gradient[:, 3].clone()
        optimiser.step()


@pytest.mark.parametrize("name", ["adam", "adagrad"])
def test_dense_weights_learn_as_in_torch_and_go_on_from_their_state(name: Any) -> None:
    """With clipping as torch clips; state saved after 5 steps and loaded elsewhere gives the same bits after 10."""
    config = LearnConfig(dense_optimiser=name, dense_rate=0.05, clip=0.5)
    gradients = batches(2, 4, 10)
    model, reference = Two(), Two()
    ours = DenseOptimiser(config, model)
    theirs = (
        torch.optim.Adam(reference.parameters(), lr=0.05) if name == "adam"
        else torch.optim.Adagrad(reference.parameters(), lr=0.05, initial_accumulator_value=0.1)
    )
    dense_steps(ours, model, gradients[:5])
    restored = Two()
    restored.load_state_dict(model.state_dict())
    second = DenseOptimiser(config, restored)
    second.load({key: tensor.clone() for key, tensor in ours.state()})
    dense_steps(ours, model, gradients[5:])
    dense_steps(second, restored, gradients[5:])
    for gradient in gradients:
        reference.matrix.grad, reference.bias.grad = gradient[:, :3].clone(), gradient[:, 3].clone()
        nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
        theirs.step()
    assert torch.equal(restored.matrix, model.matrix)
    torch.testing.assert_close(model.matrix, reference.matrix, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model.bias, reference.bias, rtol=1e-6, atol=1e-6)


def test_dense_decay_leaves_biases_and_what_has_no_gradient() -> None:
    """With gradient 0 a matrix shrinks by rate·decay a step, a bias does not; without one nothing does."""
    model = Two()
    optimiser = DenseOptimiser(LearnConfig(dense_rate=0.1, decay=0.5), model)
    optimiser.step()
    assert torch.equal(model.matrix, torch.ones(2, 3))
    dense_steps(optimiser, model, [torch.zeros(2, 4)] * 2)
    torch.testing.assert_close(model.matrix.detach(), torch.full((2, 3), 0.95**2))
    assert torch.equal(model.bias, torch.ones(2))


def test_the_configuration_chooses() -> None:
    """Name and rate, for the rows and for their first-order weights; clip and decay around them, not around FTRL."""
    assert row_optimiser(LearnConfig(row_optimiser="adam", row_rate=0.002)) == Adam(0.002)
    assert row_optimiser(LearnConfig(row_optimiser="adagrad", row_rate=0.02)) == Adagrad(0.02)
    assert row_optimiser(LearnConfig(row_optimiser="sgd", clip=3)) == Clipped(Sgd(0.015), 3)
    assert row_optimiser(LearnConfig(first_order_rate=0.5)) == Split(1, Adagrad(0.5), Adagrad(0.015))
    wide_and_deep = LearnConfig(
        row_optimiser="adagrad", first_order_optimiser="ftrl", first_order_rate=0.1, l1=2, l2=3, ftrl_beta=0.5, decay=0.1,
        dense_optimiser="adagrad",
    )
    assert row_optimiser(wide_and_deep) == Split(1, Ftrl(0.1, 0.5, 2, 3), Decayed(Adagrad(0.015), 0.0015))
    with pytest.raises(ConfigError, match="no first-order weights"):
        row_optimiser(wide_and_deep, first_order=0)


def test_what_does_not_exist_is_refused_naming_the_nearest() -> None:
    """Built directly or from a file; FTRL's penalties without FTRL."""
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"row_optimiser": "adagard"}, r"learn\.row_optimiser=adagard: .*nearest: adagrad"),
        ({"dense_optimiser": "sdam"}, r"learn\.dense_optimiser=sdam: .*nearest: adam"),
        ({"precision": "bf61"}, r"learn\.precision=bf61: .*nearest: bf16"),
        ({"first_order_optimiser": "frtl"}, r"first_order_optimiser=frtl: .*nearest: ftrl"),
        ({"l1": 1.0}, "only FTRL has them"), ({"clip": -1.0}, r"learn\.clip=-1"),
        ({"first_order_rate": 2.0}, "first_order_rate=2.0"),
    ]
    for values, text in wrong:
        with pytest.raises(ConfigError, match=text):
            LearnConfig(**values)
    with pytest.raises(ConfigError, match=r"learn\.row_optimiser='adagard' \(f\): .*did you mean adagrad"):
        build(Source("f", {"learn.row_optimiser": "adagard"}))
