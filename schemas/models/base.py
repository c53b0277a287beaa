"""What every model has in common."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from schemas.config import ModelConfig
from schemas.errors import ShapeError
from schemas.models.layers import Dropout
from schemas.models.normalisation import BatchNorm
from schemas.rows import initial_rows


class RowModel(nn.Module):
    """Rows of a table in, logits out. The table engine gathers rows, the model says what their columns mean.

    row_width: W, floats in a row. first_order: how many of them, at the front, begin at 0: the first-order weight, or
    none. bias: the global bias, (1,); every model has one, named or not in its paper, and the learner starts it at the
    log-odds of the first batch's clicks. takes_crosses: whether the schema's crosses stand, each by its first-order weight,
    beside the fields; crosses: how many there are, C.
    """

    row_width: int
    first_order: int = 1
    takes_crosses: bool = False
    crosses: int = 0
    bias: nn.Parameter

    def __init__(self, config: ModelConfig, fields: int, row_width: int) -> None:
        super().__init__()
        self.config = config
        self.fields = fields
        self.row_width = row_width
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, rows: Tensor, values: Tensor | None) -> Tensor:
        """rows: (B, F + C, W), pooled over sets. values: (B, F + C), what each row is multiplied by; None = 1. Returns (B,).

        Raises ShapeError.
        """
        columns = self.fields + self.crosses
        if rows.ndim != 3 or rows.shape[1:] != (columns, self.row_width):
            raise ShapeError(f"{type(self).__name__} takes (B, {columns}, {self.row_width}), got {tuple(rows.shape)}")
        rows = rows if values is None else rows * values[:, :, None]
        if not self.crosses:
            return self.logits(rows)
        return self.logits(rows[:, : self.fields]) + rows[:, self.fields :, 0].sum(dim=1)       # (B,)

    def logits(self, rows: Tensor) -> Tensor:
        """rows: (B, F, W), multiplied by their values. Returns (B,)."""
        raise NotImplementedError

    @torch.no_grad()
    def begin(self, log_odds: float) -> None:
        """Before the first batch: score all alike, at these log-odds, but for what the rows begin with."""
        self.bias.fill_(log_odds)

    def learnt(self, examples: int) -> None:
        """So many examples more were learnt; for models that learn in stages."""

    def new_rows(self, rows: Tensor) -> Tensor:
        """What rows never touched hold. rows: (N,) int64. Returns (N, W) float32."""
        return initial_rows(rows, self.row_width, self.first_order, self.config.init_scale, self.config.seed)

    def draw_from(self, generator: torch.Generator) -> None:
        """Let every dropout take its randomness from there."""
        for module in self.modules():
            if isinstance(module, Dropout):
                module.generator = generator

    @property
    def two_modes(self) -> bool:
        """Whether learning computes other logits than scoring does: dropout, batch norm, Dice."""
        return any(isinstance(module, Dropout | BatchNorm) for module in self.modules())

    def _seeded(self) -> torch.Generator:
        """What the dense weights begin as is drawn from here."""
        return torch.Generator().manual_seed(self.config.seed)
