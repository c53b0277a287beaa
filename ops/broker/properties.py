"""What our broker is told. Kafka's defaults stand wherever nothing is said here."""

from __future__ import annotations

from pathlib import Path

MAX_RECORD_BYTES = 8 << 20  # an event of 5 MB must reach the joiner, to be refused there with a dead letter


def render(*, data: Path, port: int, controller_port: int) -> str:
    """server.properties of a single node that is broker and controller at once, heard on loopback only.

    The quorum is the static kind (controller.quorum.voters): the formatted data then names no port, so both ports may
    change between two starts; with `--standalone` the controller's would be fixed for ever when formatting.
    """
    values = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
        "listeners": f"BROKER://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"BROKER://127.0.0.1:{port}",
        "listener.security.protocol.map": "BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT",
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
    return "".join(f"{key}={value}\n" for key, value in values.items())
