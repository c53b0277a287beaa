"""What a scorer's processes take in memory, all of them together, and whether that fits."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

import psutil

from schemas import fields
from schemas.config import ScoreConfig, Settings
from schemas.memory import Room, Wanted, check, gib, room
from scorer.answers.engine import Blueprint
from scorer.server import workers_of


def wanted(settings: Settings, scorer: ScoreConfig | None = None) -> Wanted:
    """Each worker has the whole table, and a second one while it takes over another line of weights (a start, a rollback); so
    has the follower. scorer: whose processes they are, None = these settings' own."""
    floats = Blueprint(settings.model, fields.load(settings.model.schema)).row_width
    processes = workers_of(scorer or settings.score) + 1
    which = f"{settings.model.name!r} in the scorer's {processes} processes"
    who = f"the table of {which}, twice while a line of weights is taken over,"
    return Wanted(who, settings.model.bits, 2 * processes * 4 * floats)


def check_scorer(models: Sequence[Settings], there: Room | None = None) -> None:
    """Before any table is made: all models' together. there: None = the machine's memory as it is now, with what the scorer's
    other processes have of it already (a follower that starts again finds its workers at work). Raises DoesNotFit, which
    speaks of the largest model."""
    if there is None:
        there = room()
        there = replace(there, bytes=there.bytes + _held_beside())
    tables = [wanted(settings, models[0].score) for settings in models]
    largest = max(tables, key=lambda one: one.bytes)
    if rest := sum(one.bytes for one in tables) - largest.bytes:
        there = replace(there, bytes=there.bytes - rest, where=f"{there.where}, less {gib(rest)} for the scorer's other models")
    check(largest, there)


def _held_beside() -> int:
    """Bytes that this process's siblings hold, each by itself: what all share was taken before."""
    try:
        parent = psutil.Process().parent()
        siblings = parent.children() if parent is not None else []
        return sum(one.memory_full_info().uss for one in siblings if one.pid != os.getpid())
    except psutil.Error:  # one has just ended
        return 0
