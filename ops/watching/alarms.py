"""Alarms that joiner and trainer have raised, as `freshet metrics --alarms` shows them: open ones first."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from schemas.config import Settings
from schemas.journal import newest_rows
from stream_trainer.watching.alarms import EVENT, LOOKED_AT_BYTES

Row = dict[str, Any]


def told(settings: Settings, since_us: int | None = None) -> tuple[list[Row], list[Row]]:
    """What stands open, and what was raised and is over, each the newest first. since_us: of those that are over, these ended
    then or later. A row of the latter has over_us and over, when and how it ended."""
    standing: dict[tuple[str, str], Row] = {}
    over: list[Row] = []
    for row in newest_rows(settings.alarms_file, LOOKED_AT_BYTES):
        if row.get("event") != EVENT:
            continue
        key = (row["process"], row["what"])
        before = standing.pop(key, None)
        if row["state"] == "raised":
            standing[key] = row
        elif before is not None and (since_us is None or row["time_us"] >= since_us):
            over.append({**before, "over_us": row["time_us"], "over": row["text"]})
    return sorted(standing.values(), key=lambda row: -row["time_us"]), over[::-1]


def listing(standing: Sequence[Row], over: Sequence[Row], now_us: int) -> str:
    """For people: two or three lines an alarm."""
    if not standing and not over:
        return "no alarm"
    lines = [f"{len(standing)} open" if standing else "none open"]
    lines += [line for row in standing for line in _lines(row, now_us)]
    if over:
        lines += ["", f"{len(over)} over"]
        lines += [line for row in over for line in _lines(row, now_us)]
    return "\n".join(lines)


def _lines(row: Row, now_us: int) -> list[str]:
    end_us = row.get("over_us", now_us)
    began_us = row["since_us"] or row["time_us"]
    head = f"  {row['what']} ({row['process']}), {_time(began_us)}, {_span(max(end_us - began_us, 0) / 1e6)}"
    if row["row"]:
        head += f", rows {row['since_row']:,} to {row['row']:,} until it was seen"
    return [head, f"      {row['text']}", *([f"      over: {row['over']}"] if "over" in row else [])]


def _time(micros: int) -> str:
    return datetime.fromtimestamp(micros / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _span(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
