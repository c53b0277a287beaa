"""Labels that stop and come back, through real Kafka: skipped, then learnt once, whoever is cut off in between."""

from __future__ import annotations

import random

import orjson
import pytest

from ops.events.anew import publish
from ops.events.rejoin import LabelsAway, find, rejoin
from ops.kafka.cluster import producer
from ops.kafka.topics import ensure_topics
from ops.watching.journals import wait_until_learnt
from schemas.config import Settings, Source, build
from tests.integration.test_exactly_once import running
from tests.kit.logs import click, impression, tick

RATE, STEP_S, DIES, BACK, LAST = 0.5, 0.1, 30.0, 60.0, 90.0


def stream() -> tuple[list[bytes], list[bytes]]:
    """Ten slates a second, every second one clicked: (the log without the clicks of the dead stretch, those clicks)."""
    rng = random.Random(11)
    events: list[tuple[float, bytes]] = []
    lost: list[bytes] = []
    for number in range(round(LAST / STEP_S)):
        shown = number * STEP_S
        events.append((shown, impression(f"i{number}", shown)))
        clicked = shown + rng.uniform(0.2, 1.8)
        if rng.random() < RATE:
            if DIES <= clicked < BACK:
                lost.append(click(f"i{number}", clicked))
            else:
                events.append((clicked, click(f"i{number}", clicked)))
    return [event for _, event in sorted(events)], lost


def send(settings: Settings, events: list[bytes]) -> None:
    """Into `events`, keyed by their impression; ticks have no key."""
    sender = producer(settings.kafka, "test")
    for event in events:
        key = orjson.loads(event)["impression_id"].encode() if event[0] == 0x7B else None
        sender.send(settings.kafka.topic("events"), event, key=key, partition=0)
    sender.close()


def test_suspect_groups_are_learnt_once_when_their_labels_are_back(broker: str, prefix: str, tmp_path) -> None:
    """Skipped while dead, refused while labels are away, then each once: half by a command cut off, half by the next."""
    settings, _ = build(Source("test", {
        "var": str(tmp_path / "var"), "kafka.bootstrap": broker, "kafka.prefix": prefix, "model.bits": 12, "model.hidden": "8",
        "learn.batch_wait_s": 0, "join.window_s": 2.0, "join.commit_every_s": 0.2, "join.suspect_labels": 15.0,
    }))
    log, lost = stream()
    ensure_topics(settings)
    with running(settings) as crew:
        send(settings, [*log, tick(LAST + 5, end=True)])
        first = wait_until_learnt(settings, 1, 60)
        tallies = first["tallies"]
        assert tallies["impressions"] == round(LAST / STEP_S)
        assert tallies["examples"] + tallies["suspect"] == 2 * tallies["impressions"]
        assert 400 < tallies["suspect"] < 700                             # two items a slate, 300 slates at most
        assert tallies["positives"] / tallies["examples"] == pytest.approx(RATE / 2, rel=0.15)

        crew["joiner"].kill()                                             # what it knew of the pulse is in its commit
        found = find(settings)
        assert len(found.waiting) == tallies["suspect"] // 2
        with pytest.raises(LabelsAway, match="Nothing was published"):
            rejoin(settings, found)

        send(settings, lost)
        found = find(settings)
        assert found.labels_per_item == pytest.approx(RATE / 2, rel=0.25)
        half = len(found.waiting) // 2
        publish(settings, found.waiting[:half], found.newest_us)
        second = find(settings)
        assert (second.done, len(second.waiting)) == (half, len(found.waiting) - half)
        assert rejoin(settings, second) == len(second.waiting)
        assert not find(settings).waiting
        assert rejoin(settings, find(settings)) == 0
        crew["joiner"].restart()
        send(settings, [tick(LAST + 20, end=True)])
        done = wait_until_learnt(settings, 2, 60)
        after = done["tallies"]

    assert after["impressions"] - tallies["impressions"] == len(found.waiting)
    assert after["examples"] - tallies["examples"] == tallies["suspect"]
    assert after["positives"] - tallies["positives"] == found.labels
    assert after["suspect"] == tallies["suspect"]
    assert done["gaps"] == 0
    assert after["positives"] / after["examples"] == pytest.approx(RATE / 2, rel=0.15)
