"""Product-based networks: products of pairs of fields are inputs of a network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from schemas.config import ModelConfig
from schemas.errors import ConfigError
from schemas.models.base import RowModel
from schemas.models.layers import Mlp, after_linear, initialise, linear, pairs


class PNN(RowModel):
    """The paper's. z = (V_1 x_1 … V_F x_F); l1 = act(W_z z + l_p + c); logit = b + MLP(l1). A row is (V_i), no w_i.

    model.product says what l_p is, per neuron n of the first hidden layer:
    inner (IPNN): ‖Σ_i θ_i^n V_i x_i‖², a matrix of weights of all F×F inner products factorised to rank 1 (equation 11;
    equation 12 prints the norm without its square);
    outer (OPNN): ⟨W_p^n, s sᵀ⟩, s = Σ_i V_i x_i, one K×K matrix of "superposed" outer products (equation 14);
    both (PNN*): the sum of the two. What later code calls PNN is PNNPairs. IPNN is at its best with tanh, says the paper
    of DeepFM. Source: Qu et al., Product-based Neural Networks, ICDM 2016 (arXiv 1611.00144).
    Raises ConfigError without a hidden layer.
    """

    first_order = 0

    def __init__(self, config: ModelConfig, fields: int) -> None:
        super().__init__(config, fields, row_width=config.factors)
        if not config.hidden:
            raise ConfigError("model.hidden is empty: the products of a PNN go into its first layer; or take pnn_pairs")
        generator, neurons = self._seeded(), config.hidden[0]
        self.first = linear(fields * config.factors, neurons, bias=True)                        # W_z and c
        self.first.hidden = True
        initialise(self.first.weight, config, generator)
        nn.init.zeros_(self.first.bias)
        self.inner = self.outer = None
        if config.product in ("inner", "both"):
            self.inner = linear(fields, neurons, bias=False)                                    # θ: (D, F)
            nn.init.xavier_normal_(self.inner.weight, generator=generator)
        if config.product in ("outer", "both"):
            self.outer = linear(config.factors**2, neurons, bias=False)                         # W_p: (D, K·K)
            nn.init.xavier_normal_(self.outer.weight, generator=generator)
        self.after = nn.Sequential(*after_linear(neurons, config))
        self.mlp = Mlp(neurons, config, generator, config.hidden[1:])

    def logits(self, rows: Tensor) -> Tensor:
        """rows: (B, F, K)."""
        signal = self.first(rows.flatten(1))                                                    # (B, D)
        if self.inner is not None:
            signal = signal + self.inner(rows.transpose(1, 2)).square().sum(dim=1)              # (B, K, D) → (B, D)
        if self.outer is not None:
            total = rows.sum(dim=1)                                                             # (B, K)
            signal = signal + self.outer((total[:, :, None] * total[:, None, :]).flatten(1))    # (B, D)
        logits: Tensor = self.bias + self.mlp(self.after(signal))
        return logits                                                                           # (B,)


class PNNPairs(RowModel):
    """What later code calls PNN: logit = b + MLP(V_1 x_1 ∥ … ∥ V_F x_F ∥ one product for each i < j). A row is (V_i).

    inner: ⟨V_i, V_j⟩ x_i x_j. outer: the kernel product V_jᵀ M_ij V_i x_i x_j, a K×K matrix per pair. both: one after
    the other. Source: Qu et al., Product-based Neural Networks for User Response Prediction over Multi-field
    Categorical Data, TOIS 2018 (arXiv 1807.00311); DeepCTR's PNN with kernel_type "mat".
    """

    first_order = 0

    def __init__(self, config: ModelConfig, fields: int) -> None:
        super().__init__(config, fields, row_width=config.factors)
        generator, count, k = self._seeded(), fields * (fields - 1) // 2, config.factors
        self.kernel = None
        if config.product in ("outer", "both"):
            self.kernel = nn.Parameter(torch.randn(count, k, k, generator=generator) / k)
        products = count * (2 if config.product == "both" else 1)
        self.mlp = Mlp(fields * k + products, config, generator)

    def logits(self, rows: Tensor) -> Tensor:
        """rows: (B, F, K)."""
        i, j = pairs(self.fields, rows.device)                                                  # (P,), (P,)
        left, right, inputs = rows[:, i], rows[:, j], [rows.flatten(1)]                         # (B, P, K) each
        if self.config.product in ("inner", "both"):
            inputs.append((left * right).sum(dim=2))                                            # (B, P)
        if self.kernel is not None:
            inputs.append(torch.einsum("bpk,pkl,bpl->bp", right, self.kernel, left))            # (B, P)
        logits: Tensor = self.bias + self.mlp(torch.cat(inputs, dim=1))
        return logits                                                                           # (B,)
