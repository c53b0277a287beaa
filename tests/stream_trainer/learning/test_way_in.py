"""From records to the learner's thread: read ahead, held back when it is slow, and nothing unreadable comes through."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from schemas import fields
from schemas.bags import Bags
from schemas.config import Settings, Source, build
from schemas.examples import Examples, after_all_of, empty_ends, encode
from stream_trainer.faust_driver import Record
from stream_trainer.publishing.control import Given
from stream_trainer.trainer import WAITING_RECORDS, Trainer

SCHEMA = '[[field]]\nname = "f"\nnumber = 1\nkind = "categorical"\nside = "item"\n'


class NoOrders:
    """Nobody asks for anything."""

    def waiting(self) -> Sequence[Given]:
        return []

    def poll(self, timeout_s: float) -> Sequence[Given]:
        return []


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    """A trainer whose learner's thread does not run."""
    (tmp_path / "schema.toml").write_text(SCHEMA)
    settings: Settings = build(Source("test", {
        "var": tmp_path / "var", "model.schema": str(tmp_path / "schema.toml"), "model.bits": 8, "model.hidden": "8",
    }))[0]
    return Trainer(settings, NoOrders())


@pytest.fixture
def record(tmp_path: Path) -> Callable[[int], Record]:
    """Record `offset` of one partition, with one example."""
    def make(offset: int) -> Record:
        schema = fields.load(str(tmp_path / "schema.toml"))
        one = np.array([offset])
        return Record(0, offset, 0, encode(Examples(
            source_partition=0, after=after_all_of(offset - 1), through=after_all_of(offset), field_numbers=schema.numbers,
            field_digests=schema.digests, trigger=one, impression=one, item=np.zeros(1, np.uint16),
            label=np.ones(1, np.float32), event_time_us=one, click_time_us=one, bags=Bags(1, np.array([7], np.uint64)),
            ends=empty_ends(),
        )))
    return make


def test_a_slow_learner_holds_the_flow_back_and_takes_it_up_at_once(trainer: Trainer, record: Callable[[int], Record]) -> None:
    """No more waits than WAITING_RECORDS; as soon as one is taken the next is there, no second later."""
    longest = 0.0

    def learn() -> None:
        nonlocal longest
        while trainer._records.qsize() < WAITING_RECORDS:
            time.sleep(0.001)
        time.sleep(0.05)                                        # the flow has come to rest
        for _ in range(20):
            assert trainer._records.qsize() == WAITING_RECORDS
            trainer._records.get()
            began = time.monotonic()
            while trainer._records.qsize() < WAITING_RECORDS:
                time.sleep(0.0005)
            longest = max(longest, time.monotonic() - began)

    thread = threading.Thread(target=learn)
    thread.start()
    asyncio.run(trainer.records([record(offset) for offset in range(WAITING_RECORDS + 20)]))
    thread.join(timeout=10)
    assert not thread.is_alive()
    assert longest < 0.5


def test_records_are_read_before_the_learner_wants_them(trainer: Trainer, record: Callable[[int], Record]) -> None:
    """What waits is examples, made a batch already, in the order of the log, with partition and offset; what is no record is
    left out."""
    asyncio.run(trainer.records([record(0), Record(0, 1, 0, b"\xff\xff"), record(1)._replace(offset=2), Record(0, 3, 0, None)]))
    waiting = [trainer._records.get_nowait() for _ in range(trainer._records.qsize())]
    assert [one[:2] for one in waiting if one is not None] == [(0, 0), (0, 2), (0, 3)]
    assert [len(one[2].examples) for one in waiting if one is not None] == [1, 1, 0]
    assert [one[2].batch is not None and len(one[2].batch) for one in waiting if one is not None] == [1, 1, False]
