"""What keeps an eye on a trainer: windows, closed beside the learner's thread, become lines of the logs and alarms of drift;
once a second its status becomes alarms of its health; and all of it can be scraped."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from prometheus_client import Metric

from schemas.config import Settings
from schemas.fields import FieldSchema
from stream_trainer import faust_driver
from stream_trainer.store import SnapshotStore
from stream_trainer.watching import exposition, health
from stream_trainer.watching.alarms import Alarms
from stream_trainer.watching.beside import Beside
from stream_trainer.watching.drift import REMEMBERED, Drift
from stream_trainer.watching.inputs import Sampler
from stream_trainer.watching.looking_back import newest_windows
from stream_trainer.watching.marks import Marker
from stream_trainer.watching.metric_log import FIELDS_SCHEMA, SCHEMA, MetricLog
from stream_trainer.watching.progressive import Progressive
from stream_trainer.watching.reference import asked_for
from stream_trainer.watching.watch import Table, Watch


class Lookout:
    """Of one trainer. marker, sampler: by what each example is watched; None where metrics.watch is off. alarms: from `begin`
    on."""

    alarms: Alarms

    def __init__(self, settings: Settings, schema: FieldSchema) -> None:
        metrics = settings.metrics
        self._settings, self._schema = settings, schema
        self._beside = Beside(faust_driver.crash)
        self.marker = Marker(schema, metrics) if metrics.watch else None
        self._watch = Watch(self.marker, metrics, self._told) if self.marker else None
        self.sampler = Sampler(metrics.sample) if self._watch is not None and metrics.sample else None
        self.progressive = Progressive(metrics.window_rows, self._watch, self._beside)
        self._logs: list[MetricLog] = []      # of windows and slices, of fields
        self._drift = Drift()
        self._window: dict[str, Any] | None = None                   # the newest one's line
        self._status: tuple[float, Mapping[str, Any]] | None = None  # when (monotonic s), and the figures of then

    def begin(self, lineage: str, pinned: frozenset[int], store: SnapshotStore) -> None:
        """What the checkpoint knew is restored: from here on what is seen is told. pinned: versions, for metrics.reference."""
        settings, metrics, rows = self._settings, self._settings.metrics, self.progressive.whole_rows
        self.alarms = Alarms(
            settings.alarms, settings.alarms_file, model=settings.model.name, process="trainer", lineage=lineage
        )
        self._health = health.Health(self.alarms.open)
        self._exposition = exposition.Exposition("metrics.trainer_port", metrics.trainer_port, self._families)
        if self._watch is not None:
            self._watch.reference = asked_for(
                metrics.reference, pinned, store, settings.model, settings.learn, self._schema
            )
            self._logs = [
                MetricLog(folder, lineage, rows, metrics.keep_mb << 20, own)
                for folder, own in ((settings.windows_dir, SCHEMA), (settings.fields_dir, FIELDS_SCHEMA))
            ]
            self._beside.give(partial(self._look_back, lineage, rows))

    # --- the learner's thread ---

    def settle(self) -> None:
        """All windows that are complete are in the logs: what a checkpoint holds is not learnt again."""
        self._beside.settle()
        for written in self._logs:
            written.flush()

    def figures(self) -> dict[str, Any]:
        """For the status."""
        return {
            "windows_unwritten": next((one.trouble for one in self._logs if one.trouble), None),
            "windows_lost": sum(one.lost for one in self._logs),
            "metrics_port": self._exposition.port, "alarms_dropped": self.alarms.dropped,
        }

    def reported(self, status: Mapping[str, Any]) -> None:
        """The trainer's newest status."""
        self._status = time.monotonic(), status

    def close(self) -> None:
        """Tell all that was seen, and end."""
        self._beside.close()
        for written in self._logs:
            written.close()
        self.alarms.close()

    # --- the event loop ---

    def look(self) -> None:
        """Is all well? To be asked once a second."""
        if self._status is None:
            return
        told_s, status = self._status
        now_s, now_us = time.monotonic(), time.time_ns() // 1000
        conditions = health.of_trainer(status, self._settings.alarms, now_us, now_s - told_s)
        for alarm in self._health.look(conditions, now_s, now_us):
            self.alarms.raise_(alarm)

    def unexpose(self) -> None:
        """No more scrapes."""
        self._exposition.close()

    # --- the thread beside, and the server's ---

    def _told(self, windows: Table, fields: Table) -> None:
        """A window is closed: its lines, and those of its fields."""
        now_us = time.time_ns() // 1000
        self._window = {name: column[0] for name, column in windows.items() if len(column)}
        for written, table in zip(self._logs, (windows, fields), strict=False):   # while a checkpoint is restored, none
            written.write(now_us, table)
        if self._logs:
            for alarm in self._drift.closed(windows, fields, now_us):
                self.alarms.raise_(alarm)

    def _look_back(self, lineage: str, rows: int) -> None:
        """What is usual, by the windows that the checkpoint knows."""
        before = newest_windows(self._settings.windows_dir, self._settings.fields_dir, lineage, rows, REMEMBERED)
        self._drift, over = Drift.rebuilt(before, self.alarms.open)
        for alarm in over:
            self.alarms.raise_(alarm)

    def _families(self) -> Iterator[Metric]:
        status = None if self._status is None else self._status[1]
        return exposition.of_trainer(status, self._window, self.alarms.open, time.time_ns() // 1000)
