"""Each row of a batch once, though its ids name some of them many times."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding, embedding_bag

from schemas.models.native import numpy_reaches

# Torch sorts so many numbers by their digits, fewer by comparing them: 10,000 take 1.7 times as long as 32,768, 20,000 take 3.7
# times as long (docs/decisions/0009-the-step.md). So a batch is filled up to that, from where it pays.
_RADIX_FROM = 1 << 15
_FILLED_FROM = 1 << 13
_LAST = 2**31 - 1


@dataclass(frozen=True, slots=True, eq=False)
class Once:
    """n row numbers, N of them different. A stable sort brings equal ones together, so a sum over them is one run through
    memory, always in the order in which they came: same bits each time, on any number of threads.

    rows: (N,) int64, ascending. where: (n,) int64, which of the N each of the n is. order: (n,) int64, the n as the sort put
    them; starts: (N,) int64, where in it each row's begin.
    """

    rows: Tensor
    where: Tensor
    order: Tensor
    starts: Tensor

    def spread(self, each: Tensor) -> Tensor:
        """What stands by row, by occurrence: (N, W) → (n, W)."""
        return embedding(self.where, each)

    def summed(self, each: Tensor) -> Tensor:
        """What stands by occurrence, summed by row: (n, W) → (N, W)."""
        return embedding_bag(self.order, each, self.starts, mode="sum")


def once(numbers: Tensor) -> Once:
    """numbers: (n,) int64 row numbers below 2^31 − 1, n at least 1."""
    found, order = _sorted(numbers)                                                                 # (n,), (n,)
    rows, which, counts = torch.unique_consecutive(found, return_inverse=True, return_counts=True)  # (N,), (n,), (N,)
    where = torch.empty_like(order).scatter_(0, order, which)                                       # (n,)
    return Once(rows.to(torch.int64), where, order, counts.cumsum(0) - counts)


def _sorted(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Ascending, and where each stood. As int32: half as many digits."""
    n = len(numbers)
    if not numpy_reaches(numbers.device) or not _FILLED_FROM <= n < _RADIX_FROM:
        found, order = numbers.to(torch.int32).sort(stable=True)
        return found, order
    filled = torch.full((_RADIX_FROM,), _LAST, dtype=torch.int32)
    filled[:n] = numbers
    found, order = filled.sort(stable=True)
    return found[:n], order[:n]
