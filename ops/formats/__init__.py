"""Files of examples or events → records of the topic `events`, in order. One file per format."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from ops.formats import criteo, csv, jsonl, libffm, movielens, parquet
from ops.formats.common import BadRow, Broken, EventRecord, Options, nearest
from schemas.config import Settings
from schemas.errors import ConfigError
from schemas.events import Tick, tick_bytes
from schemas.fields import FieldSchema

Reader = Callable[[Path, Options], Iterator[EventRecord | BadRow]]

FORMATS: dict[str, Reader] = {
    "criteo": criteo.read, "jsonl": jsonl.read, "csv": csv.read, "tsv": csv.read_tsv, "parquet": parquet.read,
    "libffm": libffm.read, "movielens": movielens.read,
}


def read(
    path: Path, format: str, row_interval_us: int, action: str, *, schema: FieldSchema | None = None,
    label: str | None = None, time: str | None = None, group: str | None = None, broken: Broken | None = None,
) -> Iterator[EventRecord]:
    """Events of a file (.gz is unpacked), in its order, or by the column `time` if one is named.

    row_interval_us: for files without a clock, the event time between two rows. action: what a label of 1 is called.
    broken: takes the rows that do not fit; None = the first one is raised.
    Raises ConfigError for an unknown format, a missing file or a missing column, and BadRow.
    """
    if format not in FORMATS:
        raise ConfigError(f"format {format}: one of {', '.join(FORMATS)}{nearest_only(format)}")
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    broken = broken or Broken(strict=True)
    options = Options(
        row_interval_us=row_interval_us, action=action, fields=schema, label=label, time=time, group=group
    )
    try:
        for found in FORMATS[format](path, options):
            if isinstance(found, BadRow):
                broken.add(found)
            else:
                yield found
    except (EOFError, gzip.BadGzipFile, zlib.error) as wrong:
        raise ConfigError(f"{path}: cannot be unpacked: {wrong}") from wrong


def has_clock(format: str, time: str | None) -> bool:
    """Whether the events' times are the file's own, and not made up from the order of its rows."""
    return format in ("jsonl", "movielens") or time is not None


def nearest_only(format: str) -> str:
    """A hint, where a format of nearly that name exists."""
    hint = nearest(format, FORMATS)
    return hint if "did you mean" in hint else ""


def row_interval_us(settings: Settings, row_interval_s: float | None) -> int:
    """The time between two rows of a file without a clock. As long as the join's window and lateness unless told
    otherwise: then each row's label is final before the next row comes, and examples keep the file's order in every mode.
    """
    seconds = settings.join.window_s + settings.join.lateness_s if row_interval_s is None else row_interval_s
    if seconds <= 0:
        raise ConfigError(f"--row-interval-s {seconds}: above 0")
    return round(seconds * 1e6)


def opening_tick(time_us: int) -> bytes:
    """A replay begins: joiners write no time of their own from here on."""
    return tick_bytes(Tick(time_us, hold=True))


def closing_tick(settings: Settings, time_us: int) -> bytes:
    """A replay is over at `time_us`: every window closes, and the trainer closes its batch."""
    reach_us = round((settings.join.window_s + settings.join.lateness_s) * 1e6)
    return tick_bytes(Tick(time_us + reach_us, end=True))


def first_rows(records: Iterator[EventRecord], rows: int) -> Iterator[EventRecord]:
    """The events of the first `rows` rows; all where it is 0."""
    seen = last = 0
    for record in records:
        if record.row != last:
            seen, last = seen + 1, record.row
        if rows and seen > rows:
            return
        yield record


__all__ = [
    "FORMATS", "BadRow", "Broken", "EventRecord", "closing_tick", "first_rows", "has_clock", "opening_tick", "read",
    "row_interval_us",
]
