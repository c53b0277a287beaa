from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import pytest

from schemas.fields import load
from schemas.snapshot import Manifest, Unpacked, unpack
from scorer.answers.engine import Blueprint
from scorer.versions import feed, segment
from scorer.versions.intake import Intake
from tests.scorer.answers.test_engine import some_bags
from tests.scorer.lineage import Lineage, small

SCHEMA = load("appstore")
BAGS = some_bags(30)


class Fed:
    """A worker's intake, and the follower that the test plays."""

    def __init__(self) -> None:
        self.lineage = Lineage(small(), SCHEMA)
        self.ready = 0
        self.listener = feed.listening()
        self.listener.settimeout(5)
        self.intake = Intake(
            feed.name_of(self.listener), Blueprint(small(), SCHEMA), lambda: {"requests": 3}, lambda: 4711, lambda: 5,
            self._is_ready,
        )
        self.intake.start()
        self.accept()

    def _is_ready(self) -> None:
        self.ready += 1

    def accept(self) -> None:
        self.connection, _ = self.listener.accept()
        self.connection.settimeout(5)

    def hears(self, kind: str) -> dict[str, Any]:
        """The next message of that kind."""
        while (came := feed.receive(self.connection)) is not None:
            if came[0]["kind"] == kind:
                return came[0]
        raise AssertionError(f"gone before it said {kind}")

    def publish(self) -> tuple[Manifest, Unpacked]:
        pairs = self.lineage.publish(100)
        manifest = self.lineage.manifests[self.lineage.next - 1]
        return manifest, unpack(manifest, [value for _, value in pairs[:-1]])

    def send(self, kind: str, file: int) -> None:
        feed.send(self.connection, {"kind": kind, "packet": 9}, file)
        os.close(file)

    def send_table(self, manifest: Manifest, content: Unpacked) -> None:
        self.send("table", segment.of_table(manifest, self.lineage.tables[manifest.number], content.dense))

    def serves(self, number: int) -> None:
        """What answers is that version, to the last row."""
        engine = self.intake.engine
        assert engine is not None
        assert engine.version is not None
        assert engine.version.number == number
        np.testing.assert_allclose(engine.score(BAGS).logits, self.lineage.truth(number, BAGS), atol=2e-6)


@pytest.fixture
def fed():
    fed = Fed()
    yield fed
    fed.intake.close()
    fed.connection.close()
    fed.listener.close()


def test_a_worker_takes_the_table_and_what_follows(fed):
    """It says what it has, what it took and what it counted; it is ready once."""
    hello = fed.hears("hello")
    assert (hello["pid"], hello["lineage"], hello["number"]) == (os.getpid(), None, None)
    assert fed.hears("totals") == {"kind": "totals", "totals": {"requests": 3}, "port": 4711}
    fed.send_table(*fed.publish())
    took = fed.hears("took")
    assert (took["packet"], took["number"], took["applied_us"]) == (9, 1, 5)
    fed.serves(1)
    fed.send("version", segment.of_version(*fed.publish()))
    assert fed.hears("took")["number"] == 2
    fed.serves(2)
    assert fed.ready == 1
    version = fed.intake.engine.version
    for _ in range(3):
        fed.intake.served(version)
    served = fed.hears("served")
    assert (served["number"], served["served_us"]) == (2, 5)
    fed.intake._say_totals()
    came = feed.receive(fed.connection)
    assert came is not None
    assert came[0]["kind"] == "totals"  # it said that once


def test_what_does_not_fit_is_refused_and_the_table_asked_for(fed):
    """A version that is no child of what it has, or is another model's: the last good one goes on, on a new connection."""
    fed.send_table(*fed.publish())
    fed.hears("took")
    fed.publish()
    fed.send("version", segment.of_version(*fed.publish()))
    fed.accept()
    assert fed.hears("hello")["number"] == 1
    fed.serves(1)
    other = Lineage(small(factors=4), SCHEMA)
    pairs = other.publish(5)
    content = unpack(other.manifests[1], [value for _, value in pairs[:-1]])
    fed.send("table", segment.of_table(other.manifests[1], other.tables[1], content.dense))
    fed.accept()
    fed.serves(1)
    fed.send_table(*fed.publish())
    fed.hears("took")
    fed.serves(4)


def test_without_a_follower_the_last_version_answers(fed):
    """Requests are answered while it is away; the next follower hears what the worker has."""
    fed.send_table(*fed.publish())
    fed.hears("took")
    fed.connection.close()
    for _ in range(20):
        fed.serves(1)
        fed.intake.served(fed.intake.engine.version)
        time.sleep(0.002)
    fed.accept()
    hello = fed.hears("hello")
    assert (hello["lineage"], hello["number"]) == (fed.lineage.name, 1)


def test_a_defect_does_not_end_it(fed):
    """Something no version can be: the thread that takes versions lives on."""
    fed.send_table(*fed.publish())
    fed.hears("took")
    descriptor = os.memfd_create("nonsense")
    os.write(descriptor, b"x" * 100)
    fed.send("version", descriptor)
    fed.accept()
    fed.send("version", segment.of_version(*fed.publish()))
    assert fed.hears("took")["number"] == 2
    fed.serves(2)
