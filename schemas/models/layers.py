"""What models are built from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from schemas.errors import ShapeError


def fm_second_order(v: Tensor) -> Tensor:
    """Sum of the inner products of every pair of fields of an impression.

    v: (B, F, K) float32, one row of factors per field. Returns (B,) logits (natural log-odds).
    Σ_{i<j} ⟨v_i, v_j⟩ = ½ Σ_k [(Σ_i v_ik)² − Σ_i v_ik²], so O(F·K). Sum over fields before squaring, per factor:
    flattening F and K first is another function (it adds every v_ik·v_jl with k≠l).
    Source: Rendle, Factorization Machines, ICDM 2010, Lemma 3.1. Raises ShapeError.
    """
    if v.ndim != 3 or v.shape[1] == 0:
        raise ShapeError(f"fm_second_order takes (B, F>=1, K), got {tuple(v.shape)}")
    total = v.sum(dim=1)                                              # (B, K)
    return 0.5 * (total.square() - v.square().sum(dim=1)).sum(dim=1)  # (B,)


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
        return x * kept / (1 - self.chance)


class Mlp(nn.Module):
    """Linear and relu layers, then one linear output without a bias of its own: the model has a global one.

    He initialisation (He et al., ICCV 2015) for the hidden layers, zero biases, from `generator` in a fixed order.
    """

    def __init__(self, inputs: int, hidden: Sequence[int], dropout: float, generator: torch.Generator) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for outputs in hidden:
            linear = _linear(inputs, outputs, bias=True)
            nn.init.kaiming_normal_(linear.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.ReLU()] + ([Dropout(dropout)] if dropout else [])
            inputs = outputs
        last = _linear(inputs, 1, bias=False)
        nn.init.xavier_normal_(last.weight, generator=generator)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, inputs). Returns (B,) logits."""
        logits: Tensor = self.layers(x).squeeze(1)
        return logits


def _linear(inputs: int, outputs: int, bias: bool) -> nn.Linear:
    """A layer without torch's own initialisation, which would draw from the random numbers that all share."""
    return nn.Linear(inputs, outputs, bias=bias, device="meta").to_empty(device="cpu")
