"""What a label is worth that is not final, or not from all examples: the weight of each example's loss. Pure, numpy and torch.

f is what the model says; weights are numbers to the gradient (stop-gradient).

Fake negatives (mode immediate): every impression is learnt as a 0 at once, an action adds a 1. What is seen is 1 with chance
b = f / (1 + f). A 1 weighs 1 + f, a 0 weighs (1 − f)(1 + f): then f = p is where nothing pulls. So is f = 1, from which
no 0 leads away, for it weighs nothing; hence f in the weights is at most .95, and f = p is the only such place for p < .95.
Source: Ktena et al., Addressing Delayed Feedback for Continuous Training with Neural Networks in CTR Prediction, RecSys 2019.

Twice (mode corrected): each example is learnt as it was seen after a short window, and again as it is in the end. With a share
r of the actions late, what is seen over both is 1 with chance f − f·r/2. A 1 weighs f / (f − f·r/2), a 0 weighs
(1 − f) / (1 − f + f·r/2), f again at most .95. Source: Gu et al., Real Negatives Matter: Continuous Training with Real
Negatives for Delayed Feedback Modeling (DEFER), KDD 2021; theirs has r from a second model, here it is one number, counted.

Negatives kept at rate w, not weighted: what is learnt from has log-odds logit f − ln w. So that is what is compared with the
label, and f itself is right for what is served. Source: He et al., Practical Lessons, ADKDD 2014, section 6.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from schemas.examples import Stage

Floats = NDArray[np.float32]

F_MOST = 0.95   # of f in the weights of fake negatives: 1 is a trap
CLIP = 1e-7     # nearest a probability may be to 0 or 1: float32 has nothing between 1 − 6e-8 and 1


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """How the labels of B examples came to be seen.

    stage: (B,) u8 of Stage. late: (B,) f32, share of the actions that come after the window (mode corrected). rate: (B,)
    f32, at which negatives were kept that carry no weight for it; 1 = all.
    """

    stage: NDArray[np.uint8]
    late: Floats
    rate: Floats

    def __len__(self) -> int:
        return len(self.stage)

    def slice(self, start: int, stop: int) -> Seen:
        """Examples start ≤ i < stop."""
        return Seen(self.stage[start:stop], self.late[start:stop], self.rate[start:stop])

    def with_late(self, late: float) -> Seen:
        """With that share of the actions late, of all of them."""
        return Seen(self.stage, np.full(len(self), late, np.float32), self.rate)


def concat_seen(parts: Sequence[tuple[int, Seen | None]]) -> Seen | None:
    """One after the other, each with its number of examples; None = all final."""
    if all(seen is None for _, seen in parts):
        return None
    whole = [_final(rows) if seen is None else seen for rows, seen in parts]
    return Seen(*(np.concatenate([getattr(seen, name) for seen in whole]) for name in ("stage", "late", "rate")))


def _final(rows: int) -> Seen:
    return Seen(np.full(rows, Stage.FINAL, np.uint8), np.zeros(rows, np.float32), np.ones(rows, np.float32))


@torch.no_grad()
def loss_weights(logits: Tensor, labels: Tensor, seen: Seen) -> Tensor:
    """What each example's log loss weighs, for what the model says now. logits, labels: (B,). Returns (B,)."""
    f = logits.detach().sigmoid()
    stage = torch.from_numpy(seen.stage.astype(np.int64)).to(logits.device)
    late = torch.from_numpy(np.array(seen.late, np.float32)).to(logits.device)
    most = f.clamp(max=F_MOST)
    fake = torch.where(labels > 0.5, 1 + most, 1 - most * most)
    twice = torch.where(labels > 0.5, 1 / (1 - late / 2), (1 - most) / (1 - most + most * late / 2))
    weight = torch.where(stage == Stage.IMMEDIATE, fake, torch.ones_like(f))
    weight = torch.where(stage == Stage.IMMEDIATE_BOTH, 1 - most * most, weight)
    return torch.where(stage >= Stage.OBSERVED, twice, weight)


def shift(seen: Seen) -> Floats:
    """What is taken from each logit before it is compared with the label: ln of the rate. (B,)."""
    return np.log(seen.rate)


def clipped(said: Floats) -> NDArray[np.float64]:
    """Probabilities of which a logarithm can be taken: (B,) f64."""
    return np.clip(said.astype(np.float64), CLIP, 1 - CLIP)


def plain_losses(said: Floats, labels: NDArray[Any]) -> NDArray[np.float64]:
    """Log loss of each final label: (B,). labels: (B,) 0 or 1."""
    p = clipped(said)
    found: NDArray[np.float64] = -np.log(np.where(labels > 0.5, p, 1 - p))
    return found


def log_losses(said: Floats, labels: Floats, weights: Floats | None, seen: Seen | None) -> NDArray[np.float64]:
    """How well each label, as it is seen, was foretold: least in expectation where `said` is right, whatever the stage.

    said, labels, weights: (B,). Returns (B,) weighted log losses of the chance that such a label is seen to be 1.
    """
    weight = 1.0 if weights is None else weights.astype(np.float64)
    if seen is None:
        return plain_losses(said, labels) * weight
    f, positive = clipped(said), labels > 0.5
    fake = (seen.stage == Stage.IMMEDIATE) | (seen.stage == Stage.IMMEDIATE_BOTH)
    expected = np.where(fake, f / (1 + f), np.where(seen.stage == Stage.OBSERVED, f * (1 - seen.late), f))
    expected = expected / (expected + (1 - expected) * seen.rate)
    losses = -np.log(np.where(positive, expected, 1 - expected))
    return np.where(seen.stage == Stage.IMMEDIATE_BOTH, losses - np.log(1 - expected), losses) * weight


def counts(labels: Floats, weights: Floats | None, seen: Seen | None) -> tuple[Floats, Floats]:
    """What each example adds to how often something was shown, and clicked: an impression once, its action once. (B,) each."""
    weight = np.ones(len(labels), np.float32) if weights is None else np.asarray(weights, np.float32)
    if seen is None:
        return weight, weight * labels
    again = ((seen.stage == Stage.IMMEDIATE) & (labels > 0.5)) | (seen.stage >= Stage.TRUE)
    shown = np.where(again, 0, np.where(labels > 0.5, weight, weight / seen.rate))
    clicked = np.where(seen.stage == Stage.TRUE, 0, weight * labels)
    return shown.astype(np.float32), clicked.astype(np.float32)
