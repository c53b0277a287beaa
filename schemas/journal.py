"""A process's own log of figures: JSON lines in one file, appended whole, read by `freshet metrics` and `freshet demo`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson
import structlog

BLOCK_BYTES = 1 << 16

log = structlog.get_logger()


class Journal:
    """Appends rows to a file. One write call a row, so that a reader and a crash see whole lines.

    Where the disk refuses, rows are lost and their process goes on: that is said in its log, once, and again when rows are
    written again.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.lost = 0          # rows since the disk refused one
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, row: Mapping[str, Any]) -> None:
        """One row; `time_us`, the wall clock, is added."""
        line = orjson.dumps({"time_us": time.time_ns() // 1000, **row}, option=orjson.OPT_APPEND_NEWLINE)
        if self.lost:
            line = b"\n" + line  # half a row may stand there
        try:
            whole = os.write(self._file, line) == len(line)
            why = "no room for a whole row"
        except OSError as refused:
            whole, why = False, str(refused)
        if not whole:
            self.lost += 1
            if self.lost == 1:
                log.error("journal.unwritten", path=str(self.path), error=why, does="goes on; what it has to say is lost")
        elif self.lost:
            log.warning("journal.written_again", path=str(self.path), rows_lost=self.lost)
            self.lost = 0

    def close(self) -> None:
        os.close(self._file)


def newest(path: Path, event: str) -> dict[str, Any] | None:
    """The last row of one kind, looked for from the end, so that a log of days costs what one of minutes does."""
    if not path.is_file():
        return None
    wanted = b'"event":' + orjson.dumps(event)
    with path.open("rb") as file:
        start, tail = file.seek(0, os.SEEK_END), b""
        while start > 0:
            size = min(BLOCK_BYTES, start)
            start -= size
            file.seek(start)
            head, *lines = (file.read(size) + tail).split(b"\n")
            tail = head                                       # may be the end of a line that begins in an earlier block
            for line in reversed(lines if start else [head, *lines]):
                if wanted in line and (row := _row(line)) is not None and row.get("event") == event:
                    return row
    return None


def newest_rows(path: Path, most_bytes: int) -> list[dict[str, Any]]:
    """The rows that lie whole in the last so many bytes, in order."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        start = max(0, file.seek(0, os.SEEK_END) - most_bytes)
        file.seek(start)
        lines = file.read(most_bytes).split(b"\n")
    return [row for line in (lines[1:] if start else lines) if line and (row := _row(line)) is not None]


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Rows in order; a line cut by a crash is passed over."""
    if not path.is_file():
        return
    with path.open("rb") as lines:
        for line in lines:
            row = _row(line)
            if row is not None:
                yield row


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return row if isinstance(row, dict) else None
