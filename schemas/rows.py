"""What a row holds before anything was learnt: a function of its number and the seed, so it is never stored or sent."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # as signed 64 bits, which is what torch multiplies
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64
_BLOCK_FLOATS = 1 << 16              # worked on at once, so that it stays in the cache
_COLUMN_BITS = 16                     # a row has fewer than 2^16 columns


def initial_rows(rows: Tensor, width: int, first_order: int, scale: float, seed: int) -> Tensor:
    """The rows as they are before they are first touched.

    rows: (N,) int64 row numbers. Returns (N, width) float32: the first `first_order` columns (first-order weight,
    statistics) are 0, the others uniform with mean 0 and standard deviation `scale`. Each float is the top 24 bits of
    splitmix64(seed, row, column), brought to scale by one multiplication, so every device gives the same bits.
    Source: Steele, Lea, Flood, Fast Splittable Pseudorandom Number Generators, OOPSLA 2014.
    """
    start = splitmix64(torch.tensor([seed], dtype=torch.int64, device=rows.device))                  # (1,)
    columns = torch.arange(first_order, width, device=rows.device).mul_(_GOLDEN)                     # (W',)
    states = (rows << _COLUMN_BITS).mul_(_GOLDEN).add_(start)                                        # (N,)
    found = rows.new_zeros((len(rows), width), dtype=torch.float32)                                  # (N, W)
    block = max(_BLOCK_FLOATS // width, 1)
    for at in range(0, len(rows), block):
        drawn = _mixed(states[at : at + block, None] + columns)     # (n, W'), but for the low bits, which are not read
        odd = (drawn >> 39).bitwise_or_(1)          # odd, within ±2^24: exact in float32, and symmetric about 0
        found[at : at + block, first_order:].copy_(odd).mul_(math.sqrt(3) * scale / 2**24)
    return found


def splitmix64(state: Tensor) -> Tensor:
    """64 mixed bits for each state. int64 in and out; products wrap round."""
    z = _mixed(state)
    return z.bitwise_xor_(_shifted(z, 31))


def _mixed(state: Tensor) -> Tensor:
    """The same before its last step, which changes nothing in the upper 31 bits."""
    z = state + _GOLDEN
    z.bitwise_xor_(_shifted(z, 30)).mul_(_MIX_1)
    return z.bitwise_xor_(_shifted(z, 27)).mul_(_MIX_2)


def _shifted(z: Tensor, by: int) -> Tensor:
    """Logical shift to the right; torch's own drags the sign along."""
    return (z >> by).bitwise_and_((1 << (64 - by)) - 1)
