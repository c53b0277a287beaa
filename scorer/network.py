"""What makes a model's dense part fast to answer with: bf16 products where they pay, and the context's share once a slate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from schemas.config import Precision
from schemas.models import RowModel
from schemas.models.dcn import Cross
from schemas.models.deepfm import DeepFM
from schemas.models.layers import Linear
from schemas.models.native import multiplies_bf16

# Multiplications of a layer and a slate of 100 from which bf16 pays: 400 × 400 takes half the time, 64 × 120 as much.
PAYS_FROM = 1 << 22
SLATE = 100

# oneDNN's linear layer with the ReLU in it and weights laid out as it likes: a tenth less for DeepFM's whole forward pass than
# torch's own. It is what torch.compile uses, but no public name; without it torch's own does.
FUSED = hasattr(torch.ops.mkldnn, "_linear_pointwise") and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")


class SlateLinear(nn.Module):
    """A linear layer over rows that agree in some of their columns: their product is made once, for the first row.

    W x + c = W_rest x_rest + (W_shared x_shared + c), so two thirds of DeepFM's first layer where half of the fields are the
    context's. The sums are made in another order: equal to 1e-6 in float32.
    """

    def __init__(self, layer: nn.Linear, shared: Sequence[int], kind: torch.dtype | None, relu: bool) -> None:
        """shared: columns in which all rows agree. kind: of the numbers that are multiplied; None = the layer's. relu:
        whether max(0, ·) is made of it too; only where FUSED, and in bf16."""
        super().__init__()
        rest = sorted({*range(layer.in_features)} - {*shared})
        self._kind = kind or layer.weight.dtype
        self._relu = relu
        self._shared, self._rest = _slice_or_list(shared), _slice_or_list(rest)
        weight = layer.weight.to(self._kind)
        self._w_shared = weight[:, self._shared].contiguous()                   # (outputs, S)
        w_rest = weight[:, self._rest].contiguous()                             # (outputs, R)
        self._w_rest = _laid_out(w_rest) if relu else w_rest
        self._bias = layer.bias.to(self._kind)                                  # (outputs,)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, inputs). Returns (B, outputs)."""
        first = nn.functional.linear(x[0, self._shared].to(self._kind), self._w_shared, self._bias)     # (outputs,)
        rest = x[:, self._rest].to(self._kind)                                                          # (B, R)
        return _relu_linear(rest, self._w_rest, first) if self._relu else nn.functional.linear(rest, self._w_rest, first)


class ReluLinear(nn.Module):
    """max(0, W x + c) in bf16."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self._weight = _laid_out(layer.weight.to(torch.bfloat16))
        self._bias = layer.bias.to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, inputs). Returns (B, outputs)."""
        return _relu_linear(x.to(torch.bfloat16), self._weight, self._bias)


def for_slates(net: RowModel, context: Sequence[bool], precision: Precision) -> RowModel:
    """The same model, in place, for rows that agree in the fields of the context, by the numbers that `precision` asks for.

    context: of each field, whether it is the context's.
    """
    narrow = {
        layer for layer in net.modules()
        if isinstance(layer, Linear | Cross) and layer.hidden and _is_bf16(layer.weight, precision)
    }
    for layer in narrow:
        layer.kind = torch.bfloat16
        layer.weight = nn.Parameter(layer.weight.to(torch.bfloat16), requires_grad=False)  # else cast anew for each slate
    shared: list[int] = []
    if isinstance(net, DeepFM):
        k = net.config.factors
        shared = [field * k + factor for field, its in enumerate(context) if its for factor in range(k)]
    for layers in [module for module in net.modules() if isinstance(module, nn.Sequential)]:
        for place, one in enumerate(layers):
            if not isinstance(one, Linear) or not one.hidden:
                continue
            relu = FUSED and one in narrow and place + 1 < len(layers) and isinstance(layers[place + 1], nn.ReLU)
            if place == 0 and shared:
                layers[place] = SlateLinear(one, shared, torch.bfloat16 if one in narrow else None, relu)
            elif relu:
                layers[place] = ReluLinear(one)
            if relu:
                layers[place + 1] = nn.Identity()
    return net


def _is_bf16(weight: Tensor, precision: Precision) -> bool:
    if precision == "auto":
        return weight.numel() * SLATE >= PAYS_FROM and multiplies_bf16(torch.device("cpu"))
    return precision == "bf16"


def _slice_or_list(columns: Sequence[int]) -> slice | list[int]:
    """A slice where it can be one: no copy for it."""
    whole = bool(columns) and list(columns) == list(range(columns[0], columns[-1] + 1))
    return slice(columns[0], columns[-1] + 1) if whole else list(columns)


def _laid_out(weight: Tensor) -> Tensor:
    found: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, SLATE)
    return found


def _relu_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "relu", [], "")
    return found
