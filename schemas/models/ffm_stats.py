"""The best of the zoo in a single pass: FFM, row statistics and a small network over its products."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from schemas.config import ModelConfig
from schemas.models.base import RowModel, Sides
from schemas.models.layers import Mlp, pairs
from schemas.models.native import numpy_reaches

PRODUCT_SCALE = 10.0  # products begin near 0: scaled, the network learns from them at once (docs/lab.md)


class FFMStats(RowModel):
    """logit = b + Σ_i w_i x_i + Σ_{i<j} p_ij + a·n + MLP(10·p ∥ n), p_ij = ⟨V_i,j, V_j,i⟩ x_i x_j, n the numbers: the
    statistics of each field and of each cross, and the logs of the schema's numbers (schemas/models/statistics.py).

    A row is (w_i, V_i,1 … V_i,F, seen, clicked); of a cross only the counts are read. The network sees products and
    numbers, no embeddings: for one pass over little data F(F−1)/2 products say more than F·F·K factors. It always has
    statistics; meant for model.factors=1. Source: FFM by Juan et al., RecSys 2016; its products as inputs of a network as
    in PNN (Qu et al., ICDM 2016); the rest by measurement (docs/lab.md).
    """

    reads_numbers = "always"

    def __init__(self, config: ModelConfig, fields: int, logs: Sequence[int] = (), sides: Sides = ()) -> None:
        super().__init__(config, fields, 1 + fields * config.factors, len(logs), sides)
        self.crosses = len(sides)
        assert self.statistics is not None
        inputs = fields * (fields - 1) // 2 + self.statistics.inputs
        self.mlp = Mlp(inputs, config, self._seeded())

    def with_numbers(self, rows: Tensor, numbers: Tensor) -> Tensor:
        """rows: (B, F + C, W). numbers: (B, N)."""
        assert self.statistics is not None
        inputs, wide = _Parts.apply(rows, numbers, self.statistics.weight, self.fields, self.config.factors)
        logits: Tensor = self.bias + wide + self.mlp(inputs)
        return logits                                                                           # (B,)


class _Parts(torch.autograd.Function):
    """What the network reads, and what stands beside it: Σ_i w_i + Σ_{i<j} p_ij + a·n. Its gradient is written out: by V_i,j
    that of p_ij times V_j,i. Both ways every number is moved once, by one list of where it comes from."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, numbers: Tensor, weight: Tensor, fields: int, factors: int
    ) -> tuple[Tensor, Tensor]:
        """rows: (B, F + C, W). numbers: (B, N). weight: (N,). Returns (B, P + N), (B,)."""
        b, p = len(rows), fields * (fields - 1) // 2
        there, _ = _places(*rows.shape[1:], fields, factors, rows.device)
        met = _columns(rows.reshape(b, -1), there)                                              # (B, 2·P·K)
        products = met[:, : p * factors] * met[:, p * factors :]                                # (B, P·K)
        products = products.view(b, p, factors).sum(dim=2) if factors > 1 else products         # (B, P)
        inputs = rows.new_empty(b, p + numbers.shape[1])                                        # (B, P + N)
        torch.mul(products, PRODUCT_SCALE, out=inputs[:, :p])
        inputs[:, p:] = numbers
        ctx.save_for_backward(met, numbers, weight)
        ctx.shape, ctx.fields, ctx.factors = rows.shape, fields, factors
        return inputs, rows[:, :fields, 0].sum(dim=1).add_(products.sum(dim=1)).addmv_(numbers, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_inputs: Tensor, of_wide: Tensor) -> tuple[Tensor | None, ...]:
        """of_inputs: (B, P + N). of_wide: (B,). Returns those of rows (0 where nothing is read), numbers, weight."""
        met, numbers, weight = ctx.saved_tensors
        b, half, p = len(met), met.shape[1] // 2, met.shape[1] // (2 * ctx.factors)
        of_products = torch.add(of_wide[:, None], of_inputs[:, :p], alpha=PRODUCT_SCALE)        # (B, P)
        each = of_products.repeat_interleave(ctx.factors, dim=1) if ctx.factors > 1 else of_products
        parts = met.new_empty(b, 2 * half + 2)              # of V_i,j, of V_j,i, of the first-order weights, 0
        torch.mul(each, met[:, half:], out=parts[:, :half])
        torch.mul(each, met[:, :half], out=parts[:, half:-2])
        parts[:, -2], parts[:, -1] = of_wide, 0
        _, back = _places(*ctx.shape[1:], ctx.fields, ctx.factors, met.device)
        of_rows = _columns(parts, back).view(ctx.shape)                                         # (B, F + C, W)
        of_numbers = torch.addmm(of_inputs[:, p:], of_wide[:, None], weight[None]) if ctx.needs_input_grad[1] else None
        return of_rows, of_numbers, of_wide @ numbers, None, None


def _columns(x: Tensor, places: Tensor) -> Tensor:
    """x[:, places]. numpy goes row by row, which stays in the cache; torch column by column takes twice as long, or thrice."""
    if not numpy_reaches(x.device):
        return x.index_select(1, places)
    return torch.from_numpy(x.detach().numpy().take(places.numpy(), axis=1, mode="clip"))


@lru_cache(maxsize=16)
def _places(columns: int, width: int, fields: int, factors: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where in an example's rows, one after the other, V_i,j stands for all i < j and then V_j,i, (2·P·K,) int64; and where in
    _Parts.backward's `parts` the gradient of each of their numbers, (columns·W,) int64."""
    i, j = pairs(fields, device)                                                                # (P,) each
    factor = torch.arange(factors, device=device)                                               # (K,)
    there = torch.cat([
        ((one * width + 1 + other * factors)[:, None] + factor).flatten() for one, other in ((i, j), (j, i))
    ])
    back = torch.full((columns * width,), len(there) + 1, device=device)
    back[there] = torch.arange(len(there), device=device)
    back[torch.arange(fields, device=device) * width] = len(there)
    return there, back
