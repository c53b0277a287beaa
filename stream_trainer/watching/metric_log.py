"""Logs of windows: Parquet under var/metrics/NAME, in windows/ a line per window and slice, in fields/ per window and field.

A file holds up to FILE_WINDOWS of them. The newest is written anew, whole, with each checkpoint: beside its name, then renamed,
so that there is never half a file, nor a window twice. (A reader that opens one file twice, as DuckDB does, may meet two of
them, and fails then; it never counts wrong.) What a killed trainer will learn again it takes out at its start, from the first
row on that its checkpoint does not know. When all files together are larger than metrics.keep_mb, the oldest go.

A thread of its own writes. Where the disk refuses, the stream goes on: what waits is kept, as much as one file holds, and tried
again; `trouble` says so, and the process's log.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import structlog
from pyarrow import parquet

from stream_trainer.watching.inputs import FIELD_COLUMNS
from stream_trainer.watching.watch import COLUMNS, Table

FILE_WINDOWS = 64
WAITING = 256         # tables that a disk that hangs makes wait; more are lost, and counted
FLUSH_TIMEOUT_S = 2.0  # the learner's thread waits no longer for such a disk
RETRY_S = 1.0

_WHOLE = ("first_row", "last_row", "rows", "clicks", "groups", "values", "bins", "version")

log = structlog.get_logger()


def _type(column: str) -> pa.DataType:
    if column in ("field", "value", "lineage"):
        return pa.string()
    if "decile" in column:
        return pa.list_(pa.float64())
    plain = column.removeprefix("served_").removeprefix("own_").removeprefix("reference_")
    return pa.int64() if plain in _WHOLE else pa.float64()


def _schema(columns: Sequence[str]) -> pa.Schema:
    return pa.schema(
        [("time", pa.timestamp("us", "UTC")), ("lineage", pa.string()), *((column, _type(column)) for column in columns)]
    )


SCHEMA = _schema(COLUMNS)                  # of windows and slices
FIELDS_SCHEMA = _schema(FIELD_COLUMNS)


class MetricLog:
    """Owns the files of one model's log. `write` may be called by one thread; it never waits."""

    def __init__(self, folder: Path, lineage: str, rows: int, keep_bytes: int, schema: pa.Schema = SCHEMA) -> None:
        """rows: examples in windows that the checkpoint knows; what the log has from there on is learnt again, and goes.
        schema: of the files; the tables given have its columns."""
        self.trouble: str | None = None   # why what waits cannot be written
        self.lost = 0                     # windows that will never be
        self._folder, self._lineage, self._rows, self._keep_bytes = folder, lineage, rows, keep_bytes
        self._schema = schema
        self._given = self._written = 0   # windows
        self._queue: queue.Queue[tuple[int, Table] | threading.Event | None] = queue.Queue(WAITING)
        self._file: Path | None = None    # the newest
        self._windows: list[pa.Table] = []   # all that it is to hold,
        self._standing = 0                # and how many of them it does
        self._begun = False               # whether what is learnt again was taken out
        self._thread = threading.Thread(target=self._work, name="metric-log", daemon=True)
        self._thread.start()

    def write(self, time_us: int, table: Table) -> None:
        """A window's table, to be written when `flush` is next called; time_us: wall clock. Does not wait."""
        try:
            self._queue.put_nowait((time_us, table))
        except queue.Full:
            self.lost += 1
        else:
            self._given += 1

    def flush(self) -> bool:
        """Write what was given. False: it does not stand there; it is tried again next time."""
        if self._written == self._given:
            return True
        done = threading.Event()
        try:
            self._queue.put_nowait(done)
        except queue.Full:
            return False
        return done.wait(FLUSH_TIMEOUT_S) and self.trouble is None

    def close(self) -> None:
        """Write what was given, and end."""
        self.flush()
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            return                        # the disk hangs; the thread ends with the process
        self._thread.join(FLUSH_TIMEOUT_S)

    # --- the writer's thread ---

    def _work(self) -> None:
        taken, failed_at = 0, None if self._write() else time.monotonic()
        while (given := self._queue.get()) is not None:
            if not isinstance(given, threading.Event):
                self._add(*given)
                taken += 1
                continue
            if failed_at is None or time.monotonic() - failed_at >= RETRY_S:
                if self._write():
                    self._written, failed_at = taken, None
                else:
                    failed_at = time.monotonic()
            given.set()

    def _add(self, time_us: int, table: Table) -> None:
        if len(self._windows) >= FILE_WINDOWS:
            if not self._write():
                self.lost += len(self._windows) - self._standing
            self._file, self._windows, self._standing = None, [], 0
        lines = len(table["field"])
        columns = {"time": [time_us] * lines, "lineage": [self._lineage] * lines, **table}
        arrays = [pa.array(columns[column.name], column.type, from_pandas=True) for column in self._schema]   # NaN is null
        self._windows.append(pa.table(arrays, schema=self._schema))

    def _write(self) -> bool:
        """The newest file as it is now. Whether all stands there."""
        try:
            if not self._begun:
                self._begin()
            if self._windows:
                if self._file is None:
                    first = self._windows[0]["time"][0].value
                    self._file = self._folder / f"{first:016d}-{self._lineage[:8]}.parquet"
                _put(self._file, self._windows)
                self._standing = len(self._windows)
                self._rotate()
        except (OSError, pa.ArrowException) as error:
            if self.trouble is None:
                log.error("metrics.unwritten", folder=str(self._folder), error=str(error), windows=len(self._windows),
                          does="goes on without; tries again")
            self.trouble = str(error)
            return False
        if self.trouble is not None:
            log.warning("metrics.written_again", folder=str(self._folder), windows_lost=self.lost)
            self.trouble = None
        return True

    def _begin(self) -> None:
        """Take out what will be learnt again, and go on in the newest file if there is room."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for left in self._folder.glob("*.tmp"):
            left.unlink()
        newest = True
        for path in sorted(self._folder.glob("*.parquet"), reverse=True):
            try:
                with path.open("rb") as file:
                    windows = _windows(parquet.read_table(file))
            except pa.ArrowException as wrong:
                log.error("metrics.damaged", file=str(path), error=str(wrong), does="set aside as .damaged")
                path.rename(path.with_suffix(".damaged"))
                continue
            kept = [window for window in windows if self._stays(window)]
            if not kept:
                path.unlink()
                continue
            if len(kept) < len(windows):
                _put(path, kept)
            if newest and kept[0].schema.equals(self._schema) and len(kept) + len(self._windows) <= FILE_WINDOWS:
                self._file, self._windows, self._standing = path, kept + self._windows, len(kept)
            newest = False
            if len(kept) == len(windows):
                break
        self._begun = True

    def _stays(self, window: pa.Table) -> bool:
        """Windows of another model that had this name before stay too."""
        again = window["first_row"][0].as_py() >= self._rows
        return not again or (self._rows == 0 and window["lineage"][0].as_py() != self._lineage)

    def _rotate(self) -> None:
        """Remove the oldest files beyond the bound; the newest stays."""
        sizes = [(path, path.stat().st_size) for path in sorted(self._folder.glob("*.parquet"))]
        total = sum(size for _, size in sizes)
        for path, size in sizes[:-1]:
            if total <= self._keep_bytes:
                return
            path.unlink()
            total -= size


def _windows(table: pa.Table) -> list[pa.Table]:
    """One per window, in the order of the file."""
    first = table["first_row"].to_numpy()
    ends = [*(np.flatnonzero(first[1:] != first[:-1]) + 1).tolist(), len(first)]
    return [table.slice(start, end - start) for start, end in zip([0, *ends], ends, strict=False) if end > start]


def _put(path: Path, windows: Sequence[pa.Table]) -> None:
    """The whole file or, killed before the last step, what was there before."""
    beside = path.with_suffix(".tmp")
    with beside.open("wb") as file:
        parquet.write_table(pa.concat_tables(windows), file, compression="zstd")
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
