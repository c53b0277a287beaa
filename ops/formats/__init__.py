"""Files of examples or events → records of the topic `events`, in order. One file per format."""

from __future__ import annotations

import difflib
import gzip
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from ops.formats import criteo, jsonl
from schemas.config import Settings
from schemas.errors import ConfigError
from schemas.events import Tick, tick_bytes


@dataclass(frozen=True, slots=True)
class EventRecord:
    """One record for the topic `events`. row: the line of the file it comes from, from 1."""

    key: bytes
    value: bytes
    time_us: int
    row: int


Reader = Callable[[BinaryIO, int, str], Iterator[tuple[int, bytes, bytes, int]]]

FORMATS: dict[str, Reader] = {"criteo": criteo.read, "jsonl": jsonl.read}


def read(path: Path, format: str, row_interval_us: int, action: str) -> Iterator[EventRecord]:
    """Events of a file (.gz is unpacked), in its order.

    row_interval_us: for files without a clock, the event time between two rows. action: what a label of 1 is called.
    Raises ConfigError for an unknown format or a missing file, BadRow for a line that does not fit.
    """
    if format not in FORMATS:
        near = difflib.get_close_matches(format, FORMATS, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ConfigError(f"format {format}: one of {', '.join(FORMATS)}{hint}")
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    with cast(BinaryIO, gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb") as file:
        for row, key, value, time_us in FORMATS[format](file, row_interval_us, action):
            yield EventRecord(key, value, time_us, row)


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
