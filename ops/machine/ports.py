"""Ports: which are free, who holds the others, and where one is reached."""

from __future__ import annotations

import contextlib
import socket

import psutil

from schemas.errors import ConfigError, FreshetError


class PortTaken(FreshetError):
    """Another process listens where one of ours should. Ending it or choosing another port helps."""


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def is_taken(host: str, port: int) -> bool:
    """Whether a server could not listen there. SO_REUSEADDR, as servers have it: closed connections do not count."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return True
    return False


def is_open(host: str, port: int, timeout_s: float = 0.5) -> bool:
    """Whether something accepts connections there."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=timeout_s):
        return True
    return False


def holder(port: int) -> str:
    """Who listens on a port, for a person: `pid 4711 (java -Xmx512m …)`, or that it cannot be seen from here."""
    try:
        listening = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    except psutil.AccessDenied:  # macOS without root
        listening = []
    for connection in listening:
        if connection.pid is None or not connection.laddr or connection.laddr.port != port:
            continue
        with contextlib.suppress(psutil.Error):
            command = " ".join(psutil.Process(connection.pid).cmdline())
            return f"pid {connection.pid} ({command[:80]}{'…' if len(command) > 80 else ''})"
        return f"pid {connection.pid}"
    return "another user's process"


def require_free(host: str, port: int, purpose: str, remedy: str) -> None:
    """Raise PortTaken if a server could not listen there. purpose: what needs the port; remedy: what to do."""
    if port and is_taken(host, port):
        raise PortTaken(f"{purpose} needs {host}:{port}, which {holder(port)} holds. {remedy}")


def reached(host: str, port: int) -> str:
    """host:port at which this machine reaches a server that listens there."""
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 compared, not bound
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_address(address: str) -> tuple[str, int]:
    """host:port as two. Raises ConfigError."""
    host, colon, port = address.strip().rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"kafka.bootstrap={address!r}: must be host:port, or several with commas between")
    return host.strip("[]"), int(port)
