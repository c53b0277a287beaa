"""DeepFM: a factorization machine and a deep network over the same embeddings, summed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from schemas.config import ModelConfig
from schemas.models.base import RowModel, Sides
from schemas.models.layers import Mlp, fm_second_order


class DeepFM(RowModel):
    """logit = b + Σ_i w_i x_i + Σ_{i<j} ⟨V_i x_i, V_j x_j⟩ + MLP(V_1 x_1 ∥ … ∥ V_F x_F).

    A row is (w_i, V_i): one first-order weight and K factors. The output layer has no bias beside b (it would
    be the same number twice).
    Source: Guo et al., DeepFM, IJCAI 2017, equations 1 to 4; V shared by both parts, numbers multiply w and V alike.

    With model.statistics it also reads numbers: + a·n, and n is an input of the MLP beside the embeddings; n is what the
    rows of fields and of the schema's crosses have counted, and the logs of its numbers (schemas/models/statistics.py).
    Without, it is the paper's.
    """

    reads_numbers = "if configured"

    def __init__(self, config: ModelConfig, fields: int, logs: Sequence[int] = (), sides: Sides = ()) -> None:
        super().__init__(config, fields, 1 + config.factors, len(logs), sides)
        self.crosses = len(sides) if config.statistics else 0
        beside = self.statistics.inputs if self.statistics is not None else 0
        self.mlp = Mlp(fields * config.factors + beside, config, self._seeded())

    def logits(self, rows: Tensor) -> Tensor:
        """rows: (B, F, 1 + K)."""
        first, v = _parted(rows)                                                # (B, F, 1), (B, F, K)
        return self._logits(first, v, v.flatten(1))

    def with_numbers(self, rows: Tensor, numbers: Tensor) -> Tensor:
        """rows: (B, F, 1 + K). numbers: (B, N), for a linear term and as inputs of the MLP."""
        assert self.statistics is not None
        first, v = _parted(rows)                                                # (B, F, 1), (B, F, K)
        inputs = torch.cat([v.flatten(1), numbers], dim=1)                      # (B, F·K + N)
        return self._logits(first, v, inputs) + self.statistics.linear(numbers)

    def _logits(self, first: Tensor, v: Tensor, inputs: Tensor) -> Tensor:
        logits: Tensor = self.bias + first.sum(dim=(1, 2)) + fm_second_order(v) + self.mlp(inputs)
        return logits                                                           # (B,)


def _parted(rows: Tensor) -> tuple[Tensor, Tensor]:
    """First-order weights, (B, F, 1), and factors, (B, F, K), in one piece: their gradients are put side by side at once,
    where slices would each make a whole one to be added."""
    first, v = torch.split(rows, [1, rows.shape[2] - 1], dim=2)
    return first, v.contiguous()
