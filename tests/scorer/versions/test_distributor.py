from __future__ import annotations

import os
import socket
from typing import Any

import numpy as np
import pytest

from schemas import journal
from schemas.config import Settings, Source, build
from schemas.fields import load
from scorer.versions import distributor, feed, segment
from scorer.versions.distributor import Distributor
from tests.scorer.lineage import Lineage, RocksWriter, small, spoilt

SCHEMA = load("appstore")


class Handing:
    """A distributor over a store, and workers that the test plays."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.lineage = Lineage(small(), SCHEMA)
        self.writer = RocksWriter(settings.store_dir)
        self.listener = feed.listening()
        self.name = feed.name_of(self.listener)
        self.clock_us = 1_000
        self.distributor = Distributor(settings, self.listener, lambda: self.clock_us)

    def publish(self, **options: Any) -> None:
        self.writer.write(self.lineage.publish(**options))
        self.turn()

    def turn(self) -> None:
        """Once round: the store, then what workers said."""
        self.distributor._look_at = 0.0
        self.distributor.turn()
        self.distributor._hear(0)

    def worker(self, lineage: str | None = None, number: int | None = None) -> Worker:
        return Worker(self, lineage, number)

    def close(self) -> None:
        self.distributor.close()
        self.writer.close()


class Worker:
    def __init__(self, handing: Handing, lineage: str | None, number: int | None) -> None:
        self.handing = handing
        self.socket: socket.socket = feed.connected(handing.name)
        self.socket.settimeout(5)
        self.say(kind="hello", pid=1, lineage=lineage, number=number)
        handing.turn()

    def say(self, **message: Any) -> None:
        feed.send(self.socket, message)
        self.handing.turn()

    def hears(self) -> tuple[dict[str, Any], segment.Segment | None] | None:
        came = feed.receive(self.socket)
        if came is None:
            return None
        message, file = came
        if file is None:
            return message, None
        found = segment.opened(file)
        os.close(file)
        return message, found

    def took(self, packet: int, number: int, at_us: int) -> None:
        self.say(kind="took", packet=packet, lineage="a" * 32, number=number, created_us=0, applied_us=at_us)


@pytest.fixture
def handing(tmp_path):
    values = {"var": tmp_path, "score.poll_s": 0.001, "model.bits": 9, "model.factors": 3, "model.hidden": "8,4",
              "model.init_scale": 0.1, "model.statistics": False}
    handing = Handing(build(Source("test", values))[0])
    yield handing
    handing.close()


def kind_of(heard: tuple[dict[str, Any], Any] | None) -> str:
    assert heard is not None
    return str(heard[0]["kind"])


def test_a_worker_gets_the_table_once_and_then_each_version(handing):
    """Nothing while there is nothing; the whole table with the first version; then the rows of each alone, in order."""
    worker = handing.worker()
    assert kind_of(worker.hears()) == "nothing"
    handing.publish()
    message, found = worker.hears()
    assert (message["kind"], found.manifest.number) == ("table", 1)
    np.testing.assert_array_equal(found.table, handing.lineage.tables[1])
    table = found.table.copy()
    for number in (2, 3):
        handing.publish()
        message, found = worker.hears()
        assert (message["kind"], found.manifest.number) == ("version", number)
        assert found.manifest.rows < len(table)
        for rows, floats in found.content.rows:
            table[rows] = floats
        np.testing.assert_array_equal(table, handing.lineage.tables[number])
    late = handing.worker()
    message, found = late.hears()
    np.testing.assert_array_equal(found.table, handing.lineage.tables[3])
    assert kind_of(handing.worker("a" * 32, 3).hears()) == "same"
    assert kind_of(handing.worker("a" * 32, 2).hears()) == "table"


def test_a_broken_version_reaches_no_worker(handing):
    """What comes after it is whole: a table, once there is one."""
    worker = handing.worker()
    worker.hears()
    handing.publish()
    worker.hears()
    handing.writer.write(spoilt(handing.lineage.publish()))
    handing.turn()
    for _ in range(4):
        handing.publish()
    message, found = worker.hears()
    assert (message["kind"], found.manifest.number) == ("table", 6)
    np.testing.assert_array_equal(found.table, handing.lineage.tables[6])


def test_who_takes_nothing_is_dropped_and_others_go_on(handing, monkeypatch):
    """A worker that was stopped must not fill memory with versions; the one beside it gets every one of them."""
    monkeypatch.setattr(distributor, "MAX_BEHIND", 3)
    stopped, awake = handing.worker(), handing.worker()
    for number in range(1, 9):
        handing.publish()
        message, found = awake.hears() if number > 1 else (awake.hears(), awake.hears())[1]
        assert found.manifest.number == number
        awake.took(message["packet"], number, number)
    heard = []
    while (one := stopped.hears()) is not None:
        heard.append(kind_of(one))
    assert heard == ["nothing", "table", "version", "version"]


def test_a_click_is_served_when_the_slowest_worker_has_its_version(handing):
    """Not when the first one answers from it; a worker that ends is not waited for; counts of ended workers stay."""
    first, second = handing.worker(), handing.worker()
    handing.publish()
    handing.publish(traces=[{"click_us": 7}])
    packets = []
    for worker in (first, second):
        heard = [worker.hears() for _ in range(3)]
        packets.append([message["packet"] for message, _ in heard[1:]])
    for worker, packet in ((first, packets[0][0]), (second, packets[1][0])):
        worker.took(packet, 1, 1_000)
    first.took(packets[0][1], 2, 2_000)
    first.say(kind="served", served_us=2_100, lineage="a" * 32, number=2, created_us=0, applied_us=2_000)
    file = handing.settings.metrics_dir / "freshness.jsonl"
    assert list(journal.read(file)) == []
    second.took(packets[1][1], 2, 3_000)
    (line,) = journal.read(file)
    assert (line["click_us"], line["applied_us"], line["served_us"], line["version"]) == (7, 3_000, 3_000, 2)

    handing.publish(traces=[{"click_us": 8}])
    packet = first.hears()[0]["packet"]
    second.say(kind="totals", totals={"requests": 5}, port=1)
    second.socket.close()
    handing.turn()
    first.say(kind="totals", totals={"requests": 2}, port=1)
    first.took(packet, 3, 4_000)
    first.say(kind="served", served_us=4_100, lineage="a" * 32, number=3, created_us=0, applied_us=4_000)
    assert [line["served_us"] for line in journal.read(file)] == [3_000, 4_100]
    row = handing.distributor._status_row()
    assert (row["requests"], row["versions_served"], row["version"], row["workers"]) == (7, 2, 3, 1)
