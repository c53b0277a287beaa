"""How well the served scores rank, and how well the truth itself would have: AUC on slates in random order."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

THIRDS = 3


def auc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Chance that a random positive scores above a random negative, ties counting half; NaN with one class alone.

    By ranks: (Σ ranks of positives − P(P+1)/2) / (P·N), tied scores sharing their mean rank (Mann-Whitney's U).
    """
    scored, clicked = np.asarray(scores, np.float64), np.asarray(labels, bool)
    positives = int(clicked.sum())
    negatives = len(clicked) - positives
    if not positives or not negatives:
        return math.nan
    _, which, count = np.unique(scored, return_inverse=True, return_counts=True)
    rank = np.cumsum(count) - (count - 1) / 2                                  # (distinct,)
    u = float(rank[which][clicked].sum()) - positives * (positives + 1) / 2
    return u / (positives * negatives)


@dataclass(frozen=True, slots=True)
class Thirds:
    """AUC per third of a run, on the same rows; NaN where a third has no click or nothing but clicks.

    served: by the probabilities that the scorer gave, all for the reference position. oracle: by the true ones at the
    reference position, the most that a ranker can know, since it scores before there is a place. oracle_with_position:
    by the true ones at the place shown: what position bias takes from both.
    """

    served: tuple[float, ...]
    oracle: tuple[float, ...]
    oracle_with_position: tuple[float, ...]
    rows: tuple[int, ...]
    clicks: tuple[int, ...]


Columns = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]


class Ledger:
    """The rows of random slates. The newest `most_rows` are kept, so that a store may run for ever."""

    def __init__(self, most_rows: int = 2_000_000) -> None:
        self._most_rows = most_rows
        self._rows = 0
        self._dropped = False
        self._slates: deque[Columns] = deque()

    def add(
        self, time_us: int, served: NDArray[np.float64], oracle: NDArray[np.float64],
        oracle_with_position: NDArray[np.float64], clicked: NDArray[np.bool_],
    ) -> None:
        """One slate's rows; served is NaN where nobody scored it."""
        self._slates.append((np.full(len(clicked), time_us), served, oracle, oracle_with_position, clicked))
        self._rows += len(clicked)
        while self._rows - len(self._slates[0][0]) >= self._most_rows:
            self._rows -= len(self._slates.popleft()[0])
            self._dropped = True

    def columns(self) -> Columns:
        """Times, served, oracle, oracle with position, clicked: of all rows kept."""
        if not self._slates:
            return (
                np.zeros(0, np.int64), np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(0, bool),
            )
        time_us, served, oracle, with_position, clicked = (
            np.concatenate(parts) for parts in zip(*self._slates, strict=True)
        )
        return time_us, served, oracle, with_position, clicked

    def auc_thirds(self, start_us: int, end_us: int, *, served_only: bool = True) -> Thirds:
        """Over the thirds of [start, end], or of the time since the oldest row kept.

        served_only: rows that nobody scored count for no one.
        """
        time_us, served, oracle, with_position, clicked = self.columns()
        if self._dropped:
            start_us = int(time_us[0])
        third = np.clip((time_us - start_us) * THIRDS // max(1, end_us - start_us + 1), 0, THIRDS - 1)
        chosen = [(third == place) & (~np.isnan(served) | (not served_only)) for place in range(THIRDS)]
        return Thirds(
            served=tuple(auc(served[rows], clicked[rows]) if served_only else math.nan for rows in chosen),
            oracle=tuple(auc(oracle[rows], clicked[rows]) for rows in chosen),
            oracle_with_position=tuple(auc(with_position[rows], clicked[rows]) for rows in chosen),
            rows=tuple(int(rows.sum()) for rows in chosen),
            clicks=tuple(int(clicked[rows].sum()) for rows in chosen),
        )
