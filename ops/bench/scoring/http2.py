"""gRPC calls as bare HTTP/2 frames: a load generator that takes 40 µs of a core per request, where grpc's own client in Python
takes as long as the server.

Unary calls without TLS to one method: headers that never change, the body under the peer's flow control, and of the answer
only what tells a whole one from a failed one. A call's latency counts from the moment that it was due, sent or not (open
loop), so a stall is paid by everyone who would have called during it. Source: RFC 9113, RFC 7541; gRPC over HTTP2.
"""

from __future__ import annotations

import random
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_WIDE = (1 << 31) - 1
_UPDATE_BYTES = 1 << 26      # received on a connection before it is told that there is room again


class Refused(Exception):
    """The server closed the connection, or speaks something else."""


@dataclass(slots=True)
class _Call:
    due: float
    window: int              # bytes that the peer takes on this stream
    body: memoryview         # what is still to be sent
    received: int = 0


@dataclass(slots=True)
class Outcome:
    """latencies: seconds from due to complete, of the calls due in the measured time. answer: the last one's message."""

    latencies: list[float] = field(default_factory=list)
    failed: int = 0
    seconds: float = 0.0
    late: int = 0            # calls that the generator itself sent more than a millisecond after they were due
    answer: bytes = b""
    completed: int = 0       # calls that ended well in the measured time
    sent: int = 0            # all calls, those of the warm-up too


def frame(kind: int, flags: int, stream: int, payload: bytes | memoryview = b"") -> bytes:
    """One frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def headers(path: str, authority: str) -> bytes:
    """A gRPC call's header block, without compression."""
    def text(value: str) -> bytes:
        return bytes([len(value)]) + value.encode()

    return b"".join((
        b"\x83\x86",                                       # :method POST, :scheme http
        b"\x04", text(path), b"\x01", text(authority),     # :path, :authority
        b"\x0f\x10", text("application/grpc"), b"\x00", text("te"), text("trailers"),
    ))


class Connection:
    """One connection; calls on it are streams 1, 3, 5 …"""

    def __init__(self, host: str, port: int, path: str) -> None:
        self.socket = socket.create_connection((host, port), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self._head = headers(path, f"{host}:{port}")
        settings, room = struct.pack(">HI", 4, _WIDE), struct.pack(">I", _WIDE - 65535)
        self._out = bytearray(_PREFACE + frame(SETTINGS, 0, 0, settings) + frame(WINDOW_UPDATE, 0, 0, room))
        self._in = bytearray()
        self._window, self._stream_window, self._frame_bytes = 65535, 65535, 16384
        self._next = 1
        self._calls: dict[int, _Call] = {}
        self._waiting: deque[int] = deque()                # calls whose body is not out yet
        self._unacknowledged = 0
        self.last = b""

    @property
    def open_calls(self) -> int:
        return len(self._calls)

    @property
    def calls_begun(self) -> int:
        return self._next // 2

    @property
    def wants_to_write(self) -> bool:
        return bool(self._out)

    def call(self, body: bytes, due: float) -> None:
        """Begin one."""
        number, self._next = self._next, self._next + 2
        self._calls[number] = _Call(due, self._stream_window, memoryview(b"\0" + struct.pack(">I", len(body)) + body))
        self._out += frame(HEADERS, END_HEADERS, number, self._head)
        self._waiting.append(number)
        self._send_bodies()
        self.write()

    def write(self) -> None:
        """As much as the socket takes."""
        try:
            while self._out:
                del self._out[: self.socket.send(self._out)]
        except BlockingIOError:
            return

    def read(self) -> Iterator[tuple[float, bool]]:
        """(when it was due, whether it was answered) of each call that has ended. Raises Refused."""
        try:
            data = self.socket.recv(1 << 18)
        except BlockingIOError:
            return
        if not data:
            raise Refused("the server closed the connection")
        self._in += data
        at, held = 0, memoryview(self._in)
        try:
            while len(held) - at >= 9:
                size = held[at] << 16 | held[at + 1] << 8 | held[at + 2]
                if len(held) - at < 9 + size:
                    break
                kind, flags = held[at + 3], held[at + 4]
                number = int.from_bytes(held[at + 5 : at + 9], "big") & _WIDE
                ended = self._take(kind, flags, number, held[at + 9 : at + 9 + size])
                at += 9 + size
                if ended is not None:
                    yield ended
        finally:
            held.release()
            del self._in[:at]
        self._send_bodies()
        self.write()

    def _take(self, kind: int, flags: int, number: int, payload: memoryview) -> tuple[float, bool] | None:
        call = self._calls.get(number)
        if kind == DATA:
            if call is not None:
                call.received += len(payload)
                if len(payload) > 5:
                    self.last = bytes(payload[5:])
            self._unacknowledged += len(payload)
            if self._unacknowledged > _UPDATE_BYTES:
                self._out += frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", self._unacknowledged))
                self._unacknowledged = 0
        elif kind == WINDOW_UPDATE:
            more = int.from_bytes(payload, "big") & _WIDE
            if number == 0:
                self._window += more
            elif call is not None:
                call.window += more
        elif kind == SETTINGS and not flags & ACK:
            for place in range(0, len(payload), 6):
                key, value = struct.unpack_from(">HI", payload, place)
                if key == 4:
                    for one in self._calls.values():
                        one.window += value - self._stream_window
                    self._stream_window = value
                elif key == 5:
                    self._frame_bytes = value
            self._out += frame(SETTINGS, ACK, 0)
        elif kind == PING and not flags & ACK:
            self._out += frame(PING, ACK, 0, payload)
        elif kind == GOAWAY:
            raise Refused(f"the server says: go away: {bytes(payload[8:])!r}")
        if kind == RST_STREAM or (kind in (DATA, HEADERS) and flags & END_STREAM):
            call = self._calls.pop(number, None)
            return None if call is None else (call.due, call.received > 5)
        return None

    def _send_bodies(self) -> None:
        while self._waiting:
            number = self._waiting[0]
            call = self._calls.get(number)
            if call is None:                               # refused before it was all sent
                self._waiting.popleft()
                continue
            room = min(self._window, call.window, self._frame_bytes, len(call.body))
            if room <= 0:
                return
            piece, call.body = call.body[:room], call.body[room:]
            self._window -= room
            call.window -= room
            self._out += frame(DATA, 0 if call.body else END_STREAM, number, piece)
            if not call.body:
                self._waiting.popleft()


def load(
    address: tuple[str, int], path: str, bodies: Sequence[bytes], connections: int, seconds: float, warm_s: float,
    rate: float | None, in_flight: int, seed: int,
) -> Outcome:
    """Call for warm_s, then for the measured seconds. rate: calls a second at random (Poisson) moments, whatever comes
    back; None = `in_flight` at a time, the next when one ends. Raises Refused."""
    opened = [Connection(*address, path) for _ in range(connections)]
    by_socket = {one.socket: one for one in opened}
    chance, found = random.Random(seed), Outcome()
    began = time.perf_counter()
    start, end = began + warm_s, began + warm_s + seconds
    due, sent, completed = began, 0, 0

    def begin(when: float) -> None:
        nonlocal sent
        # One that waits for nothing, in turns: as from many clients. The first of those would nearly always be one of the first
        # few, which the kernel may all have given to one worker.
        min(opened, key=lambda one: (one.open_calls, one.calls_begun)).call(bodies[sent % len(bodies)], when)
        sent += 1

    if rate is None:
        for _ in range(in_flight):
            begin(time.perf_counter())
    while True:
        now = time.perf_counter()
        if rate is not None:
            while due <= now and due < end:
                found.late += due >= start and now - due > 1e-3
                begin(due)
                due += chance.expovariate(rate)
        left = sum(one.open_calls for one in opened)
        if now >= end and (not left or now > end + 10):
            found.failed += left
            break
        pause = 0.05 if rate is None or due >= end else max(0.0, due - now)
        readable, writable, _ = select.select(by_socket, [one.socket for one in opened if one.wants_to_write], [], pause)
        for ready in writable:
            by_socket[ready].write()
        for ready in readable:
            for was_due, whole in by_socket[ready].read():
                now = time.perf_counter()
                if start <= was_due < end:
                    if whole:
                        found.latencies.append(now - was_due)
                    else:
                        found.failed += 1
                if start <= now < end:
                    completed += whole
                if rate is None and now < end:
                    begin(now)
    found.seconds = seconds
    found.answer = opened[0].last
    found.completed, found.sent = completed, sent
    for connection in opened:
        connection.socket.close()
    return found
