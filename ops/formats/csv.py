"""CSV and TSV with a header. Columns are matched to the schema's fields by name (ops/formats/tabular.py)."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from ops.formats.common import BadRow, EventRecord, Options, open_binary
from ops.formats.tabular import Table, in_time_order
from schemas.errors import ConfigError


def read(path: Path, options: Options) -> Iterator[EventRecord | BadRow]:
    """Commas. Raises ConfigError for a column that is missing."""
    return _read(path, options, ",")


def read_tsv(path: Path, options: Options) -> Iterator[EventRecord | BadRow]:
    """Tabs. Raises ConfigError for a column that is missing."""
    return _read(path, options, "\t")


def _read(path: Path, options: Options, delimiter: str) -> Iterator[EventRecord | BadRow]:
    rows = _rows(path, options, delimiter)
    return rows if options.time is None else in_time_order(rows)


def _rows(path: Path, options: Options, delimiter: str) -> Iterator[EventRecord | BadRow]:
    with open_binary(path) as raw, io.TextIOWrapper(raw, "utf-8-sig", errors="surrogateescape", newline="") as file:
        lines = csv.reader(file, delimiter=delimiter)
        header = next(lines, None)
        if not header:
            raise ConfigError(f"{path}: empty; its first line is the header")
        table = Table(options, header)
        while True:
            line = lines.line_num + 1
            try:
                cells = next(lines, None)
            except csv.Error as wrong:
                yield BadRow(line, str(wrong))
                continue
            if cells is None:
                return
            if not cells:
                continue  # an empty line
            if len(cells) != len(header):
                yield BadRow(line, f"{len(cells)} cells, the header has {len(header)}")
                continue
            yield from table.events(line, cells)
