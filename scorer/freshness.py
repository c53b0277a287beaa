"""How long a click took to change an answer: examples that the trainer follows get their last two times here.

A version's manifest carries traces of some positive examples in it (clicked, joined, learnt, published). The first
answer from that version or a later one completes them: one JSON line each in freshness.jsonl, written by a thread of
its own. Examples in the versions that a scorer finds at its start are left out: another process may have served them.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from schemas.journal import Journal
from scorer.engine import Version

MAX_WAITING = 10_000  # traced examples kept while nobody asks for a score
MAX_SERVED = 64       # versions remembered as served, while their traces may still be on their way here

_log = structlog.get_logger("scorer")


@dataclass(frozen=True, slots=True)
class _Applied:
    version: Version
    traces: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class _Served:
    version: Version
    served_us: int


class Freshness:
    """applied: from the follower. served: from every request, a comparison unless the version is new."""

    def __init__(self, path: Path, now_us: Callable[[], int]) -> None:
        self._journal = Journal(path)
        self._now_us = now_us
        self.versions_served = 0  # that answered at least one request
        self._last: Version | None = None
        self._events: queue.SimpleQueue[_Applied | _Served | None] = queue.SimpleQueue()
        self._matcher = Matcher()
        self._thread = threading.Thread(target=self._write, name="freshness", daemon=True)
        self._thread.start()

    def applied(self, version: Version, traces: Sequence[Mapping[str, Any]]) -> None:
        """A version was taken over, with these examples in it."""
        if traces:
            self._events.put(_Applied(version, traces))

    def served(self, version: Version) -> None:
        """An answer from `version` is complete."""
        if version is not self._last:
            self._last = version
            self._events.put(_Served(version, self._now_us()))

    def close(self) -> None:
        """Write what is complete and stop."""
        self._events.put(None)
        self._thread.join(timeout=5)

    def _write(self) -> None:
        newest: Version | None = None
        while (event := self._events.get()) is not None:
            if isinstance(event, _Applied):
                lines = self._matcher.applied(event.version, event.traces)
            else:
                lines = self._matcher.served(event.version, event.served_us)
                if newest is None or event.version.applied_us > newest.applied_us:
                    newest = event.version
                    self.versions_served += 1
            try:
                for line in lines:
                    self._journal.write(line)
            except OSError as full:
                _log.error("freshness.not_written", path=str(self._journal.path), error=str(full), lines=len(lines))
        self._journal.close()


class Matcher:
    """Traced examples and served versions, whichever comes first → complete lines. Pure."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Version, Mapping[str, Any]]] = deque(maxlen=MAX_WAITING)
        self._served: deque[tuple[Version, int]] = deque(maxlen=MAX_SERVED)

    def applied(self, version: Version, traces: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Examples of a version; those that an answer has used already come back complete."""
        self._waiting.extend((version, trace) for trace in traces)
        return self._complete()

    def served(self, version: Version, served_us: int) -> list[dict[str, Any]]:
        """The first answer from a version; the examples that it is the first to use come back complete."""
        self._served.append((version, served_us))
        return self._complete()

    def _complete(self) -> list[dict[str, Any]]:
        lines = []
        for _ in range(len(self._waiting)):
            version, trace = self._waiting.popleft()
            same = [(by, at) for by, at in self._served if by.lineage == version.lineage]
            used = [at for by, at in same if by.number >= version.number]
            past = any(by.lineage != version.lineage and by.applied_us > version.applied_us for by, _ in self._served)
            if used:
                lines.append(_line(version, trace, min(used)))
            elif not past:  # a lineage that was replaced before it served these examples never will
                self._waiting.append((version, trace))
        return lines


def _line(version: Version, trace: Mapping[str, Any], served_us: int) -> dict[str, Any]:
    return {
        **trace,
        "applied_us": version.applied_us,
        "served_us": served_us,
        "version": version.number,
        "lineage": version.lineage,
    }
