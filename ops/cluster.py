"""Whatever Kafka there is, as kafka-python's admin client sees it: connecting, and waiting for it to answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError

from ops.ports import is_open, split_address
from schemas.errors import BrokerError


@contextmanager
def admin(bootstrap: str, timeout_s: float = 5.0, gone: Callable[[], bool] = lambda: False) -> Iterator[Any]:
    """kafka-python's admin client, closed afterwards.

    Waits up to timeout_s for an answer; gone: tells that waiting has become pointless. Raises BrokerError.
    """
    began = time.monotonic()
    # First a bare connection, tried often: kafka-python waits longer after each try, and leaves threads when it gives up.
    while not any(is_open(*split_address(address)) for address in bootstrap.split(",")):
        waited_s = time.monotonic() - began
        if gone() or waited_s > timeout_s:
            raise BrokerError(f"no broker at {bootstrap} (kafka.bootstrap): nothing listens there after {waited_s:.1f} s")
        time.sleep(0.05)
    try:
        client = KafkaAdminClient(
            bootstrap_servers=bootstrap.split(","),
            client_id="freshet",
            bootstrap_timeout_ms=int(1000 * max(1.0, timeout_s - (time.monotonic() - began))),
            reconnect_backoff_max_ms=500,
        )
    except KafkaError as failed:
        raise BrokerError(f"what listens at {bootstrap} (kafka.bootstrap) does not answer as Kafka: {failed}") from failed
    try:
        yield client
    finally:
        client.close()


def wait_for_broker(bootstrap: str, timeout_s: float, gone: Callable[[], bool] = lambda: False) -> float:
    """Wait until a broker takes requests; how long that took, in seconds. Raises BrokerError."""
    began = time.monotonic()
    with admin(bootstrap, timeout_s, gone) as client:
        # After a crash it is fenced until its old session has run out (Kafka before 3.8 does not say).
        while all(node.get("is_fenced") for node in client.describe_cluster()["brokers"]):
            if gone() or time.monotonic() - began > timeout_s:
                raise BrokerError(f"the broker at {bootstrap} is not ready after {time.monotonic() - began:.1f} s")
            time.sleep(0.05)
    return time.monotonic() - began
