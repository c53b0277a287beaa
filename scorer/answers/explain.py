"""What each field, and each pair of fields, adds to an item's logit: found by leaving fields out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from schemas.models import RowModel
from schemas.models.base import Sides

AT_ONCE = 512  # rows of one forward pass: with 200 fields there are 20,000, of some 100 kB each


@dataclass(frozen=True, slots=True)
class Explained:
    """Of one item, in natural log-odds: logit = base + Σ own + Σ pairs + rest, to the rounding of float64.

    With f(S) the logit where the fields S alone are there, A all of them, and f(-i), f(-ij) where one or two are left out:

        base = f(∅)                                 the bias, and what the model makes of nothing
        pairs_ij = f(A) - f(-i) - f(-j) + f(-ij)    (F(F-1)/2,), i < j, row by row
        without_i = f(A) - f(-i)                    (F,): what the logit loses where field i alone is left out
        own_i = without_i - Σ_j pairs_ij            (F,)
        rest                                        what only three fields or more do together

    Where a model adds up single fields and pairs alone (LR, FM, FFM and their crosses) that is its own formula, term by term,
    and rest is 0: own_i = w_i x_i, pairs_ij = ⟨V_i, V_j⟩ x_i x_j and what their cross adds. For a network `without` is what
    to read first: it is one difference, `own` one of many.
    """

    logit: float
    base: float
    own: NDArray[np.float64]
    pairs: NDArray[np.float64]
    without: NDArray[np.float64]
    rest: float


@torch.inference_mode()
def explain(net: RowModel, rows: Tensor, values: Tensor | None, sides: Sides) -> Explained:
    """One item, explained.

    net: in float64, scoring. rows: (F + C, W), pooled over sets. values: (F + C,), None = all 1. sides: the two fields of each
    cross. A field that is left out has zeros for its row, counts and number, as if the model had no such field (a missing value
    is another thing: it has a row of its own), and takes its crosses with it.
    """
    f = net.fields
    i, j = np.triu_indices(f, 1)
    out = np.zeros((2 + f + len(i), f), bool)                                   # (M, F): nothing, all, each, each pair
    out[1] = True
    out[2 + np.arange(f), np.arange(f)] = True
    pair = 2 + f + np.arange(len(i))
    out[pair, i] = out[pair, j] = True
    logits = _logits(net, rows, values, ~out, sides)                            # (M,)
    whole, base, each = float(logits[0]), float(logits[1]), logits[2 : 2 + f]

    pairs = whole - each[i] - each[j] + logits[2 + f :]                         # (P,)
    without = whole - each                                                      # (F,)
    shared = np.bincount(i, pairs, f) + np.bincount(j, pairs, f)                # (F,)
    own = without - shared
    return Explained(whole, base, own, pairs, without, whole - base - float(own.sum()) - float(pairs.sum()))


def _logits(
    net: RowModel, rows: Tensor, values: Tensor | None, there: NDArray[np.bool_], sides: Sequence[tuple[int, int]]
) -> NDArray[np.float64]:
    """The logit for each row of `there`, (M, F): which fields are."""
    left, right = [one for one, _ in sides], [other for _, other in sides]
    columns = np.concatenate([there, there[:, left] & there[:, right]], axis=1)          # (M, F + C)
    kept = torch.from_numpy(columns.astype(np.float64))
    found = [
        net(rows.double() * some[:, :, None], None if values is None else values.double() * some)
        for some in torch.split(kept, AT_ONCE)
    ]
    return torch.cat(found).numpy()
