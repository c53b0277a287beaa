"""How long a click took to change an answer: examples that the trainer follows get their last two times here.

A version's manifest carries traces of some positive examples in it (clicked, joined, learnt, published). They are complete
when every worker has taken that version over and one of them has answered from it or a later one: one JSON line each in
freshness.jsonl. Examples in the versions that a scorer finds at its start are left out: another process may have served
them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from schemas.journal import Journal
from scorer.answers.version import Version

MAX_WAITING = 10_000  # traced examples kept while nobody asks for a score
MAX_SERVED = 64       # versions remembered as served, while their traces may still be on their way here


class Freshness:
    """Told by the follower's loop alone, so off the path of every request."""

    def __init__(self, path: Path) -> None:
        self._journal = Journal(path)
        self._matcher = Matcher()
        self._served: deque[tuple[str, int]] = deque(maxlen=MAX_SERVED)
        self.versions_served = 0  # that answered at least one request

    def applied(self, version: Version, traces: Sequence[Mapping[str, Any]]) -> None:
        """Every worker has this version, since `applied_us`, with these examples in it."""
        self._write(self._matcher.applied(version, traces))

    def served(self, version: Version, served_us: int) -> None:
        """A worker's first answer from `version` was complete then."""
        named = (version.lineage, version.number)
        if named not in self._served:
            self._served.append(named)
            self.versions_served += 1
            self._write(self._matcher.served(version, served_us))

    def close(self) -> None:
        """Nothing is written after this."""
        self._journal.close()

    def _write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        for line in lines:
            self._journal.write(line)


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
                lines.append(_line(version, trace, max(version.applied_us, min(used))))
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
