"""What every model has in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from schemas.config import ModelConfig
from schemas.errors import ShapeError
from schemas.models.layers import Dropout
from schemas.models.normalisation import BatchNorm
from schemas.models.statistics import COLUMNS, Statistics
from schemas.rows import initial_rows

Sides = Sequence[tuple[int, int]]  # the two fields of each cross


class RowModel(nn.Module):
    """Rows of a table in, logits out. The table engine gathers rows, the model says what their columns mean.

    row_width: W, floats in a row; the last `counted` of them are its statistics. first_order: how many of them, at the
    front, begin at 0: the first-order weight, or none. bias: the global bias, (1,); every model has one, named or not in
    its paper, and the learner starts it at the log-odds of the first batch's clicks. takes_crosses: whether the schema's
    crosses stand, each by its first-order weight, beside the fields; crosses: how many there are, C. beside: columns whose
    values are numbers by themselves, M, and multiply no row. reads_numbers: whether the model reads those and the counts of
    its rows, by `statistics`; the papers' models do not.
    """

    row_width: int
    first_order: int = 1
    takes_crosses: bool = False
    crosses: int = 0
    bias: nn.Parameter
    beside: tuple[int, ...] = ()
    reads_numbers: Literal["never", "if configured", "always"] = "never"
    statistics: Statistics | None

    def __init__(self, config: ModelConfig, fields: int, row_width: int, logs: int = 0, sides: Sides = ()) -> None:
        super().__init__()
        self.config = config
        self.fields = fields
        counts = self.reads_numbers == "always" or (self.reads_numbers == "if configured" and config.statistics)
        self.counted = COLUMNS if counts else 0
        self.row_width = row_width + self.counted
        self.statistics = Statistics(fields, logs, sides) if counts else None
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, rows: Tensor, values: Tensor | None) -> Tensor:
        """rows: (B, F + C, W), pooled over sets. values: (B, F + C), what each row is multiplied by; None = 1. Returns (B,);
        while learning with several heads (schemas/models/layers.py) (H, B).

        Raises ShapeError.
        """
        columns, learnt = self.fields + self.crosses, self.row_width - self.counted
        if rows.ndim != 3 or rows.shape[1:] != (columns, self.row_width):
            raise ShapeError(f"{type(self).__name__} takes (B, {columns}, {self.row_width}), got {tuple(rows.shape)}")
        counts = rows.detach()[:, :, learnt:]                                       # (B, F + C, 2) or (B, F + C, 0)
        rows = rows[:, :, :learnt] if self.counted else rows
        logs = None if values is None or not self.beside else values[:, self.beside]            # (B, M)
        if values is not None:
            rows = rows * (values if logs is None else _ones(values, self.beside))[:, :, None]
        own = rows[:, : self.fields] if self.crosses else rows                                  # (B, F, W)
        if self.statistics is not None:
            return self.with_numbers(own, self.statistics.numbers(counts, logs))                # (B,)
        return self.logits(own) + rows[:, self.fields :, 0].sum(dim=1) if self.crosses else self.logits(own)

    def logits(self, rows: Tensor) -> Tensor:
        """rows: (B, F, W), multiplied by their values. Returns (B,)."""
        raise NotImplementedError

    def with_numbers(self, rows: Tensor, numbers: Tensor) -> Tensor:
        """The same for a model that reads numbers. numbers: (B, N), schemas/models/statistics.py. Returns (B,)."""
        raise NotImplementedError

    @torch.no_grad()
    def begin(self, log_odds: float) -> None:
        """Before the first batch: score all alike, at these log-odds, but for what the rows begin with."""
        self.bias.fill_(log_odds)

    def learnt(self, examples: int) -> None:
        """So many examples more were learnt; for models that learn in stages."""

    def new_rows(self, rows: Tensor) -> Tensor:
        """What rows never touched hold. rows: (N,) int64. Returns (N, W) float32."""
        learnt = self.row_width - self.counted
        found = initial_rows(rows, learnt, self.first_order, self.config.init_scale, self.config.seed)
        return nn.functional.pad(found, (0, self.counted)) if self.counted else found

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


def _ones(values: Tensor, columns: tuple[int, ...]) -> Tensor:
    """A copy with ones there."""
    kept = values.clone()
    kept[:, columns] = 1
    return kept
