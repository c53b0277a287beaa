"""Deep and cross networks: layers that multiply by the input, beside (or before) a network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from schemas.config import ModelConfig
from schemas.models.base import RowModel
from schemas.models.layers import hidden_layers, linear, product


class DCN(RowModel):
    """Version 1. x_0 = (V_1 x_1 ∥ … ∥ V_F x_F), x_{l+1} = x_0 (x_lᵀ w_l) + c_l + x_l; logit = b + uᵀ (x_L ∥ MLP's last
    hidden layer). A row is (V_i), no w_i.

    The paper takes 6·(number of values)^¼ factors per field, here all fields have K; it uses batch norm in the network
    and clips at 100 (model.batch_norm, learn.clip). DeepCTR adds first-order weights: DCNLinear. Without hidden layers
    there are the crosses alone. Source: Wang et al., Deep & Cross Network for Ad Click Predictions, ADKDD 2017,
    equations 3 to 5.
    """

    first_order = 0
    full = False     # whether a cross layer has a matrix or a vector
    stacked = False  # whether the network comes after the crosses or beside them

    def __init__(self, config: ModelConfig, fields: int) -> None:
        super().__init__(config, fields, row_width=self.first_order + config.factors)
        generator, inputs = self._seeded(), fields * config.factors
        self.cross = nn.ModuleList(Cross(inputs, self.full, generator) for _ in range(config.cross_layers))
        self.deep = nn.Sequential(*hidden_layers(inputs, config.hidden, config, generator))
        ends = [inputs, *config.hidden[-1:]]                                                    # widths of the two ends
        self.output = linear(ends[-1] if self.stacked else sum(ends), 1, bias=False)
        nn.init.xavier_normal_(self.output.weight, generator=generator)

    def logits(self, rows: Tensor) -> Tensor:
        """rows: (B, F, first_order + K)."""
        x0 = rows[:, :, self.first_order :].flatten(1)                                          # (B, D)
        x = x0
        for layer in self.cross:
            x = layer(x0, x)                                                                    # (B, D)
        if self.stacked:
            x = self.deep(x)
        elif len(self.deep):
            x = torch.cat([x, self.deep(x0)], dim=1)
        logits: Tensor = self.bias + rows[:, :, : self.first_order].sum(dim=(1, 2)) + self.output(x).squeeze(1)
        return logits                                                                           # (B,)


class DCNLinear(DCN):
    """Version 1 as DeepCTR has it: with first-order weights beside. A row is (w_i, V_i)."""

    first_order = 1


class DCNv2(DCN):
    """Version 2, parallel: x_{l+1} = x_0 ∘ (W_l x_l + c_l) + x_l, W_l a full matrix; the rest as in version 1.

    Source: Wang et al., DCN V2, WWW 2021. Low-rank and mixture-of-experts forms of W are not here.
    """

    full = True


class DCNv2Stacked(DCNv2):
    """Version 2, stacked: the network takes x_L, and logit = b + uᵀ (its last hidden layer)."""

    stacked = True


class Cross(nn.Module):
    """x_0 ∘ (W x + c) + x with a full W: (D, D), or x_0 (wᵀ x) + c + x with one vector: (1, D). kind: as in Linear."""

    kind: torch.dtype | None = None

    def __init__(self, inputs: int, full: bool, generator: torch.Generator) -> None:
        super().__init__()
        self.full = self.hidden = full
        self.weight = nn.Parameter(torch.empty(inputs if full else 1, inputs))
        self.bias = nn.Parameter(torch.zeros(inputs))
        nn.init.xavier_normal_(self.weight, generator=generator)

    def forward(self, x0: Tensor, x: Tensor) -> Tensor:
        """x0, x: (B, D). Returns (B, D)."""
        if self.full:
            return x0 * product(x, self.weight, self.bias, self.kind) + x
        return x0 * product(x, self.weight, None, None) + self.bias + x
