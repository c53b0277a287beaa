"""What every model has in common."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from schemas.config import ModelConfig
from schemas.models.layers import Dropout
from schemas.rows import initial_rows


class RowModel(nn.Module):
    """Rows of a table in, logits out. The table engine gathers rows, the model says what their columns mean.

    row_width: W, floats in a row. first_order: how many of them, at the front, begin at 0. bias: the global bias, (1,).
    """

    row_width: int
    first_order: int = 1
    bias: nn.Parameter

    def __init__(self, config: ModelConfig, fields: int) -> None:
        super().__init__()
        self.config = config
        self.fields = fields

    def forward(self, rows: Tensor, values: Tensor | None) -> Tensor:
        """rows: (B, F, W), pooled over sets. values: (B, F), what each row is multiplied by; None = 1. Returns (B,)."""
        raise NotImplementedError

    def new_rows(self, rows: Tensor) -> Tensor:
        """What rows never touched hold. rows: (N,) int64. Returns (N, W) float32."""
        return initial_rows(rows, self.row_width, self.first_order, self.config.init_scale, self.config.seed)

    def draw_from(self, generator: torch.Generator) -> None:
        """Let every dropout take its randomness from there."""
        for module in self.modules():
            if isinstance(module, Dropout):
                module.generator = generator
