"""A first model from a file, then the stream: real Kafka, a trainer that goes on where learn.start_at says, a scorer."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ops import formats
from ops.events.replay import replay
from ops.formats import EventRecord
from ops.kafka.cluster import read_topic
from ops.kafka.topics import ensure_topics
from ops.offline.evaluate import evaluate
from ops.offline.train import train
from ops.watching.journals import last, wait_until_learnt
from schemas import fields
from schemas.config import Settings
from schemas.examples import decode
from schemas.snapshot import weights_digest
from scorer.answers.engine import Blueprint
from scorer.metrics import Metrics
from scorer.versions.follower import Follower
from scorer.versions.reader import SnapshotReader
from stream_trainer.store import SnapshotStore
from tests.integration.test_exactly_once import made, rows
from tests.kit.processes import Process, wait_until

PART = 400   # rows: four batches

pytestmark = pytest.mark.integration


def weights(settings: Settings, records: list[EventRecord]) -> str:
    """Of one process that learns all of it, without Kafka."""
    return evaluate(settings, records).weights_digest


def test_the_stream_goes_on_from_a_file_where_start_at_says(broker: str, prefix: str, tmp_path: Path) -> None:
    """Three models learn part A from a file; part B is in Kafka before their trainers begin, part C comes after. The one that
    starts at the earliest example ends with the bits of one pass over A, B, C; latest and the time between B and C with those
    of A, C; even if the trainer is killed before the first record and C comes while it is away. A scorer answers with each.
    """
    base = made(broker, prefix, tmp_path / "var")
    path = tmp_path / "rows.tsv"
    log = list(rows(base, path)) and list(formats.read(path, "criteo", formats.row_interval_us(base, None), "click"))
    cuts = [next(at for at, record in enumerate(log) if record.row > part * PART) for part in (1, 2, 3)]
    a, b, c = log[: cuts[0]], log[cuts[0] : cuts[1]], log[cuts[1] : cuts[2]]

    def settings(name: str, **more: Any) -> Settings:
        return made(broker, prefix, tmp_path / "var", **{"model.name": name, **more})

    # 1. Part A from the file, part B through the joiner.
    ensure_topics(base)
    train(base, a, base.store_dir)
    joiner, trainers = Process(base, "joiner"), []
    try:
        replay(base, iter(b))
        wait_until(lambda: in_topic(base) == len(numbers(b)), 60, "part B in the topic examples")
        between = time.time()

        # 2. A trainer that starts at the end, killed before anything comes.
        models = {
            "earliest": settings("earliest"),
            "latest": settings("latest", **{"learn.start_at": "latest"}),
            "time": settings("time", **{"learn.start_at": str(between)}),
        }
        for one in models.values():
            shutil.copytree(base.store_dir, one.store_dir)
        trainers.append(Process(models["latest"], "trainer"))
        wait_until(lambda: last(models["latest"], "trainer", "trainer.status"), 60, "the trainer's first status")
        trainers[0].kill()

        # 3. Part C while it is away, then all three.
        replay(base, iter(c))
        wait_until(lambda: in_topic(base) == len(numbers(b + c)), 60, "part C in the topic examples")
        trainers[0].restart()
        trainers += [Process(models[name], "trainer") for name in ("earliest", "time")]
        ended = {"earliest": 2, "latest": 1, "time": 1}
        found = {name: wait_until_learnt(one, ended[name], 90)["weights_digest"] for name, one in models.items()}
        assert found == {
            "earliest": weights(base, a + b + c), "latest": weights(base, a + c), "time": weights(base, a + c),
        }
        for name, one in models.items():
            assert served(one, tmp_path / "secondary" / name) == found[name]
    finally:
        for process in [*trainers, joiner]:
            process.stop()


def numbers(records: list[EventRecord]) -> set[int]:
    return {record.row for record in records}


def in_topic(settings: Settings) -> int:
    """Examples that the joiner has written."""
    return sum(len(decode(record.value)) for record in read_topic(settings.kafka, "test", "examples"))


def served(settings: Settings, secondary: Path) -> str:
    """Digest of the newest version that a scorer can load; it loads it."""
    with SnapshotReader(settings.store_dir, secondary) as reader:
        follower = Follower(reader, Blueprint(settings.model, fields.load("criteo")), 0.01, Metrics(), lambda: 1)
        assert follower.step()
        newest = reader.numbers()[-1]
        assert follower.engine is not None
        assert follower.engine.version is not None
        assert follower.engine.version.number == newest
        whole = reader.whole(newest)
        return weights_digest(whole.rows, whole.floats, whole.dense)


def test_a_training_that_is_killed_leaves_no_half_store(make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    """SIGKILL while it learns: no version, no checkpoint; the same command again succeeds."""
    settings = make_settings(**{"model.schema": "criteo", "model.bits": 14, "model.hidden": "8", "metrics.window_rows": 200})
    path = tmp_path / "rows.tsv"
    assert list(rows(settings, path))
    killed = Process(settings, "train", str(path), "--format", "criteo")
    wait_until(lambda: "train.window" in killed.tail(), 60, "the first window of figures", every_s=0.01)
    killed.kill()
    with SnapshotStore(settings.store_dir) as store:
        assert (store.newest_version(), store.newest_checkpoint()) == (None, None)
    found = train(settings, formats.read(path, "criteo", formats.row_interval_us(settings, None), "click"), settings.store_dir)
    assert (found.rows_learnt, found.version.number) == (4000, 1)
