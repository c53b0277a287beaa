"""Factorization machine."""

from __future__ import annotations

from torch import Tensor

from schemas.config import ModelConfig
from schemas.models.base import RowModel
from schemas.models.layers import fm_second_order


class FM(RowModel):
    """logit = b + Σ_i w_i x_i + Σ_{i<j} ⟨V_i, V_j⟩ x_i x_j. A row is (w_i, V_i).

    A set is one field: its rows are pooled first, so pairs within one set are not counted.
    Source: Rendle, Factorization Machines, ICDM 2010, equation 1.
    """

    def __init__(self, config: ModelConfig, fields: int) -> None:
        super().__init__(config, fields, row_width=1 + config.factors)

    def logits(self, rows: Tensor) -> Tensor:
        """rows: (B, F, 1 + K)."""
        return self.bias + rows[:, :, 0].sum(dim=1) + fm_second_order(rows[:, :, 1:])  # (B,)
