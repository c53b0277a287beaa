"""SIGKILL of the scorer's follower, its workers and the trainer, in turn and under load: three here, as many as wanted by

    SCORER_KILLS=50 .venv/bin/python -m pytest -s -o faulthandler_timeout=3600 tests/integration/test_scorer_campaign.py

Real Kafka, joiner and trainer: the trainer goes on learning and publishing, clients go on asking. Every answer is recomputed
afterwards from the whole table of the version that it names, by the models' own code in float64, without an engine.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import takewhile
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from ops.bench.measuring.meanwhile import until_done
from ops.events.replay import replay
from ops.machine.ports import free_port
from schemas import echo, fields
from schemas.bags import Bags
from schemas.config import Settings
from schemas.crosses import crossed
from schemas.models import build
from schemas.models.pooling import pool
from scorer.client import Scored, ScorerClient, ScorerUnavailable
from scorer.versions.reader import SnapshotReader
from tests.integration import test_exactly_once
from tests.integration.test_exactly_once import made, running
from tests.kit.processes import Process, wait_until

KILLS = int(os.environ.get("SCORER_KILLS", "3"))
VICTIMS = ("scorer-worker", "scorer-follower", "trainer")
RATE = 60                # rows a second: the trainer always has something to learn
ROWS = RATE * (60 + 25 * KILLS)
CLIENTS = 4
PAUSE_S = 0.02           # of a client between two requests: trainer and scorer share two cores
GOT_OVER_S = 90.0

pytestmark = pytest.mark.integration


@contextmanager
def flowing(settings: Settings, path: Path) -> Iterator[None]:
    """Rows as test_exactly_once makes them, meanwhile."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(test_exactly_once, "ROWS", ROWS)
        records = test_exactly_once.rows(settings, path)
    with until_done(lambda done: replay(settings, takewhile(lambda _: not done.is_set(), records), RATE)):
        yield


class Asking:
    """Clients that ask until `stop`, each with a connection of its own."""

    def __init__(self, settings: Settings) -> None:
        self.answers: list[Scored] = []
        self.failed: list[str] = []
        self._schema = fields.load(settings.model.schema)
        self._target = f"127.0.0.1:{settings.score.port}"
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(seed,)) for seed in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    @property
    def newest(self) -> int:
        return self.answers[-1].version if self.answers else 0

    def beyond(self, version: int) -> bool:
        return self.newest > version

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, seed: int) -> None:
        rng = random.Random(seed)
        with ScorerClient(self._target) as client:
            client.wait_ready(90)
            while not self._stopping.wait(PAUSE_S):
                try:
                    self.answers.append(client.score({}, [self._item(rng, place) for place in range(5)], timeout_s=20))
                except ScorerUnavailable as gone:
                    self.failed.append(str(gone))

    def _item(self, rng: random.Random, place: int) -> dict[str, object]:
        return {"id": f"item{place}", "features": {
            spec.name: rng.randrange(50) if spec.kind == "numeric" else f"{rng.randrange(200):08x}"
            for spec in self._schema.fields if spec.side == "item"
        }}


def probabilities(settings: Settings, reader: SnapshotReader, version: int, bags: Bags) -> np.ndarray:
    """By that version, from its whole table."""
    schema, whole = fields.load(settings.model.schema), reader.whole(version)
    net = build(settings.model, len(schema.fields), len(schema.crosses), schema.logs, schema.sides).eval()
    net.load_state_dict({name: torch.from_numpy(array) for name, array in whole.dense.items()})
    bags = crossed(bags, schema)
    table = net.new_rows(torch.arange(1 << settings.model.bits))
    table[torch.from_numpy(whole.rows)] = torch.from_numpy(whole.floats)
    rows = table[torch.from_numpy((bags.ids % np.uint64(len(table))).astype(np.int64))]
    pooled, values = pool(rows.double(), bags, schema.columns, net.counted)
    with torch.no_grad():
        found: np.ndarray = net.double()(pooled, None if values is None else values.double()).sigmoid().numpy()
    return found


def assert_each_is_right(settings: Settings, answers: list[Scored], secondary: Path) -> int:
    """To 1e-6. Returns from how many versions they came."""
    by_version: dict[int, list[Scored]] = defaultdict(list)
    for answer in answers:
        by_version[answer.version].append(answer)
    schema = fields.load(settings.model.schema)
    with SnapshotReader(settings.store_dir, secondary) as reader:
        reader.poll()
        for version, its in by_version.items():
            assert {answer.lineage for answer in its} == {reader.manifest(version).lineage}
            items = [item for answer in its for item in answer.items]
            bags = echo.to_bags([item.echo for item in items], schema)
            assert bags is not None
            expected = probabilities(settings, reader, version, bags)
            np.testing.assert_allclose([item.probability for item in items], expected, atol=1e-6, rtol=0)
    return len(by_version)


def parts(scorer: Process, name: str) -> list[psutil.Process]:
    """The scorer's processes of that name."""
    found = []
    for one in psutil.Process(scorer.pid).children():
        try:
            if one.name().startswith(name) and one.status() != psutil.STATUS_ZOMBIE:
                found.append(one)
        except psutil.NoSuchProcess:
            continue
    return found


def gone_on(crew: dict[str, Process], asking: Asking, version: int) -> bool:
    """Whether answers are from newer versions than that; and all processes live that nobody killed."""
    for process in crew.values():
        assert process.alive, process.tail()
    return asking.beyond(version)


@pytest.mark.timeout(120 + 60 * KILLS)
def test_whoever_is_killed_no_answer_is_wrong_and_none_is_missing(broker: str, prefix: str, tmp_path: Path) -> None:
    """Each time a version newer than all before the kill is served; every answer is that of the version it names."""
    settings = made(broker, prefix, tmp_path / "var", **{
        "score.port": free_port(), "score.operator_port": 0, "score.metrics_port": 0, "score.workers": 2,
        "score.precision": "fp32", "snapshot.version_every_s": 0.5, "snapshot.keep_s": 3600, "learn.batch_rows": 20,
    })
    rng = random.Random(KILLS)
    waited: dict[str, list[float]] = {name: [] for name in VICTIMS}
    with running(settings) as crew, flowing(settings, tmp_path / "log"):
        crew["scorer"] = Process(settings, "scorer")
        asking = Asking(settings)
        try:
            wait_until(lambda: asking.beyond(1), 90, "answers from a second version")
            for turn in range(KILLS):
                name = VICTIMS[turn % len(VICTIMS)]
                time.sleep(rng.uniform(0, 0.5))       # a moment of its own in the half second between two versions
                before, began = asking.newest, time.monotonic()
                if name == "trainer":
                    crew["trainer"].kill()
                    crew["trainer"].restart()
                else:
                    os.kill(rng.choice(parts(crew["scorer"], name)).pid, signal.SIGKILL)
                wait_until(partial(gone_on, crew, asking, before), GOT_OVER_S, f"a newer version after {name}", 0.01)
                waited[name].append(time.monotonic() - began)
                wait_until(partial(gone_on, crew, asking, before + 3), GOT_OVER_S, "versions after it")
                wait_until(lambda: len(parts(crew["scorer"], "scorer-")) == 3, GOT_OVER_S, "all of the scorer's processes")
        finally:
            asking.stop()
        assert not asking.failed                      # what was in flight in a killed worker, the client asked again
        versions = assert_each_is_right(settings, asking.answers, tmp_path / "secondary")
    for name, seconds in waited.items():
        print(f"{name}: {len(seconds)} kills, a newer version served after {statistics.median(seconds):.2f} s, "
              f"at most {max(seconds):.2f}")
    print(f"{len(asking.answers)} answers from {versions} versions, each recomputed")
    assert len(asking.answers) > 20 * KILLS
