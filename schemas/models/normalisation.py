"""Batch normalisation that also works in a stream, where a batch may hold one example."""

from __future__ import annotations

from torch import Tensor, nn


class BatchNorm(nn.BatchNorm1d):
    """torch's batch norm over (B, width), whose running mean and variance travel with the dense weights.

    Learning: by the batch's own mean and variance, and the running ones move a tenth of the way. Scoring: by the running
    ones. A batch of one example has no variance: it is learnt by the running ones, which it leaves as they are.
    Source: Ioffe and Szegedy, Batch Normalization, ICML 2015.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, width), maybe bf16. Returns (B, width)."""
        assert self.running_mean is not None
        x = x.to(self.running_mean.dtype)
        if self.training and len(x) == 1:
            return nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)
