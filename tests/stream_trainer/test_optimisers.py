"""Row optimisers against dense references over the same batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from schemas.config import LearnConfig
from stream_trainer.optimisers import Adagrad, Adam, RowOptimiser, row_optimiser


def batches(rows: int, width: int, count: int) -> list[Tensor]:
    """Gradients of every row, batch after batch, of very different sizes."""
    generator = torch.Generator().manual_seed(4)
    return [
        torch.randn(rows, width, generator=generator) * 10 ** (3 * torch.rand(rows, 1, generator=generator) - 2)
        for _ in range(count)
    ]


def learnt(optimiser: RowOptimiser, start: Tensor, gradients: list[Tensor]) -> Tensor:
    """The rows after these batches."""
    weights, state = start.clone(), torch.zeros(len(start), optimiser.state_width(start.shape[1]))
    for gradient in gradients:
        optimiser.step(weights, state, gradient)
    return weights


@pytest.mark.parametrize("name", ["adam", "adagrad"])
def test_rows_in_every_batch_learn_as_in_torch(name: str) -> None:
    """50 batches, to 1e-6 of torch.optim's own."""
    start, gradients = torch.randn(6, 5, generator=torch.Generator().manual_seed(1)), batches(6, 5, 50)
    reference = torch.nn.Parameter(start.clone())
    ours: RowOptimiser
    theirs: torch.optim.Optimizer
    if name == "adam":
        ours, theirs = Adam(0.01), torch.optim.Adam([reference], lr=0.01)
    else:
        ours, theirs = Adagrad(0.05), torch.optim.Adagrad([reference], lr=0.05, initial_accumulator_value=0.1)
    for gradient in gradients:
        reference.grad = gradient.clone()
        theirs.step()
    torch.testing.assert_close(learnt(ours, start, gradients), reference.detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("optimiser", [Adam(0.01), Adagrad(0.05)])
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


def test_no_gradient_moves_nothing() -> None:
    """A row that is in a batch with gradient 0 stays where it is, from the start."""
    for optimiser in (Adam(0.01), Adagrad(0.05)):
        start = torch.ones(2, 3)
        assert torch.equal(learnt(optimiser, start, [torch.zeros(2, 3)]), start)


def test_the_configuration_chooses() -> None:
    """Name and rate."""
    assert row_optimiser(LearnConfig(row_optimiser="adam", row_rate=0.002)) == Adam(0.002)
    assert row_optimiser(LearnConfig(row_optimiser="adagrad", row_rate=0.02)) == Adagrad(0.02)
