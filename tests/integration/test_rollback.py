"""`freshet snapshot rollback` under load: real Kafka, a trainer that learns meanwhile, a scorer that answers meanwhile."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ops.formats import EventRecord, first_rows
from ops.machine.ports import free_port
from ops.offline.evaluate import evaluate
from ops.versions.control import give
from ops.versions.going_back import going_back
from ops.versions.orders import about_version
from ops.versions.store import listed, opened, shown
from ops.watching.journals import wait_for_order, wait_until_learnt
from schemas.config import Settings
from schemas.control import ControlError, Order
from schemas.snapshot import Manifest
from scorer.answers.engine import Blueprint
from scorer.client import ScorerClient
from scorer.metrics import Metrics
from scorer.versions.follower import Follower
from scorer.versions.reader import SnapshotReader
from stream_trainer.publishing.branch import go_back
from stream_trainer.publishing.control import Control
from tests.integration.test_exactly_once import (
    assert_as_if_nobody_was_killed,
    learnt,
    made,
    published,
    rows,
    running,
)
from tests.kit.processes import Process, wait_until
from tests.stream_trainer.publishing.test_branch import Life, order
from tests.stream_trainer.publishing.test_publisher import MODEL, SCHEMA

ROWS = 2000
RATE = 250      # rows a second: they flow for as long as the trainer takes to be back


def log(settings: Settings, path: Path) -> Iterator[EventRecord]:
    """What is replayed."""
    return first_rows(rows(settings, path), ROWS)


def beyond(settings: Settings, examples: int) -> bool:
    return learnt(settings) > examples


def newest(settings: Settings) -> Manifest:
    with opened(settings, "version") as reader:
        return reader.manifest(reader.numbers()[-1])


def version_after(settings: Settings, examples: int) -> Manifest:
    """The newest version, when so many examples were learnt."""
    wait_until(partial(beyond, settings, examples), 60, f"{examples} examples learnt")
    return newest(settings)


def back_to(version: Manifest) -> Order:
    """And learn again what came since."""
    return Order(what="rollback", model="appstore", lineage=version.lineage, version=version.number, then="replay")


def told(settings: Settings, number: int) -> dict[str, Any]:
    """What `freshet snapshot show` says of a version."""
    with opened(settings, "version") as reader:
        return shown(reader, number)


def test_back_and_learnt_again_under_load(broker: str, prefix: str, tmp_path: Path) -> None:
    """Every scorer answers with the weights of then a moment after the order, and with none of the abandoned line from
    there on; the end is bit for bit that of a run that never went back."""
    settings = made(
        broker, prefix, tmp_path / "var",
        **{"score.port": free_port(), "score.operator_port": 0, "score.metrics_port": 0},
    )
    with running(settings) as crew, ScorerClient(f"127.0.0.1:{settings.score.port}") as client:
        crew["scorer"] = Process(settings, "scorer")
        client.wait_ready(60)
        published(settings, log(settings, tmp_path / "log"), RATE)
        wanted = version_after(settings, ROWS // 8)
        before = version_after(settings, ROWS // 4)
        digest = told(settings, wanted.number)["weights_digest"]

        began = time.monotonic()
        offset = give(settings, back_to(wanted))
        answer = client.score({}, [{"id": "a", "features": {}}])
        while answer.lineage == before.lineage:
            assert time.monotonic() < began + 30
            answer = client.score({}, [{"id": "a", "features": {}}])
        served_s = time.monotonic() - began
        order = wait_for_order(settings, offset, 30)
        assert order is not None
        assert (order["refused"], order["lineage"], order["first"]) == (None, answer.lineage, answer.version)
        assert answer.version > before.number
        assert told(settings, answer.version)["weights_digest"] == digest
        while learnt(settings) < ROWS // 2:
            assert client.score({}, [{"id": "a", "features": {}}]).lineage == answer.lineage
        assert_as_if_nobody_was_killed(settings, log(settings, tmp_path / "log"))
        print(f"ordered to served: {served_s:.2f} s")


def test_back_and_on_from_here_under_load(broker: str, prefix: str, tmp_path: Path) -> None:
    """What was learnt since is left out and counted so; all that comes after is learnt once; every other end is as ever."""
    settings = made(broker, prefix, tmp_path / "var")
    with running(settings):
        published(settings, log(settings, tmp_path / "log"), RATE)
        wanted = version_after(settings, ROWS // 8)
        version_after(settings, ROWS // 4)
        done = about_version(settings, "rollback", wanted.number, "skip", 30)
        assert (done["obeyed"], done["refused"]) == (True, None)
        assert told(settings, done["first"])["weights_digest"] == told(settings, wanted.number)["weights_digest"]
        found = wait_until_learnt(settings, 1, 90)
    expected = evaluate(settings, log(settings, tmp_path / "log")).tallies
    ends = dict(found["tallies"])
    skipped = ends.pop("skipped")
    assert skipped >= ROWS // 4 - wanted.examples_learnt
    assert ends["examples"] + skipped == expected["examples"] == ROWS
    for what_is_learnt in ("examples", "positives", "impressions"):
        assert ends.pop(what_is_learnt) < expected.pop(what_is_learnt)
    assert ends == expected
    assert newest(settings).examples_learnt == ROWS - skipped


def test_a_trainer_killed_at_any_moment_of_a_rollback_obeys_it_once(broker: str, prefix: str, tmp_path: Path) -> None:
    """Three orders, each with a SIGKILL at a random moment after it: as many new lineages, and at the end the bits of a
    run that nobody disturbed."""
    settings = made(broker, prefix, tmp_path / "var")
    rng = random.Random(4)
    lineages: list[str] = []
    with running(settings) as crew:
        published(settings, log(settings, tmp_path / "log"), RATE)
        for turn in range(1, 4):
            wanted = version_after(settings, turn * ROWS // 8)
            give(settings, back_to(wanted))
            time.sleep(rng.uniform(0, 0.8))
            crew["trainer"].kill()
            crew["trainer"].restart()
            wait_until(lambda: newest(settings).lineage not in (wanted.lineage, *lineages), 60, "a new lineage")  # noqa: B023
            lineages.append(newest(settings).lineage)
        assert_as_if_nobody_was_killed(settings, log(settings, tmp_path / "log"))
        with opened(settings, "version") as reader:
            found = list(dict.fromkeys(manifest.lineage for manifest in reader.manifests().values()))
    assert found[1:] == lineages


def test_pins_and_what_can_be_replayed_are_told(broker: str, prefix: str, tmp_path: Path) -> None:
    """A pin outlives a restart of the trainer, and shows; an unpin ends it; each version says until when it can be
    replayed: as long as Kafka keeps what it needs. An order that makes no sense is refused, with the reason."""
    settings = made(broker, prefix, tmp_path / "var", **{"snapshot.keep_s": 1})

    def version(number: int) -> dict[str, Any]:
        with opened(settings, "version") as reader, going_back(settings, "version") as tell:
            return next(tell(reader.manifest(one["number"])) for one in listed(reader, 10**6)["snapshots"]
                        if one["number"] == number)

    with running(settings) as crew:
        published(settings, log(settings, tmp_path / "log"), 0)
        wait_until_learnt(settings, 1, 60)
        kept = newest(settings).number
        assert about_version(settings, "pin", kept, None, 30)["obeyed"]
        found = version(kept)
        assert (found["pinned"], found["replayable"]) == (True, True)
        crew["trainer"].kill()
        crew["trainer"].restart()
        assert about_version(settings, "unpin", kept, None, 60)["obeyed"]
        assert version(kept)["pinned"] is False
        answer = wait_for_order(settings, give(settings, replace(back_to(newest(settings)), version=10**9)), 30)
        assert answer is not None
        assert answer["refused"] == f"version {10**9} is not in the store"
        first = listed_first(settings)
        until_us = version(first)["replayable_until_us"]
        assert until_us is not None
        assert time.time() < until_us / 1e6 < time.time() + 8 * 86_400         # Kafka's own retention is seven days


def listed_first(settings: Settings) -> int:
    with opened(settings, "version") as reader:
        return reader.numbers()[0]


class Served:
    """A scorer's follower, checked to the bit against the store after every look."""

    def __init__(self, directory: Path, name: str) -> None:
        self.reader = SnapshotReader(directory / "store", directory / name)
        self.follower = Follower(self.reader, Blueprint(MODEL, SCHEMA), 0.001, Metrics(), lambda: 1)

    def look(self, life: Life) -> None:
        """What it answers with is one whole version of one lineage, each row of it, and no row of another."""
        self.follower.step()
        engine = self.follower.engine
        assert engine is not None
        assert engine.version is not None
        assert engine.version.number == life.store.manifests("version")[engine.version.number].number
        whole = life.store.load_version(engine.version.number)
        assert engine.version.lineage == whole.manifest.lineage
        expected = Blueprint(MODEL, SCHEMA).table()
        expected[torch.from_numpy(whole.rows)] = torch.from_numpy(whole.floats)
        assert torch.equal(engine._table, expected)


ACTS = ["learn", "learn", "checkpoint", "kill", "replay", "skip", "pin", "expire", "look"]


@hypothesis.settings(max_examples=15, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from(ACTS), st.integers(0, 30)), min_size=5, max_size=30))
def test_every_reader_has_one_whole_version_of_one_lineage(
    tmp_path_factory: pytest.TempPathFactory, acts: list[tuple[str, int]]
) -> None:
    """Any sequence of publishing, going back, pinning, expiring and kills: a follower that looks every time, one that
    looks now and then, and one that begins at the end hold exactly a version that was published; the newest in the end."""
    directory = tmp_path_factory.mktemp("life")
    life, pinned = Life(directory / "store"), set[int]()
    always, seldom = Served(directory, "always"), Served(directory, "seldom")
    life.checkpoint()
    for offset, (act, number) in enumerate(acts):
        versions = list(life.store.manifests("version").values())
        chosen = versions[number % len(versions)]
        if act == "learn":
            for _ in range(1 + number % 4):
                life.learn()
        elif act == "checkpoint":
            life.checkpoint()
        elif act == "pin":
            pinned.add(chosen.number)
        elif act == "expire":
            life.store.expire(1, 0, pinned)
        elif act != "look":
            if act in ("replay", "skip"):
                life.checkpoint()
                with suppress(ControlError):
                    go_back(life.store, order(chosen, "replay" if act == "replay" else "skip", offset), Control(offset + 1), 0)
            life.store.close()
            life = Life(directory / "store")
        assert pinned <= life.store.manifests("version").keys()
        always.look(life)
        if act == "look":
            seldom.look(life)
    newest_version = life.store.newest_version()
    assert newest_version is not None
    for served in (always, seldom, Served(directory, "late")):
        served.look(life)
        assert served.follower.engine is not None
        assert served.follower.engine.version is not None
        assert served.follower.engine.version.number == newest_version.number
        served.reader.close()
    life.store.close()


pytestmark = pytest.mark.integration
