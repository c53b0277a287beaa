"""Files become events: what a row says, in order, and a clear word about a row that does not fit."""

from __future__ import annotations

import gzip
from pathlib import Path

import orjson
import pytest

from ops import formats
from ops.formats.common import BadRow
from schemas.config import JoinConfig, Settings
from schemas.errors import ConfigError
from schemas.events import Action, Impression, Tick, parse, time_text

COUNTS = ["3", "-1", *[""] * 11]
KINDS = ["05db9164", *[""] * 25]
CLICKED = "\t".join(["1", *COUNTS, *KINDS])
NOT_CLICKED = "\t".join(["0", *COUNTS, *KINDS])


def test_a_criteo_row_is_an_impression_and_its_click(tmp_path: Path) -> None:
    """39 columns under Criteo's names, missing ones left out; a label of 1 is a click at the same moment."""
    path = tmp_path / "rows.tsv.gz"
    path.write_bytes(gzip.compress(f"{CLICKED}\n{NOT_CLICKED}\n".encode()))
    first, click, second = formats.read(path, "criteo", 1_000_000, "click")
    shown = parse(first.value)
    assert isinstance(shown, Impression)
    assert shown.slate.columns == {"I1": ["3"], "I2": ["-1"], "C1": ["05db9164"]}
    clicked = parse(click.value)
    assert isinstance(clicked, Action)
    assert (clicked.impression_id, clicked.item_id, clicked.time_us) == (shown.impression_id, "ad", shown.time_us)
    assert second.time_us - first.time_us == 1_000_000
    assert first.key == click.key != second.key


@pytest.mark.parametrize(("line", "message"), [
    ("2\t" + "\t" * 38, "a label of 0 or 1"), ("1\tshort", "39 columns"), ("", "39 columns"),
])
def test_a_row_that_does_not_fit_is_named_by_line(line: str, message: str, tmp_path: Path) -> None:
    """Line 2 of the file, and what was wanted."""
    path = tmp_path / "rows.tsv"
    path.write_text(f"{CLICKED}\n{line}\n")
    with pytest.raises(BadRow, match=message) as caught:
        list(formats.read(path, "criteo", 1, "click"))
    assert caught.value.line == 2


def test_our_own_log_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Events keep their bytes and clocks; ticks are left out, the replay writes its own."""
    lines = [
        orjson.dumps({"impression_id": "a", "time": time_text(5_000_000), "items": [{"id": "x"}]}),
        orjson.dumps({"tick": time_text(6_000_000)}),
        orjson.dumps({"impression_id": "a", "action": "click", "item": "x", "time": time_text(7_000_000)}),
    ]
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n\n")
    found = list(formats.read(path, "jsonl", 1, "click"))
    assert [(record.value, record.key, record.time_us) for record in found] == [
        (lines[0], b"a", 5_000_000), (lines[2], b"a", 7_000_000),
    ]


def test_rows_of_a_file_without_a_clock_wait_for_each_other() -> None:
    """By default each row's window is over when the next row comes, so that examples keep the file's order."""
    settings = Settings(join=JoinConfig(window_s=30, lateness_s=2))
    assert formats.row_interval_us(settings, None) == 32_000_000
    assert formats.row_interval_us(settings, 0.5) == 500_000
    with pytest.raises(ConfigError):
        formats.row_interval_us(settings, 0)


def test_first_rows_keeps_the_click_of_the_last_one(tmp_path: Path) -> None:
    """A row is an impression with what belongs to it."""
    path = tmp_path / "rows.tsv"
    path.write_text(f"{CLICKED}\n{CLICKED}\n{CLICKED}\n")
    assert [record.row for record in formats.first_rows(formats.read(path, "criteo", 1, "click"), 2)] == [1, 1, 2, 2]


def test_the_closing_tick_closes_every_window() -> None:
    """It lies beyond the reach of the last event, and ends the replay."""
    settings = Settings(join=JoinConfig(window_s=30, lateness_s=2))
    assert parse(formats.closing_tick(settings, 5_000_000)) == Tick(37_000_000, end=True)
    assert parse(formats.opening_tick(5_000_000)) == Tick(5_000_000, hold=True)


@pytest.mark.parametrize(("format", "hint"), [("cirteo", "did you mean criteo"), ("xml", "one of criteo, jsonl")])
def test_an_unknown_format_names_those_there_are(format: str, hint: str, tmp_path: Path) -> None:
    """With the nearest right one."""
    with pytest.raises(ConfigError, match=hint):
        list(formats.read(tmp_path / "x", format, 1, "click"))
