"""Dead letters: counted, shown readably, sent again once what made them unusable is mended."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from ops.events.dead_letters import letters, readable, replay
from ops.kafka.cluster import producer
from ops.kafka.topics import ensure_topics
from ops.watching.journals import wait_until_learnt
from schemas.config import Settings, Source, build
from schemas.proto import events_pb2
from tests.integration.test_exactly_once import running
from tests.kit.logs import click, impression, tick
from tests.kit.processes import Process, environment

SCHEMA = """
name = "shop"
[[field]]
name = "price"
number = 1
{kind}
side = "item"
"""


def shop(tmp_path: Path, name: str, kind: str) -> str:
    """A schema whose one field is of this kind."""
    path = tmp_path / f"{name}.toml"
    path.write_text(SCHEMA.format(kind=kind))
    return str(path)


def send(settings: Settings, events: list[bytes]) -> None:
    sender = producer(settings.kafka, "test")
    for number, event in enumerate(events):
        sender.send(settings.kafka.topic("events"), event, key=f"k{number}".encode())
    sender.close()


def priced(name: str, seconds: float) -> bytes:
    """A slate whose prices are words."""
    event = orjson.loads(impression(name, seconds))
    for item in event["items"]:
        item["features"] = {"price": "cheap"}
    return orjson.dumps(event)


def verb(settings: Settings, *more: str) -> dict[str, Any]:
    """What `freshet dead-letters --json` prints."""
    done = subprocess.run(
        [sys.executable, "-m", "ops.cli", "dead-letters", "--json", *more], env=environment(settings), capture_output=True,
        text=True, check=True,
    )
    return dict(json.loads(done.stdout))


def test_letters_are_sent_again_after_a_fix_and_only_once(broker: str, prefix: str, tmp_path: Path) -> None:
    """A schema that took no words refused forty slates; mended, they are learnt with their clicks; the torn one is not sent."""
    settings, _ = build(Source("test", {
        "var": str(tmp_path / "var"), "kafka.bootstrap": broker, "kafka.prefix": prefix, "model.bits": 12, "model.hidden": "8",
        "join.window_s": 2.0, "learn.batch_wait_s": 0, "model.schema": shop(tmp_path, "mended", 'kind = "categorical"'),
    }))
    numbers = shop(tmp_path, "wrong", 'kind = "numeric"\ntransform = "raw"')
    wrong = replace(settings, model=replace(settings.model, schema=numbers))
    ensure_topics(settings)
    slates = [event for n in range(40) for event in (priced(f"i{n}", n), click(f"i{n}", n + 1.0))]
    with running(settings) as crew:
        crew["joiner"].stop()
        crew["joiner"] = Process(wrong, "joiner")
        send(settings, [*slates, b'{"torn', tick(60, end=True)])
        before = wait_until_learnt(settings, 1, 60)["tallies"]
        assert before["dead_letter"] == 41
        assert before["unmatched_action"] == 40
        listed = verb(wrong)
        assert listed["reasons"] == {"wrong_type": 40, "bad_json": 1}

        found = list(letters(settings))
        assert replay(wrong, found).unusable == {"wrong_type": 40, "bad_json": 1}
        crew["joiner"].stop()
        crew["joiner"] = Process(settings, "joiner")
        assert verb(settings, "--replay", "--reason", "wrong_type") == {"sent": 40, "before": 0, "unusable": {}, "gone": 0}
        again = replay(settings, found)
        assert (again.sent, again.before, again.unusable) == (0, 40, {"bad_json": 1})
        send(settings, [tick(120, end=True)])
        after = wait_until_learnt(settings, 2, 60)["tallies"]
        assert after["impressions"] - before.get("impressions", 0) == 40
        assert after["positives"] - before.get("positives", 0) == 40
        assert after["dead_letter"] == 41


@pytest.mark.parametrize(("value", "told"), [
    (b'{"impression_id": "p", "items": []}', '{\n  "impression_id": "p",\n  "items": []\n}'),
    (b'{"torn\xff', '{"torn\\xff'),
    (events_pb2.Event(action=events_pb2.Action(impression_id="p", action="click")).SerializeToString(), 'impression_id: "p"'),
    (b"\x07\xff\x00 no event", "00000000  07 ff 00 20 6e 6f 20 65 76 65 6e 74"),
])
def test_an_event_is_shown_as_a_person_reads_it(value: bytes, told: str) -> None:
    """JSON with indents, protobuf as text, all else as bytes."""
    assert told in readable(value)
