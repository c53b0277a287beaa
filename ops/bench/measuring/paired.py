"""The difference of two models' figures on the same rows, and its standard error.

Rows that are hard for both fall out of the difference, so its error is a fraction of either figure's own. The error speaks of
other rows of the same kind; the models as they were learnt are held fixed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schemas.errors import ShapeError
from stream_trainer.learning.losses import plain_losses

Floats = NDArray[np.float32]
Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """One minus other, and one standard error of it."""

    auc: float
    auc_error: float
    log_loss: float
    log_loss_error: float


def difference(one: Sequence[Floats], other: Sequence[Floats], labels: Floats) -> Difference:
    """one, other: (n,) probabilities for each seed of a model, whose figures are averaged over its seeds; labels: (n,).

    Raises ShapeError where rows do not match or only one class is there.
    """
    clicked = labels > 0.5
    if not one or not other or any(said.shape != labels.shape for said in (*one, *other)):
        raise ShapeError(f"{[said.shape for said in (*one, *other)]} probabilities for {labels.shape} labels")
    if min(clicked.sum(), (~clicked).sum()) < 2:
        raise ShapeError(f"{clicked.sum()} clicks of {len(labels)} rows: an AUC's error takes two rows of each class")
    share = _mean([placements(said, clicked) for said in one]) - _mean([placements(said, clicked) for said in other])
    loss = _mean([plain_losses(said, clicked) for said in one]) - _mean([plain_losses(said, clicked) for said in other])
    return Difference(
        auc=float(share[clicked].mean()),
        auc_error=math.hypot(_error(share[clicked]), _error(share[~clicked])),
        log_loss=float(loss.mean()),
        log_loss_error=_error(loss),
    )


def placements(said: Floats, clicked: NDArray[np.bool_]) -> Array:
    """Of each row: the share of rows of the other class that it is in the right order with, ties half. (n,) f64.

    Their mean over either class is the AUC, and it varies as a mean of independent rows does: the variance of an AUC, or of the
    difference of two, is that of both classes' means. Source: DeLong, DeLong, Clarke-Pearson, Biometrics 1988.
    """
    _, place = np.unique(said, return_inverse=True)
    clicks, rest = (np.bincount(place[which], minlength=place.max() + 1) for which in (clicked, ~clicked))
    below = (np.cumsum(rest) - rest / 2) / rest.sum()               # of each distinct score: rest below it
    above = 1 - (np.cumsum(clicks) - clicks / 2) / clicks.sum()     # clicks above it
    found: Array = np.where(clicked, below[place], above[place])
    return found


def _mean(parts: Sequence[Array]) -> Array:
    found: Array = np.mean(parts, axis=0)
    return found


def _error(values: Array) -> float:
    """Of the mean of independent values."""
    return float(values.std(ddof=1)) / math.sqrt(len(values))
