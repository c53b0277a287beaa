"""libffm's text: a label, then field:feature:value. Field numbers are the schema's field numbers.

A categorical field takes one feature, a set several, both with value 1; of a number the value counts, and its feature is its
name, nothing more. The label is 1 above 0 (libffm also writes -1). The file has no clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ops.formats.common import START_US, BadRow, EventRecord, Options, open_binary, place_of
from ops.formats.tabular import group_of, impression_and_click
from schemas.errors import BadEvent
from schemas.fields import Field

LABELS = {"1": True, "+1": True, "0": False, "-1": False}


def read(path: Path, options: Options) -> Iterator[EventRecord | BadRow]:
    """Raises ConfigError for a group that is no field."""
    options.refuse("libffm", "label", "time")
    fields = {str(spec.number): spec for spec in options.schema.fields}
    names = [spec.name for spec in fields.values()]
    group_number = None if options.group is None else list(fields)[place_of(options.group, names, "--group")]
    with open_binary(path) as file:
        for line, raw in enumerate(file, start=1):
            try:
                label, *parts = raw.decode().split()
            except UnicodeDecodeError as wrong:
                yield BadRow(line, f"not UTF-8: {wrong}")
                continue
            except ValueError:
                continue  # an empty line
            try:
                if label not in LABELS:
                    raise BadEvent("bad_label", f"a label is 1, 0 or -1, got {label[:20]!r}")
                values = _values(parts, fields)
                group = None if group_number is None else group_of(values.get(group_number))
                given = [(spec, values.get(number)) for number, spec in fields.items()]
                time_us = START_US + line * options.row_interval_us
                found = impression_and_click(line, time_us, given, LABELS[label], options.action, group)
            except BadEvent as bad:
                yield BadRow(line, str(bad))
                continue
            yield from found


def _values(parts: list[str], fields: dict[str, Field]) -> dict[str, Any]:
    """Field number → its value, a list for a set. Raises BadEvent."""
    found: dict[str, Any] = {}
    for part in parts:
        number, _, rest = part.partition(":")
        feature, colon, value = rest.rpartition(":")
        if not colon or not feature:
            raise BadEvent("garbage", f"{part[:40]!r} is not field:feature:value")
        spec = fields.get(number)
        if spec is None:
            raise BadEvent("unknown_field", f"field {number[:20]} is no number of the schema's ({', '.join(fields)})")
        if spec.kind == "numeric":
            feature = value
        elif value not in ("1", "1.0"):
            raise BadEvent("wrong_type", f"{part[:40]!r}: {spec.name} is {spec.kind}, its features have value 1")
        if spec.kind == "set":
            found.setdefault(number, []).append(feature)
        elif number in found:
            raise BadEvent("field_twice", f"field {number} ({spec.name}) takes one feature")
        else:
            found[number] = feature
    return found
