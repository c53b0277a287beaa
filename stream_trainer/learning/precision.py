"""Which matrix products of a model are computed in bf16: 8 bits of mantissa instead of 24, and twice to four times as fast
where the machine multiplies them natively. Sums within a product are float32, and so is everything else: the weights
themselves, embeddings, gradients' sums, both optimisers' state, output layers and whatever stands beside the network."""

from __future__ import annotations

import structlog
import torch
from torch import nn

from schemas.config import LearnConfig
from schemas.models.dcn import Cross
from schemas.models.layers import Linear
from schemas.models.native import multiplies_bf16

log = structlog.get_logger()

# Multiplications of a layer and a batch from which bf16 pays: casting costs as much below, and a sixth is gained here,
# nearly half at 400 × 400 (docs/decisions/0009-the-step.md). A constant, not a measurement at each start: same bits each time.
PAYS_FROM = 1 << 23


def narrow(model: nn.Module, learn: LearnConfig, device: torch.device) -> int:
    """Set the model's layers to what learn.precision asks for; how many are bf16 now. Where it asks for bf16 and the machine
    has none, they stay float32, and the log says so."""
    layers = [layer for layer in model.modules() if isinstance(layer, Linear | Cross) and layer.hidden]
    chosen = layers if learn.precision == "bf16" else [layer for layer in layers if _pays(layer.weight, learn.batch_rows)]
    if learn.precision == "fp32" or not chosen:
        return 0
    if not multiplies_bf16(device):
        log.warning("learner.no_bf16", device=str(device), asked=learn.precision, does="multiplies in fp32")
        return 0
    for layer in chosen:
        layer.kind = torch.bfloat16
    return len(chosen)


def _pays(weight: torch.Tensor, rows: int) -> bool:
    return weight.numel() * rows >= PAYS_FROM
