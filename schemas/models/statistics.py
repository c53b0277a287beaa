"""Row statistics: how often a row's value was seen and clicked, as numbers that a model reads.

Counts are not learnt: the learner adds to them after each step, so an example is scored and learnt by the counts that
stood before its batch. They are the last two columns of a row, and begin at 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

COLUMNS = 2            # seen, clicked: the last columns of a row
STRENGTH = 3.0         # examples that the prior weighs: a value seen three times is half itself
CROSS_STRENGTH = 10.0  # the same for a pair of values, whose two sides say much already
RAREST = 1e-4          # what two sides may say together: rates nearer to 0 and 1 are clipped
LOG_SCALE = 0.3        # of logs; .1 to 1 tried on Criteo (docs/lab.md)
HALVED_AT = 2.0**22    # counts beyond it are halved, both: float32 counts by ones up to 2^24


class Statistics(nn.Module):
    """s = logit((clicked + 3·prior) / (seen + 3)) − logit(prior): 0 for a value never seen, above where it is clicked more
    often than all are. prior: the share of clicks among all examples so far, (clicked + 1) / (seen + 2).

    Of a cross: the same with 10 in place of 3 and, in place of the prior, what its two sides say together as if they were
    independent (naive Bayes), logit(prior) + s_left + s_right: s is then what the pair knows beyond them.
    `weight`: a linear term over all numbers, Σ weight·n, which begins at 0. `totals`: seen and clicked of all examples.
    """

    totals: Tensor

    def __init__(self, fields: int, logs: int = 0, sides: Sequence[tuple[int, int]] = ()) -> None:
        """logs: how many numbers of the schema the model reads besides, M or 0. sides: the fields of each cross, C of them."""
        super().__init__()
        self.fields = fields
        self.logs = logs
        self.left, self.right = [left for left, _ in sides], [right for _, right in sides]
        self.inputs = fields + len(sides) + logs
        self.weight = nn.Parameter(torch.zeros(self.inputs))
        self.register_buffer("totals", torch.zeros(COLUMNS))

    def numbers(self, counts: Tensor, logs: Tensor | None = None) -> Tensor:
        """What the model reads: s of each field, s of each cross, then 0.3 × the logs if it takes them (scaled to the size of
        s). counts: (B, F + C, 2), pooled by mean over sets. logs: (B, M), None = all 0. Returns (B, N). Nothing is learnt
        through counts."""
        counts = counts.detach()
        prior = (self.totals[1] + 1) / (self.totals[0] + 2)
        s = _beyond(counts[:, : self.fields], prior, STRENGTH)                                  # (B, F)
        parts = [s]
        if self.left:
            sides = (prior.logit() + s[:, self.left] + s[:, self.right]).sigmoid().clamp(RAREST, 1 - RAREST)
            parts.append(_beyond(counts[:, self.fields :], sides, CROSS_STRENGTH))              # (B, C)
        if self.logs:
            parts.append(s.new_zeros(len(s), self.logs) if logs is None else LOG_SCALE * logs.to(s.dtype))
        return torch.cat(parts, dim=1) if len(parts) > 1 else s

    def linear(self, numbers: Tensor) -> Tensor:
        """Σ weight·s. numbers: (B, N). Returns (B,)."""
        return numbers @ self.weight

    @torch.no_grad()
    def count(self, seen: Tensor, clicked: Tensor) -> None:
        """After a step: so many examples more."""
        add_counts(self.totals[None], torch.stack([seen, clicked])[None])


def _beyond(counts: Tensor, prior: Tensor, strength: float) -> Tensor:
    """logit((clicked + strength·prior) / (seen + strength)) − logit(prior). counts: (B, C, 2). Returns (B, C)."""
    clicked = counts[:, :, 1].clamp(min=0)
    skipped = (counts[:, :, 0] - clicked).clamp(min=0)          # weights that are no whole numbers round
    return (clicked / (strength * prior)).log1p() - (skipped / (strength * (1 - prior))).log1p()


def add_counts(counts: Tensor, added: Tensor) -> None:
    """In place; both (N, 2). Halved together beyond 2^22, so that old clicks fade instead of new ones getting lost."""
    counts += added
    counts *= torch.where(counts[:, :1] > HALVED_AT, 0.5, 1.0)
