"""What the running processes say of themselves: the last rows of their journals."""

from __future__ import annotations

import time
from typing import Any

from schemas.config import Settings
from schemas.errors import FreshetError
from schemas.journal import newest


class NotLearnt(FreshetError):
    """The trainer did not learn in time what was sent."""


def last(settings: Settings, process: str, event: str) -> dict[str, Any] | None:
    """The newest row of one kind in a process's journal."""
    return newest(settings.metrics_dir / f"{process}.jsonl", event)


def replays_ended(settings: Settings) -> int:
    """How many partitions' replays the trainer has learnt to their end, all in all."""
    row = last(settings, "trainer", "trainer.replay_ended")
    return int(row["tallies"].get("flush", 0)) if row else 0


def wait_for_order(settings: Settings, offset: int, timeout_s: float) -> dict[str, Any] | None:
    """What the trainer said of the order at that offset of model-control; None if it said nothing in time."""
    deadline = time.monotonic() + timeout_s
    while True:
        row = last(settings, "trainer", "trainer.order")
        if row and row["offset"] == offset:
            return row
        if time.monotonic() > deadline:
            return None
        time.sleep(0.1)


def wait_until_learnt(settings: Settings, ended: int, timeout_s: float) -> dict[str, Any]:
    """Wait until the trainer has learnt `ended` partitions' replays to their end; what it said then. Raises NotLearnt."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        row = last(settings, "trainer", "trainer.replay_ended")
        if row and row["tallies"].get("flush", 0) >= ended:
            return {key: value for key, value in row.items() if key not in ("event", "time_us")}
        time.sleep(0.2)
    status = last(settings, "trainer", "trainer.status")
    seen = f"it has learnt {status['examples_learnt']:,} examples in all" if status else "is it running?"
    raise NotLearnt(f"the trainer of model {settings.model.name} was not done after {timeout_s:.0f} s; {seen}")
