"""Looks at what the processes wrote, again and again: journals, the log of windows, the store, two ports."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from ops.dashboard import data
from ops.dashboard.data import Board, Freshness, Served, Version, Window
from ops.machine.ports import is_open, reached, split_address
from ops.watching import freshness, windows
from ops.watching.journals import last
from schemas.config import Settings, is_loopback
from schemas.errors import RequestError, SnapshotError
from schemas.journal import newest_rows
from schemas.snapshot import Kind, Manifest
from scorer.client import OperatorClient, ScorerUnavailable
from scorer.client.access import access_of
from scorer.ports.tokens import listed
from scorer.versions.reader import SnapshotReader, own_secondary_dir
from stream_trainer.watching.alarms import standing

STATUS_BYTES = 1 << 17         # of the trainer's journal: a minute or two
ALARM_BYTES = 1 << 18
FRESHNESS_BYTES = 1 << 18      # about 1,200 clicks
FRESHNESS_US = 300_000_000     # a click's way is told of the last five minutes
WINDOWS = 120                  # points of a chart
MOVED_WINDOWS = 32             # in which slices are looked at, the newest quarter of them against the rest
MOST_MOVED = 5
ALARMS_OVER = 5
PATIENCE_S = 0.5               # of a port

Seen = TypeVar("Seen")
Logged = tuple[tuple[Window, ...], tuple[windows.Moved, ...], tuple[windows.FieldMoved, ...]]


class Reader:
    """For one thread. What it holds open (the store, a connection to the scorer) costs little while nobody looks."""

    def __init__(self, settings: Settings, now_us: Callable[[], int]) -> None:
        """Raises ConfigError where the operators' token cannot be read."""
        self._settings = settings
        self._now_us = now_us
        score = settings.score
        port = score.beside(score.operator_port, 1)
        token = next(iter(listed("score.operator_tokens", score.operator_tokens, score.operator_tokens_file)), None)
        self._scorer = OperatorClient(reached(score.operator_host, port), replace(access_of(score), token=token))
        self._requests: deque[tuple[int, int]] = deque()
        self._signs = {"broker": 0, "scorer": 0}                       # when each was last seen alive
        self._stores: dict[Kind, SnapshotReader] = {}
        self._manifests: dict[tuple[Kind, int], Manifest] = {}
        self._kept: dict[str, tuple[Any, Any]] = {}

    def close(self) -> None:
        """Let go of the store and of the scorer."""
        self._scorer.close()
        for store in self._stores.values():
            store.close()

    def read(self) -> Board:
        """How everything is now. What cannot be read is told among its troubles."""
        settings, now_us, troubles = self._settings, self._now_us(), list[str]()
        rows = newest_rows(settings.metrics_dir / "trainer.jsonl", STATUS_BYTES)
        statuses = [row for row in rows if row.get("event") == "trainer.status"]
        if not statuses and (status := last(settings, "trainer", "trainer.status")) is not None:
            statuses = [status]
        status, joining = statuses[-1] if statuses else None, last(settings, "joiner", "joiner.status")
        served, refused = self._served(now_us)
        logged, moved, fields = self._logged(troubles)
        versions, count = self._versions(served, troubles)
        alarms = [row for row in newest_rows(settings.alarms_file, ALARM_BYTES) if row.get("event") == "alarm"]
        if status and status.get("windows_unwritten"):
            troubles.append(f"the log of windows cannot be written: {status['windows_unwritten']}")
        if status and status.get("windows_lost"):
            troubles.append(f"{status['windows_lost']:,} windows were lost while the log could not be written")
        return Board(
            time_us=now_us, model=settings.model.name,
            processes=self._processes(joining, status, served, refused, now_us),
            lag={
                topic: row["lag"] for topic, row in (("events", joining), ("examples", status))
                if row and row.get("lag") and data.is_fresh(row, now_us)
            },
            windows=logged, window_rows=settings.metrics.window_rows, served=served, freshness=self._freshness(now_us),
            speed=data.speed_of(statuses, now_us), alarms_open=tuple(standing(alarms)),
            alarms_over=tuple([row for row in reversed(alarms) if row["state"] == "over"][:ALARMS_OVER]),
            moved=moved, moved_windows=_now_windows(min(len(logged), MOVED_WINDOWS)), fields=fields,
            gate=(status or {}).get("gate"), versions=versions, version_count=count, troubles=tuple(troubles),
        )

    # --- processes ---

    def _processes(
        self, joining: Mapping[str, Any] | None, status: Mapping[str, Any] | None, served: Served | None, refused: str,
        now_us: int,
    ) -> tuple[data.Process, ...]:
        settings = self._settings
        addresses = [split_address(one) for one in settings.kafka.bootstrap.split(",")]
        broker_up = any(is_open(*address, PATIENCE_S) for address in addresses)
        if broker_up:
            self._signs["broker"] = now_us
        ours = all(is_loopback(host) for host, _ in addresses)
        written_us = self._signs["broker"] or (_newest_us(settings.var / "broker" / "data") if ours else 0)
        scored_us = self._signs["scorer"] or _newest_us(settings.metrics_dir, "freshness.jsonl")
        return (
            data.broker_process(settings.kafka.bootstrap, written_us, now_us, ours),
            data.by_journal("joiner", joining, now_us, f"{joining['open']:,} impressions open" if joining else ""),
            data.by_journal("trainer", status, now_us, f"{status['examples_learnt']:,} examples learnt" if status else ""),
            data.scorer_process(served, self._scorer.target, refused, scored_us, now_us),
        )

    def _served(self, now_us: int) -> tuple[Served | None, str]:
        """What the scorer says of itself; and, where it answers something else, what."""
        try:
            said = self._scorer.status(self._settings.model.name, PATIENCE_S)
        except ScorerUnavailable:
            return None, ""
        except RequestError as refused:
            return None, f"does not say how it is: {refused}"
        self._signs["scorer"] = now_us
        requests = int(said.totals.get("requests", 0))
        self._requests.append((now_us, requests))
        while len(self._requests) > 2 and self._requests[0][0] < now_us - data.RATE_S * 1e6:
            self._requests.popleft()
        return Served(
            version=said.version, lineage=said.lineage, age_s=said.version_age_s, workers=len(said.workers), requests=requests,
            requests_per_s=data.rate_of(self._requests),
        ), ""

    # --- figures ---

    def _logged(self, troubles: list[str]) -> Logged:
        """Read anew only where a file has changed: a window is a rare thing, and slices are many."""
        try:
            written = _files(self._settings.windows_dir) + _files(self._settings.fields_dir)
            return self._once("windows", written, self._read_windows)
        except (OSError, ValueError) as unreadable:        # pyarrow's own errors are ValueErrors
            troubles.append(f"the log of windows in {self._settings.windows_dir} cannot be read: {unreadable}")
            return (), (), ()

    def _read_windows(self) -> Logged:
        lines = windows.whole_windows(self._settings, most=WINDOWS)
        now = _now_windows(min(len(lines), MOVED_WINDOWS))
        moved = windows.moved(windows.slice_lines(self._settings, None, most=MOVED_WINDOWS), now) if now else []
        fields = windows.fields_moved(windows.field_lines(self._settings, most=MOVED_WINDOWS), now) if now else []
        return tuple(map(data.window_of, lines)), tuple(moved[:MOST_MOVED]), tuple(fields[:MOST_MOVED])

    def _freshness(self, now_us: int) -> Freshness | None:
        path = self._settings.metrics_dir / "freshness.jsonl"
        rows = self._once("freshness", _files(path.parent, path.name), lambda: newest_rows(path, FRESHNESS_BYTES))
        recent = [row for row in rows if row.get("served_us", 0) > now_us - FRESHNESS_US]
        if not recent:
            return None
        return Freshness(clicks=len(recent), whole=freshness.whole_way_ms(recent), parts=freshness.parts_ms(recent))

    # --- versions ---

    def _versions(self, served: Served | None, troubles: list[str]) -> tuple[tuple[Version, ...], int]:
        try:
            there, pinned = self._caught_up("version"), self._pinned()
        except SnapshotError as unreadable:
            troubles.append(str(unreadable))
            return (), 0
        kept = [*pinned, *([served.version] if served is not None else [])]
        shown = data.listed({number: manifest.created_us for number, manifest in there.items()}, kept)
        return tuple(
            Version(
                number=one.number, created_us=one.created_us, examples_learnt=one.examples_learnt, rows=one.rows,
                lineage=one.lineage, pinned=one.number in pinned, back_to=one.back_to,
                served=served is not None and (served.version, served.lineage) == (one.number, one.lineage),
            )
            for one in map(there.__getitem__, shown)
        ), len(there)

    def _pinned(self) -> tuple[int, ...]:
        there = self._caught_up("checkpoint")
        return there[max(there)].pinned if there else ()

    def _caught_up(self, kind: Kind) -> dict[int, Manifest]:
        """All of a kind that the store has now; each is read once. Raises SnapshotError."""
        if kind not in self._stores:
            place = own_secondary_dir(self._settings.store_dir.parent / "secondaries", f"dashboard-{kind}")
            self._stores[kind] = SnapshotReader(self._settings.store_dir, place, kind)
        store = self._stores[kind]
        numbers = store.numbers() if store.poll() is not None else []
        there = {}
        for number in numbers:
            with suppress(SnapshotError):                  # broken: `freshet snapshot verify` names it
                there[number] = self._manifests.get((kind, number)) or store.manifest(number)
        self._manifests = {key: one for key, one in self._manifests.items() if key[0] != kind} | {
            (kind, number): one for number, one in there.items()
        }
        return there

    def _once(self, name: str, of: Any, read: Callable[[], Seen]) -> Seen:
        """What was read, until what it was read from is another."""
        before = self._kept.get(name)
        if before is None or before[0] != of:
            before = self._kept[name] = of, read()
        found: Seen = before[1]
        return found


def _now_windows(count: int) -> int:
    """How many of so many windows are now, and the others before."""
    return count // 4


def _files(folder: Path, names: str = "*.parquet") -> tuple[tuple[str, int, int], ...]:
    """Name, time of the last change and size of each file."""
    found = []
    for path in sorted(folder.glob(names)):
        with suppress(FileNotFoundError):                  # it has just gone
            stat = path.stat()
            found.append((path.name, stat.st_mtime_ns, stat.st_size))
    return tuple(found)


def _newest_us(folder: Path, names: str = "*") -> int:
    """When something in a folder was last written; 0 where there is nothing."""
    return max((changed_ns // 1000 for _, changed_ns, _ in _files(folder, names)), default=0)
