"""Neural factorization machine: the FM's pairs, summed per factor, through a network."""

from __future__ import annotations

from torch import Tensor, nn

from schemas.config import ModelConfig
from schemas.models.base import RowModel
from schemas.models.layers import Dropout, Mlp, bi_interaction
from schemas.models.normalisation import BatchNorm


class NFM(RowModel):
    """logit = b + Σ_i w_i x_i + MLP(f), f = Σ_{i<j} (V_i ∘ V_j) x_i x_j, a vector of K. A row is (w_i, V_i).

    The paper puts batch norm and dropout on f as on each hidden layer: model.batch_norm, model.dropout. DeepCTR has no
    batch norm, FuxiCTR no dropout on f. Without hidden layers MLP(f) = hᵀf; with h = 1 that is an FM.
    Source: He and Chua, Neural Factorization Machines, SIGIR 2017, section 3.1.
    """

    def __init__(self, config: ModelConfig, fields: int) -> None:
        super().__init__(config, fields, row_width=1 + config.factors)
        norm = [BatchNorm(config.factors)] if config.batch_norm else []
        self.interaction = nn.Sequential(*norm, *([Dropout(config.dropout)] if config.dropout else []))
        self.mlp = Mlp(config.factors, config, self._seeded())

    def logits(self, rows: Tensor) -> Tensor:
        """rows: (B, F, 1 + K)."""
        f = self.interaction(bi_interaction(rows[:, :, 1:]))                    # (B, K)
        logits: Tensor = self.bias + rows[:, :, 0].sum(dim=1) + self.mlp(f)
        return logits                                                           # (B,)
