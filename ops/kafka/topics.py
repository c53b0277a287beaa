"""The topics: what each is, making them, waiting for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import (
    AuthorizationError,
    CoordinatorLoadInProgressError,
    CoordinatorNotAvailableError,
    KafkaError,
    NotCoordinatorError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
)

from ops.kafka.cluster import admin, refused, wait_for_broker
from schemas.config import Settings
from schemas.errors import BrokerError

START_TIMEOUT_S = 120.0  # the first start of a broker formats its storage; a loaded machine takes its time

PARTITIONS = "partitions"

MAX_RECORD_BYTES = 8 << 20  # an event of 5 MB must reach the joiner, to be refused there with a dead letter

# The time of a record is the moment the broker took it: what a producer's clock said stands inside the event.
_APPEND_TIME = {"message.timestamp.type": "LogAppendTime"}
_BIG = {"max.message.bytes": str(MAX_RECORD_BYTES)}


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic as freshet makes it. name: full, with the prefix."""

    name: str
    partitions: int
    config: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One thing in which an existing topic differs. what: PARTITIONS, or a key of its configuration."""

    topic: str
    what: str
    has: str | None
    wanted: str

    def __str__(self) -> str:
        return f"{self.topic} has {self.what}={self.has}, freshet would have made it {self.wanted}"


@dataclass(frozen=True, slots=True)
class TopicsReport:
    """What ensure_topics found and did. mismatches: existing topics that are not as the settings say, a text each."""

    created: list[str]
    existing: list[str]
    mismatches: list[str]


def topics_of(settings: Settings) -> dict[str, Topic]:
    """Short name → topic."""
    kafka = settings.kafka
    listed = {
        "events": (kafka.event_partitions, _APPEND_TIME | _BIG),
        "examples": (kafka.example_partitions, _APPEND_TIME | _BIG),
        "dead-letters": (1, _BIG),
        "model-updates": (1, _updates(settings)),
        "model-control": (1, {"cleanup.policy": "compact"}),
    }
    return {short: Topic(kafka.topic(short), n, dict(config)) for short, (n, config) in listed.items()}


def updates_retention_s(settings: Settings) -> float:
    """How long model-updates is to keep a version: four times what a whole table takes to come round, a quarter of an hour at
    least. A sender whose trainer is quiet sends the table again twice in that time; a mirror that was away for longer reads a
    whole table instead of what it missed."""
    return max(900.0, 4 * settings.snapshot.rotation * settings.snapshot.version_every_s)


def _updates(settings: Settings) -> dict[str, str]:
    """Kafka deletes whole segments only: small ones, so that the disk holds little more than the retention says."""
    keep_ms = int(1000 * updates_retention_s(settings))
    return _BIG | {"retention.ms": str(keep_ms), "segment.ms": str(keep_ms // 4), "segment.bytes": str(128 << 20)}


def ensure_topics(settings: Settings, timeout_s: float = 30.0) -> TopicsReport:
    """Create the topics that are missing. Existing ones stay as they are, differences are told.

    Raises BrokerError, which lists those that somebody else must make if kafka.create_topics is off or we may not.
    """
    wanted = list(topics_of(settings).values())
    with admin(settings.kafka) as client:
        try:
            before = set(client.list_topics())
            missing = [topic for topic in wanted if topic.name not in before]
            if missing and not settings.kafka.create_topics:
                raise BrokerError(_to_be_made(settings, missing))
            if missing:
                _wake_coordinator(client, timeout_s)
            for topic in missing:
                _create(client, topic, settings.kafka.replication)
            client.wait_for_topics([topic.name for topic in missing], timeout_ms=int(timeout_s * 1000))
        except AuthorizationError as failed:
            raise BrokerError(f"{_to_be_made(settings, missing)}; creating them is refused ({failed.message})") from failed
        except KafkaError as failed:
            raise refused(settings.kafka, "topics could not be created", failed) from failed
        existing = [topic for topic in wanted if topic.name in before]
        return TopicsReport(
            created=[topic.name for topic in missing],
            existing=[topic.name for topic in existing],
            mismatches=[str(found) for topic in existing for found in mismatches(client, topic)],
        )


def wait_for_topics(
    settings: Settings, names: Iterable[str], timeout_s: float, gone: Callable[[], bool] = lambda: False
) -> None:
    """Wait until the broker answers and topics (short names) exist with a leader. Raises BrokerError."""
    deadline = time.monotonic() + timeout_s
    wanted = [settings.kafka.topic(name) for name in names]
    wait_for_broker(settings.kafka, timeout_s, gone)
    with admin(settings.kafka, timeout_s) as client:
        while missing := sorted(set(wanted) - _ready(client, wanted)):
            if gone() or time.monotonic() > deadline:
                raise BrokerError(
                    f"{settings.kafka.bootstrap} has no topic {', '.join(missing)} after {timeout_s:.0f} s. "
                    "`freshet topics` creates what is missing; is kafka.prefix right?"
                )
            time.sleep(0.1)


def wait_for_start(settings: Settings, names: Iterable[str]) -> None:
    """What a process does before it begins: wait for its topics, as long as a broker's first start may take."""
    wait_for_topics(settings, names, START_TIMEOUT_S)


class TopicReplaced(BrokerError):
    """A topic was deleted and made again. Somebody has to decide."""


def hold_to_topics(
    settings: Settings, process: str, names: Iterable[str], end: Callable[[BaseException], None], every_s: float = 5.0
) -> None:
    """See to it that topics (short names) are and stay those that this process of this model read before, by the ids that
    Kafka gives each: now, which raises TopicReplaced, and from a thread every few seconds, which calls `end` with it.

    A topic that was deleted and made again begins at offset 0, and Kafka forgets the group's offsets with it: what comes
    then has the names of what was learnt long ago, and would be taken for it.
    """
    file = settings.var / "models" / settings.model.name / f"{process}.topics.json"
    wanted = [settings.kafka.topic(name) for name in names]
    with admin(settings.kafka) as client:
        _compare(client, wanted, file)

    def watch() -> None:
        while True:
            with suppress(KafkaError, BrokerError), admin(settings.kafka) as client:
                while True:
                    time.sleep(every_s)
                    try:
                        _compare(client, wanted, file)
                    except TopicReplaced as replaced:
                        end(replaced)
            time.sleep(every_s)

    threading.Thread(target=watch, name="topics", daemon=True).start()


def _compare(client: Any, wanted: Iterable[str], file: Path) -> None:
    before: dict[str, str] = orjson.loads(file.read_bytes()) if file.exists() else {}
    now = {t["name"]: str(t["topic_id"]) for t in client.describe_topics(list(wanted)) if t["error_code"] == 0}
    for name, topic_id in now.items():
        if before.get(name, topic_id) != topic_id:
            raise TopicReplaced(
                f"topic {name} was deleted and made again: its offsets begin anew, and what they name would be taken for what "
                f"was read before. Nothing is skipped silently: start a new model (model.name), or restore the topic. To go on "
                f"all the same, remove {file}"
            )
    if now.keys() - before.keys():
        file.parent.mkdir(parents=True, exist_ok=True)
        written = file.with_suffix(".new")
        written.write_bytes(orjson.dumps(before | now))
        written.replace(file)


def describe(client: Any, names: Iterable[str]) -> dict[str, tuple[int, dict[str, str]]]:
    """For topics (full names) that exist: number of partitions and configuration, as the broker has them."""
    names = list(names)
    found = {t["name"]: len(t["partitions"]) for t in client.describe_topics(names) if t["error_code"] == 0}
    if not found:
        return {}
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in found]
    configs = client.describe_configs(resources, config_filter="all")["topic"]
    return {name: (n, {key: c["value"] for key, c in configs[name].items()}) for name, n in found.items()}


def mismatches(client: Any, topic: Topic) -> list[Mismatch]:
    """Where an existing topic differs from what freshet would have made."""
    partitions, config = describe(client, [topic.name]).get(topic.name, (topic.partitions, topic.config))
    found = [Mismatch(topic.name, key, config.get(key), value) for key, value in topic.config.items()]
    found.append(Mismatch(topic.name, PARTITIONS, str(partitions), str(topic.partitions)))
    return [one for one in found if one.has != one.wanted]


def _create(client: Any, topic: Topic, replication: int) -> None:
    wanted = {"num_partitions": topic.partitions, "replication_factor": replication, "configs": topic.config}
    with suppress(TopicAlreadyExistsError):  # another process was first
        client.create_topics({topic.name: wanted})


def _wake_coordinator(client: Any, timeout_s: float) -> None:
    """Have the broker make its own topic of group offsets, which it does when it is first asked for a coordinator.

    Else the first joiner is the first to ask, is refused, and loses two seconds over it.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            client.describe_groups(["freshet"])
            return
        except (CoordinatorNotAvailableError, CoordinatorLoadInProgressError, NotCoordinatorError):
            time.sleep(0.1)
        except KafkaError:
            return  # another cause, such as missing rights: whoever joins a group will be told


def _to_be_made(settings: Settings, missing: Iterable[Topic]) -> str:
    made = "; ".join(
        f"{topic.name} ({topic.partitions} partition(s){''.join(f', {key}={value}' for key, value in topic.config.items())})"
        for topic in missing
    )
    return f"topics are missing at {settings.kafka.bootstrap}, to be made by whoever may: {made}"


def _ready(client: Any, names: list[str]) -> set[str]:
    found = client.describe_topics(names)
    if hidden := sorted(t["name"] for t in found if t["error_code"] == TopicAuthorizationFailedError.errno):
        raise BrokerError(f"we may not see topic {', '.join(hidden)}; docs/kafka.md lists the rights needed")
    return {
        t["name"]
        for t in found
        if t["error_code"] == 0 and t["partitions"] and all(p["leader_id"] >= 0 for p in t["partitions"])
    }


