"""What our broker is told. Kafka's defaults stand wherever nothing is said here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ops.kafka.topics import MAX_RECORD_BYTES


@dataclass(frozen=True, slots=True)
class Listener:
    """One more door for clients on 127.0.0.1, beside the plain one. name: capitals. security: as kafka.security names it.
    properties: of this door alone, without `listener.name.…`."""

    name: str
    security: str
    port: int
    properties: Mapping[str, str] = field(default_factory=dict)


def render(
    *, data: Path, port: int, controller_port: int, listeners: Sequence[Listener] = (), more: Mapping[str, str] | None = None
) -> str:
    """server.properties of a single node that is broker and controller at once, heard on loopback only.

    The quorum is the static kind (controller.quorum.voters): the formatted data then names no port, so both ports may
    change between two starts; with `--standalone` the controller's would be fixed for ever when formatting.
    """
    doors = [Listener("BROKER", "PLAINTEXT", port), *listeners]
    heard = [f"{door.name}://127.0.0.1:{door.port}" for door in doors]
    values = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
        "listeners": ",".join([*heard, f"CONTROLLER://127.0.0.1:{controller_port}"]),
        "advertised.listeners": ",".join(heard),
        "listener.security.protocol.map": ",".join(
            [*(f"{door.name}:{door.security}" for door in doors), "CONTROLLER:PLAINTEXT"]
        ),
        "inter.broker.listener.name": "BROKER",
        "controller.listener.names": "CONTROLLER",
        "log.dirs": str(data),
        # A broker that was killed is back when its old session has run out: 4 s with these, 12 s with the defaults.
        "broker.session.timeout.ms": "2000",
        "broker.heartbeat.interval.ms": "500",
        # The first member of a group waits 3 s for others by default; ours come one by one.
        "group.initial.rebalance.delay.ms": "0",
        # Internal topics have one replica, as there is one node; and few partitions: each is opened at every start.
        "offsets.topic.replication.factor": "1",
        "offsets.topic.num.partitions": "4",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "transaction.state.log.num.partitions": "4",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        # A misspelt topic is an error, not a new topic with one partition.
        "auto.create.topics.enable": "false",
        "message.max.bytes": str(MAX_RECORD_BYTES),
    }
    for door in listeners:
        values |= {f"listener.name.{door.name.lower()}.{key}": value for key, value in door.properties.items()}
    return "".join(f"{key}={value}\n" for key, value in (values | dict(more or {})).items())
