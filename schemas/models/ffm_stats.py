"""The best of the zoo in a single pass: FFM, row statistics and a small network over its products."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from schemas.config import ModelConfig
from schemas.models.base import RowModel, Sides
from schemas.models.ffm import ffm_products
from schemas.models.layers import Mlp

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
        """rows: (B, F, 1 + F·K). numbers: (B, N)."""
        assert self.statistics is not None
        products = ffm_products(rows[:, :, 1:])                                                 # (B, P)
        wide = rows[:, :, 0].sum(dim=1) + products.sum(dim=1) + self.statistics.linear(numbers)
        logits: Tensor = self.bias + wide + self.mlp(torch.cat([PRODUCT_SCALE * products, numbers], dim=1))
        return logits                                                                           # (B,)
