"""What becomes of a complete window: its figures, its lines in the logs, alarms of drift. In a process of its own (apart.py):
nothing of it is needed by whoever learns, and in that interpreter each of its turns would be the learner's."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from numpy.typing import NDArray

from schemas.config import Settings
from stream_trainer.watching.alarms import Alarm
from stream_trainer.watching.apart import Apart
from stream_trainer.watching.drift import REMEMBERED, Drift, load
from stream_trainer.watching.looking_back import newest_windows
from stream_trainer.watching.marks import Marker
from stream_trainer.watching.metric_log import FIELDS_SCHEMA, SCHEMA, MetricLog
from stream_trainer.watching.sampling import Taken
from stream_trainer.watching.watch import Table, Watch
from stream_trainer.watching.windows import Rows, Window, Windows


@dataclass(frozen=True, slots=True)
class News:
    """alarms: to be raised. newest: the newest window's line; None: there is none. trouble: why what waits for the logs cannot
    be written; lost: windows that never will be."""

    alarms: Sequence[Alarm] = ()
    newest: Mapping[str, Any] | None = None
    trouble: str | None = None
    lost: int = 0


class Closing:
    """Of one trainer."""

    def __init__(self, settings: Settings, marker: Marker) -> None:
        self._settings = settings
        self._windows = Windows(Watch(marker, settings.metrics, self._told))
        self._logs: list[MetricLog] = []      # of windows and slices, of fields
        self._drift = Drift()
        self._alarms: list[Alarm] = []
        self._newest: dict[str, Any] | None = None
        threading.Thread(target=load, name="detectors", daemon=True).start()   # meanwhile the first window fills

    def begin(self, lineage: str, rows: int) -> None:
        """From here on what is seen is logged, and judged. rows: in windows that the checkpoint knows."""
        settings = self._settings
        self._logs = [
            MetricLog(folder, lineage, rows, settings.metrics.keep_mb << 20, own)
            for folder, own in ((settings.windows_dir, SCHEMA), (settings.fields_dir, FIELDS_SCHEMA))
        ]

    def look_back(self, lineage: str, rows: int, standing: Sequence[Alarm]) -> News:
        """What is usual, by the windows that the checkpoint knows. standing: what was open."""
        settings = self._settings
        before = newest_windows(settings.windows_dir, settings.fields_dir, lineage, rows, REMEMBERED)
        self._drift, over = Drift.rebuilt(before, standing)
        self._alarms += over
        return self._news()

    def close(self, first_row: int, rows: Rows, taken: Taken | None) -> tuple[Window, News]:
        """As windows.Windows does, and what is to be told."""
        return self._windows.close(first_row, rows, taken), self._news()

    def flush(self) -> News:
        """All windows that are complete stand in the logs, or `trouble` says why not."""
        for written in self._logs:
            written.flush()
        return self._news()

    def end(self) -> News:
        """Write what was given; no more will be."""
        for written in self._logs:
            written.close()
        return self._news()

    def lifetime(self, rows: int, waiting: Rows) -> Window:
        """As windows.Windows says it."""
        return self._windows.lifetime(rows, waiting)

    def state(self) -> dict[str, NDArray[Any]]:
        """As windows.Windows has it."""
        return self._windows.state()

    def restore(self, rows: int, state: Mapping[str, NDArray[Any]]) -> None:
        """As windows.Windows does."""
        self._windows.restore(rows, state)

    def _told(self, windows: Table, fields: Table) -> None:
        """A window is closed: its lines, and those of its fields."""
        now_us = time.time_ns() // 1000
        self._newest = {name: column[0] for name, column in windows.items() if len(column)}
        for written, table in zip(self._logs, (windows, fields), strict=False):   # while a checkpoint is restored, none
            written.write(now_us, table)
        if self._logs:
            self._alarms += self._drift.closed(windows, fields, now_us)

    def _news(self) -> News:
        alarms, self._alarms = self._alarms, []
        trouble = next((one.trouble for one in self._logs if one.trouble), None)
        return News(alarms, self._newest, trouble, sum(one.lost for one in self._logs))


class ClosingApart:
    """A Closing in a process of its own; as what closes windows, for Progressive. news: what was told last."""

    def __init__(self, settings: Settings, marker: Marker) -> None:
        """To be made before the table is: the other process keeps what there is in this one."""
        self._apart = Apart("freshet-windows", lambda: Closing(settings, marker))
        self.news = News()
        self._raise: Callable[[Alarm], object] = lambda _: None

    def begin(self, lineage: str, rows: int, raise_: Callable[[Alarm], object]) -> None:
        """As Closing does. raise_: is told of alarms, on the thread that closes windows."""
        self._raise = raise_
        self._apart.ask("begin", lineage, rows)

    def look_back(self, lineage: str, rows: int, standing: Sequence[Alarm]) -> None:
        """As Closing does."""
        self._hear(self._apart.ask("look_back", lineage, rows, standing))

    def close(self, first_row: int, rows: Rows, taken: Taken | None) -> Window:
        """As windows.Windows does; logged, and alarms of it are raised."""
        window, news = self._apart.ask("close", first_row, rows, taken)
        self._hear(news)
        return cast(Window, window)

    def lifetime(self, rows: int, waiting: Rows) -> Window:
        """As windows.Windows says it."""
        return cast(Window, self._apart.ask("lifetime", rows, waiting))

    def state(self) -> dict[str, NDArray[Any]]:
        """As windows.Windows has it."""
        return cast(dict[str, NDArray[Any]], self._apart.ask("state"))

    def restore(self, rows: int, state: Mapping[str, NDArray[Any]]) -> None:
        """As windows.Windows does."""
        self._apart.ask("restore", rows, dict(state))

    def flush(self) -> None:
        """As Closing does."""
        self._hear(self._apart.ask("flush"))

    def end(self) -> None:
        """Write what was given, and end that process."""
        self._hear(self._apart.ask("end"))
        self._apart.close()

    def _hear(self, news: News) -> None:
        self.news = replace(news, alarms=())
        for alarm in news.alarms:
            self._raise(alarm)
