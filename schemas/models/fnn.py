"""Networks over embeddings alone: the paper's FNN in two stages, and the plain network that later code calls by its name."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from schemas.config import ModelConfig
from schemas.models.base import RowModel
from schemas.models.layers import Mlp, fm_second_order


class FNN(RowModel):
    """Stage 1, for the first model.fnn_pretrain_rows examples, is an FM: b + Σ_i w_i x_i + Σ_{i<j} ⟨V_i, V_j⟩ x_i x_j.
    Stage 2 is a network over what the FM learnt, which it goes on to learn: logit = a + MLP(z), z = (b, w_1 x_1, V_1 x_1,
    …, w_F x_F, V_F x_F), 1 + F·(1 + K) wide. A row is (w_i, V_i).

    The first-order weights and b are inputs of the network, not terms beside it. The stage is a function of how many
    examples were learnt: the count (`examples`) travels with the dense weights, so a restored trainer is in the same
    stage as one never stopped, and a scorer in that of the version it serves. `a` begins as b when the network takes
    over, so that the mean score does not fall back to a half; its hidden layers begin as the seed draws them, and scores
    jump then. The paper uses tanh. Source: Zhang et al., Deep Learning over Multi-field Categorical Data, ECIR 2016
    (its pre-training of the upper layers, by restricted Boltzmann machines, is left out).
    """

    examples: Tensor

    def __init__(self, config: ModelConfig, fields: int) -> None:
        super().__init__(config, fields, row_width=1 + config.factors)
        self.output_bias = nn.Parameter(torch.zeros(1))
        self.register_buffer("examples", torch.zeros(1, dtype=torch.int64))
        self.mlp = Mlp(1 + fields * (1 + config.factors), config, self._seeded())

    @property
    def pretrained(self) -> bool:
        """Whether the network has taken over."""
        return int(self.examples) >= self.config.fnn_pretrain_rows

    @torch.no_grad()
    def begin(self, log_odds: float) -> None:
        """Whichever stage comes first."""
        super().begin(log_odds)
        self.output_bias.fill_(log_odds)

    def learnt(self, examples: int) -> None:
        """A batch is learnt in one stage: the network takes over with the next one."""
        before = self.pretrained
        self.examples += examples
        if self.pretrained and not before:
            with torch.no_grad():
                self.output_bias.copy_(self.bias)

    def logits(self, rows: Tensor) -> Tensor:
        """rows: (B, F, 1 + K)."""
        if not self.pretrained:
            return self.bias + rows[:, :, 0].sum(dim=1) + fm_second_order(rows[:, :, 1:])       # (B,)
        z = torch.cat([self.bias.expand(len(rows), 1), rows.flatten(1)], dim=1)                 # (B, 1 + F·(1 + K))
        logits: Tensor = self.output_bias + self.mlp(z)
        return logits                                                                           # (B,)


class DNN(RowModel):
    """logit = b + MLP(V_1 x_1 ∥ … ∥ V_F x_F): no first-order weights and no first stage. A row is (V_i).

    What the authors' later code (the experiments of 1807.00311) calls FNN and FuxiCTR DNN.
    """

    first_order = 0

    def __init__(self, config: ModelConfig, fields: int) -> None:
        super().__init__(config, fields, row_width=config.factors)
        self.mlp = Mlp(fields * config.factors, config, self._seeded())

    def logits(self, rows: Tensor) -> Tensor:
        """rows: (B, F, K)."""
        logits: Tensor = self.bias + self.mlp(rows.flatten(1))
        return logits                                                                           # (B,)
