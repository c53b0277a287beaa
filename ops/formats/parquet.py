"""Parquet, read a stretch at a time. Columns are matched to the schema's fields by name (ops/formats/tabular.py)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ops.formats.common import BadRow, EventRecord, Options
from ops.formats.tabular import Table, in_time_order
from schemas.errors import ConfigError

STRETCH_ROWS = 4096


def read(path: Path, options: Options) -> Iterator[EventRecord | BadRow]:
    """Rows are numbered from 1. Raises ConfigError for a column that is missing and for a file that is no Parquet."""
    rows = _rows(path, options)
    return rows if options.time is None else in_time_order(rows)


def _rows(path: Path, options: Options) -> Iterator[EventRecord | BadRow]:
    import pyarrow  # imported here: it takes 100 ms, and other formats do not need it
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            header: list[str] = file.schema_arrow.names
            needed = [header[place] for place in Table(options, header, "row").needed]
            table = Table(options, needed, "row")
            line = 0
            for stretch in file.iter_batches(STRETCH_ROWS, columns=needed):
                # A struct gives several leaves for one name; by name again, whatever order they came in.
                columns = [stretch.column(name).to_pylist() for name in needed]
                for cells in zip(*columns, strict=True):
                    line += 1
                    yield from table.events(line, cells)
    except (pyarrow.ArrowException, OSError) as wrong:
        raise ConfigError(f"{path}: cannot be read as Parquet: {wrong}") from wrong
