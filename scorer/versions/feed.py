"""What follower and workers say to each other: small messages on a local socket, and files in memory beside them.

    worker → follower     hello · took (a version) · served (a version, the first time) · totals
    follower → worker     nothing (no version yet) · same (yours is the newest) · table, version (each with a file, segment.py)
    operators → follower  watch
    follower → operators  seen (every SEEN_EVERY_S, distributor.py)

A packet is a message (SOCK_SEQPACKET), so none is ever half there. The socket has no name in any directory, and both sides
see to it that the other one is of this user.
"""

from __future__ import annotations

import os
import secrets
import socket
import struct
from collections.abc import Mapping
from typing import Any

import orjson

from scorer.answers.version import Version

MESSAGE_BYTES = 1 << 16
_PEER = struct.Struct("iII")  # struct ucred: pid, uid, gid


def listening() -> socket.socket:
    """A socket that workers connect to. It outlives the follower, so that a worker waits for the next one."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    made.bind(f"\0freshet-{secrets.token_hex(16)}")
    made.listen(128)
    return made


def name_of(listener: socket.socket) -> str:
    """What `connected` takes; printable."""
    name: bytes = listener.getsockname()
    return name[1:].decode()


def connected(name: str) -> socket.socket:
    """A connection to whoever listens there. Raises OSError."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        made.connect(f"\0{name}")
        if not is_ours(made):
            raise PermissionError("another user's process listens for scorer workers there")
    except BaseException:
        made.close()
        raise
    return made


def is_ours(connection: socket.socket) -> bool:
    """Whether a process of this user is at the other end."""
    _, uid, _ = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return bool(uid == os.getuid())


def send(connection: socket.socket, message: Mapping[str, Any], descriptor: int | None = None) -> None:
    """One message, with a file. Raises OSError; BlockingIOError where the other side does not read."""
    socket.send_fds(connection, [orjson.dumps(message)], [] if descriptor is None else [descriptor])


def receive(connection: socket.socket) -> tuple[dict[str, Any], int | None] | None:
    """The next message and its file, which the caller closes; None when the other side is gone. Raises OSError."""
    data, descriptors, _, _ = socket.recv_fds(connection, MESSAGE_BYTES, 1)
    if not data:
        return None
    found: dict[str, Any] = orjson.loads(data)
    return found, descriptors[0] if descriptors else None


def as_message(version: Version) -> dict[str, Any]:
    """A version's name and times."""
    return {
        "lineage": version.lineage, "number": version.number,
        "created_us": version.created_us, "applied_us": version.applied_us,
    }


def as_version(message: Mapping[str, Any]) -> Version:
    """The same, back."""
    return Version(message["lineage"], message["number"], message["created_us"], message["applied_us"])
