"""The newest windows of the log, as Watch made them: what a trainer that starts again knows of the stream before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

Table = dict[str, Any]


def newest_windows(windows: Path, fields: Path, lineage: str, rows: int, most: int) -> Iterator[tuple[Table, Table, int]]:
    """The last `most` windows of a lineage below that row, oldest first: lines, lines of fields (none where that log has none),
    and wall clock. A file that cannot be read is passed over."""
    inputs = dict(_tables(fields, lineage, rows, most))
    found = list(_tables(windows, lineage, rows, most))
    for (time_us, first_row), table in reversed(found):
        yield table, inputs.get((time_us, first_row), {}), time_us


def _tables(folder: Path, lineage: str, rows: int, most: int) -> Iterator[tuple[tuple[int, int], Table]]:
    """((wall clock, first row), table), newest first."""
    left = most
    for path in sorted(folder.glob("*.parquet"), reverse=True):
        try:
            with path.open("rb") as file:
                whole = parquet.read_table(file)
        except (OSError, pa.ArrowException):
            continue                              # the log's own thread says what is wrong with it
        own = whole.filter((pa.compute.field("lineage") == lineage) & (pa.compute.field("first_row") < rows))
        starts = own["first_row"].to_numpy()
        ends = [*(starts[1:] != starts[:-1]).nonzero()[0] + 1, len(starts)]
        for start, end in reversed(list(zip([0, *ends], ends, strict=False))):
            if end > start and left:
                left -= 1
                yield _window(own.slice(start, end - start))
        if not left:
            return


def _window(lines: pa.Table) -> tuple[tuple[int, int], Table]:
    table = {name: lines[name].to_pylist() for name in lines.column_names if name not in ("time", "lineage")}
    return (int(lines["time"].cast(pa.int64())[0].as_py()), int(table["first_row"][0])), table
