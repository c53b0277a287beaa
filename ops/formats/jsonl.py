"""Our own events, one JSON object a line, as `freshet simulate --record` writes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from ops.formats.common import BadRow
from schemas.errors import BadEvent
from schemas.events import Tick, parse


def read(file: BinaryIO, row_interval_us: int, action: str) -> Iterator[tuple[int, bytes, bytes, int]]:
    """(line, key, value, time in µs) of each event; they bring their own clock and names. Raises BadRow."""
    for line, raw in enumerate(file, start=1):
        value = raw.strip()
        if not value:
            continue
        try:
            event = parse(value)
        except BadEvent as bad:
            raise BadRow(line, str(bad)) from bad
        if isinstance(event, Tick):
            continue
        yield line, event.impression_id.encode(), value, event.time_us
