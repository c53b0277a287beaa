"""Attentional factorization machine: the pairs of an FM, weighed by a small network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from schemas.config import ModelConfig
from schemas.models.base import RowModel
from schemas.models.layers import Dropout, linear, pairs


class AFM(RowModel):
    """logit = b + Σ_i w_i x_i + pᵀ Σ_{i<j} a_ij (V_i ∘ V_j) x_i x_j, a = softmax over all pairs of
    hᵀ relu(W (V_i ∘ V_j) x_i x_j + c). A row is (w_i, V_i).

    As in the paper the softmax goes over the pairs; in its authors' published code it goes over an axis of length 1,
    so that every a_ij is 1 (hexiangnan/attentional_factorization_machine#19). Dropout as in the paper, on the pairwise
    products; DeepCTR drops from their weighted sum, FuxiCTR from a and from the sum. p begins at 1, as in the authors'
    code. Since a sums to 1, an FM is no special case at p = 1.
    Source: Xiao et al., Attentional Factorization Machines, IJCAI 2017, equations 4 to 6.
    """

    def __init__(self, config: ModelConfig, fields: int) -> None:
        super().__init__(config, fields, row_width=1 + config.factors)
        generator = self._seeded()
        self.attention = linear(config.factors, config.attention_factors, bias=True)  # W and c
        self.h = linear(config.attention_factors, 1, bias=False)
        self.p = nn.Parameter(torch.ones(config.factors))
        for layer in (self.attention, self.h):
            nn.init.xavier_normal_(layer.weight, generator=generator)
        nn.init.zeros_(self.attention.bias)
        self.dropout = nn.Sequential(*([Dropout(config.dropout)] if config.dropout else []))

    def logits(self, rows: Tensor) -> Tensor:
        """rows: (B, F, 1 + K)."""
        v = rows[:, :, 1:]                                                      # (B, F, K)
        i, j = pairs(self.fields, rows.device)                                  # (P,), (P,)
        products = self.dropout(v[:, i] * v[:, j])                              # (B, P, K)
        scores = self.h(self.attention(products).relu())                        # (B, P, 1)
        pooled = (scores.softmax(dim=1) * products).sum(dim=1)                  # (B, K)
        logits: Tensor = self.bias + rows[:, :, 0].sum(dim=1) + pooled @ self.p
        return logits                                                           # (B,)
