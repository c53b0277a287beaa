"""Ports: where a server is reached from this machine."""

from __future__ import annotations

import pytest

from ops.machine.ports import reached


@pytest.mark.parametrize(("host", "address"), [
    ("127.0.0.1", "127.0.0.1:50051"), ("0.0.0.0", "127.0.0.1:50051"), ("", "127.0.0.1:50051"), ("::", "[::1]:50051"),
    ("fd00::7", "[fd00::7]:50051"), ("scorer.example", "scorer.example:50051"),
])
def test_a_server_is_reached_where_it_listens(host: str, address: str) -> None:
    """One that listens everywhere is reached on loopback; an IPv6 address stands in brackets, as RFC 3986 has it."""
    assert reached(host, 50051) == address
