"""What a person sees of long work: a bar on a terminal, plain lines elsewhere. All on stderr; stdout is for results."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

LINE_EVERY_S = 5.0  # wall seconds between two plain lines


class Progress:
    """How far a piece of work is. total: None if it is not known."""

    def __init__(self, show: Callable[[int, float], None]) -> None:
        self._show = show
        self._began = time.monotonic()
        self.done = 0

    def advance(self, count: int = 1) -> None:
        """`count` more are done."""
        self.done += count
        self._show(self.done, time.monotonic() - self._began)


@contextmanager
def progress(what: str, total: int | None = None, unit: str = "", stream: TextIO | None = None) -> Iterator[Progress]:
    """Show work as it goes: `with progress("replay", 60_000, "rows") as bar: bar.advance(500)`."""
    stream = stream or sys.stderr
    with _bar(what, total, unit, stream) if stream.isatty() else _lines(what, total, unit, stream) as shown:
        yield shown


@contextmanager
def _bar(what: str, total: int | None, unit: str, stream: TextIO) -> Iterator[Progress]:
    # Imported here: rich takes 50 ms, and most commands show no bar.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn())
    with RichProgress(*columns, console=Console(file=stream)) as rich:
        task = rich.add_task(what, total=total)
        yield Progress(lambda done, _: rich.update(task, completed=done))


@contextmanager
def _lines(what: str, total: int | None, unit: str, stream: TextIO) -> Iterator[Progress]:
    last_s = 0.0

    def text(done: int, after_s: float) -> str:
        of = f" of {total:,} ({done / total:.0%})" if total else ""
        rate = f", {done / after_s:,.0f}/s" if after_s > 0 else ""
        return f"{what}: {done:,}{of}{' ' + unit if unit else ''} after {after_s:.1f} s{rate}"

    def show(done: int, after_s: float) -> None:
        nonlocal last_s
        if after_s - last_s >= LINE_EVERY_S:
            last_s = after_s
            print(text(done, after_s), file=stream, flush=True)

    shown = Progress(show)
    began = time.monotonic()
    yield shown
    print(text(shown.done, time.monotonic() - began), file=stream, flush=True)
