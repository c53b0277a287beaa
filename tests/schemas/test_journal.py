"""A process's log of figures: whole lines, read from either end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from schemas import journal


@given(kinds=st.lists(st.sampled_from("abc"), max_size=30), padding=st.integers(0, 60))
def test_the_newest_row_is_the_last_one_read(kinds: list[str], padding: int, tmp_path_factory) -> None:
    """Looked for from the end, in blocks that cut lines anywhere, it is what a pass from the beginning would end with."""
    path: Path = tmp_path_factory.mktemp("journal") / "rows.jsonl"
    log = journal.Journal(path)
    for number, kind in enumerate(kinds):
        log.write({"event": kind, "number": number, "padding": "x" * padding})
    log.close()
    rows = list(journal.read(path))
    assert [row["number"] for row in rows] == list(range(len(kinds)))
    blocks, journal.BLOCK_BYTES = journal.BLOCK_BYTES, 37
    try:
        for kind in "abc":
            expected = [row for row in rows if row["event"] == kind]
            assert journal.newest(path, kind) == (expected[-1] if expected else None)
    finally:
        journal.BLOCK_BYTES = blocks


def test_a_line_cut_by_a_crash_is_passed_over(tmp_path: Path) -> None:
    """The rows around it count."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"event":"a","n":1}\n{"event":"a","n"\n{"event":"b","n":3}\n{"event":"a"')
    assert [row["n"] for row in journal.read(path)] == [1, 3]
    newest = journal.newest(path, "a")
    assert newest is not None
    assert newest["n"] == 1
    assert journal.newest(tmp_path / "absent", "a") is None


def test_the_newest_rows_are_those_that_lie_whole_at_the_end(tmp_path: Path) -> None:
    """A row that begins before is left out; all of them where the file is short."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"n":1}\n{"n":2}\n{"n":3}\n')
    assert [row["n"] for row in journal.newest_rows(path, 1000)] == [1, 2, 3]
    assert [row["n"] for row in journal.newest_rows(path, 17)] == [2, 3]
    assert [row["n"] for row in journal.newest_rows(path, 15)] == [3]
    assert journal.newest_rows(tmp_path / "absent", 10) == []


FULL = """
import resource, sys
from pathlib import Path
from schemas.journal import Journal
journal = Journal(Path(sys.argv[1]))
journal.write({"n": 1})
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (journal.path.stat().st_size + 10, hard))   # the kernel takes ten bytes more
for n in (2, 3, 4):
    journal.write({"n": n})
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
journal.write({"n": 5})
journal.write({"n": 6})
"""


def test_a_disk_without_room_loses_rows_and_ends_nothing(tmp_path: Path) -> None:
    """Said once, and once more when rows are written again; those are whole, whatever half a row stands before them."""
    path = tmp_path / "rows.jsonl"
    told = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, timeout=60, check=True)
    assert [row["n"] for row in journal.read(path)] == [1, 5, 6]
    said = told.stdout + told.stderr
    assert said.count("journal.unwritten") == 1
    assert said.count("journal.written_again") == 1
    assert "rows_lost=" in said
