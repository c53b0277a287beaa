"""A window that does not fit into memory: the joiner stops and says what it needs; given more, it goes on with all of it."""

from __future__ import annotations

from collections.abc import Callable

from ops.kafka.cluster import producer
from ops.watching.journals import last
from schemas.config import Settings
from stream_trainer.faust_driver import CRASHED
from tests.kit.logs import click, impression, tick
from tests.kit.processes import Process, wait_until

COUNT = 2000


def test_a_joiner_that_needs_more_memory_stops_and_says_so(kafka_settings: Callable[..., Settings]) -> None:
    """2,000 open impressions do not fit into 1 MB: exit and advice; into 100 MB they do, and all labels come."""
    small = kafka_settings(**{"join.memory_mb": 1, "join.window_s": 600, "model.schema": "appstore"})
    sender = producer(small.kafka, "test")
    for number in range(COUNT):
        sender.send(small.kafka.topic("events"), impression(f"i{number}", number / 100), partition=0)
    sender.send(small.kafka.topic("events"), click("i7", 30), partition=0)
    sender.send(small.kafka.topic("events"), tick(1000, end=True), partition=0)
    sender.close()

    joiner = Process(small, "joiner")
    wait_until(lambda: not joiner.alive, 60, "the joiner's end")
    assert joiner.stop() == CRASHED
    assert "window × rate needs" in joiner.tail()
    assert "join.memory_mb=1 is reached" in joiner.tail()

    enough = kafka_settings(**{"join.memory_mb": 100, "join.window_s": 600, "model.schema": "appstore"})
    joiner = Process(enough, "joiner")
    try:
        wait_until(lambda: _counts(enough).get("flush"), 60, "the closing tick")
        assert _counts(enough)["examples"] == 2 * COUNT
    finally:
        joiner.stop()


def _counts(settings: Settings) -> dict[str, int]:
    status = last(settings, "joiner", "joiner.status")
    found: dict[str, int] = status["counts"] if status else {}
    return found
