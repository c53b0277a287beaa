"""How rows learn: each optimiser works on the rows of one batch alone, so a step costs the same whatever the table's
size.

`step(weights, state, gradients)` changes the first two in place. weights: (N, W), state: (N, state_width(W)), zeros for
a row never touched; gradients: (N, W), duplicates within the batch summed already. Rows that are not in the batch are
not there to be moved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from schemas.config import LearnConfig


class RowOptimiser(Protocol):
    """One of the below."""

    def state_width(self, width: int) -> int:
        """Floats of state beside a row of that many weights."""
        ...

    def step(self, weights: Tensor, state: Tensor, gradients: Tensor) -> None:
        """Learn from one batch, in place."""
        ...


@dataclass(frozen=True, slots=True)
class Adagrad:
    """w −= rate · g / √(initial + Σ g²): rows seen often learn ever more slowly, rare ones fast.

    The state is Σ g² without `initial`, so that it begins at zero. Source: Duchi et al., JMLR 2011; McMahan et al., Ad
    Click Prediction, KDD 2013, section 3.1, for the same idea per coordinate.
    """

    rate: float
    initial: float = 0.1  # what stands under the root before the first gradient: bounds the first steps
    epsilon: float = 1e-10

    def state_width(self, width: int) -> int:
        """One sum per weight."""
        return width

    def step(self, weights: Tensor, state: Tensor, gradients: Tensor) -> None:
        """In place."""
        state.addcmul_(gradients, gradients)
        weights.addcdiv_(gradients, (state + self.initial).sqrt_().add_(self.epsilon), value=-self.rate)


@dataclass(frozen=True, slots=True)
class Adam:
    """Adam with moments that stand still while a row is not seen, and a count of steps per row.

    Corrected by the row's own count, a row's first step has length `rate` whenever it comes; a count for all rows would
    give late rows a first step of rate·(1−β₁)/√(1−β₂) ≈ 3 rates. A row in every batch moves as torch's Adam does.
    Source: Kingma and Ba, Adam, ICLR 2015, algorithm 1.
    """

    rate: float
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-8

    def state_width(self, width: int) -> int:
        """Two moments per weight, one count per row."""
        return 2 * width + 1

    def step(self, weights: Tensor, state: Tensor, gradients: Tensor) -> None:
        """In place."""
        width = weights.shape[1]
        mean, square, count = state[:, :width], state[:, width:-1], state[:, -1:]     # (N, W), (N, W), (N, 1)
        count += 1
        mean.lerp_(gradients, 1 - self.beta_1)
        square.mul_(self.beta_2).addcmul_(gradients, gradients, value=1 - self.beta_2)
        bias_1 = 1 - torch.pow(self.beta_1, count)                                    # (N, 1)
        bias_2 = (1 - torch.pow(self.beta_2, count)).sqrt_()                          # (N, 1)
        weights.addcdiv_(mean / bias_1, (square.sqrt() / bias_2).add_(self.epsilon), value=-self.rate)


def row_optimiser(config: LearnConfig) -> RowOptimiser:
    """The one that the configuration names."""
    if config.row_optimiser == "adam":
        return Adam(config.row_rate)
    return Adagrad(config.row_rate)
