"""Row statistics: how often a row's value was seen and clicked, as numbers that a model reads.

Counts are not learnt: the learner adds to them after each step, so an example is scored and learnt by the counts that
stood before its batch. They are the last two columns of a row, and begin at 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import SupportsFloat

import torch
from torch import Tensor, nn

from schemas.models.layers import places

COLUMNS = 2            # seen, clicked: the last columns of a row
STRENGTH = 3.0         # examples that the prior weighs: a value seen three times is half itself
CROSS_STRENGTH = 10.0  # the same for a pair of values, whose two sides say much already
RAREST = 1e-4          # what two sides may say together: rates nearer to 0 and 1 are clipped
CLIP = 1e-9            # the share of clicks among all examples is that far from 0 and 1 at least
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
        self.sides = (*(left for left, _ in sides), *(right for _, right in sides))
        self.inputs = fields + len(sides) + logs
        self.weight = nn.Parameter(torch.zeros(self.inputs))
        self.register_buffer("totals", torch.zeros(COLUMNS))

    def numbers(self, counts: Tensor, logs: Tensor | None = None) -> Tensor:
        """What the model reads: s of each field, s of each cross, then 0.3 × the logs if it takes them (scaled to the size of
        s). counts: (B, F + C, 2), pooled by mean over sets. logs: (B, M), None = all 0. Returns (B, N). Nothing is learnt
        through counts."""
        counts, prior, f = counts.detach(), self._prior(), self.fields
        clicked = counts[:, :, 1].clamp(min=0)                                                  # (B, F + C)
        skipped = (counts[:, :, 0] - clicked).clamp_(min=0)         # weights that are no whole numbers round
        found = torch.empty_like(clicked)                                                       # (B, F + C), first e^s
        up = _one_and(clicked[:, :f], 1 / (STRENGTH * prior))                                   # (B, F)
        torch.div(up, _one_and(skipped[:, :f], 1 / (STRENGTH * (1 - prior))), out=found[:, :f])
        if self.sides:
            left, right = found.index_select(1, places(self.sides, found.device)).chunk(2, dim=1)   # (B, C) each
            odds = (left * right).mul_(prior / (1 - prior)).clamp_(RAREST / (1 - RAREST), (1 - RAREST) / RAREST)
            # q = odds/(1 + odds) is what the sides say: 1 + clicked/(10 q) over 1 + skipped/(10 (1 − q)), both times odds.
            share = odds.add(1).mul_(1 / CROSS_STRENGTH)                                        # (B, C)
            up = torch.addcmul(odds, clicked[:, f:], share)                                     # (B, C)
            torch.div(up, torch.addcmul(odds, skipped[:, f:], share.mul_(odds)), out=found[:, f:])
        found.log_()
        if not self.logs:
            return found
        beside = found.new_zeros(len(found), self.logs) if logs is None else LOG_SCALE * logs.to(found.dtype)
        return torch.cat([found, beside], dim=1)

    def _prior(self) -> float:
        """The share of clicks among all examples so far, within 1e-9 of 0 and 1."""
        seen, clicked = self.totals.tolist()
        prior: float = min(max((clicked + 1) / (seen + 2), CLIP), 1 - CLIP)
        return prior

    @torch.no_grad()
    def count(self, seen: SupportsFloat, clicked: SupportsFloat) -> None:
        """After a step: so many examples more."""
        had_seen, had_clicked = self.totals.tolist()
        totals = [had_seen + float(seen), had_clicked + float(clicked)]
        self.totals.copy_(self.totals.new_tensor(totals)).mul_(0.5 if totals[0] > HALVED_AT else 1.0)


def _one_and(counts: Tensor, times: float) -> Tensor:
    """1 + counts · times, in one run through memory."""
    return torch.rsub(counts, 1, alpha=-times)


def add_counts(counts: Tensor, added: Tensor) -> None:
    """In place; both (N, 2). Halved together beyond 2^22, so that old clicks fade instead of new ones getting lost."""
    counts += added
    beyond = counts[:, 0] > HALVED_AT
    if beyond.any():
        counts *= torch.where(beyond[:, None], 0.5, 1.0)
