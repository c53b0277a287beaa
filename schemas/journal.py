"""A process's own log of figures: JSON lines in one file, appended whole, read by `freshet metrics` and `freshet demo`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson


class Journal:
    """Appends rows to a file. One write call a row, so that a reader and a crash see whole lines."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, row: Mapping[str, Any]) -> None:
        """One row; `time_us`, the wall clock, is added."""
        os.write(self._file, orjson.dumps({"time_us": time.time_ns() // 1000, **row}, option=orjson.OPT_APPEND_NEWLINE))

    def close(self) -> None:
        os.close(self._file)


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Rows in order; a line cut by a crash is passed over."""
    if not path.is_file():
        return
    with path.open("rb") as lines:
        for line in lines:
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue
            if isinstance(row, dict):
                yield row
