"""What makes a model's dense part fast to answer with: bf16 products where they pay, and the context's share once a slate."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from schemas.bags import Floats
from schemas.config import Precision
from schemas.models import RowModel
from schemas.models.dcn import Cross
from schemas.models.deepfm import DeepFM
from schemas.models.layers import Linear
from schemas.models.native import multiplies_bf16

# Multiplications of a layer and a slate of 100 from which bf16 pays: 400 × 400 takes half the time, 64 × 120 as much.
PAYS_FROM = 1 << 22
SLATE = 100

# oneDNN's linear layer with the ReLU in it: a tenth less for DeepFM's whole forward pass than torch's own two. It is what
# torch.compile uses, but no public name; without it torch's own do. Weights laid out beforehand as it likes them were 1 to 2 %
# faster and took .7 to 1.4 ms of each version, while requests wait.
FUSED = hasattr(torch.ops.mkldnn, "_linear_pointwise")


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
        self._w_rest = weight[:, self._rest].contiguous()                       # (outputs, R)
        self._bias = layer.bias.to(self._kind)                                  # (outputs,)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, inputs). Returns (B, outputs)."""
        first = nn.functional.linear(x[0, self._shared].to(self._kind), self._w_shared, self._bias)     # (outputs,)
        rest = x[:, self._rest].to(self._kind)                                                          # (B, R)
        return _relu_linear(rest, self._w_rest, first) if self._relu else nn.functional.linear(rest, self._w_rest, first)


@dataclass(frozen=True, slots=True)
class Split:
    """The columns of a slate's rows by side. context, items: which, S and R of them."""

    context: slice | list[int]
    items: slice | list[int]
    in_context: int
    in_items: int

    def parts(self, of_rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """(B, F) → (S + B·R,): what stands in the context's columns of the first row, then row by row in the items'."""
        found = np.empty(self.in_context + len(of_rows) * self.in_items, of_rows.dtype)
        found[: self.in_context] = of_rows[0, self.context]
        found[self.in_context :].reshape(-1, self.in_items)[:] = of_rows[:, self.items]
        return found


class SlateDeepFM(nn.Module):
    """DeepFM that reads no numbers, for rows that agree in the fields of the context: what those add to the sums of rows and to
    the first layer is computed once.

    The item's rows go into that layer as they are, first-order weights too, to which its weights are 0: no row is taken
    apart. Sums are made in float32, in another order than DeepFM's: equal to 1e-6.
    """

    def __init__(self, net: DeepFM, split: Split, kind: torch.dtype | None, fused: bool, then: Sequence[nn.Module]) -> None:
        """kind: of the numbers that the first layer multiplies, None = float32. fused: whether it takes its ReLU with it, in
        one call. then: the layers after both, but for the last."""
        super().__init__()
        self.split = split
        layer, last = net.mlp.layers[0], net.mlp.layers[-1]
        assert isinstance(layer, nn.Linear)
        assert isinstance(last, nn.Linear)
        weight = layer.weight.float().view(-1, net.fields, net.config.factors)                  # (outputs, F, K)
        self._w_context: Floats = weight[:, split.context].flatten(1).numpy()                   # (outputs, S·K)
        self._bias: Floats = layer.bias.float().numpy()                                         # (outputs,)
        w_items = nn.functional.pad(weight[:, split.items], (1, 0)).flatten(1)                  # (outputs, R·(1 + K))
        self._w_items = w_items if kind is None else w_items.to(kind)
        self._kind = kind
        self._first: Callable[[Tensor, Tensor, Tensor], Tensor] = _relu_linear if fused else nn.functional.linear
        self._then = [one.forward for one in then]  # not through nn.Module's call, 3 µs each
        self._w_last: Floats = last.weight[0].numpy()                                           # (inputs,)
        self._of_all: Floats = net.bias.numpy()                                                 # (1,)

    def forward(self, rows: Tensor, values: Tensor | None) -> Tensor:
        """rows: (B, F, 1 + K), pooled over sets. values: (B, F), what each row is multiplied by; None = 1. Returns (B,)."""
        if values is not None:
            rows = rows * values[:, :, None]
        items = rows[:, self.split.items].contiguous()                                          # (B, R, 1 + K)
        return self.logits(rows[0, self.split.context].numpy(), items.numpy())

    def logits(self, context: Floats, items: Floats) -> Tensor:
        """context: (S, 1 + K). items: (B, R, 1 + K). Returns (B,).

        numpy where there is little to compute: its calls take a third of the time of torch's. einsum, not @: no BLAS, which
        would begin threads of its own.
        """
        # b + Σ_i w_i + ½ Σ_k [(Σ_i v_ik)² − Σ_i v_ik²]
        v = items[:, :, 1:]                                                                     # (B, R, K)
        v_context = context[:, 1:]                                                              # (S, K)
        total = np.einsum("brw->bw", items)                                                     # (B, 1 + K)
        total += np.einsum("sw->w", context)
        v_total = total[:, 1:]                                                                  # (B, K)
        logits = np.einsum("bk,bk->b", v_total, v_total)                                        # (B,)
        logits -= np.einsum("brk,brk->b", v, v)
        logits -= np.einsum("sk,sk->", v_context, v_context)
        logits *= 0.5
        logits += total[:, 0]
        logits += self._of_all

        first = torch.from_numpy(np.einsum("oi,i->o", self._w_context, v_context.reshape(-1)) + self._bias)     # (outputs,)
        x = torch.from_numpy(items.reshape(len(items), -1))                                     # (B, R·(1 + K))
        if self._kind is not None:
            first, x = first.to(self._kind), x.to(self._kind)
        x = self._first(x, self._w_items, first)
        for layer in self._then:
            x = layer(x)                                                                        # (B, inputs)
        logits += np.einsum("bi,i->b", x.float().numpy(), self._w_last)
        return torch.from_numpy(logits)


class ReluLinear(nn.Module):
    """max(0, W x + c) in bf16."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self._weight = layer.weight.to(torch.bfloat16)
        self._bias = layer.bias.to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, inputs). Returns (B, outputs)."""
        return _relu_linear(x.to(torch.bfloat16), self._weight, self._bias)


def split_of(net: RowModel, context: Sequence[bool]) -> Split | None:
    """How a slate's rows are split for SlateDeepFM; None where it is not for this model. context: as in for_slates."""
    if not isinstance(net, DeepFM) or net.statistics is not None or net.mlp.others or len(net.mlp.layers) == 1:
        return None
    of_context = [place for place, its in enumerate(context) if its]
    of_items = [place for place, its in enumerate(context) if not its]
    if not of_context or not of_items:
        return None
    return Split(_slice_or_list(of_context), _slice_or_list(of_items), len(of_context), len(of_items))


def for_slates(net: RowModel, context: Sequence[bool], precision: Precision) -> nn.Module:
    """The same model for rows that agree in the fields of the context, by the numbers that `precision` asks for. Made of `net`,
    which is no more to be used itself.

    context: of each field, whether it is the context's.
    """
    narrow = {
        layer for layer in net.modules()
        if isinstance(layer, Linear | Cross) and layer.hidden and _is_bf16(layer.weight, precision)
    }
    shared: list[int] = []
    if isinstance(net, DeepFM):
        split = split_of(net, context)
        if split is not None:
            first = net.mlp.layers[0]
            relu, kind = _fused(net.mlp.layers, 0, narrow), torch.bfloat16 if first in narrow else None
            _narrow(net, narrow - {first}, [])
            then = [layer for layer in net.mlp.layers[1 + relu : -1] if not isinstance(layer, nn.Identity)]
            return SlateDeepFM(net, split, kind, relu, then)
        k = net.config.factors
        shared = [field * k + factor for field, its in enumerate(context) if its for factor in range(k)]
    _narrow(net, narrow, shared)
    return net


def _narrow(net: RowModel, narrow: Set[nn.Module], shared: Sequence[int]) -> None:
    """Let these layers multiply in bf16, with the ReLU after them where FUSED. shared: of the first one's columns."""
    for layer in narrow:
        assert isinstance(layer, Linear | Cross)
        layer.kind = torch.bfloat16
        layer.weight = nn.Parameter(layer.weight.to(torch.bfloat16), requires_grad=False)  # else cast anew for each slate
    for layers in [module for module in net.modules() if isinstance(module, nn.Sequential)]:
        for place, one in enumerate(layers):
            if not isinstance(one, Linear) or not one.hidden:
                continue
            relu = _fused(layers, place, narrow)
            if place == 0 and shared:
                layers[place] = SlateLinear(one, shared, torch.bfloat16 if one in narrow else None, relu)
            elif relu:
                layers[place] = ReluLinear(one)
            if relu:
                layers[place + 1] = nn.Identity()


def _fused(layers: nn.Sequential, place: int, narrow: Set[nn.Module]) -> bool:
    return FUSED and layers[place] in narrow and place + 1 < len(layers) and isinstance(layers[place + 1], nn.ReLU)


def _is_bf16(weight: Tensor, precision: Precision) -> bool:
    if precision == "auto":
        return weight.numel() * SLATE >= PAYS_FROM and multiplies_bf16(torch.device("cpu"))
    return precision == "bf16"


def _slice_or_list(columns: Sequence[int]) -> slice | list[int]:
    """A slice where it can be one: no copy for it."""
    whole = bool(columns) and list(columns) == list(range(columns[0], columns[-1] + 1))
    return slice(columns[0], columns[-1] + 1) if whole else list(columns)


def _relu_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "relu", [], "")
    return found
