"""Rows of single ids → one row per bag: the one pooling that trainer and scorer share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from schemas.bags import Bags
from schemas.errors import ShapeError
from schemas.fields import Field


def pool(rows: Tensor, bags: Bags, fields: Sequence[Field], counted: int = 0) -> tuple[Tensor, Tensor | None]:
    """One row and one value per bag, as models take them. Differentiable in `rows`.

    rows: (n, W), the table row of each id of `bags`, in that order. Returns rows (B, F, W) and values (B, F), None
    where all are 1, on the device of `rows`. A bag of one id keeps its row; a set becomes the mean of its rows, or
    their sum where the field says `pool = "sum"`. All ids of one bag carry the same value (schemas/fields.py makes them
    so): the first stands for it. counted: the last so many columns are statistics, of a set always the mean. Raises
    ShapeError.
    """
    if rows.ndim != 2 or len(rows) != len(bags.ids) or bags.fields != len(fields):
        raise ShapeError(
            f"pool takes (n, W) rows for n ids and F fields, got {tuple(rows.shape)} for {len(bags.ids)} ids, "
            f"{bags.fields} fields for {len(fields)}"
        )
    b, f, width = len(bags), bags.fields, rows.shape[1]
    values = None if bags.values is None else torch.from_numpy(bags.values.astype(np.float32)).to(rows.device)  # (n,)
    if bags.lengths is None:
        return rows.view(b, f, width), None if values is None else values.view(b, f)    # (B, F, W), (B, F)

    counts = bags.lengths.astype(np.int64)                                              # (B·F,)
    bag_of_id = np.repeat(np.arange(b * f), counts)                                     # (n,)
    shared = rows.new_zeros(b * f, width).index_add(0, torch.from_numpy(bag_of_id).to(rows.device), rows)
    pooled = shared.view(b, f, width)                                                   # (B, F, W)
    means = np.array([spec.kind == "set" and spec.pool == "mean" for spec in fields])   # (F,)
    if means.any():
        share = np.where(means, counts.reshape(b, f), 1).astype(np.float32)             # (B, F)
        pooled = pooled / torch.from_numpy(share).to(rows.device).unsqueeze(-1)
    sums = np.array([spec.kind == "set" and spec.pool == "sum" for spec in fields])     # (F,)
    if counted and sums.any():
        share = np.where(sums, counts.reshape(b, f), 1).astype(np.float32)              # (B, F)
        learnt, statistics = pooled[:, :, :-counted], pooled[:, :, -counted:]
        pooled = torch.cat([learnt, statistics / torch.from_numpy(share).to(rows.device).unsqueeze(-1)], dim=2)
    if values is None:
        return pooled, None
    first = torch.from_numpy(counts.cumsum() - counts).to(rows.device)                  # (B·F,)
    return pooled, values[first].view(b, f)
