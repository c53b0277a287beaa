"""An object in a process of its own, forked from this one: what it works at takes neither this one's interpreter nor, where
there are two cores, its core. It is asked as one asks an object, one question after the other.

It ends with whoever made it, however that ends; Ctrl-C and SIGTERM are not for it. If it is the one that ends, whoever asks
next is told.
"""

from __future__ import annotations

import gc
import os
import pickle
import select
import signal
import socket
import struct
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from schemas.errors import FreshetError

NICE = 5               # where cores are short, what is looked on at comes before the looking
_END = None            # the last thing that it is told
_HEAD = struct.Struct("<QQ")   # bytes of the pickle, number of arrays; the bytes of each follow, then all of them
_PIECES = 512          # arrays in one call of the system: it takes 1,024


class Lost(FreshetError):
    """The process ended, or what it was asked went wrong there."""


class Apart:
    """One such process. For any threads, of which one is served after the other."""

    def __init__(self, name: str, make: Callable[[], object]) -> None:
        """name: what ps and top call it. make: makes the object, there. To be called before there is much in this process that
        changes: the other one keeps it as it was."""
        self._name = name
        self._ours, theirs = socket.socketpair()
        self._asking = threading.Lock()
        gc.freeze()    # a collection there would write to all objects of here, and so copy them
        self.pid = os.fork()
        if self.pid == 0:
            self._ours.close()
            _serve(name, make, theirs)
        gc.unfreeze()
        theirs.close()

    def ask(self, what: str, *given: object) -> Any:
        """The object's method of that name, called with that. Raises Lost."""
        with self._asking:
            try:
                _send(self._ours, (what, given))
                answer, wrong = _receive(self._ours)
            except (EOFError, OSError) as gone:
                raise Lost(f"{self._name}: its process ended ({type(gone).__name__})") from gone
        if wrong is not None:
            raise Lost(f"{self._name}, asked to {what}: {wrong}")
        return answer

    def close(self) -> None:
        """End it, once what it was asked is done."""
        with self._asking, self._ours:
            with suppress(OSError):
                _send(self._ours, _END)      # others that were forked from here may hold our end of the pipe too
            with suppress(ChildProcessError):
                os.waitpid(self.pid, 0)


def _serve(name: str, make: Callable[[], object], connection: socket.socket) -> None:
    """The life of the other process. Does not return: nothing that this one would do at its end is to be done there."""
    try:
        for told in (signal.SIGINT, signal.SIGTERM):
            signal.signal(told, signal.SIG_IGN)
        with suppress(OSError):
            Path("/proc/self/comm").write_text(name)
            os.nice(NICE)
        threading.Thread(target=_end_with_the_maker, args=(connection.fileno(),), daemon=True).start()
        made = make()
        while (asked := _receive(connection)) != _END:
            what, given = asked
            answer, wrong = None, None
            try:
                answer = getattr(made, what)(*given)
            except Exception:  # noqa: BLE001 whatever it is, whoever asked is to know
                wrong = traceback.format_exc()
            _send(connection, (answer, wrong))
        os._exit(0)
    except BaseException:  # noqa: BLE001 the end of the other side, mostly
        os._exit(1)


def _send(connection: socket.socket, thing: object) -> None:
    """Arrays go as they lie in memory, all in one call of the system where it takes them: whoever waits for this interpreter's
    lock is waked once, not for each."""
    arrays: list[pickle.PickleBuffer] = []
    body = pickle.dumps(thing, pickle.HIGHEST_PROTOCOL, buffer_callback=arrays.append)
    raw = [array.raw() for array in arrays]
    head = _HEAD.pack(len(body), len(raw)) + struct.pack(f"<{len(raw)}Q", *map(len, raw))
    left = [memoryview(head + body), *filter(len, raw)]
    while left:
        sent = connection.sendmsg(left[:_PIECES])
        while left and sent >= len(left[0]):
            sent -= len(left.pop(0))
        if sent:
            left[0] = left[0][sent:]


def _receive(connection: socket.socket) -> Any:
    """What `_send` was given; its arrays may be written. Raises EOFError."""
    bytes_of_body, count = _HEAD.unpack(_read(connection, _HEAD.size))
    sizes = struct.unpack(f"<{count}Q", _read(connection, 8 * count))
    body = _read(connection, bytes_of_body)
    return pickle.loads(body, buffers=[_read(connection, size) for size in sizes])  # noqa: S301 our own


def _read(connection: socket.socket, size: int) -> bytearray:
    found, at = bytearray(size), 0
    while at < size:
        count = connection.recv_into(memoryview(found)[at:], 0, socket.MSG_WAITALL)
        if not count:
            raise EOFError("the other side is gone")
        at += count
    return found


def _end_with_the_maker(connection: int) -> None:
    """Its end of the pipe is closed: by itself, or by the system when it is killed."""
    waiting = select.poll()
    waiting.register(connection, 0)      # 0: nothing but that
    waiting.poll()
    os._exit(0)
