"""A linear model beside a network."""

from __future__ import annotations

from torch import Tensor

from schemas.config import ModelConfig
from schemas.models.base import RowModel
from schemas.models.layers import Mlp


class LRDNN(RowModel):
    """logit = b + Σ_i w_i x_i + MLP(V_1 x_1 ∥ … ∥ V_F x_F): Wide&Deep over the plain fields. A row is (w_i, V_i).

    No crosses, whatever the schema has. Source: "LR & DNN" of Guo et al., DeepFM, IJCAI 2017, section 3.1.
    """

    def __init__(self, config: ModelConfig, fields: int) -> None:
        super().__init__(config, fields, row_width=1 + config.factors)
        self.mlp = Mlp(fields * config.factors, config, self._seeded())

    def logits(self, rows: Tensor) -> Tensor:
        """rows: (B, F, 1 + K)."""
        logits: Tensor = self.bias + rows[:, :, 0].sum(dim=1) + self.mlp(rows[:, :, 1:].flatten(1))
        return logits                                                                           # (B,)


class WideDeep(LRDNN):
    """Wide&Deep: the same with the schema's crosses in the wide part, logit + Σ_c w_c. A row is (w_i, V_i), of a cross too,
    whose V nobody reads or learns (schemas/crosses.py makes their ids).

    The paper learns the wide part by FTRL with L1 and the rest by Adagrad, jointly: learn.first_order_optimiser=ftrl,
    learn.l1, learn.row_optimiser=adagrad, learn.dense_optimiser=adagrad. Its wide part holds chosen crosses of raw
    features; here the plain fields are in it too. Without crosses it is LR & DNN, which is what DeepCTR and FuxiCTR
    have under this name. Source: Cheng et al., Wide & Deep Learning for Recommender Systems, DLRS 2016, section 3.
    """

    takes_crosses = True
