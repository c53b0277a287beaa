from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import structlog

from schemas.fields import load
from schemas.snapshot import Manifest, Unpacked
from scorer.answers.engine import Blueprint
from scorer.answers.version import Version
from scorer.metrics import Metrics
from scorer.versions.follower import Follower
from tests.scorer.answers.test_engine import some_bags
from tests.scorer.lineage import Lineage, MemorySource, small, spoilt

SCHEMA = load("appstore")
BAGS = some_bags(30)


class Followed:
    """A lineage, the store it goes to and a follower of that."""

    def __init__(self, rotation: int = 4) -> None:
        self.lineage = Lineage(small(), SCHEMA, rotation=rotation)
        self.source = MemorySource()
        self.metrics = Metrics()
        self.told: list[tuple[int, Sequence[Any]]] = []
        self.changed: list[tuple[int, bool]] = []
        self.clock_us = 1
        self.follower = Follower(
            self.source, Blueprint(small(), SCHEMA), 0.001, self.metrics, lambda: self.clock_us, self._changed, self._applied
        )

    def _applied(self, version: Version, traces: Sequence[Any]) -> None:
        self.told.append((version.number, [trace["click_us"] for trace in traces]))

    def _changed(self, manifest: Manifest, content: Unpacked, whole: bool) -> None:
        assert sum(len(rows) for rows, _ in content.rows) == manifest.rows
        self.changed.append((manifest.number, whole))

    def publish(self, times: int = 1) -> None:
        for _ in range(times):
            self.source.write(self.lineage.publish(traces=[{"click_us": self.lineage.next}]))

    def serving(self) -> int | None:
        """The version that answers, after checking that it answers what it should."""
        engine = self.follower.engine
        if engine is None or engine.version is None:
            return None
        number = engine.version.number
        np.testing.assert_allclose(engine.score(BAGS).logits, self.lineage.truth(number, BAGS), atol=2e-6)
        return number


@pytest.fixture
def followed():
    return Followed()


def test_every_version_in_between_is_applied_in_order(followed):
    """Three versions at once come in one by one, each only once, with their traces."""
    assert not followed.follower.step()
    assert (followed.serving(), followed.changed) == (None, [])
    followed.publish()
    assert followed.follower.step()
    assert (followed.serving(), followed.changed) == (1, [(1, True)])
    followed.publish(3)
    followed.source.reads.clear()
    assert followed.follower.step()
    assert not followed.follower.step()
    assert followed.serving() == 4
    assert followed.source.reads == [2, 3, 4]
    assert followed.told == [(2, [2]), (3, [3]), (4, [4])]
    assert followed.changed == [(1, True), (2, False), (3, False), (4, False)]


def test_a_start_reads_one_rotation_only(followed):
    """What lies before the newest whole table is neither read nor told as fresh."""
    followed.publish(10)
    followed.follower.step()
    assert followed.serving() == 10
    assert followed.source.reads == [7, 8, 9, 10]
    assert followed.told == []


def test_a_gap_is_loaded_afresh(followed):
    """Versions deleted while the scorer slept: the whole table is read again, all late traces count."""
    followed.publish(2)
    followed.follower.step()
    followed.publish(8)
    for number in range(1, 7):
        followed.source.delete(number)
    followed.follower.step()
    assert followed.serving() == 10
    assert followed.told == [(10, [7, 8, 9, 10])]
    assert followed.metrics.totals()["loads"] == 2
    assert followed.changed == [(2, True), (10, True)]


def test_falling_far_behind_is_loaded_afresh(followed):
    """More versions than a rotation are not applied one by one, even if all are there."""
    followed.publish()
    followed.follower.step()
    followed.publish(20)
    followed.source.reads.clear()
    followed.follower.step()
    assert followed.serving() == 21
    assert followed.source.reads == [18, 19, 20, 21]


def test_a_broken_version_is_skipped_and_the_last_good_one_serves_on(followed):
    """Until the versions after it hold the whole table, the one before it answers; the broken one is named once."""
    followed.publish(5)
    followed.follower.step()
    followed.source.write(spoilt(followed.lineage.publish()))
    with structlog.testing.capture_logs() as logs:
        for newest in range(6, 10):
            followed.follower.step()
            assert followed.serving() == 5
            followed.publish()
            assert followed.follower.engine is not None, newest
        followed.follower.step()
    assert followed.serving() == 10  # 7, 8, 9 and 10 are one rotation without 6
    events = [entry["event"] for entry in logs]
    assert events == ["version.skipped", "versions.waiting", "table.loaded"]
    assert "version 6 of lineage aaaaaaaa, chunk 0: a chunk has checksum" in logs[0]["error"]
    assert followed.metrics.totals()["versions_skipped"] == 1
    followed.publish()
    followed.follower.step()
    assert followed.serving() == 11


@pytest.mark.parametrize("cut", ["chunk", "manifest"])
def test_a_start_on_a_broken_newest_version_serves_the_one_before(followed, cut):
    """The newest whole version is found whatever is broken: a chunk or the manifest itself."""
    followed.publish(7)
    pairs = followed.lineage.publish()
    if cut == "chunk":
        followed.source.write(spoilt(pairs, place=1))
    else:
        followed.source.write([*pairs[:-1], (pairs[-1][0], pairs[-1][1] + b"x")])
    followed.follower.step()
    assert (followed.serving(), followed.changed) == (7, [(7, True)])
    followed.publish(3)
    followed.follower.step()
    assert followed.serving() == 7
    followed.publish()
    followed.follower.step()
    assert followed.serving() == 12


def test_another_lineage_is_loaded_afresh(followed):
    """A trainer that began anew is followed, and nothing of the old table stays."""
    followed.publish(6)
    followed.follower.step()
    followed.lineage = Lineage(small(), SCHEMA, name="b" * 32, first=20)
    followed.publish(2)
    followed.follower.step()
    assert followed.serving() == 21
    assert followed.told == []


def test_going_back_to_an_older_parent_is_loaded_afresh(followed):
    """A version whose parent is not the present one, in the same lineage: no row of the abandoned branch is left."""
    followed.publish(6)
    kept = followed.lineage
    followed.publish(2)
    followed.follower.step()
    assert followed.serving() == 8
    kept.table, kept.parent, kept.next = kept.tables[6].copy(), 6, 9
    followed.publish()
    followed.follower.step()
    assert followed.serving() == 9


def test_a_lineage_of_another_model_is_refused_once_and_the_last_good_version_serves_on(followed):
    """Both sides are named in one log line, however many versions of it come."""
    followed.publish(2)
    followed.follower.step()
    other = Lineage(small(factors=4), SCHEMA, name="b" * 32, first=10)
    with structlog.testing.capture_logs() as logs:
        for _ in range(6):
            followed.source.write(other.publish())
            followed.follower.step()
            assert followed.serving() == 2
    assert [entry["event"] for entry in logs] == ["lineage.refused", "versions.waiting"]
    assert "model.factors is 4 there and 3 here" in logs[0]["error"]


def test_what_could_not_be_read_is_tried_again(followed):
    """A disk that recovers: the newest version comes in after a while, though no other was published; said once."""
    followed.publish(5)
    followed.follower.step()
    whole = followed.lineage.publish()
    followed.source.write(spoilt(whole))
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            followed.clock_us += int(5e6)
            followed.follower.step()
            assert followed.serving() == 5
        followed.source.write(whole)
        followed.source.reads.clear()
        followed.clock_us += int(4.9e6)
        followed.follower.step()
        assert followed.source.reads == []
        followed.clock_us += int(0.1e6)
        followed.follower.step()
    assert followed.serving() == 6
    assert [entry["event"] for entry in logs] == ["version.skipped", "versions.waiting"]


def test_chunks_without_their_manifest_do_not_exist(followed):
    """A version half written is not seen."""
    followed.publish(3)
    pairs = followed.lineage.publish()
    followed.source.write(pairs[:-1])
    followed.follower.step()
    assert followed.serving() == 3
    followed.source.write(pairs[-1:])
    followed.follower.step()
    assert followed.serving() == 4
