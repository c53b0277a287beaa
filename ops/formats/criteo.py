"""Criteo's display advertising TSV: label, 13 integers, 26 categories in hex; an empty column is a missing value.

Each row becomes an impression of one item, and a click at the same moment where the label is 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ops.formats.common import START_US, BadRow, EventRecord, Options, open_binary, place_of
from schemas.proto import events_pb2

NAMES = tuple([f"I{i}" for i in range(1, 14)] + [f"C{i}" for i in range(1, 27)])
ITEM = "ad"


def read(path: Path, options: Options) -> Iterator[EventRecord | BadRow]:
    """Raises ConfigError for a group that is none of the columns."""
    options.refuse("criteo", "label", "time")
    group_place = None if options.group is None else place_of(options.group, NAMES, "--group")
    with open_binary(path) as file:
        for line, raw in enumerate(file, start=1):
            try:
                label, *values = raw.decode().rstrip("\r\n").split("\t")
            except UnicodeDecodeError as wrong:
                yield BadRow(line, f"not UTF-8: {wrong}")
                continue
            if len(values) != len(NAMES) or label not in ("0", "1"):
                yield BadRow(line, f"Criteo's form is a label of 0 or 1 and 39 columns; got {label[:20]!r} and {len(values)}")
                continue
            name = f"row{line}"
            key = name.encode()
            time_us = START_US + line * options.row_interval_us
            group = None if group_place is None else values[group_place] or None
            shown = events_pb2.Impression(
                impression_id=name, time_us=time_us, item_id=[ITEM],
                items=[
                    events_pb2.Column(field=field, strings=[value])
                    for field, value in zip(NAMES, values, strict=True) if value
                ],
            )
            yield EventRecord(key, events_pb2.Event(impression=shown).SerializeToString(), time_us, line, group)
            if label == "1":
                clicked = events_pb2.Action(
                    impression_id=name, action=options.action, item_id=ITEM, time_us=time_us, value=1.0
                )
                yield EventRecord(key, events_pb2.Event(action=clicked).SerializeToString(), time_us, line, group)
