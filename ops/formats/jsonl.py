"""Our own events, one JSON object a line, as `freshet simulate --record` writes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ops.formats.common import BadRow, EventRecord, Options, open_binary
from schemas.errors import BadEvent
from schemas.events import Impression, Tick, parse


def read(path: Path, options: Options) -> Iterator[EventRecord | BadRow]:
    """Events bring their own clock and names. A group is a field of the context."""
    options.refuse("jsonl", "label", "time")
    with open_binary(path) as file:
        for line, raw in enumerate(file, start=1):
            value = raw.strip()
            if not value:
                continue
            try:
                event = parse(value)
            except BadEvent as bad:
                yield BadRow(line, str(bad))
                continue
            if isinstance(event, Tick):
                continue
            group = None
            if options.group is not None and isinstance(event, Impression):
                named = event.slate.context.get(options.group)
                group = None if named is None else str(named)
            yield EventRecord(event.impression_id.encode(), value, event.time_us, line, group)
