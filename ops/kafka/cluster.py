"""Whatever Kafka there is, as kafka-python sees it: connecting with the security that the settings name, waiting for it to
answer, and saying what to change where it refuses."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient
from kafka.errors import AuthorizationError, KafkaError, SaslAuthenticationFailedError

from ops.kafka.handshake import check
from ops.machine.ports import is_open, split_address
from schemas.config import KafkaConfig
from schemas.errors import BrokerError, ConfigError, FreshetError
from schemas.kafka import client_settings


@contextmanager
def admin(kafka: KafkaConfig, timeout_s: float = 5.0, gone: Callable[[], bool] = lambda: False) -> Iterator[Any]:
    """kafka-python's admin client, closed afterwards.

    Waits up to timeout_s for an answer; gone: tells that waiting has become pointless. Raises BrokerError, and ConfigError
    at once where the port wants another security than the settings name.
    """
    began = time.monotonic()
    settings = client_settings(kafka, "admin")
    # First a bare connection, tried often: kafka-python waits longer after each try, and leaves threads when it gives up.
    addresses = [split_address(address) for address in kafka.bootstrap.split(",")]
    while (found := next((address for address in addresses if is_open(*address)), None)) is None:
        waited_s = time.monotonic() - began
        if gone() or waited_s > timeout_s:
            raise BrokerError(f"no broker at {kafka.bootstrap} (kafka.bootstrap): nothing listens there after {waited_s:.1f} s")
        time.sleep(0.05)
    check(kafka, *found)
    try:
        client = KafkaAdminClient(
            **settings,
            bootstrap_timeout_ms=int(1000 * max(1.0, timeout_s - (time.monotonic() - began))),
            reconnect_backoff_max_ms=500,
        )
    except KafkaError as failed:
        raise refused(kafka, "what listens there does not answer as Kafka", failed) from failed
    try:
        yield client
    finally:
        client.close()


def wait_for_broker(kafka: KafkaConfig, timeout_s: float, gone: Callable[[], bool] = lambda: False) -> float:
    """Wait until a broker takes requests; how long that took, in seconds. Raises BrokerError."""
    began = time.monotonic()
    with admin(kafka, timeout_s, gone) as client:
        # After a crash it is fenced until its old session has run out (Kafka before 3.8 does not say).
        while all(node.get("is_fenced") for node in client.describe_cluster()["brokers"]):
            if gone() or time.monotonic() - began > timeout_s:
                raise BrokerError(f"the broker at {kafka.bootstrap} is not ready after {time.monotonic() - began:.1f} s")
            time.sleep(0.05)
    return time.monotonic() - began


def producer(kafka: KafkaConfig, role: str, patience_s: float = 120.0) -> Any:
    """A kafka-python producer that keeps the order within a partition through retries, and loses nothing that it did not
    report. patience_s: a broker may be away this long before an event counts as lost. Raises BrokerError, ConfigError."""
    return _connected(
        kafka, KafkaProducer, role, acks="all", linger_ms=5, batch_size=1 << 18, compression_type="lz4",
        enable_idempotence=True, max_request_size=8 << 20, delivery_timeout_ms=int(patience_s * 1000),
        max_block_ms=int(patience_s * 1000),
    )


def consumer(kafka: KafkaConfig, role: str) -> Any:
    """A kafka-python consumer that belongs to no group and commits nothing. Raises BrokerError, ConfigError."""
    return _connected(kafka, KafkaConsumer, role, group_id=None, enable_auto_commit=False)


def read_topic(kafka: KafkaConfig, role: str, name: str, first: Mapping[int, int] | None = None) -> Iterator[Any]:
    """Records of one of our topics (its short name), up to where it ends now. first: partition → offset to begin at, of no
    other partition; None = all from the beginning. Raises BrokerError, ConfigError."""
    topic = kafka.topic(name)
    reader = consumer(kafka, role)
    try:
        there = reader.partitions_for_topic(topic)
        if not there:
            raise BrokerError(f"topic {topic} does not exist; create it with `freshet topics`")
        places = [TopicPartition(topic, number) for number in sorted(there) if first is None or number in first]
        if not places:
            return
        reader.assign(places)
        begins, ends = reader.beginning_offsets(places), reader.end_offsets(places)
        for place in places:
            reader.seek(place, max((first or {}).get(place.partition, 0), begins[place]))
        while any(reader.position(place) < end for place, end in ends.items()):
            for batch in reader.poll(timeout_ms=500).values():
                yield from batch
    except KafkaError as failed:
        raise refused(kafka, f"{topic} could not be read", failed) from failed
    finally:
        reader.close()


def _connected(kafka: KafkaConfig, kind: Callable[..., Any], role: str, **settings: Any) -> Any:
    try:
        return kind(**client_settings(kafka, role), **settings)
    except KafkaError as failed:
        raise refused(kafka, "no broker", failed) from failed


def refused(kafka: KafkaConfig, what: str, failed: KafkaError) -> FreshetError:
    """A client's error as one that says what to do about it. what: what could not be done."""
    if isinstance(failed, SaslAuthenticationFailedError):
        return ConfigError(
            f"{kafka.bootstrap} refuses kafka.username={kafka.username} ({kafka.sasl_mechanism}): name or password is wrong "
            f"(kafka.password_file, FRESHET_KAFKA_PASSWORD), or it is known under another kafka.sasl_mechanism"
        )
    if isinstance(failed, AuthorizationError):
        who = f"user {kafka.username}" if kafka.sasl else "this client"
        return BrokerError(f"{what} at {kafka.bootstrap}: {who} may not ({failed}); docs/kafka.md lists the rights needed")
    return BrokerError(f"{what} at {kafka.bootstrap} (kafka.bootstrap): {failed}")
