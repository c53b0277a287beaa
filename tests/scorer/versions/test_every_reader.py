"""Any sequence of what may happen to a store and to those that read it: nobody ever holds anything but a whole version.

Trainer's side: publish, go back to a version, begin anew, delete any version, die in the middle of a publication, write what
a disk then spoils. Readers' side: the follower or a worker is gone and there again, a worker comes late. Pins and what a
trainer's own store deletes are in tests/integration/test_rollback.py, SIGKILL in tests/integration/test_scorer_campaign.py.
"""

from __future__ import annotations

import time
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.config import Settings, Source, build
from schemas.fields import load
from scorer.answers.engine import Blueprint
from scorer.answers.version import Version
from scorer.versions import feed
from scorer.versions.distributor import Distributor
from scorer.versions.intake import Intake
from tests.scorer.lineage import Lineage, RocksWriter, small, spoilt

SCHEMA = load("appstore")
MODEL = {"model.bits": 9, "model.factors": 3, "model.hidden": "8,4", "model.init_scale": 0.1, "model.statistics": False}
ROTATION = 5     # what is missing in a table would be sent again by then, and not be seen
ACTS = [
    "publish", "publish", "publish", "go back", "begin anew", "delete", "torn", "spoilt", "follower", "worker",
    "one more worker",
]
SETTLED_S = 20.0


class World:
    """A store with its writer, a follower and some workers, all in this process, with the real sockets between them."""

    def __init__(self, var: Path) -> None:
        self.settings: Settings = build(Source("test", {"var": str(var), **MODEL, "score.poll_s": 0.001}))[0]
        self.writer = RocksWriter(self.settings.store_dir)
        self.named = 0
        self.lineages = [self.lineage(1)]
        self.listener = feed.listening()
        self.distributor = self.follower()
        self.workers = [self.worker(), self.worker()]

    def lineage(self, first: int) -> Lineage:
        self.named += 1
        return Lineage(small(), SCHEMA, name=f"{self.named:032x}", rotation=ROTATION, first=first)

    def follower(self) -> Distributor:
        # Its socket outlives it, as `freshet scorer` sees to.
        return Distributor(self.settings, self.listener.dup(), lambda: time.time_ns() // 1000)

    def worker(self) -> Intake:
        made = Intake(
            feed.name_of(self.listener), Blueprint(small(), SCHEMA), dict, lambda: 1, lambda: 1, lambda: None
        )
        made.start()
        return made

    def branch(self, number: int) -> Lineage:
        """The next lineage, with the weights of a version there was."""
        of = next(one for one in self.lineages if number in one.tables)
        made = self.lineage(self.lineages[-1].next)
        made.table[:], made.touched[:] = of.tables[number], True
        return made

    def do(self, act: str, draw: int) -> None:
        now = self.lineages[-1]
        published = [number for one in self.lineages for number in one.tables]
        match act:
            case "publish":
                self.writer.write(now.publish(rows=60))
            case "torn" | "spoilt":
                pairs = now.publish(rows=60)
                self.writer.write(pairs[:-1] if act == "torn" else spoilt(pairs, draw % len(pairs)))
                if draw % 2:                                # its child is there when readers first look
                    self.writer.write(now.publish(rows=60))
            case "go back" if published:
                self.lineages.append(self.branch(published[draw % len(published)]))
                self.writer.write(self.lineages[-1].publish(rows=60))
            case "begin anew":
                self.lineages.append(self.lineage(now.next))
                self.writer.write(self.lineages[-1].publish(rows=60))
            case "delete" if published:
                self.writer.delete(published[draw % len(published)])
            case "follower":
                self.distributor.close()
                self.distributor = self.follower()
            case "worker":
                self.workers.pop(draw % len(self.workers)).close()
                self.workers.append(self.worker())
            case "one more worker" if len(self.workers) < 4:
                self.workers.append(self.worker())

    def held(self) -> list[Version | None]:
        """By the follower, then by each worker."""
        engines = [self.distributor._follower.engine, *(worker.engine for worker in self.workers)]
        return [None if engine is None else engine.version for engine in engines]

    def settle(self) -> Version | None:
        """Until all workers have what the follower has."""
        until = time.monotonic() + SETTLED_S
        while True:
            self.distributor._look_at = 0.0
            self.distributor.turn()
            first, *others = self.held()
            names = {None if one is None else (one.lineage, one.number) for one in others}
            if first is None or names == {(first.lineage, first.number)}:
                return first
            assert time.monotonic() < until, (first, names)

    def check(self) -> None:
        """Each holds, to the bit, one version that was published, and no row of another one."""
        engines = [self.distributor._follower.engine, *(worker.engine for worker in self.workers)]
        for engine, version in zip(engines, self.held(), strict=True):
            if engine is not None and version is not None:
                (lineage,) = (one for one in self.lineages if one.name == version.lineage)
                np.testing.assert_array_equal(engine.table.numpy(), lineage.tables[version.number])

    def close(self) -> None:
        for worker in self.workers:
            worker.close()
        self.distributor.close()
        self.listener.close()
        self.writer.close()


@hypothesis.settings(max_examples=20, derandomize=True, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(ACTS), st.integers(0, 30), st.booleans()), min_size=15, max_size=40))
def test_every_reader_holds_a_whole_version(
    tmp_path_factory: pytest.TempPathFactory, acts: list[tuple[str, int, bool]]
) -> None:
    """Whatever happened, and whether or not readers had time in between; and once the trainer has published a rotation that is
    whole, all of them have its newest version."""
    world = World(tmp_path_factory.mktemp("world"))
    for act, draw, hurried in acts:
        world.do(act, draw)
        if not hurried:
            world.settle()
            world.check()
    for _ in range(ROTATION + 1):
        world.do("publish", 0)
    settled = world.settle()
    world.check()
    assert settled is not None
    assert (settled.lineage, settled.number) == (world.lineages[-1].name, world.lineages[-1].next - 1)
    world.close()
