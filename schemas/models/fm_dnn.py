"""An FM beside a network, each with factors of its own: what DeepFM is compared with."""

from __future__ import annotations

from torch import Tensor

from schemas.config import ModelConfig
from schemas.models.base import RowModel
from schemas.models.layers import Mlp, fm_second_order


class FMDNN(RowModel):
    """logit = b + Σ_i w_i x_i + Σ_{i<j} ⟨V_i, V_j⟩ x_i x_j + MLP(U_1 x_1 ∥ … ∥ U_F x_F). A row is (w_i, V_i, U_i).

    With U = V it is DeepFM. Source: "FM & DNN" of Guo et al., DeepFM, IJCAI 2017, sections 2.2 and 3.1.
    """

    def __init__(self, config: ModelConfig, fields: int) -> None:
        super().__init__(config, fields, row_width=1 + 2 * config.factors)
        self.mlp = Mlp(fields * config.factors, config, self._seeded())

    def logits(self, rows: Tensor) -> Tensor:
        """rows: (B, F, 1 + 2K)."""
        k = self.config.factors
        v, u = rows[:, :, 1 : 1 + k], rows[:, :, 1 + k :]                                       # (B, F, K) each
        logits: Tensor = self.bias + rows[:, :, 0].sum(dim=1) + fm_second_order(v) + self.mlp(u.flatten(1))
        return logits                                                                           # (B,)
