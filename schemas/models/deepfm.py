"""DeepFM: a factorization machine and a deep network over the same embeddings, summed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from schemas.config import ModelConfig
from schemas.errors import ShapeError
from schemas.models.base import RowModel
from schemas.models.layers import Mlp, fm_second_order


class DeepFM(RowModel):
    """logit = b + Σ_i w_i x_i + Σ_{i<j} ⟨V_i x_i, V_j x_j⟩ + MLP(V_1 x_1 ∥ … ∥ V_F x_F).

    A row is (w_i, V_i): one first-order weight and K factors. The output layer has no bias beside b (it would
    be the same number twice).
    Source: Guo et al., DeepFM, IJCAI 2017, equations 1 to 4; V shared by both parts, numbers multiply w and V alike.
    """

    def __init__(self, config: ModelConfig, fields: int) -> None:
        super().__init__(config, fields)
        generator = torch.Generator().manual_seed(config.seed)
        self.row_width = 1 + config.factors
        self.bias = nn.Parameter(torch.zeros(1))
        self.mlp = Mlp(fields * config.factors, config.hidden, config.dropout, generator)

    def forward(self, rows: Tensor, values: Tensor | None) -> Tensor:
        """Raises ShapeError."""
        if rows.ndim != 3 or rows.shape[1:] != (self.fields, self.row_width):
            raise ShapeError(f"DeepFM takes (B, {self.fields}, {self.row_width}), got {tuple(rows.shape)}")
        if values is not None:
            rows = rows * values[:, :, None]
        first = rows[:, :, 0].sum(dim=1)                                        # (B,)
        v = rows[:, :, 1:]                                                      # (B, F, K)
        logits: Tensor = self.bias + first + fm_second_order(v) + self.mlp(v.flatten(1))
        return logits                                                           # (B,)
