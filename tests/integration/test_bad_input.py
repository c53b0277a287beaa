"""Whatever producers send has one counted end, and stops nothing."""

from __future__ import annotations

import time
from pathlib import Path

import orjson
import pytest
from kafka import KafkaProducer

from ops.letters import letters
from ops.topics import ensure_topics
from ops.watch import last
from schemas.config import Settings, Source, build
from schemas.events import time_text
from tests.kit.processes import Process, wait_until


@pytest.fixture
def settings(broker: str, prefix: str, tmp_path: Path) -> Settings:
    made, _ = build(Source("test", {
        "var": str(tmp_path / "var"), "kafka.bootstrap": broker, "kafka.prefix": prefix, "model.bits": 12,
        "model.hidden": "8", "join.window_s": 2.0, "snapshot.version_every_s": 0.1,
    }))
    return made


def shown(name: str, seconds: float = 0.0, **more: object) -> dict[str, object]:
    """A slate of two apps, `seconds` from now."""
    return {
        "impression_id": name, "time": time_text(time.time_ns() // 1000 + round(seconds * 1e6)),
        "context": {"country": "NO"}, "items": [{"id": "a", "features": {"category": "games"}}, {"id": "b"}], **more,
    }


def clicked(name: str, item: str = "a", **more: object) -> dict[str, object]:
    return {"impression_id": name, "action": "click", "item": item, "time": time_text(time.time_ns() // 1000), **more}


def test_each_bad_event_has_its_end_and_the_good_ones_are_learnt(settings: Settings) -> None:
    """The list of the first issue, between good events; the counts add up, and the reasons can be read."""
    ensure_topics(settings)
    producer = KafkaProducer(bootstrap_servers=settings.kafka.bootstrap, max_request_size=8 << 20, acks="all")
    crew = [Process(settings, "joiner"), Process(settings, "trainer")]
    try:
        def send(key: str, value: bytes) -> None:
            producer.send(settings.kafka.topic("events"), value, key=key.encode()).get(30)

        for event in (shown("p"), clicked("p"), shown("q")):
            send(str(event["impression_id"]), orjson.dumps(event))
        unusable = {
            "garbage": b"\x07\xff\x00 no event",
            "bad_json": b'{"impression_id": "torn',
            "not_finite": b'{"impression_id": "n", "value": NaN}',
            "too_large": b"{" + b" " * (5 << 20) + b"}",
            "item_not_shown": orjson.dumps(clicked("q", item="never shown")),
            "wrong_type": orjson.dumps(shown("t", items=[{"id": "a", "features": {"price": "cheap"}}])),
        }
        for key, value in unusable.items():
            send(key, value)
        duplicate, far = shown("q"), shown("r", seconds=3600.0)
        strange = shown("s", context={"country": "NO", "planet": "mars"})
        for event in (duplicate, far, strange, clicked("r"), clicked("p"), clicked("stranger"), clicked("s", action="install")):
            send(str(event["impression_id"]), orjson.dumps(event))

        def tallies() -> dict[str, int]:
            row = last(settings, "trainer", "trainer.status")
            return row["tallies"] if row else {}

        wait_until(lambda: tallies().get("impressions") == 4 and tallies().get("unmatched_action") == 1, 60, "every end")
        assert tallies() == {
            "impressions": 4, "examples": 8, "positives": 2, "dead_letter": 6, "duplicate_impression": 1,
            "duplicate_action": 1, "unmatched_action": 1, "other_action": 1,
        }
        found = {letter.reason: letter for letter in letters(settings)}
        assert set(found) == (set(unusable) - {"not_finite"}) | {"bad_json"}
        assert found["too_large"].size_bytes > 5 << 20
        assert "never shown" in found["item_not_shown"].text
        assert "field price" in found["wrong_type"].text
        joiner = last(settings, "joiner", "joiner.status")
        assert joiner is not None
        assert joiner["unknown_fields"] == {"planet": 1}
        assert joiner["counts"]["clamped"] == 1
        assert all(process.alive for process in crew)
    finally:
        producer.close()
        for process in crew:
            process.stop()
