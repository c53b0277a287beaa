"""What keeps an eye on a trainer: windows, closed beside the learner's process, become lines of the logs and alarms of drift;
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
from stream_trainer.watching.closing import ClosingApart, News
from stream_trainer.watching.marks import Marker
from stream_trainer.watching.progressive import Progressive
from stream_trainer.watching.reference import asked_for
from stream_trainer.watching.sampling import Sampler


class Lookout:
    """Of one trainer. marker: by what each example is watched; None where metrics.watch is off. alarms: from `begin` on."""

    alarms: Alarms

    def __init__(self, settings: Settings, schema: FieldSchema) -> None:
        """To be made before the table is (ClosingApart)."""
        metrics = settings.metrics
        self._settings, self._schema = settings, schema
        self.marker = Marker(schema, metrics) if metrics.watch else None
        self._closing = ClosingApart(settings, self.marker) if self.marker else None
        self._beside = Beside(faust_driver.crash)
        self._sampler = Sampler(metrics.sample, settings.model.bits) if metrics.watch and metrics.sample else None
        self.progressive = Progressive(metrics.window_rows, self._closing, self._beside, self._sampler)
        self._status: tuple[float, Mapping[str, Any]] | None = None  # when (monotonic s), and the figures of then

    def begin(self, lineage: str, pinned: frozenset[int], store: SnapshotStore) -> None:
        """What the checkpoint knew is restored: from here on what is seen is told. pinned: versions, for metrics.reference."""
        settings, metrics, rows = self._settings, self._settings.metrics, self.progressive.whole_rows
        self.alarms = Alarms(
            settings.alarms, settings.alarms_file, model=settings.model.name, process="trainer", lineage=lineage
        )
        self._health = health.Health(self.alarms.open)
        self._exposition = exposition.Exposition("metrics.trainer_port", metrics.trainer_port, self._families)
        if self._sampler is not None:
            self._sampler.still = asked_for(metrics.reference, pinned, store, settings.model, settings.learn, self._schema)
        if self._closing is not None:
            self._closing.begin(lineage, rows, self.alarms.raise_)
            self._beside.give(partial(self._closing.look_back, lineage, rows, self.alarms.open))

    # --- the learner's thread ---

    def rest(self) -> None:
        """Returns when all windows that are complete are closed."""
        self._beside.settle()

    def settle(self) -> None:
        """All windows that are complete are in the logs: what a checkpoint holds is not learnt again."""
        self.rest()
        if self._closing is not None:
            self._closing.flush()

    def figures(self) -> dict[str, Any]:
        """For the status."""
        news = self._news
        return {
            "windows_unwritten": news.trouble, "windows_lost": news.lost,
            "metrics_port": self._exposition.port, "alarms_dropped": self.alarms.dropped,
        }

    def reported(self, status: Mapping[str, Any]) -> None:
        """The trainer's newest status."""
        self._status = time.monotonic(), status

    def close(self) -> None:
        """Tell all that was seen, and end."""
        self._beside.close()
        if self._closing is not None:
            self._closing.end()
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

    # --- the server's threads ---

    def _families(self) -> Iterator[Metric]:
        status = None if self._status is None else self._status[1]
        return exposition.of_trainer(status, self._news.newest, self.alarms.open, time.time_ns() // 1000)

    @property
    def _news(self) -> News:
        """Of windows."""
        return News() if self._closing is None else self._closing.news
