"""What tests share: a real broker, settings for it, and real data where it is there."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings

from schemas.config import Settings, Source, build

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"

# A busy machine makes an example slow, not wrong.
hypothesis_settings.register_profile("freshet", deadline=None)
hypothesis_settings.load_profile("freshet")

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")   # as in ops/__init__.py, which need not be imported first here

# A Kafka that the user brings (FRESHET_KAFKA) serves the tests too. No other setting of theirs may reach a test.
OWN_KAFKA = os.environ.get("FRESHET_KAFKA")
for _name in [name for name in os.environ if name.startswith("FRESHET_")]:
    del os.environ[_name]


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """host:port of a real Kafka that all tests share: use `prefix` for topics, and never end it (see `own_broker`)."""
    if OWN_KAFKA:
        yield OWN_KAFKA
        return
    from ops.broker import start_broker

    node = start_broker(tmp_path_factory.mktemp("broker"))
    yield node.bootstrap
    node.stop()


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """start_broker for tests that end their broker: `node = own_broker()`, `node.kill()`, `own_broker(port=node.port)`.

    Each call with the same `name` goes on with the same data.
    """
    needs_own_broker()
    from ops.broker import Broker, start_broker

    started: list[Broker] = []

    def start(name: str = "broker", port: int = 0) -> Broker:
        started.append(start_broker(tmp_path / name, port=port))
        return started[-1]

    yield start
    for node in started:
        if node.alive:
            node.kill()


@pytest.fixture
def prefix() -> str:
    """A prefix for topics and groups that no other test has."""
    return f"t{uuid.uuid4().hex[:8]}-"


@pytest.fixture
def make_settings(tmp_path: Path, prefix: str) -> Callable[..., Settings]:
    """Settings that write under tmp_path and name topics of their own: make_settings(**{"join.window_s": 2})."""

    def make(**values: Any) -> Settings:
        base = {"var": tmp_path / "var", "kafka.prefix": prefix, "score.port": 0}
        return build(Source("test", base | values))[0]

    return make


@pytest.fixture
def kafka_settings(broker: str, make_settings: Callable[..., Settings]) -> Callable[..., Settings]:
    """make_settings for the shared broker, with all topics made: kafka_settings(**{"kafka.event_partitions": 4})."""
    from ops.kafka.topics import ensure_topics

    def make(**values: Any) -> Settings:
        settings = make_settings(**{"kafka.bootstrap": broker} | values)
        ensure_topics(settings)
        return settings

    return make


def shared(name: str) -> Path:
    """A file or folder of real data that is no part of the product. Skips the test, saying why, where it is absent."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"needs ../shared/data/{name}, which is not here")
    return path


def needs_own_broker() -> None:
    """Skip the test, saying why, where a broker of our own cannot be started because the user brings another."""
    if OWN_KAFKA:
        from ops.broker.java import find_java, find_libs
        from schemas.errors import BrokerError

        try:
            find_java()
            find_libs()
        except BrokerError as without:
            pytest.skip(f"ends its own broker, and with FRESHET_KAFKA there need be none: {without}")


def needs_gpu() -> None:
    """Skip the test, saying why, on a machine without a GPU."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a GPU, and torch sees none")
