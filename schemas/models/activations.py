"""What stands between two linear layers, by the name that stands in the configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from schemas.config import the_one
from schemas.models.normalisation import BatchNorm


class Dice(nn.Module):
    """f(s) = p·s + (1 − p)·α·s, p = sigmoid((s − E[s]) / √(Var[s] + ε)): a PReLU whose bend is where the data are.

    E and Var are the batch's when learning and the running ones when scoring; α is learnt per neuron and begins at 0.
    Source: Zhou et al., Deep Interest Network, KDD 2018, section "Data adaptive activation function"; ε = 1e-8 is theirs.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = BatchNorm(width, eps=1e-8, affine=False)
        self.alpha = nn.Parameter(torch.zeros(width))

    def forward(self, s: Tensor) -> Tensor:
        """s: (B, width). Returns (B, width)."""
        p = self.norm(s).sigmoid()                       # (B, width)
        out: Tensor = p * s + (1 - p) * self.alpha * s   # (B, width)
        return out


class PReLU(nn.PReLU):
    """max(0, s) + a·min(0, s), one `a` per neuron, from .25 on (He et al., Delving Deep into Rectifiers, ICCV 2015)."""

    def forward(self, s: Tensor) -> Tensor:
        """s: (B, width), maybe bf16. Returns (B, width)."""
        return super().forward(s.to(self.weight.dtype))


ACTIVATIONS: Mapping[str, Callable[[int], nn.Module]] = MappingProxyType(
    {"relu": lambda width: nn.ReLU(), "tanh": lambda width: nn.Tanh(), "prelu": PReLU, "dice": Dice}
)


def activation(name: str, width: int) -> nn.Module:
    """A new one for a layer of that width. Raises ConfigError naming the nearest there is."""
    return the_one("model.activation", name, ACTIVATIONS)(width)
