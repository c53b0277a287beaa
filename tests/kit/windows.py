"""Tables of windows as a stream with known chances makes them: every example is drawn, nothing is computed from a formula."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Table = dict[str, Any]
Array = NDArray[np.float64]
Truth = Callable[[Array, Mapping[str, NDArray[np.int64]]], Array]   # said, codes of slices → the chance of a click


def true(said: Array, _codes: Mapping[str, NDArray[np.int64]]) -> Array:
    """The model is right."""
    return said


def window(
    rng: np.random.Generator, first_row: int, *, rows: int = 20_000, slices: Mapping[str, int] | None = None,
    truth: Truth = true, rate: float = 0.1, model: Truth = true,
) -> Table:
    """A window of examples whose model says Beta-distributed probabilities of mean `rate`, or what `model` makes of them.
    slices: field → how many values, the later the rarer."""
    said = rng.beta(1.0, 1.0 / rate - 1, rows).clip(1e-6, 1 - 1e-6)
    codes = {
        name: rng.choice(values, rows, p=1 / np.arange(1, values + 1) / (1 / np.arange(1, values + 1)).sum())
        for name, values in (slices or {}).items()
    }
    said = model(said, codes)
    clicked = rng.random(rows) < truth(said, codes)
    variance, logit = said * (1 - said), np.log(said / (1 - said))
    off = logit - (variance * logit).sum() / variance.sum()
    losses = -np.log(np.where(clicked, said, 1 - said))
    lines: list[tuple[str, str, NDArray[np.bool_]]] = [("", "", np.ones(rows, np.bool_))]
    for name, own in codes.items():
        lines += [(name, f"v{value}", own == value) for value in range((slices or {})[name])]
    kept = [line for line in lines if line[2].any()]
    counts = [float(which.sum()) for _, _, which in kept]
    return {
        "first_row": np.full(len(kept), first_row), "last_row": np.full(len(kept), first_row + rows - 1),
        "field": [field for field, _, _ in kept], "value": [value for _, value, _ in kept],
        "rows": np.array(counts, np.int64), "clicks": np.array([clicked[which].sum() for _, _, which in kept], np.int64),
        "weight": np.array(counts), "click_weight": np.array([float(clicked[which].sum()) for _, _, which in kept]),
        "loss_sum": np.array([losses[which].sum() for _, _, which in kept]),
        "loss_square_sum": np.array([(losses[which] ** 2).sum() for _, _, which in kept]),
        "probability_sum": np.array([said[which].sum() for _, _, which in kept]),
        "slope_score": np.array([((clicked - said) * off)[which].sum() for _, _, which in kept]),
        "slope_information": np.array([(variance * off**2)[which].sum() for _, _, which in kept]),
    }


def inputs(rng: np.random.Generator, unseen: Mapping[str, float], missing: float = 0.0, values: int = 2_000) -> Table:
    """Lines of fields, of which so large a share was never seen before. Their index is what chance makes of 21 bins."""
    count = len(unseen)
    return {
        "field": list(unseen), "rows": np.full(count, values), "values": np.full(count, values), "bins": np.full(count, 21),
        "missing_share": rng.binomial(values, missing, count) / values,
        "unseen_share": rng.binomial(values, list(unseen.values())) / values,
        "psi": rng.chisquare(20, count) / values, "psi_chance": np.full(count, 20 / values),
    }
