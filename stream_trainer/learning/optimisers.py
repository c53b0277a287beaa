"""How weights learn: rows by optimisers of our own, dense weights by torch's.

A row optimiser works on the rows of one batch alone, so a step costs the same whatever the table's size.
`step(weights, state, gradients)` changes the first two in place. weights: (N, W), state: (N, state_width(W)), zeros for
a row never touched; gradients: (N, W), duplicates within the batch summed already. Rows that are not in the batch are
not there to be moved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from schemas.config import LearnConfig, the_one
from schemas.errors import ConfigError

ADAGRAD_INITIAL = 0.1  # what stands under Adagrad's root before the first gradient: bounds the first steps


class RowOptimiser(Protocol):
    """One of the below."""

    def state_width(self, width: int) -> int:
        """Floats of state beside a row of that many weights."""
        ...

    def step(self, weights: Tensor, state: Tensor, gradients: Tensor) -> None:
        """Learn from one batch, in place."""
        ...


@dataclass(frozen=True, slots=True)
class Sgd:
    """w −= rate · g. No state."""

    rate: float

    def state_width(self, width: int) -> int:
        """None."""
        return 0

    def step(self, weights: Tensor, state: Tensor, gradients: Tensor) -> None:
        """In place."""
        weights.add_(gradients, alpha=-self.rate)


@dataclass(frozen=True, slots=True)
class Adagrad:
    """w −= rate · g / √(initial + Σ g²): rows seen often learn ever more slowly, rare ones fast.

    The state is Σ g² without `initial`, so that it begins at zero. Source: Duchi et al., JMLR 2011; McMahan et al., Ad
    Click Prediction, KDD 2013, section 3.1, for the same idea per coordinate.
    """

    rate: float
    initial: float = ADAGRAD_INITIAL
    epsilon: float = 1e-10

    def state_width(self, width: int) -> int:
        """One sum per weight."""
        return width

    def step(self, weights: Tensor, state: Tensor, gradients: Tensor) -> None:
        """In place."""
        state.addcmul_(gradients, gradients)
        weights.addcdiv_(gradients, (state + self.initial).sqrt_().add_(self.epsilon), value=-self.rate)


@dataclass(frozen=True, slots=True)
class RowwiseAdagrad:
    """Adagrad with one sum for a whole row, of the mean of its squared gradients: a row's state is one float.

    Source: Mudigere et al., Software-Hardware Co-design for Training of Deep Learning Recommendation Models, ISCA 2022;
    FBGEMM's EXACT_ROWWISE_ADAGRAD takes the same mean.
    """

    rate: float
    initial: float = ADAGRAD_INITIAL
    epsilon: float = 1e-10

    def state_width(self, width: int) -> int:
        """One sum per row."""
        return 1

    def step(self, weights: Tensor, state: Tensor, gradients: Tensor) -> None:
        """In place."""
        state += gradients.square().mean(dim=1, keepdim=True)                         # (N, 1)
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


@dataclass(frozen=True, slots=True)
class Ftrl:
    """FTRL-Proximal per coordinate: σ = (√(n + g²) − √n) / α, z += g − σ·w, n += g²; then w = 0 where |z| ≤ λ₁, else
    −(z − sgn(z)·λ₁) / ((β + √n)/α + λ₂).

    λ₁ makes weights exactly 0, λ₂ small; both weigh against the sum of all gradients so far, as in the paper, not per
    step. The paper's weights begin at 0. Factors must not (0 is where an FM stays for ever), so a weight that begins
    elsewhere begins with the z that gives it: z₀ = −w₀·(β/α + λ₂) − sgn(w₀)·λ₁. A coordinate without a gradient so far
    keeps its weight as it is. Source: McMahan et al., Ad Click Prediction, KDD 2013, algorithm 1.
    """

    rate: float          # α
    beta: float = 1.0
    l1: float = 0.0
    l2: float = 0.0

    def state_width(self, width: int) -> int:
        """z and n per weight."""
        return 2 * width

    def step(self, weights: Tensor, state: Tensor, gradients: Tensor) -> None:
        """In place."""
        width = weights.shape[1]
        z, n = state[:, :width], state[:, width:]                                     # (N, W) each
        begun = -weights * (self.beta / self.rate + self.l2) - weights.sign() * self.l1
        z.copy_(torch.where(n == 0, begun, z))
        root = n.sqrt()
        n.addcmul_(gradients, gradients)
        z += gradients - (n.sqrt() - root) / self.rate * weights
        shrunk = (z - z.sign() * self.l1) / ((self.beta + n.sqrt()) / self.rate + self.l2)
        weights.copy_(torch.where(n == 0, weights, torch.where(z.abs() <= self.l1, torch.zeros_like(z), -shrunk)))


@dataclass(frozen=True, slots=True)
class Split:
    """One optimiser for the first `at` columns of a row, another for the rest, each with its own state."""

    at: int
    first: RowOptimiser
    rest: RowOptimiser

    def state_width(self, width: int) -> int:
        """That of both."""
        return self.first.state_width(self.at) + self.rest.state_width(width - self.at)

    def step(self, weights: Tensor, state: Tensor, gradients: Tensor) -> None:
        """In place."""
        at, border = self.at, self.first.state_width(self.at)
        self.first.step(weights[:, :at], state[:, :border], gradients[:, :at])
        if weights.shape[1] > at:
            self.rest.step(weights[:, at:], state[:, border:], gradients[:, at:])


@dataclass(frozen=True, slots=True)
class Decayed:
    """Before each step of its rows, w −= rate · decay · w: decoupled from the gradient's scaling.

    Source: Loshchilov and Hutter, Decoupled Weight Decay Regularization, ICLR 2019.
    """

    inner: RowOptimiser
    share: float  # rate · decay

    def state_width(self, width: int) -> int:
        """That of the inner one."""
        return self.inner.state_width(width)

    def step(self, weights: Tensor, state: Tensor, gradients: Tensor) -> None:
        """In place."""
        weights.mul_(1 - self.share)
        self.inner.step(weights, state, gradients)


@dataclass(frozen=True, slots=True)
class Clipped:
    """A row's gradient longer than `norm` is shortened to it, each row by itself: what a row learns does not depend on
    what else is in the batch."""

    inner: RowOptimiser
    norm: float

    def state_width(self, width: int) -> int:
        """That of the inner one."""
        return self.inner.state_width(width)

    def step(self, weights: Tensor, state: Tensor, gradients: Tensor) -> None:
        """In place."""
        length = torch.linalg.vector_norm(gradients, dim=1, keepdim=True)             # (N, 1)
        self.inner.step(weights, state, gradients * (self.norm / length.clamp(min=self.norm)))


def row_optimiser(config: LearnConfig, first_order: int = 1) -> RowOptimiser:
    """The one that the configuration names. first_order: how many columns of a row are first-order weights.

    Raises ConfigError for one that does not exist, naming the nearest, and where there is no first-order weight to learn
    by a rule of its own.
    """
    found = rest = _rows(config, config.row_optimiser, config.row_rate)
    if config.first_order_rule != "same":
        if not first_order:
            raise ConfigError(
                "learn.first_order_optimiser and learn.first_order_rate: this model's rows have no first-order weights"
            )
        first = _rows(config, config.first_order_rule, config.first_order_rate or config.row_rate)
        found = Split(first_order, first, rest)
    return Clipped(found, config.clip) if config.clip else found


def _rows(config: LearnConfig, name: str, rate: float) -> RowOptimiser:
    known: Mapping[str, Callable[[], RowOptimiser]] = {
        "sgd": lambda: Sgd(rate),
        "adagrad": lambda: Adagrad(rate),
        "rowwise_adagrad": lambda: RowwiseAdagrad(rate),
        "adam": lambda: Adam(rate),
        "ftrl": lambda: Ftrl(rate, config.ftrl_beta, config.l1, config.l2),
    }
    made = the_one("learn.row_optimiser", name, known)()
    if config.decay and name != "ftrl":  # FTRL's weights are a function of its state: it has λ₂ instead
        return Decayed(made, rate * config.decay)
    return made


class DenseOptimiser:
    """Torch's Adam or Adagrad over a model's dense weights, with clipping and decay, and its state by name."""

    def __init__(self, config: LearnConfig, model: nn.Module) -> None:
        self._config = config
        self._named = dict(model.named_parameters())
        self._torch = self._made()

    def follow(self, config: LearnConfig) -> None:
        """Go on by its rate, with the state as it is."""
        self._config = config
        for group in self._torch.param_groups:
            group["lr"] = config.dense_rate

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self._torch.zero_grad(set_to_none=True)

    @torch.no_grad()
    def step(self) -> None:
        """One step. Clipping is by the norm of all dense gradients together; biases do not decay."""
        config = self._config
        if config.clip:
            nn.utils.clip_grad_norm_(self._named.values(), config.clip)
        if config.decay:
            for weight in self._named.values():
                if weight.ndim > 1 and weight.grad is not None:
                    weight.mul_(1 - config.dense_rate * config.decay)
        self._torch.step()

    def state(self) -> Iterable[tuple[str, Tensor]]:
        """Everything to go on from, as ("weight's name/what", tensor)."""
        for name, weight in self._named.items():
            for key, value in self._torch.state[weight].items():
                yield f"{name}/{key}", value

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from there; a weight without state begins anew."""
        self._torch = self._made()
        for name, weight in self._named.items():
            kept = {key.split("/")[1]: value for key, value in state.items() if key.split("/")[0] == name}
            if kept:
                self._torch.state[weight] = kept

    def _made(self) -> torch.optim.Optimizer:
        rate = self._config.dense_rate
        known: Mapping[str, Callable[[], torch.optim.Optimizer]] = {
            "adam": lambda: torch.optim.Adam(self._named.values(), lr=rate, fused=True),
            "adagrad": lambda: torch.optim.Adagrad(
                self._named.values(), lr=rate, initial_accumulator_value=ADAGRAD_INITIAL, fused=True
            ),
        }
        return the_one("learn.dense_optimiser", self._config.dense_optimiser, known)()
