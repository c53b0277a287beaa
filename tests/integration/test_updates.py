"""Versions through Kafka to another machine's store: the same bytes, whole, in order, wherever anything is killed."""

from __future__ import annotations

import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka import KafkaConsumer, TopicPartition
from kafka.admin import KafkaAdminClient

from ops.kafka.cluster import consumer as plain_consumer
from ops.kafka.cluster import producer
from ops.versions.updates import OtherHistory, Sender
from schemas.config import Settings, Source, build
from schemas.errors import ConfigError, SnapshotError
from schemas.fields import load
from schemas.snapshot import (
    CHUNK_BYTES,
    chunk_key,
    decode_manifest,
    described,
    encode_manifest,
    encode_rows,
    encode_tensors,
    manifest_key,
    number_of,
)
from schemas.updates import CHUNK_RECORD_BYTES, is_of, told
from scorer.client import ScorerClient
from scorer.versions.mirror import Mirror
from scorer.versions.reader import SnapshotReader
from scorer.versions.topic import connected
from stream_trainer.store import SnapshotStore
from tests.integration.test_scorer_server import CONTEXT, MODEL, slate
from tests.kit.memory_topic import Killed, MemoryConsumer, MemoryTopic
from tests.kit.processes import Process, wait_until
from tests.kit.scorer import ScorerServer
from tests.scorer.lineage import Lineage, RocksWriter, small

SCHEMA = load("appstore")

pytestmark = pytest.mark.integration


def settings_of(var: Path, **values: Any) -> Settings:
    return build(Source("test", MODEL | {"var": var, "score.port": 0, "snapshot.keep_s": 10**12} | values))[0]


def stored(settings: Settings, name: str = "looks") -> dict[bytes, bytes]:
    """Every key and value of a version in a store, read beside whoever writes it."""
    with SnapshotReader(settings.store_dir, settings.var / name) as reader:
        reader.poll()
        return dict(pair for manifest in reader.manifests().values() for pair in reader.pairs(manifest))


def newest_whole(settings: Settings) -> tuple[int, np.ndarray[Any, Any]]:
    """Number and table (2^bits, W) of the newest version, zero where never touched."""
    with SnapshotReader(settings.store_dir, settings.var / "whole") as reader:
        number = reader.poll()
        assert number is not None
        whole = reader.whole(number)
        table = np.zeros((1 << settings.model.bits, whole.floats.shape[1]), np.float32)
        table[whole.rows] = whole.floats
        return number, table


def assert_truth(lineage: Lineage, settings: Settings) -> None:
    """The newest version there is the lineage's newest, to the last bit."""
    number, table = newest_whole(settings)
    assert number == lineage.next - 1
    touched = lineage.touched
    np.testing.assert_array_equal(table[touched], lineage.tables[number][touched])
    assert not table[~touched].any()


class Room:
    """A trainer's store and a mirror's, a topic in memory between them, and a clock."""

    def __init__(self, var: Path, keep_s: float = 10**12) -> None:
        self.local, self.remote = settings_of(var / "local"), settings_of(var / "remote", **{"snapshot.keep_s": keep_s})
        self.writer = RocksWriter(self.local.store_dir)
        self.lineage = Lineage(small(), SCHEMA)
        self.topic = MemoryTopic()
        self.now_us = 10**15
        self.sender, self.mirror = self.new_sender(), self.new_mirror()
        self.begun = False

    def clock(self) -> int:
        self.topic.now_ms = self.now_us // 1000
        return self.now_us

    def new_sender(self, anew: bool = False, settings: Settings | None = None, keep_us: int = 900_000_000) -> Sender:
        self.begun = False
        return Sender(settings or self.local, self.clock, MemoryConsumer(self.topic), self.topic, keep_us, anew)

    def new_mirror(self) -> Mirror:
        made = Mirror(self.remote, self.clock, MemoryConsumer(self.topic))
        made.begin()
        return made

    def publish(self, count: int = 1) -> None:
        for _ in range(count):
            self.writer.write(self.lineage.publish())

    def roll_back(self) -> None:
        """Another lineage, whose first version holds everything, with numbers that go on."""
        before = self.lineage
        self.lineage = Lineage(small(), SCHEMA, name=f"{before.next:032x}", first=before.next)
        self.lineage.table, self.lineage.touched = before.table.copy(), before.touched.copy()

    def send(self) -> None:
        """The sender's loop, until nothing is new."""
        self.now_us += 2_000_000
        self.begun = self.begun or self.sender.begin()
        while self.begun and self.sender.step():
            pass

    def receive(self) -> None:
        """The mirror's loop, until it has read all."""
        while self.mirror.lag():
            self.mirror.step(0)

    def restart_sender(self, **how: Any) -> None:
        self.sender.close()
        self.sender = self.new_sender(**how)

    def restart_mirror(self) -> None:
        self.mirror.close()
        self.mirror = self.new_mirror()

    def close(self) -> None:
        self.sender.close()
        self.mirror.close()
        self.writer.close()


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    made = Room(tmp_path)
    yield made
    made.close()


def test_what_arrives_is_bit_for_bit_what_the_trainer_wrote(room: Room) -> None:
    """Over a rollback too. A mirror that begins later reads from where a whole table follows, and ends with the same."""
    for _ in range(3):
        room.publish(3)
        room.send()
        room.receive()
    room.roll_back()
    room.publish(2)
    room.send()
    room.receive()
    assert stored(room.remote) == stored(room.local)
    assert_truth(room.lineage, room.remote)

    room.publish(6)
    room.send()
    late = Room.__new__(Room)
    late.__dict__.update(room.__dict__ | {"remote": settings_of(room.local.var / "late")})
    late.mirror = late.new_mirror()
    late.receive()
    assert_truth(room.lineage, late.remote)
    assert list(late.mirror.replica.manifests) == list(range(room.lineage.next - 4, room.lineage.next))   # a rotation, no more
    late.mirror.close()


def test_pins_are_carried(tmp_path: Path) -> None:
    """The mirror keeps what it has for its own time, what the newest is made of, and what is pinned with all it needs."""
    room = Room(tmp_path, keep_s=0)
    room.publish(7)
    room.send()
    checkpoint = replace(room.lineage.manifests[1], kind="checkpoint", number=1, chunks=(), pinned=(7,))
    room.writer.write([(manifest_key("checkpoint", 1), encode_manifest(checkpoint))])
    for _ in range(6):
        room.send()
        room.receive()
        room.now_us += 60_000_000
        room.publish(2)
        assert room.mirror.replica.whole()
    assert list(room.mirror.replica.manifests) == [4, 5, 6, 7, *range(14, 18)]
    room.close()


def test_a_mirror_away_for_long_reads_a_whole_table_instead(room: Room) -> None:
    """What it missed is gone from the topic: it says so, keeps what it has, and ends with the newest, whole."""
    room.publish(5)
    room.send()
    room.receive()
    room.mirror.close()
    room.publish(60)
    room.send()
    room.topic.truncate(len(room.topic.records) // 2)
    room.mirror = room.new_mirror()
    room.receive()
    assert_truth(room.lineage, room.remote)
    assert list(room.mirror.replica.manifests) == [2, 3, 4, 5, 62, 63, 64, 65]


def test_a_mirror_that_is_overtaken_by_retention_while_it_runs_begins_again(room: Room) -> None:
    """Its place is gone between two looks."""
    room.publish(5)
    room.send()
    room.receive()
    room.publish(30)
    room.send()
    room.topic.truncate(len(room.topic.records) // 2)
    room.receive()
    assert_truth(room.lineage, room.remote)


def test_a_quiet_trainer_s_table_is_sent_again_before_retention_takes_it(room: Room) -> None:
    """After half of the retention, and at once where the topic was cut: a mirror that begins then has all of it; one that had
    it all takes nothing twice."""
    room.publish(7)
    room.send()
    room.receive()
    sent = room.topic.end
    room.now_us += 400_000_000
    room.send()
    assert room.topic.end == sent
    room.now_us += 60_000_000
    room.send()
    assert room.topic.end > sent
    room.topic.truncate(sent)
    before = stored(room.remote)
    room.receive()
    assert stored(room.remote) == before
    room.mirror.close()
    shutil.rmtree(room.remote.store_dir)
    room.mirror = room.new_mirror()
    room.receive()
    assert_truth(room.lineage, room.remote)

    room.topic.truncate(len(room.topic.records))
    room.send()
    assert room.topic.records
    room.publish()
    room.send()
    room.receive()
    assert_truth(room.lineage, room.remote)


def test_a_sender_away_for_long_sends_a_whole_table(room: Room) -> None:
    """The trainer's retention took what it had not sent: what follows is whole again, for old mirrors and new ones."""
    room.publish(5)
    room.send()
    room.publish(20)
    for number in range(1, 20):
        room.writer.delete(number)
    room.restart_sender()
    room.send()
    room.receive()
    assert_truth(room.lineage, room.remote)
    assert 19 not in room.mirror.replica.manifests


def test_a_sender_killed_while_it_sends_again_does_not_look_like_another(room: Room) -> None:
    """Versions sent twice and then new ones, from a sender that forgot how far it had been: nothing is refused."""
    room.publish(3)
    room.send()
    room.receive()
    room.now_us += 500_000_000
    room.publish(2)
    room.topic.sends_left = 3
    with pytest.raises(Killed):
        room.send()
    room.topic.sends_left = None
    room.restart_sender()
    room.publish(2)
    room.send()
    room.receive()
    assert_truth(room.lineage, room.remote)


def test_a_broken_version_is_not_sent(room: Room) -> None:
    """It is named and left out; those after it are whole again by themselves."""
    room.publish(3)
    pairs = room.lineage.publish()
    room.writer.write([(pairs[0][0], pairs[0][1][:-1]), *pairs[1:]])
    room.send()
    room.publish(5)
    room.send()
    room.receive()
    assert 4 not in room.mirror.replica.manifests
    assert_truth(room.lineage, room.remote)


def test_another_trainer_s_store_is_not_sent_into_the_topic(room: Room, tmp_path: Path) -> None:
    """The second sender of a model name is refused, both sides named; --anew begins another history, which mirrors follow, and
    the first sender's next version is then refused by them."""
    room.publish(5)
    room.send()
    room.receive()
    other = Room.__new__(Room)
    other.__dict__.update(room.__dict__ | {"local": settings_of(tmp_path / "other"), "begun": False})
    other.writer, other.lineage = RocksWriter(other.local.store_dir), Lineage(small(), SCHEMA, name="b" * 32)
    other.publish(2)
    other.sender = other.new_sender(settings=other.local)
    with pytest.raises(OtherHistory, match=r"version 5 of lineage aaaaaaaa.*this store holds 1 to 2.*--anew"):
        other.sender.begin()
    other.restart_sender(settings=other.local, anew=True)
    other.send()
    room.receive()
    assert_truth(other.lineage, room.remote)
    assert list(room.mirror.replica.manifests) == [1, 2]
    room.publish()
    room.send()
    with pytest.raises(SnapshotError, match=r"still writes after .* was begun"):
        room.receive()
    assert_truth(other.lineage, room.remote)
    other.sender.close()
    other.writer.close()


def test_a_version_that_follows_upon_another_is_refused_by_the_mirror(room: Room) -> None:
    """Two senders of one history: what was not sent after what is held is no version for this store."""
    room.publish(5)
    room.send()
    room.receive()
    stranger = Lineage(small(), SCHEMA, name="b" * 32, first=6)
    stranger.parent = 5
    of_a_chunk, of_a_manifest = room.topic.records[0].headers, room.topic.records[-1].headers
    for key, value in stranger.publish():
        room.topic.send("", value, key, of_a_manifest if number_of("version", key) else of_a_chunk, 0)
    with pytest.raises(SnapshotError, match=r"version 6 of lineage bbbbbbbb was sent after 4 of aaaaaaaa, and comes after 5"):
        room.receive()
    assert_truth(room.lineage, room.remote)


def test_versions_that_the_store_lost_are_not_built_upon(room: Room) -> None:
    """A machine that lost power may have sent what its disk never got. The sender says so, and what to do; even --anew waits
    until another lineage has begun."""
    room.publish(5)
    room.send()
    for number in (4, 5):
        room.writer.delete(number)
    room.restart_sender()
    with pytest.raises(OtherHistory, match="lost power"):
        room.sender.begin()
    room.restart_sender(anew=True)
    with pytest.raises(OtherHistory, match=r"rollback --to 3 --then replay"):
        room.sender.begin()


def test_another_model_s_or_schema_s_versions_are_refused(room: Room, tmp_path: Path) -> None:
    """With both sides named, and nothing written. A record of another model's name is passed over."""
    room.publish(2)
    room.send()
    mirror = Mirror(settings_of(tmp_path / "m1", **{"model.bits": 10}), room.clock, MemoryConsumer(room.topic))
    mirror.begin()
    with pytest.raises(SnapshotError, match=r"model\.bits is 9 there and 10 here"):
        mirror.step(0)
    assert not mirror.replica.manifests
    mirror.close()
    mirror = Mirror(settings_of(tmp_path / "m2", **{"model.schema": "criteo"}), room.clock, MemoryConsumer(room.topic))
    mirror.begin()
    with pytest.raises(SnapshotError, match="field 1 is"):
        mirror.step(0)
    mirror.close()
    mirror = Mirror(settings_of(tmp_path / "m3", **{"model.name": "games"}), room.clock, MemoryConsumer(room.topic))
    mirror.begin()
    while mirror.lag():
        assert mirror.step(0) == 0
    mirror.close()


def test_a_trainer_s_own_store_is_no_mirror_s(room: Room) -> None:
    """Nor the other way round, nor may two write one."""
    with pytest.raises(SnapshotError, match="Is another process writing it"):
        Mirror(room.remote, room.clock, MemoryConsumer(room.topic))
    room.publish(1)
    room.send()
    room.receive()
    room.mirror.close()
    with pytest.raises(SnapshotError, match="filled by `freshet mirror`"):
        SnapshotStore(room.remote.store_dir)
    writer = RocksWriter(room.remote.store_dir)
    writer.write([(manifest_key("checkpoint", 1), b"anything")])
    writer.close()
    with pytest.raises(ConfigError, match="a trainer's own store"):
        Mirror(room.remote, room.clock, MemoryConsumer(room.topic))
    shutil.rmtree(room.remote.store_dir)
    room.mirror = room.new_mirror()


ACTS = ["publish", "publish", "publish", "send", "receive", "receive one", "cut sender", "cut mirror", "roll back", "delete",
        "retention", "long pause"]


@hypothesis.settings(max_examples=40, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from(ACTS), st.integers(0, 30)), min_size=5, max_size=40))
def test_whatever_happens_a_mirror_holds_only_whole_versions_and_ends_with_the_newest(
    tmp_path_factory: pytest.TempPathFactory, acts: list[tuple[str, int]]
) -> None:
    """Any sequence of versions, rollbacks, deletions, pauses, retention, and of kills of sender (between any two records) and
    mirror: every version that the mirror holds is one that was published, byte for byte; when all has settled it holds the
    newest, whole."""
    room = Room(tmp_path_factory.mktemp("room"))
    published: dict[bytes, bytes] = {}

    def publish(count: int) -> None:
        for _ in range(count):
            pairs = room.lineage.publish()
            published.update(pairs)
            room.writer.write(pairs)

    publish(1)
    for act, number in acts:
        if act == "publish":
            publish(1 + number % 4)
        elif act == "send":
            room.send()
        elif act == "cut sender":
            room.topic.sends_left = number
            try:
                room.send()
            except Killed:
                room.restart_sender()
            room.topic.sends_left = None
        elif act == "receive":
            room.receive()
        elif act in ("receive one", "cut mirror"):
            for _ in range(number % 3):
                room.mirror.step(0)
            if act == "cut mirror":
                room.restart_mirror()
        elif act == "roll back":
            room.roll_back()
            publish(1)
        elif act == "delete":       # as the trainer's retention: never what the newest is made of
            oldest = max(room.lineage.manifests) - 3
            for gone in range(1, min(oldest, number)):
                room.writer.delete(gone)
        elif act == "retention":
            room.topic.truncate(min(number, len(room.topic.records)))
        else:
            room.now_us += 500_000_000
        held = stored(room.remote)
        assert held.items() <= published.items()
    publish(1)
    for _ in range(3):
        room.send()
        room.receive()
    assert_truth(room.lineage, room.remote)
    assert room.mirror.replica.whole()
    room.close()


# --- with a real Kafka ---


@contextmanager
def real_sender(settings: Settings, keep_us: int = -1) -> Iterator[Sender]:
    consumer, sends = connected(settings.kafka, "updates"), producer(settings.kafka, "updates")
    sender = Sender(settings, lambda: time.time_ns() // 1000, consumer, sends, keep_us)
    yield sender
    sender.close()
    sends.close()
    consumer.close()


def test_a_version_of_full_chunks_passes_a_broker_that_nobody_configured(
    broker: str, prefix: str, tmp_path: Path
) -> None:
    """A topic with Kafka's own limit, 1,048,588 bytes a record, and chunks that do not compress; each is below what doctor
    says they are."""
    settings = settings_of(tmp_path, **{"kafka.bootstrap": broker, "kafka.prefix": prefix})
    name = settings.kafka.topic("model-updates")
    client = KafkaAdminClient(bootstrap_servers=broker)
    client.create_topics({name: {"num_partitions": 1, "replication_factor": 1, "configs": {"max.message.bytes": "1048588"}}})
    client.close()
    lineage = Lineage(small(), SCHEMA)
    lineage.publish()
    floats = np.random.default_rng(1).integers(0, 2**32, (70_000, 4), dtype=np.uint32).view(np.float32)
    noise = {"w": np.random.default_rng(2).integers(0, 255, CHUNK_BYTES, np.uint8)}
    chunks = [*encode_rows(np.arange(70_000), floats), *encode_tensors(noise)]
    assert max(map(len, chunks)) > 0.999 * CHUNK_BYTES
    manifest = replace(
        lineage.manifests[1], chunks=tuple(described(chunk) for chunk in chunks), rows=70_000,
        model={**lineage.manifests[1].model, "bits": 17},
    )
    writer = RocksWriter(settings.store_dir)
    writer.write([(chunk_key("version", 1, place), chunk) for place, chunk in enumerate(chunks)])
    writer.write([(manifest_key("version", 1), encode_manifest(manifest))])
    with real_sender(settings) as sender:
        assert sender.begin()
        assert sender.step() == 1
    consumer = plain_consumer(settings.kafka, "test")
    place = TopicPartition(name, 0)
    consumer.assign([place])
    consumer.seek_to_beginning(place)
    found: list[bytes] = []
    while len(found) < len(chunks) + 1:
        found += [record.value for record in consumer.poll(timeout_ms=1000).get(place, [])]
    consumer.close()
    assert found == [*chunks, encode_manifest(manifest)]
    assert CHUNK_BYTES + 13 + 200 < CHUNK_RECORD_BYTES
    writer.close()


def test_sender_and_mirror_killed_at_any_moment(
    kafka_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    """Both as processes, SIGKILLed while versions land, and a rollback between: a scorer beside the mirror ends with the
    numbers that the one beside the trainer says, and its store with the same bytes."""
    local = kafka_settings(**MODEL | {"snapshot.updates": True, "snapshot.keep_s": 10**12})
    remote = replace(local, var=tmp_path / "remote")
    writer, lineage = RocksWriter(local.store_dir), Lineage(small(), SCHEMA, rotation=8)
    stop = threading.Event()

    def publish() -> None:
        nonlocal lineage
        while not stop.wait(0.05):
            if lineage.next == 100:
                before, lineage = lineage, Lineage(small(), SCHEMA, name="b" * 32, rotation=8, first=100)
                lineage.table, lineage.touched = before.table, before.touched
            writer.write(lineage.publish())

    publishing = threading.Thread(target=publish, daemon=True)
    publishing.start()
    sender, mirror = Process(local, "updates"), Process(remote, "mirror")

    def reaches(number: int) -> bool:
        assert sender.alive, sender.tail()
        assert mirror.alive, mirror.tail()
        return (held_by(remote) or [0])[-1] >= number

    rng = random.Random(7)
    try:
        for victim in (sender, mirror, sender, mirror):
            wait_until(partial(reaches, (held_by(remote) or [0])[-1] + 3), 90, "versions on the other side")
            time.sleep(rng.uniform(0, 0.3))
            victim.kill()
            victim.restart()
        wait_until(partial(reaches, 105), 90, "versions after the rollback")
        stop.set()
        publishing.join()
        wait_until(partial(reaches, lineage.next - 1), 60, "the newest version on the other side")
        assert (sender.stop(), mirror.stop()) == (0, 0)
    finally:
        stop.set()
        publishing.join()
        for process in (sender, mirror):
            if process.alive:
                process.kill()
    theirs, ours = stored(remote), stored(local)
    assert theirs.items() <= ours.items()
    assert_truth(lineage, remote)
    assert_in_order(local)

    answers = []
    for settings in (local, remote):
        server = ScorerServer(settings)
        server.start()
        with ScorerClient(f"127.0.0.1:{server.port}") as client:
            client.wait_ready(30)
            answers.append(client.score(CONTEXT, slate(9)))
        server.stop()
    here, there = answers
    assert (there.version, there.lineage) == (here.version, here.lineage) == (lineage.next - 1, "b" * 32)
    assert [item.logit for item in there.items] == [item.logit for item in here.items]
    writer.close()


def held_by(settings: Settings) -> list[int]:
    with SnapshotReader(settings.store_dir, settings.var / "held") as reader:
        reader.poll()
        return reader.numbers()


def assert_in_order(settings: Settings) -> None:
    """In the topic each version stands once, ascending, sent after the one before it; the chunks of a killed sender stand
    before it, twice at most."""
    place = TopicPartition(settings.kafka.topic("model-updates"), 0)
    reader = KafkaConsumer(bootstrap_servers=settings.kafka.bootstrap, group_id=None)
    reader.assign([place])
    reader.seek_to_beginning(place)
    end, last, numbers = reader.end_offsets([place])[place], None, []
    while reader.position(place) < end:
        for record in reader.poll(timeout_ms=1000).get(place, []):
            assert is_of(settings.model.name, record.headers)
            if (number := number_of("version", record.key)) is not None:
                said = told(record.headers)
                assert said.after == last
                last = (decode_manifest(record.value, record.key).lineage, number)
                numbers.append(number)
    reader.close()
    assert numbers == sorted(set(numbers))

