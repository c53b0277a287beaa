"""How long clicks took to change an answer, of those that the trainer followed (scorer/versions/freshness.py writes them)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from schemas.config import Settings
from schemas.journal import newest_rows

LOOKED_AT_BYTES = 1 << 22   # about 20,000 clicks
MARKS = ("click_us", "joined_us", "learnt_us", "published_us", "served_us")

Percentiles = dict[str, float | None]


def served(settings: Settings, since_us: int | None = None, until_us: int | None = None) -> list[dict[str, Any]]:
    """The newest clicks that were followed to the end and were served within the time."""
    return [
        row for row in newest_rows(settings.metrics_dir / "freshness.jsonl", LOOKED_AT_BYTES)
        if row.get("served_us") and (since_us is None or row["served_us"] >= since_us)
        and (until_us is None or row["served_us"] < until_us)
    ]


def parts_ms(rows: Sequence[Mapping[str, Any]]) -> dict[str, Percentiles]:
    """p50 and p99 in ms of each part of the way, by its end: joined, learnt, published, served. They are of the same clicks, so
    that each click's parts add up to its whole way; percentiles do not."""
    return {
        end.removesuffix("_us"): percentiles([row[end] - row[start] for row in rows])
        for start, end in itertools.pairwise(MARKS)
    }


def whole_way_ms(rows: Sequence[Mapping[str, Any]]) -> Percentiles:
    """p50 and p99 in ms from the click's event time to the first answer that knew it."""
    return percentiles([row["served_us"] - row["click_us"] for row in rows])


def percentiles(microseconds: Sequence[int]) -> Percentiles:
    """p50 and p99 in ms; None of nothing."""
    if not microseconds:
        return {"p50": None, "p99": None}
    p50, p99 = np.percentile(np.array(microseconds) / 1000, (50, 99)).tolist()
    return {"p50": round(p50, 1), "p99": round(p99, 1)}
