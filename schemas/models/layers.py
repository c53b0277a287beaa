"""What models are built from."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from schemas.config import ModelConfig
from schemas.errors import ShapeError
from schemas.models.activations import activation
from schemas.models.normalisation import BatchNorm


def fm_second_order(v: Tensor) -> Tensor:
    """Sum of the inner products of every pair of fields of an impression.

    v: (B, F, K) float32, one row of factors per field. Returns (B,) logits (natural log-odds).
    Σ_{i<j} ⟨v_i, v_j⟩ = ½ Σ_k [(Σ_i v_ik)² − Σ_i v_ik²], so O(F·K). Sum over fields before squaring, per factor:
    flattening F and K first is another function (it adds every v_ik·v_jl with k≠l).
    Source: Rendle, Factorization Machines, ICDM 2010, Lemma 3.1. Raises ShapeError.
    """
    if v.ndim != 3 or v.shape[1] == 0:
        raise ShapeError(f"fm_second_order takes (B, F>=1, K), got {tuple(v.shape)}")
    found: Tensor = _SecondOrder.apply(v)  # (B,)
    return found


class _SecondOrder(torch.autograd.Function):
    """With its gradient written out, ∂/∂v_ik = Σ_j v_jk − v_ik: autograd's own way there takes twice the time."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        """v: (B, F, K). Returns (B,)."""
        total = v.sum(dim=1)                                                # (B, K)
        ctx.save_for_backward(v, total)
        return 0.5 * (total.square() - v.square().sum(dim=1)).sum(dim=1)    # (B,)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """gradient: (B,). Returns (B, F, K)."""
        v, total = ctx.saved_tensors
        return torch.sub(total[:, None], v).mul_(gradient[:, None, None])   # (B, F, K)


def bi_interaction(v: Tensor) -> Tensor:
    """The same per factor, a vector: Σ_{i<j} v_i ∘ v_j. v: (B, F, K). Returns (B, K).

    Source: He and Chua, Neural Factorization Machines, SIGIR 2017, equations 3 and 4. Raises ShapeError.
    """
    if v.ndim != 3 or v.shape[1] == 0:
        raise ShapeError(f"bi_interaction takes (B, F>=1, K), got {tuple(v.shape)}")
    return 0.5 * (v.sum(dim=1).square() - v.square().sum(dim=1))    # (B, K)


class _Product(torch.autograd.Function):
    """x Wᵀ + c with its operands rounded to another kind of number: all three matrix products, forward and back, take those,
    sum in float32 and round what they return. Each gradient comes back in its own tensor's kind."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, kind: torch.dtype) -> Tensor:
        """x: (B, inputs). weight: (outputs, inputs). bias: (outputs,). Returns (B, outputs) of that kind."""
        ctx.kinds = x.dtype, weight.dtype
        x, weight = x.to(kind), weight.to(kind)
        ctx.save_for_backward(x, weight)
        return nn.functional.linear(x, weight, None if bias is None else bias.to(kind))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """gradient: (B, outputs) of that kind."""
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias, _ = ctx.needs_input_grad
        outer, inner = ctx.kinds
        return (
            (gradient @ weight).to(outer) if for_x else None,
            (gradient.T @ x).to(inner) if for_weight else None,
            gradient.sum(dim=0).to(inner) if for_bias else None,
            None,
        )


def product(x: Tensor, weight: Tensor, bias: Tensor | None, kind: torch.dtype | None) -> Tensor:
    """x Wᵀ + c. x: (B, inputs). weight: (outputs, inputs). kind: of the numbers that are multiplied, and of what is returned;
    None = the weights'."""
    if kind is None:
        return nn.functional.linear(x.to(weight.dtype), weight, bias)
    found: Tensor = _Product.apply(x, weight, bias, kind)
    return found


class Linear(nn.Linear):
    """torch's, which can multiply in bf16. kind: see product; whoever learns sets it where hidden says that this is a hidden
    layer, whose results no square or logit hangs on directly (stream_trainer/learning/precision.py)."""

    kind: torch.dtype | None = None
    hidden = False

    def forward(self, x: Tensor) -> Tensor:
        """x: (…, inputs). Returns (…, outputs)."""
        return product(x, self.weight, self.bias, self.kind)


class Dropout(nn.Module):
    """Dropout with a generator of its own, so that a batch learnt again drops the same neurons."""

    def __init__(self, chance: float) -> None:
        super().__init__()
        self.chance = chance
        self.generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x unchanged when scoring; when learning, each number is 0 with that chance and scaled up otherwise."""
        if not self.training or self.chance == 0:
            return x
        kept = torch.rand(x.shape, generator=self.generator, device=x.device) >= self.chance
        found: Tensor = _Kept.apply(x, kept.to(x.dtype), 1 - self.chance)
        return found


class _Kept(torch.autograd.Function):
    """x · kept / share, in place where that is nobody else's: half the time of two operations with two gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Tensor, share: float) -> Tensor:
        """x: any shape. kept: the same, zeros and ones of x's kind."""
        ctx.save_for_backward(kept)
        ctx.share = share
        return (x * kept).div_(share)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """gradient: the shape of x."""
        (kept,) = ctx.saved_tensors
        return (gradient * kept).div_(ctx.share), None, None


class Mlp(nn.Module):
    """Hidden layers, then one linear output without a bias of its own: the model has a global one.

    With model.heads = H, H of them side by side, each drawn anew: while learning each answers for itself, has a loss of its
    own and pulls on the rows that all share; when scoring their logits are averaged (docs/lab.md: FFM + .0005 AUC).
    """

    def __init__(
        self, inputs: int, config: ModelConfig, generator: torch.Generator, widths: Sequence[int] | None = None
    ) -> None:
        """widths: of the hidden layers, None = as configured."""
        super().__init__()
        widths = config.hidden if widths is None else widths
        made = [self._layers(inputs, widths, config, generator) for _ in range(config.heads)]
        self.layers = made[0]
        self.others = nn.ModuleList(made[1:])

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, inputs). Returns (B,) logits; while learning with several heads (H, B)."""
        if not self.others:
            logits: Tensor = self.layers(x).squeeze(1)                                          # (B,)
            return logits
        heads = [self.layers, *self.others]
        found = _first_layers([layers[0] for layers in heads], x)
        for place, layers in enumerate(heads):
            for layer in islice(layers, 1, None):
                found[place] = layer(found[place])                                              # at last (B, 1)
        each = torch.cat(found, dim=1).T                                                        # (H, B)
        return each if self.training else each.mean(dim=0)

    @staticmethod
    def _layers(inputs: int, widths: Sequence[int], config: ModelConfig, generator: torch.Generator) -> nn.Sequential:
        hidden = hidden_layers(inputs, widths, config, generator)
        last = linear(widths[-1] if widths else inputs, 1, bias=False)
        nn.init.xavier_normal_(last.weight, generator=generator)
        return nn.Sequential(*hidden, last)


def _first_layers(layers: Sequence[nn.Module], x: Tensor) -> list[Tensor]:
    """What each makes of x, (B, inputs): hidden ones by one product together, so that x is read once, and its gradient made
    once."""
    alike = [layer for layer in layers if type(layer) is Linear and layer.hidden]
    if len(alike) < len(layers):
        return [layer(x) for layer in layers]
    weight, bias = torch.cat([layer.weight for layer in alike]), torch.cat([layer.bias for layer in alike])
    return list(product(x, weight, bias, alike[0].kind).chunk(len(alike), dim=1))


def hidden_layers(
    inputs: int, widths: Sequence[int], config: ModelConfig, generator: torch.Generator
) -> list[nn.Module]:
    """For each width: linear, batch norm, activation, dropout, as far as configured.

    He initialisation (He et al., ICCV 2015), for tanh Glorot's (AISTATS 2010); zero biases; from `generator` in a fixed
    order.
    """
    layers: list[nn.Module] = []
    for outputs in widths:
        layer = linear(inputs, outputs, bias=True)
        layer.hidden = True
        initialise(layer.weight, config, generator)
        nn.init.zeros_(layer.bias)
        layers += [layer, *after_linear(outputs, config)]
        inputs = outputs
    return layers


def after_linear(width: int, config: ModelConfig) -> list[nn.Module]:
    """What follows a linear layer: batch norm, activation, dropout, as far as configured."""
    norm = [BatchNorm(width)] if config.batch_norm else []
    return [*norm, activation(config.activation, width), *([Dropout(config.dropout)] if config.dropout else [])]


def initialise(weight: Tensor, config: ModelConfig, generator: torch.Generator) -> None:
    """Weights that keep the size of a signal through the configured activation."""
    if config.activation == "tanh":
        nn.init.xavier_normal_(weight, generator=generator)
    else:
        nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)


def pairs(fields: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """i and j of all i < j, row by row: two of (P,) int64, P = F(F−1)/2."""
    i, j = torch.triu_indices(fields, fields, 1, device=device)
    return i, j


@lru_cache(maxsize=64)
def places(columns: tuple[int, ...], device: torch.device) -> Tensor:
    """Those columns as an index, made once. Nobody may write it."""
    return torch.tensor(columns, dtype=torch.int64, device=device)


def linear(inputs: int, outputs: int, bias: bool) -> Linear:
    """A layer without torch's own initialisation, which would draw from the random numbers that all share."""
    layer = Linear(inputs, outputs, bias=bias, device="meta")
    layer.weight = nn.Parameter(torch.empty(outputs, inputs))  # `to_empty` imports sympy: .3 s of each process's start
    if bias:
        layer.bias = nn.Parameter(torch.empty(outputs))
    return layer
