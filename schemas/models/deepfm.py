"""DeepFM: a factorization machine and a deep network over the same embeddings, summed."""

from __future__ import annotations

from torch import Tensor

from schemas.config import ModelConfig
from schemas.models.base import RowModel
from schemas.models.layers import Mlp, fm_second_order


class DeepFM(RowModel):
    """logit = b + Σ_i w_i x_i + Σ_{i<j} ⟨V_i x_i, V_j x_j⟩ + MLP(V_1 x_1 ∥ … ∥ V_F x_F).

    A row is (w_i, V_i): one first-order weight and K factors. The output layer has no bias beside b (it would
    be the same number twice).
    Source: Guo et al., DeepFM, IJCAI 2017, equations 1 to 4; V shared by both parts, numbers multiply w and V alike.
    """

    def __init__(self, config: ModelConfig, fields: int) -> None:
        super().__init__(config, fields, row_width=1 + config.factors)
        self.mlp = Mlp(fields * config.factors, config, self._seeded())

    def logits(self, rows: Tensor) -> Tensor:
        """rows: (B, F, 1 + K)."""
        first = rows[:, :, 0].sum(dim=1)                                        # (B,)
        v = rows[:, :, 1:]                                                      # (B, F, K)
        logits: Tensor = self.bias + first + fm_second_order(v) + self.mlp(v.flatten(1))
        return logits                                                           # (B,)
