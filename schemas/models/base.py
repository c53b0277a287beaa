"""What every model has in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from schemas.config import ModelConfig
from schemas.errors import ShapeError
from schemas.models.layers import Dropout, places
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
        numbers = None
        if self.statistics is not None:
            logs = None if values is None or not self.beside else values.index_select(1, places(self.beside, values.device))
            numbers = self.statistics.numbers(rows.detach()[:, :, learnt:], logs)               # (B, N)
        if values is not None:
            factors = values.index_fill(1, places(self.beside, values.device), 1) if self.beside else values    # (B, F + C)
            rows = rows if _all_ones(factors) else rows * factors[:, :, None]
        if numbers is not None:
            return self.with_numbers(rows, numbers)                                             # (B,)
        if not self.crosses:
            return self.logits(rows)
        return self.logits(rows[:, : self.fields]) + rows[:, self.fields :, 0].sum(dim=1)

    def logits(self, rows: Tensor) -> Tensor:
        """rows: (B, F, W), multiplied by their values. Returns (B,)."""
        raise NotImplementedError

    def with_numbers(self, rows: Tensor, numbers: Tensor) -> Tensor:
        """The same for a model that reads numbers, of all that a row holds. rows: (B, F + C, W). numbers: (B, N),
        schemas/models/statistics.py. Returns (B,)."""
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


def _all_ones(factors: Tensor) -> bool:
    """Whether multiplying by them would change nothing: asking takes a tenth of that."""
    return not factors.requires_grad and bool((factors == 1).all())
