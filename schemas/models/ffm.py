"""Field-aware factorization machines: a row has other factors for each field that it meets."""

from __future__ import annotations

from torch import Tensor

from schemas.config import ModelConfig
from schemas.models.base import RowModel


class FFM(RowModel):
    """The paper's: logit = b + Σ_{i<j} ⟨V_i,j, V_j,i⟩ x_i x_j, without first-order weights.

    A row is (V_i,1 … V_i,F): K factors for each field, its own too, as the paper counts them (n·F·K); nothing reads
    those. The paper divides the numbers of an example by their Euclidean length (1/√F for one-hot fields), draws rows
    from U[0, 1/√K] and learns by Adagrad from an accumulator of 1; here numbers stay as they are, so that an example
    means the same to every model, and rows begin as the table's do, at model.init_scale.
    Source: Juan et al., Field-aware Factorization Machines for CTR Prediction, RecSys 2016, equation 4.
    """

    first_order = 0

    def __init__(self, config: ModelConfig, fields: int) -> None:
        super().__init__(config, fields, row_width=self.first_order + fields * config.factors)

    def logits(self, rows: Tensor) -> Tensor:
        """rows: (B, F, F·K)."""
        return self.bias + ffm_second_order(rows)  # (B,)


class FFMLinear(FFM):
    """What later code calls FFM: the paper's and first-order weights. A row is (w_i, V_i,1 … V_i,F).

    Source: FuxiCTR 2.3 model_zoo/FFM (which keeps F − 1 groups of factors, not F).
    """

    first_order = 1

    def logits(self, rows: Tensor) -> Tensor:
        """rows: (B, F, 1 + F·K)."""
        return self.bias + rows[:, :, 0].sum(dim=1) + ffm_second_order(rows[:, :, 1:])  # (B,)


def ffm_second_order(v: Tensor) -> Tensor:
    """Σ_{i<j} ⟨v_i,j, v_j,i⟩. v: (B, F, F·K), the factors of field i for field j at i, j·K … Returns (B,)."""
    v = v.reshape(*v.shape[:2], v.shape[1], -1)             # (B, F, F, K)
    products = (v * v.transpose(1, 2)).sum(dim=3)           # (B, F, F)
    return products.triu(1).sum(dim=(1, 2))                 # (B,)
