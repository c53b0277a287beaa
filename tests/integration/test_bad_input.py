"""Whatever producers send has one counted end, and stops nothing."""

from __future__ import annotations

import re
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
from kafka import KafkaProducer

from ops.events.dead_letters import letters
from ops.kafka.cluster import admin, producer
from ops.kafka.topics import ensure_topics
from ops.watching.journals import last
from schemas import fields
from schemas.config import Settings, Source, build
from schemas.events import time_text
from stream_trainer.faust_driver import partition_of
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


@contextmanager
def crew_of(settings: Settings, *verbs: str) -> Iterator[dict[str, Process]]:
    """Running processes, stopped at the end."""
    ensure_topics(settings)
    crew = {verb: Process(settings, verb) for verb in verbs}
    try:
        yield crew
    finally:
        for process in crew.values():
            process.stop()


def tallies_of(settings: Settings) -> dict[str, int]:
    row = last(settings, "trainer", "trainer.status")
    return row["tallies"] if row else {}


def send_all(
    settings: Settings, events: Sequence[Mapping[str, object]], key: str | None = "k", partition: int | None = None
) -> None:
    """Into `events`, one after the other."""
    sender = producer(settings.kafka, "test")
    for event in events:
        sender.send(
            settings.kafka.topic("events"), orjson.dumps(event), key=key.encode() if key else None, partition=partition
        ).get(30)
    sender.close()


def test_clocks_keys_and_batches_that_are_off_are_counted(settings: Settings) -> None:
    """A clock an hour behind, a user's whole day sent at once, records without a key, and another partitioner than Kafka's."""
    settings = replace(settings, kafka=replace(settings.kafka, event_partitions=2))
    right = partition_of(b"k", 2)
    with crew_of(settings, "joiner", "trainer"):
        send_all(settings, [shown("now")])
        an_hour_ago = time_text(time.time_ns() // 1000 - 3_600_000_000)
        send_all(settings, [shown("behind", seconds=-3600.0), clicked("behind", time=an_hour_ago)])
        send_all(settings, [shown(f"day{hour}", seconds=-3600.0 * hour) for hour in range(24, 0, -1)])
        send_all(settings, [shown("keyless"), clicked("keyless")], key=None, partition=right)
        wait_until(lambda: tallies_of(settings).get("impressions") == 2, 60, "two impressions learnt")
        assert tallies_of(settings) == {
            "impressions": 2, "examples": 4, "positives": 1, "late_impression": 25, "late_action": 1,
        }
        send_all(settings, [shown(f"astray{n}") for n in range(70)], partition=1 - right)

        def misplaced() -> object:
            row = last(settings, "joiner", "joiner.status")
            return row and row["counts"].get("misplaced")

        wait_until(misplaced, 30, "an alarm")
        assert "murmur2_random" in (settings.var / "joiner.log").read_text()


def _ended(process: Process) -> bool:
    return not process.alive


def test_topics_deleted_and_made_again_stop_joiner_and_trainer(settings: Settings) -> None:
    """Their places in the log are gone, and new records have the names of old ones: each ends with an error that says so, and
    so does whatever starts it again."""
    with crew_of(settings, "joiner", "trainer") as crew:
        send_all(settings, [shown(f"i{n}") for n in range(20)])
        wait_until(lambda: tallies_of(settings).get("impressions") == 20, 60, "twenty impressions learnt")
        names = [settings.kafka.topic(name) for name in ("events", "examples")]
        with admin(settings.kafka) as client:
            client.delete_topics(names)
            wait_until(lambda: not set(names) & set(client.list_topics()), 30, "the topics are gone")
        ensure_topics(settings)
        for verb, process in [*crew.items(), *crew.items()]:
            wait_until(partial(_ended, process), 60, f"the {verb}'s end")
            assert f"{settings.kafka.topic('events')} was deleted and made again" in process.tail()
            assert "Nothing is skipped silently" in process.tail()
            process.log.unlink()
            process.restart()


def test_a_full_disk_ends_the_trainer_and_loses_nothing(settings: Settings) -> None:
    """No file of it may grow any more: it says so and ends; with space again it goes on where the disk left it."""
    settings = replace(settings, snapshot=replace(settings.snapshot, checkpoint_every_s=0.5))
    with crew_of(settings, "joiner", "trainer") as crew:
        send_all(settings, [shown("a"), clicked("a")])
        wait_until(lambda: tallies_of(settings).get("examples") == 2, 60, "the first examples learnt")
        resource.prlimit(crew["trainer"].pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        send_all(settings, [shown(f"b{n}") for n in range(50)])
        wait_until(lambda: not crew["trainer"].alive, 60, "the trainer's end")
        assert re.search("File too large|No space left", crew["trainer"].tail())
        crew["trainer"].restart()
        wait_until(lambda: tallies_of(settings).get("impressions") == 51, 60, "all learnt")
        assert tallies_of(settings)["examples"] == 102
        assert tallies_of(settings)["positives"] == 1


def test_a_changed_field_is_refused_with_both_digests(settings: Settings, tmp_path: Path) -> None:
    """The joiner's schema says that a colour is one word, the trainer's that it is a set: nothing is learnt in between."""
    texts = {"joiner": 'kind = "categorical"', "trainer": 'kind = "set"'}
    schemas_of = {}
    for verb, kind in texts.items():
        path = tmp_path / f"{verb}.toml"
        path.write_text(f'name = "one"\n[[field]]\nname = "colour"\nnumber = 7\n{kind}\nside = "item"\n')
        schemas_of[verb] = replace(settings, model=replace(settings.model, schema=str(path)))
    ensure_topics(settings)
    joiner, trainer = (Process(schemas_of[verb], verb) for verb in ("joiner", "trainer"))
    try:
        send_all(settings, [shown("a", items=[{"id": "x", "features": {"colour": "red"}}])])
        wait_until(lambda: not trainer.alive, 60, "the trainer's end")
        digests = [f"{fields.load(one.model.schema).digests[0]:016x}" for one in schemas_of.values()]
        assert all(digest in trainer.tail() for digest in digests)
        assert "colour" in trainer.tail()
    finally:
        joiner.stop()
        trainer.stop()


def test_a_full_disk_under_the_broker_loses_nothing(own_broker: Callable[..., Any], tmp_path: Path) -> None:
    """No file of its may grow any more: Kafka says so and ends; with space again, what waited in a producer is learnt once."""
    node = own_broker()
    settings, _ = build(Source("test", {
        "var": str(tmp_path / "var"), "kafka.bootstrap": node.bootstrap, "model.bits": 12, "model.hidden": "8",
        "join.window_s": 2.0,
    }))
    with crew_of(settings, "joiner", "trainer") as crew:
        send_all(settings, [shown(f"a{n}") for n in range(20)])
        wait_until(lambda: tallies_of(settings).get("impressions") == 20, 60, "twenty impressions learnt")
        sender = producer(settings.kafka, "test")
        sender.partitions_for(settings.kafka.topic("events"))   # the broker may end before the first of them is sent
        resource.prlimit(node.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        sending = [
            sender.send(settings.kafka.topic("events"), orjson.dumps(shown(f"b{n}")), key=b"k") for n in range(3)
        ]
        wait_until(lambda: not node.alive, 60, "the broker's end")
        assert "IOException" in (node.dir / "broker.log").read_text()   # its own log may not grow either, and is cut
        own_broker(port=node.port)
        for one in sending:
            one.get(60)
        sender.close()

        def learnt() -> bool:
            for process in crew.values():
                if not process.alive:          # as the supervisor does
                    process.restart()
            return tallies_of(settings).get("impressions") == 23

        wait_until(learnt, 60, "all learnt", every_s=0.5)
        assert tallies_of(settings)["examples"] == 46
