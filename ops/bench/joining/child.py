"""What `freshet bench join` runs in processes of their own: `python -m ops.bench.joining.child stock|stages …`.

stock TOPIC GROUP RECORDS: prints how long a Faust that does nothing took for so many records.
stages: a joiner that also measures where its time goes, written to `stages.json` under `var` when it is told to stop. Each
measured call costs a microsecond more than it does in a joiner that is not watched.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from ops.bench.measuring.meters import Meters
from ops.settings import load
from ops.terminal.logging import configure
from schemas import examples, fields
from schemas.config import Settings
from schemas.events import Impression
from stream_trainer import faust_driver, joiner
from stream_trainer.joining import join

STAGES = ("fetch", "parse", "encode_ids", "join", "encode_examples", "send", "commit")


_MEASURED: tuple[tuple[Any, str, str], ...] = (   # where the joiner finds each, so that it meets the measured one
    (join, "parse_all", "parse"), (join, "_examples", "encode_examples"), (examples, "encode", "encode_examples"),
    (join.JoinCore, "feed_all", "join"),
)


class Watched(joiner.Joiner):
    """A joiner with meters. What the event loop's thread does beyond its stages is the producer's work: send."""

    def __init__(self, settings: Settings, schema: fields.FieldSchema) -> None:
        super().__init__(settings, schema)
        self._meters = meters = Meters()
        self._records = 0
        self._began: tuple[float, float] | None = None
        self._encode_slates = meters.measured("encode_ids", super()._encode)
        for owner, name, stage in _MEASURED:
            setattr(owner, name, meters.measured(stage, getattr(owner, name)))

    def _encode(self, shown: Sequence[Impression]) -> Any:
        return self._encode_slates(shown)

    async def records(self, records: Any) -> None:
        if self._began is None:
            self._began = time.thread_time(), _other_threads_s()
        self._records += len(records)
        await super().records(records)

    async def _commit(self, kafka: Any) -> None:
        await self._meters.stepped("commit", super()._commit(kafka))

    async def stopping(self) -> None:
        await super().stopping()
        if self._began is None:
            return
        main_s, others_s = time.thread_time() - self._began[0], _other_threads_s() - self._began[1]
        seconds = self._meters.seconds
        found = {"fetch": others_s, **{stage: seconds[stage] for stage in STAGES[1:] if stage != "send"}}
        found["send"] = main_s - sum(seconds.values())
        figures = {
            "records": self._records, "us_per_record": {stage: 1e6 * found[stage] / self._records for stage in STAGES},
        }
        (self._settings.var / "stages.json").write_text(json.dumps(figures))


def _other_threads_s() -> float:
    """CPU seconds of all threads but this one: the consumer's, which fetches."""
    return time.process_time() - time.thread_time() if threading.active_count() > 1 else 0.0


def _tell(seconds: float, cpu_seconds: float) -> NoReturn:
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds}), flush=True)
    os._exit(0)


def main(arguments: list[str]) -> None:
    """Settings come from the environment, as every child's do."""
    configure()
    settings = load(None, [], os.environ).settings
    match arguments:
        case ["stock", topic, group, records]:
            faust_driver.run_stock(settings.kafka, topic, group, int(records), _tell)
        case ["stages"]:
            gc.set_threshold(*joiner.GC_THRESHOLDS)
            handler = Watched(settings, fields.load(settings.model.schema))
            faust_driver.run(settings.kafka, settings.kafka.topic("events"), joiner.group_of(settings), "bench", handler)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
