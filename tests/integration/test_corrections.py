"""Mode corrected through real Kafka: the second pass over the log, its joiner killed on the way."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

from ops import formats
from ops.events.replay import replay
from ops.kafka.topics import ensure_topics
from ops.offline.evaluate import evaluate
from ops.simulator.live import Record
from ops.simulator.options import StoreOptions
from ops.simulator.slates import Simulator
from ops.simulator.store import AppStore, VirtualClock
from ops.watching.journals import last
from schemas.config import Source, build
from tests.kit.processes import Process, wait_until

SLATES, PER_S = 160, 20   # of 20 items each: 3,200 examples, each learnt twice


def test_every_example_is_learnt_a_second_time_whatever_is_killed(broker: str, prefix: str, tmp_path: Path) -> None:
    """A third of the clicks come after the window of 3 s, within the 20 s after which labels are corrected. A joiner killed
    twice while it joins, first and second pass alike, leads to the counts of one process that nobody kills."""
    settings, _ = build(Source("test", {
        "var": str(tmp_path), "kafka.bootstrap": broker, "kafka.prefix": prefix, "model.schema": "appstore", "model.bits": 16,
        "model.hidden": "16", "join.mode": "corrected", "join.window_s": 3, "join.correct_after_s": 20,
        "join.commit_every_s": 0.2, "snapshot.checkpoint_every_s": 0.5,
    }))
    path, start_us = tmp_path / "log.jsonl", 1_767_225_600_000_000
    options = StoreOptions(seed=3, delay_most_s=2.7, delay_median_s=0.5, late_share=0.33, late_after_s=3)
    AppStore(Simulator(options, start_us), VirtualClock(start_us), Record(path), rate=PER_S, seconds=SLATES / PER_S).run()
    expected = evaluate(settings, formats.read(path, "jsonl", 1, "click")).tallies
    assert expected["corrections"] == expected["examples"] == SLATES * 20
    assert expected["late_positives"] > 0.2 * expected["true_positives"]

    ensure_topics(settings)
    crew = [Process(settings, verb) for verb in ("joiner", "trainer")]

    def tallies() -> dict[str, int]:
        status = last(settings, "trainer", "trainer.status")
        return dict(status["tallies"]) if status else {}

    def corrected(least: int) -> bool:
        return tallies().get("corrections", 0) > least

    try:
        wait_until(lambda: last(settings, "trainer", "trainer.status"), 60, "the trainer's first status")
        replay(settings, formats.read(path, "jsonl", 1, "click"), 200)
        for count in (300, 1500):
            wait_until(partial(corrected, count), 60, f"{count} corrections")
            crew[0].kill()
            time.sleep(0.2)
            crew[0].restart()
        wait_until(lambda: tallies() == expected, 60, f"{expected}, there is {tallies()}")
    finally:
        for process in crew:
            process.stop()
