"""A real single-node Apache Kafka on 127.0.0.1, for whoever has no other: configured, formatted, started, stopped."""

from ops.broker.node import Broker, start_broker
from ops.broker.properties import Listener

__all__ = ["Broker", "Listener", "start_broker"]
