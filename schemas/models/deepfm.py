"""DeepFM: a factorization machine and a deep network over the same embeddings, summed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from schemas.config import ModelConfig
from schemas.models.base import RowModel, Sides
from schemas.models.layers import Mlp


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
        inputs, wide = _Parts.apply(rows, None, None, self.fields, self.config.factors)     # (B, F·K), (B,)
        logits: Tensor = self.bias + wide + self.mlp(inputs)
        return logits                                                                       # (B,)

    def with_numbers(self, rows: Tensor, numbers: Tensor) -> Tensor:
        """rows: (B, F + C, W). numbers: (B, N), for a linear term and as inputs of the MLP."""
        assert self.statistics is not None
        inputs, wide = _Parts.apply(rows, numbers, self.statistics.weight, self.fields, self.config.factors)
        logits: Tensor = self.bias + wide + self.mlp(inputs)
        return logits                                                                       # (B,)


class _Parts(torch.autograd.Function):
    """What the network reads, and what stands beside it: Σ_i w_i + Σ_{i<j} ⟨V_i, V_j⟩ + a·n, the second as in
    layers.fm_second_order. Its gradient is written out, by V_i of the products g·(Σ_j V_j − V_i): autograd's own way makes a
    tensor as large as the rows for each slice of them."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, numbers: Tensor | None, weight: Tensor | None, fields: int, factors: int
    ) -> tuple[Tensor, Tensor]:
        """rows: (B, F or more, 1 + K or more). numbers: (B, N), weight: (N,), None = no numbers. Returns (B, F·K + N), (B,)."""
        b, width = len(rows), fields * factors
        inputs = rows.new_empty(b, width + (0 if numbers is None else numbers.shape[1]))    # (B, F·K + N)
        v = inputs[:, :width]                                                               # (B, F·K)
        v.view(b, fields, factors).copy_(rows[:, :fields, 1 : 1 + factors])
        total = v.view(b, fields, factors).sum(dim=1)                                       # (B, K)
        second = total.square().sum(dim=1).sub_(v.square().sum(dim=1))                      # (B,)
        wide = rows[:, :fields, 0].sum(dim=1).add_(second, alpha=0.5)                       # (B,)
        if numbers is not None and weight is not None:
            inputs[:, width:] = numbers
            wide.addmv_(numbers, weight)
        ctx.save_for_backward(inputs, total, weight)
        ctx.shape, ctx.fields, ctx.factors = rows.shape, fields, factors
        return inputs, wide

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_inputs: Tensor, of_wide: Tensor) -> tuple[Tensor | None, ...]:
        """of_inputs: (B, F·K + N). of_wide: (B,). Returns those of rows (0 where nothing is read), numbers, weight."""
        inputs, total, weight = ctx.saved_tensors
        b, width, each = len(inputs), ctx.fields * ctx.factors, of_wide[:, None]
        gradient = inputs.new_zeros(ctx.shape)
        gradient[:, : ctx.fields, 0] = each
        of_v = torch.addcmul(of_inputs[:, :width], inputs[:, :width], each, value=-1)       # (B, F·K)
        torch.add(
            of_v.view(b, ctx.fields, ctx.factors), (total * each)[:, None],
            out=gradient[:, : ctx.fields, 1 : 1 + ctx.factors],
        )
        of_numbers = torch.addmm(of_inputs[:, width:], each, weight[None]) if ctx.needs_input_grad[1] else None     # (B, N)
        of_weight = of_wide @ inputs[:, width:] if ctx.needs_input_grad[2] else None        # (N,)
        return gradient, of_numbers, of_weight, None, None
