"""What people must hear of: one line per alarm in var/metrics/NAME/alarms.jsonl, one in the log, and a POST to a webhook.

Several processes append to the one file, each alarm by a single write. The webhook has a thread of its own and a queue that
ends: whoever raises an alarm waits for nothing. What could not be delivered is counted and said; the file has it all the same.
"""

from __future__ import annotations

import math
import queue
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal

import orjson
import structlog

from schemas.config import AlarmsConfig
from schemas.journal import Journal, newest_rows

EVENT = "alarm"
QUEUED = 64                  # alarms that wait for a webhook that is slow or down
PATIENCE_S = 300.0           # one alarm is tried for so long
PAUSES_S = (1.0, 30.0)       # between two tries: the first, and the longest that doubling makes of it
CLOSE_S = 2.0                # a process that ends waits no longer
LOOKED_AT_BYTES = 8 << 20    # of the file, for what stands open: about 10,000 alarms

log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True, slots=True)
class Alarm:
    """Something that is not as it should be, or is again.

    what: lower case, dotted ("drift.calibration"); "over" ends what was raised under the same name. time_us, since_us: wall
    clock of when it was noticed and of when, by the evidence, it began (0: not known). row, since_row: examples judged by then;
    an alarm with a row is a function of the log, and is raised once however often that is gone over; 0 = of the clock. text:
    one line for people. was, now: the figure before and now. slices: (field, value, score); fields: (field, score); both with
    what moved most first.
    """

    what: str
    state: Literal["raised", "over"]
    time_us: int
    text: str
    since_us: int = 0
    since_row: int = 0
    row: int = 0
    was: float | None = None
    now: float | None = None
    slices: tuple[tuple[str, str, float], ...] = ()
    fields: tuple[tuple[str, float], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "what": self.what, "state": self.state, "time_us": int(self.time_us), "since_us": int(self.since_us),
            "row": int(self.row), "since_row": int(self.since_row), "text": self.text,
            "was": _finite(self.was), "now": _finite(self.now),
            "slices": [[field, value, _finite(score)] for field, value, score in self.slices],
            "fields": [[field, _finite(score)] for field, score in self.fields],
        }

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Alarm:
        """What as_dict gave; other keys are passed over."""
        known = {one.name: row[one.name] for one in fields(cls) if one.name in row}
        for name in ("slices", "fields"):
            known[name] = tuple(tuple(one) for one in known.get(name, ()))
        return cls(**known)


def _finite(figure: float | None) -> float | None:
    return None if figure is None or not math.isfinite(figure) else float(figure)


def standing(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of rows of the file, in order: those that were raised and are not over, the newest first."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        if row.get("event") == EVENT:
            key = (str(row.get("process", "")), str(row["what"]))
            found.pop(key, None)
            if row["state"] == "raised":
                found[key] = dict(row)
    return list(found.values())[::-1]


class Alarms:
    """One process's way to the file, the log and the webhook. Any thread may call it."""

    def __init__(self, config: AlarmsConfig, path: Path, *, model: str, process: str, lineage: str = "") -> None:
        """process: which of a model's says it; what it left open stands open here too. lineage: of the weights, where rows are
        counted: another one's rows are others."""
        self.dropped = 0             # alarms that the webhook never heard of
        self._model, self._process, self._lineage = model, process, lineage
        rows = [row for row in newest_rows(path, LOOKED_AT_BYTES) if row.get("process") == process]
        self._open = {row["what"]: Alarm.from_dict(row) for row in reversed(standing(rows))}
        self._told = {
            (row["what"], row["state"], row["row"]) for row in rows if row.get("row") and row.get("lineage") == lineage
        }
        self._journal = Journal(path)
        self._lock = threading.Lock()
        self._closed = False
        self._webhook = _Webhook(config.webhook, config.timeout_s, self._undelivered) if config.webhook else None

    @property
    def open(self) -> tuple[Alarm, ...]:
        """What this process has raised, now or before it was started, and is not over; oldest first."""
        with self._lock:
            return tuple(self._open.values())

    def raise_(self, alarm: Alarm) -> None:
        """Let it be known; the end of what is not open is none. Does not wait and does not raise."""
        with self._lock:
            if self._closed:
                return
            if alarm.row and (alarm.what, alarm.state, alarm.row) in self._told:
                return                                       # the same stretch of log once more
            if self._open.pop(alarm.what, None) is None and alarm.state == "over":
                return
            if alarm.state == "raised":
                self._open[alarm.what] = alarm
            line = {
                "event": EVENT, "model": self._model, "process": self._process, "lineage": self._lineage, **alarm.as_dict(),
            }
            self._journal.write(line)
        say = log.error if alarm.state == "raised" else log.warning
        say(f"alarm.{alarm.state}", what=alarm.what, text=alarm.text)
        if self._webhook is not None:
            self._webhook.send(line)

    def close(self) -> None:
        """Give the webhook a moment for what waits, and end."""
        if self._webhook is not None:
            self._webhook.close()
        with self._lock:
            self._closed = True
            self._journal.close()

    def _undelivered(self, alarms: int) -> None:
        with self._lock:
            self.dropped += alarms


class _Webhook:
    """POSTs, one after the other, from a thread of its own."""

    def __init__(self, url: str, timeout_s: float, undelivered: Any) -> None:
        self._url, self._timeout_s, self._undelivered = url, timeout_s, undelivered
        self._host = urllib.parse.urlsplit(url).hostname     # the rest of an address is often a secret
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())
        self._queue: queue.Queue[dict[str, Any]] = queue.Queue(QUEUED)
        self._closing = threading.Event()
        self._given_up = False           # what waited when this ended was said then
        self._failing = False
        threading.Thread(target=self._work, name="webhook", daemon=True).start()

    def send(self, line: dict[str, Any]) -> None:
        try:
            self._queue.put_nowait(line)
        except queue.Full:
            self._lose(line, f"{QUEUED} wait already")

    def close(self) -> None:
        self._closing.set()
        with self._queue.all_tasks_done:
            if not self._queue.all_tasks_done.wait_for(lambda: not self._queue.unfinished_tasks, CLOSE_S):
                self._given_up = True
                log.error("alarm.undelivered", host=self._host, error="the process ends", alarms=self._queue.unfinished_tasks)

    def _work(self) -> None:
        while not self._given_up:
            self._deliver(self._queue.get())
            self._queue.task_done()

    def _deliver(self, line: dict[str, Any]) -> None:
        began, pause_s = time.monotonic(), PAUSES_S[0]
        while (why := self._post(line)) is not None and not self._given_up:
            again = why[1] and time.monotonic() - began + pause_s < PATIENCE_S and not self._closing.is_set()
            if not self._failing:
                log.error("alarm.webhook", host=self._host, error=why[0], does="tries again" if again else "gives up")
            self._failing = True
            if not again:
                self._lose(line, why[0])
                return
            self._closing.wait(pause_s)
            pause_s = min(2 * pause_s, PAUSES_S[1])
        if self._failing and not self._given_up:
            log.warning("alarm.webhook_answers", host=self._host)
            self._failing = False

    def _post(self, line: dict[str, Any]) -> tuple[str, bool] | None:
        """None: it was taken; else why not, and whether the same may be taken later."""
        asked = urllib.request.Request(  # noqa: S310 AlarmsConfig lets http and https through
            self._url, orjson.dumps(line), {"Content-Type": "application/json", "User-Agent": "freshet"}, method="POST"
        )
        try:
            with self._opener.open(asked, timeout=self._timeout_s):
                return None
        except urllib.error.HTTPError as refused:
            refused.close()
            return f"HTTP {refused.code}", refused.code >= 500 or refused.code in (408, 429)
        except (OSError, HTTPException) as broken:
            return str(broken), True

    def _lose(self, line: Mapping[str, Any], why: str) -> None:
        self._undelivered(1)
        log.error("alarm.undelivered", what=line["what"], host=self._host, error=why, does="stands in alarms.jsonl alone")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """An address that sends alarms elsewhere is set wrong: a POST would arrive there as a GET."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None
