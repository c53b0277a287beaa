"""Events through real Kafka into weights, with processes killed on the way: each example once, the same bits at the end.

The oracle is `ops.offline.evaluate`: the same events through the same pure code in one process that nobody kills.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from ops import formats
from ops.events.replay import replay
from ops.formats import EventRecord
from ops.kafka.topics import ensure_topics
from ops.offline.evaluate import evaluate
from ops.simulator.live import Record
from ops.simulator.options import StoreOptions
from ops.simulator.slates import Simulator
from ops.simulator.store import AppStore, VirtualClock
from ops.watching.journals import last, wait_until_learnt
from ops.watching.windows import whole_windows
from schemas.config import LearnConfig, ModelConfig, Settings, Source, build
from schemas.snapshot import chunk_key, manifest_key
from scorer.versions.reader import SnapshotReader
from stream_trainer.faust_driver import CRASHED
from stream_trainer.store import SnapshotStore
from tests.conftest import SHARED
from tests.kit.processes import Process, wait_until

ROWS = 4000
SLATES = 400          # of 20 items: 8,000 examples, in batches of 300 that end inside slates


def made(broker: str, prefix: str, var: Path, **more: Any) -> Settings:
    """One partition, batches by count: the configuration in which two runs are equal bit for bit."""
    return build(Source("test", {
        "var": str(var), "kafka.bootstrap": broker, "kafka.prefix": prefix, "model.schema": "criteo", "model.bits": 16,
        "model.hidden": "32,32", "learn.batch_wait_s": 0, "learn.batch_rows": 100, "join.commit_every_s": 0.2,
        "snapshot.checkpoint_every_s": 0.5, "snapshot.version_every_s": 0.1, "snapshot.rotation": 8,
        "metrics.window_rows": 1000, **more,
    }))[0]


@contextmanager
def running(settings: Settings) -> Iterator[dict[str, Process]]:
    """A joiner and a trainer, ready."""
    ensure_topics(settings)
    crew = {verb: Process(settings, verb) for verb in ("joiner", "trainer")}
    try:
        wait_until(lambda: last(settings, "trainer", "trainer.status"), 60, "the trainer's first status")
        yield crew
    finally:
        for process in crew.values():
            process.stop()


def rows(settings: Settings, path: Path) -> Iterator[EventRecord]:
    """Criteo's form, with 300 impressions open at any time; clicks follow two of the columns."""
    if not path.exists():
        rng = random.Random(5)
        with path.open("w") as file:
            for _ in range(ROWS):
                counts = [str(rng.randrange(50)) if rng.random() < 0.8 else "" for _ in range(13)]
                kinds = [f"{rng.randrange(200):08x}" for _ in range(26)]
                label = int(rng.random() < (0.6 if int(kinds[0], 16) % 3 == 0 else 0.15))
                file.write("\t".join([str(label), *counts, *kinds]) + "\n")
    return formats.read(path, "criteo", formats.row_interval_us(settings, settings.join.window_s / 300), "click")


def slates(settings: Settings, path: Path) -> Iterator[EventRecord]:
    """The log of a simulated store: slates of 20, clicks up to 9 s after them."""
    if not path.exists():
        start_us = 1_767_225_600_000_000
        log, clock = Record(path), VirtualClock(start_us)
        AppStore(Simulator(StoreOptions(seed=3), start_us), clock, log, rate=20, seconds=SLATES / 20).run()
    return formats.read(path, "jsonl", 1, "click")


def learnt(settings: Settings) -> int:
    row = last(settings, "trainer", "trainer.status")
    return int(row["examples_learnt"]) if row else 0


def published(settings: Settings, records: Iterator[EventRecord], rate: float) -> None:
    """Replay beside the test."""
    threading.Thread(target=replay, args=(settings, records, rate), daemon=True).start()


def assert_as_if_nobody_was_killed(settings: Settings, records: Iterator[EventRecord]) -> None:
    """Same ends, same windows, same bits as in one process without Kafka."""
    found = wait_until_learnt(settings, 1, 90)
    expected = evaluate(settings, records)
    assert found["tallies"] == expected.tallies
    assert found["weights_digest"] == expected.weights_digest
    logged = [(window["first_row"], window["auc"], window["log_loss"]) for window in whole_windows(settings)]
    assert logged == [(window.first_row, window.auc, window.log_loss) for window in expected.windows]
    assert found["gaps"] == 0


@dataclass(frozen=True)
class Scene:
    """What is replayed: its events, how many examples they make, rows a second, their schema; and who is killed."""

    log: Callable[[Settings, Path], Iterator[EventRecord]]
    examples: int
    rate: float
    schema: str
    victims: tuple[str, ...]


@pytest.mark.parametrize("scene", [
    Scene(rows, ROWS, 400, "criteo", ("trainer",)),
    Scene(rows, ROWS, 400, "criteo", ("joiner",)),
    Scene(slates, SLATES * 20, 40, "appstore", ("trainer", "joiner")),
], ids=["trainer", "joiner", "both, inside slates"])
def test_five_kills_change_no_bit_of_the_weights(scene: Scene, broker: str, prefix: str, tmp_path: Path) -> None:
    """SIGKILL at five moments of their own: every example is learnt once, and the digest is that of a quiet run."""
    settings = made(broker, prefix, tmp_path / "var", **{"model.schema": scene.schema, "learn.batch_rows": 300})
    rng = random.Random("".join(scene.victims))
    with running(settings) as crew:
        published(settings, scene.log(settings, tmp_path / "log"), scene.rate)
        for turn in range(5):
            time.sleep(rng.uniform(0.2, 1.5))
            for verb in scene.victims:
                crew[verb].kill()
                crew[verb].restart()
            wait_until(partial(_beyond, settings, scene.examples * (turn + 1) // 8), 60, f"learning after kill {turn + 1}")
        assert_as_if_nobody_was_killed(settings, scene.log(settings, tmp_path / "log"))


def _beyond(settings: Settings, examples: int, since_us: int = 0) -> bool:
    """Whether a status from then on says so."""
    row = last(settings, "trainer", "trainer.status")
    return row is not None and row["examples_learnt"] > examples and row["time_us"] >= since_us


def test_the_process_that_closes_windows_killed_changes_no_window(broker: str, prefix: str, tmp_path: Path) -> None:
    """The trainer ends with it, by the code of a crash, and goes on as after one of its own: the same windows, once each."""
    settings = made(broker, prefix, tmp_path / "var")
    with running(settings) as crew:
        published(settings, rows(settings, tmp_path / "log"), 400)
        for turn in range(3):
            began_us = time.time_ns() // 1000
            wait_until(partial(_beyond, settings, ROWS * (turn + 1) // 5, began_us), 60, f"learning before kill {turn + 1}")
            (windows,) = psutil.Process(crew["trainer"].pid).children()
            assert windows.name() == "freshet-windows"
            windows.kill()
            wait_until(lambda: not crew["trainer"].alive, 30, "the trainer's end")
            assert crew["trainer"].stop() == CRASHED
            crew["trainer"].restart()
        assert_as_if_nobody_was_killed(settings, rows(settings, tmp_path / "log"))


def test_the_broker_killed_and_started_again_loses_nothing(own_broker: Callable[..., Any], tmp_path: Path) -> None:
    """Kafka dies by SIGKILL in the middle: whatever crashed is started again, and learning goes on by itself."""
    node = own_broker()
    settings = made(node.bootstrap, "", tmp_path / "var")
    with running(settings) as crew:
        published(settings, rows(settings, tmp_path / "log"), rate=400)
        wait_until(partial(_beyond, settings, ROWS // 4), 60, "a quarter learnt")
        node.kill()
        time.sleep(2)
        own_broker(port=node.port)
        deadline = time.monotonic() + 90
        while last(settings, "trainer", "trainer.replay_ended") is None and time.monotonic() < deadline:
            for process in crew.values():
                if not process.alive:          # as the supervisor does
                    process.restart()
            time.sleep(0.5)
        assert_as_if_nobody_was_killed(settings, rows(settings, tmp_path / "log"))


@pytest.mark.timeout(300)
@pytest.mark.skipif(not (SHARED / "criteo_60k.tsv.gz").is_file(), reason="needs ../shared/data/criteo_60k.tsv.gz")
def test_a_replay_of_criteo_equals_its_evaluation(broker: str, prefix: str, tmp_path: Path) -> None:
    """60,000 rows with the default model: each learnt once, figures to 1e-6, and the AUC that one pass should have."""
    settings = made(broker, prefix, tmp_path / "var", **{
        "model.bits": 20, "model.hidden": ModelConfig().hidden, "learn.batch_rows": LearnConfig().batch_rows,
        "metrics.window_rows": 20_000, "snapshot.version_every_s": 0.5, "snapshot.checkpoint_every_s": 10,
    })
    path = SHARED / "criteo_60k.tsv.gz"
    with running(settings):
        replay(settings, formats.read(path, "criteo", formats.row_interval_us(settings, None), "click"))
        found = wait_until_learnt(settings, 1, 200)
    expected = evaluate(
        settings, formats.read(path, "criteo", formats.row_interval_us(settings, None), "click"), from_row=40_000
    )
    assert found["examples_learnt"] == 60_000
    assert found["dropped"] == 0
    assert found["weights_digest"] == expected.weights_digest
    window = whole_windows(settings)[2]
    assert window["first_row"] == 40_000
    assert window["auc"] == pytest.approx(expected.figures.auc, abs=1e-6)
    assert window["auc"] >= 0.765


def shared_by_joiners(settings: Settings, log: Path, ended: dict[str, Any]) -> None:
    """Every event of that log ended as in one process that nobody disturbs."""
    expected = evaluate(settings, slates(settings, log))
    assert ended["tallies"] == expected.tallies | {"flush": settings.kafka.event_partitions}
    assert ended["gaps"] == 0


def pauses_s(settings: Settings, tmp_path: Path) -> list[float]:
    """Of each source partition, the longest time in which none of it was learnt, as the versions tell."""
    with SnapshotReader(settings.store_dir, tmp_path / "reader") as reader:
        reader.poll()
        manifests = list(reader.manifests().values())
    found = []
    for partition in range(settings.kafka.event_partitions):
        moved, longest = [one for one in manifests if partition in one.cursors], 0.0
        for one in moved:
            if one.cursors[partition] != moved[0].cursors[partition]:
                longest, moved[0] = max(longest, (one.created_us - moved[0].created_us) / 1e6), one
        found.append(longest)
    return found


FOUR = {"model.schema": "appstore", "kafka.event_partitions": 4, "kafka.example_partitions": 2}


def test_joiners_that_come_and_go_share_four_partitions(broker: str, prefix: str, tmp_path: Path) -> None:
    """Under load one of two is killed and another added, one is told to end, one is added: nothing lost, nothing learnt
    twice, and no partition stands still for longer than a session and a rebalance."""
    settings = made(broker, prefix, tmp_path / "var", **FOUR)
    with running(settings) as crew:
        crew["second"] = Process(settings, "joiner")
        published(settings, slates(settings, tmp_path / "log"), rate=40)
        wait_until(partial(_beyond, settings, SLATES * 20 // 5), 60, "a fifth learnt")
        crew["joiner"].kill()
        crew["third"] = Process(settings, "joiner")
        wait_until(partial(_beyond, settings, SLATES * 20 // 2), 60, "half learnt")
        crew["second"].stop()
        crew["fourth"] = Process(settings, "joiner")
        found = wait_until_learnt(settings, 4, 90)
    shared_by_joiners(settings, tmp_path / "log", found)
    pauses = pauses_s(settings, tmp_path)
    print("longest pause of each partition:", ", ".join(f"{pause:.1f} s" for pause in pauses))
    assert max(pauses) < 60


def test_a_joiner_that_wakes_up_after_its_session_changes_nothing(broker: str, prefix: str, tmp_path: Path) -> None:
    """SIGSTOP under load, until the other one has learnt what it held; on SIGCONT it reads and writes on until it hears that
    it has no partitions any more. What it writes is there twice, and learnt once."""
    settings = made(broker, prefix, tmp_path / "var", **FOUR)
    with running(settings) as crew:
        published(settings, slates(settings, tmp_path / "log"), rate=20)
        wait_until(partial(_beyond, settings, SLATES), 60, "a twentieth learnt")
        crew["second"] = Process(settings, "joiner")
        wait_until(lambda: len((last(settings, "joiner", "joiner.status") or {"partitions": ""})["partitions"]) == 2, 60,
                   "two partitions for each joiner")
        crew["joiner"].signal(signal.SIGSTOP)
        wait_until(partial(_beyond, settings, SLATES * 20 * 4 // 5), 60, "four fifths learnt")
        crew["joiner"].signal(signal.SIGCONT)
        found = wait_until_learnt(settings, 4, 90)
    shared_by_joiners(settings, tmp_path / "log", found)
    assert found["dropped"] > 0


def test_a_trainer_that_has_lost_its_newest_checkpoints_learns_more_again(broker: str, prefix: str, tmp_path: Path) -> None:
    """One is gone, one has a bit flipped: it goes on from the one before, each example once, with the bits of a quiet run."""
    settings = made(broker, prefix, tmp_path / "var")
    with running(settings) as crew:
        published(settings, rows(settings, tmp_path / "log"), 400)
        wait_until(partial(_beyond, settings, ROWS // 2), 60, "half learnt")
        crew["trainer"].kill()
        with SnapshotStore(settings.store_dir) as store:
            older, newest = list(store.manifests("checkpoint"))[-2:]
            store._db.delete(manifest_key("checkpoint", newest))
            key = chunk_key("checkpoint", older, 0)
            data = bytearray(store._db.get(key) or b"")
            data[len(data) // 2] ^= 1
            store._db.put(key, bytes(data))
        crew["trainer"].restart()
        assert_as_if_nobody_was_killed(settings, rows(settings, tmp_path / "log"))
