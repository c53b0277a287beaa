"""What a device can do by itself: which numbers it multiplies natively, and whether numpy reaches its memory."""

from __future__ import annotations

import torch


def numpy_reaches(device: torch.device) -> bool:
    """Some of what is done to rows goes faster by numpy than by torch: there, and nowhere else."""
    return device.type == "cpu"


def multiplies_bf16(device: torch.device) -> bool:
    """A CPU without the instructions computes bf16 by others, at a fraction of float32's speed."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    found = torch.cpu.get_capabilities()
    return any(bool(found.get(name)) for name in ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16"))
