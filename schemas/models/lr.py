"""Logistic regression over the rows' first-order weights."""

from __future__ import annotations

from torch import Tensor

from schemas.config import ModelConfig
from schemas.models.base import RowModel


class LR(RowModel):
    """logit = b + Σ_i w_i x_i, over the schema's crosses too. A row is (w_i).

    Theirs learns by FTRL-Proximal: learn.row_optimiser=ftrl.
    Source: McMahan et al., Ad Click Prediction, KDD 2013, section 3.
    """

    takes_crosses = True

    def __init__(self, config: ModelConfig, fields: int) -> None:
        super().__init__(config, fields, row_width=1)

    def logits(self, rows: Tensor) -> Tensor:
        """rows: (B, F, 1)."""
        return self.bias + rows[:, :, 0].sum(dim=1)  # (B,)
