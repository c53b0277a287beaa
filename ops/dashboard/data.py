"""What the page shows, as values made of rows: nothing is read here, and the time is passed in."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ops.watching.freshness import Percentiles
from ops.watching.windows import FieldMoved, Moved

QUIET_S = 5.0           # the joiner and the trainer say something every second
RATE_S = 10.0           # speeds are means over so long
SCORES = ("", "served_", "reference_")                        # what a figure's column begins with
FIGURES = ("auc", "calibration", "normalized_entropy", "log_loss")
VERSIONS = 12           # lines of the list of versions, besides those pinned
_SPANS_S = (1, 5, 10, 30, 60, 300, 600, 1800, 3600, 21_600, 86_400)

State = Literal["up", "waits", "down"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Process:
    """A part of the loop. since_us: of its newest sign of life; 0 = none is known. text: its state, for people; where it is
    down, since when and what starts it."""

    name: str
    state: State
    since_us: int
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """A point of the charts. figures: auc, served_auc, …; None = does not exist, absent = nobody logs it."""

    time_us: int
    first_row: int
    last_row: int
    rows: int
    clicks: int
    figures: Mapping[str, float | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """What the scorer says. version 0 = none yet. age_s: of the version, as it was then. workers: that answer. requests: since
    its start; requests_per_s: None where it was asked once only."""

    version: int
    lineage: str
    age_s: float
    workers: int
    requests: int
    requests_per_s: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Freshness:
    """Of clicks that were followed, ms: the whole way, and its parts by their ends."""

    clicks: int
    whole: Percentiles
    parts: Mapping[str, Percentiles]


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """Of the trainer: examples a second now, and at each of its reports before; rows that wait for their batch; idle: share of
    the time in which it waited for examples."""

    examples_per_s: float | None
    history: tuple[float, ...]
    learnt: int
    waiting_rows: int
    idle: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """A line of the list."""

    number: int
    created_us: int
    examples_learnt: int
    rows: int
    lineage: str
    pinned: bool
    back_to: int | None
    served: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Board:
    """Everything at one moment. lag: topic → partition → records not read yet. windows: oldest first. moved, fields: farthest
    first, of the newest moved_windows. troubles: what could not be read or written, in words."""

    time_us: int
    model: str
    processes: tuple[Process, ...]
    windows: tuple[Window, ...] = ()
    window_rows: int = 0
    served: Served | None = None
    freshness: Freshness | None = None
    speed: Speed | None = None
    lag: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    alarms_open: tuple[Mapping[str, Any], ...] = ()
    alarms_over: tuple[Mapping[str, Any], ...] = ()
    moved: tuple[Moved, ...] = ()
    moved_windows: int = 0
    fields: tuple[FieldMoved, ...] = ()
    gate: Mapping[str, Any] | None = None
    versions: tuple[Version, ...] = ()
    version_count: int = 0
    troubles: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


# --- processes ---

def by_journal(name: str, row: Mapping[str, Any] | None, now_us: int, does: str) -> Process:
    """A process that reports every second. row: its newest report. does: what it does, while it does."""
    if row is None:
        return Process(name=name, state="down", since_us=0, text=f"no word from it ever; {_start(name)}")
    if is_fresh(row, now_us):
        return Process(name=name, state="up", since_us=row["time_us"], text=does)
    text = f"no word {_for(row['time_us'], now_us)}; {_start(name)}"
    return Process(name=name, state="down", since_us=row["time_us"], text=text)


def by_port(name: str, where: str, sign_us: int, now_us: int, remedy: str) -> Process:
    """One that is known by its port. sign_us: when it was last seen alive, 0 = never. remedy: what to do where it is down."""
    if sign_us == now_us:
        return Process(name=name, state="up", since_us=now_us, text=f"answers on {where}")
    since = _for(sign_us, now_us) if sign_us else "and there is no sign that anything ever did"
    return Process(name=name, state="down", since_us=sign_us, text=f"nothing answers on {where} {since}; {remedy}")


def scorer_process(served: Served | None, where: str, refused: str, sign_us: int, now_us: int) -> Process:
    """As by_port. refused: what it said instead of its status."""
    if refused:
        return Process(name="scorer", state="waits", since_us=now_us, text=refused)
    if served is not None and not served.version:
        text = "answers, but has no version yet: does the trainer publish?"
        return Process(name="scorer", state="waits", since_us=now_us, text=text)
    if served is not None:
        text = f"version {served.version:,} in {served.workers} worker{'' if served.workers == 1 else 's'}"
        return Process(name="scorer", state="up", since_us=now_us, text=text)
    return by_port("scorer", where, sign_us, now_us, _start("scorer"))


def broker_process(where: str, sign_us: int, now_us: int, ours: bool) -> Process:
    """As by_port. ours: freshet can start it here."""
    return by_port("broker", where, sign_us, now_us, _start("broker") if ours else "it is yours to start (kafka.bootstrap)")


def _start(name: str) -> str:
    return f"start it with: freshet {name}"


def _for(since_us: int, now_us: int) -> str:
    return f"for {span((now_us - since_us) / 1e6)}, since {clock(since_us, now_us)}"


def span(seconds: float) -> str:
    """For a person: 35 s, 12 min, 3 h, 2 days."""
    for unit, size, until in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172_800)):
        if seconds < until:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.0f} days"


def clock(time_us: int, now_us: int | None = None) -> str:
    """The time of day here, with the date where it is another day than now."""
    moment = time.localtime(time_us / 1e6)
    another = now_us is not None and time.localtime(now_us / 1e6)[:3] != moment[:3]
    return time.strftime("%Y-%m-%d %H:%M:%S" if another else "%H:%M:%S", moment)


# --- figures ---

def window_of(line: Mapping[str, Any]) -> Window:
    """A line of the log of windows."""
    names = (score + figure for figure in FIGURES for score in SCORES)
    return Window(
        time_us=line["time_us"], first_row=line["first_row"], last_row=line["last_row"], rows=int(line["rows"]),
        clicks=int(line["clicks"]), figures={name: _known(line[name]) for name in names if name in line},
    )


def _known(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


def is_fresh(row: Mapping[str, Any], now_us: int) -> bool:
    """Whether a report is of now: one that fell silent has neither speed nor lag."""
    return bool(now_us - row["time_us"] < QUIET_S * 1e6)


def speed_of(statuses: Sequence[Mapping[str, Any]], now_us: int) -> Speed | None:
    """Of the trainer's reports, oldest first. What was before a rollback, a restart or a silence counts for nothing."""
    if not statuses:
        return None
    newest = statuses[-1]
    since = 0 if is_fresh(newest, now_us) else len(statuses) - 1
    for place, (one, other) in enumerate(itertools.pairwise(statuses), 1):
        if other["examples_learnt"] < one["examples_learnt"] or other["idle_s"] < one["idle_s"]:
            since = max(since, place)
    going = statuses[since:]
    first = next(one for one in going if one["time_us"] >= newest["time_us"] - RATE_S * 1e6)
    seconds = (newest["time_us"] - first["time_us"]) / 1e6
    return Speed(
        examples_per_s=(newest["examples_learnt"] - first["examples_learnt"]) / seconds if seconds else None,
        history=tuple(
            1e6 * (other["examples_learnt"] - one["examples_learnt"]) / max(1, other["time_us"] - one["time_us"])
            for one, other in itertools.pairwise(going)
        ),
        learnt=newest["examples_learnt"], waiting_rows=newest["waiting_rows"],
        idle=min(1.0, (newest["idle_s"] - first["idle_s"]) / seconds) if seconds else None,
    )


def rate_of(counted: Sequence[tuple[int, int]]) -> float | None:
    """Of (time_us, count), oldest first; None where nothing can be said: one reading, or a counter that began anew."""
    if len(counted) < 2 or counted[-1][1] < counted[0][1] or counted[-1][0] <= counted[0][0]:
        return None
    return (counted[-1][1] - counted[0][1]) / ((counted[-1][0] - counted[0][0]) / 1e6)


# --- versions ---

def listed(created_us: Mapping[int, int], kept: Sequence[int]) -> list[int]:
    """Which versions to show, the newest first: the newest, the first of each stretch of time (so that the list stands still
    while versions come every half second), and those to be `kept` on it."""
    if not created_us:
        return []
    newest, oldest = max(created_us), min(created_us.values())
    span_s = (created_us[newest] - oldest) / 1e6
    width_us = next((one for one in _SPANS_S if span_s / one <= VERSIONS - 2), _SPANS_S[-1]) * 1_000_000
    firsts: dict[int, int] = {}
    for number in sorted(created_us):
        firsts.setdefault(created_us[number] // width_us, number)
    chosen = sorted({newest, *firsts.values()}, reverse=True)[:VERSIONS]
    return sorted({*chosen, *(number for number in kept if number in created_us)}, reverse=True)
