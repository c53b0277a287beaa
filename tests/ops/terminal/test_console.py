"""What long work and logs look like."""

from __future__ import annotations

import io
import logging
import re

import structlog

from ops.terminal.console import progress
from ops.terminal.logging import configure


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_plain_lines_away_from_a_terminal():
    """No control characters; the last line says how much in how long."""
    out = io.StringIO()
    with progress("replay", 60_000, "rows", out) as bar:
        for _ in range(60):
            bar.advance(1000)
    assert re.fullmatch(r"replay: 60,000 of 60,000 \(100%\) rows after \d+\.\d s, [\d,]+/s\n", out.getvalue())


def test_progress_is_a_bar_on_a_terminal():
    """A bar that ends at the total."""
    out = _Terminal()
    with progress("replay", 500, "rows", out) as bar:
        bar.advance(500)
    assert "500/500" in out.getvalue()


def test_a_log_line_is_an_event_with_fields():
    """time level event key=value …; spaces are quoted; a library's record has the same form."""
    out = io.StringIO()
    configure(out)
    try:
        structlog.get_logger().info("snapshot.published", version=841, ms=11.25, why="a b", none="")
        logging.getLogger("some.library").warning("odd %d", 3)
        logging.getLogger("kafka").error("connection refused")
    finally:
        structlog.reset_defaults()
        logging.basicConfig(level=logging.WARNING, handlers=[], force=True)
    mine, theirs = out.getvalue().splitlines()
    time = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z"
    assert re.fullmatch(rf"{time} info snapshot\.published version=841 ms=11\.25 why='a b' none=''", mine)
    assert re.fullmatch(rf"{time} warning some\.library odd 3", theirs)
