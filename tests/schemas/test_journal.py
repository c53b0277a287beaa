"""A process's log of figures: whole lines, read from either end."""

from __future__ import annotations

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
