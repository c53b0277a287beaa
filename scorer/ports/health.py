"""The standard health service. grpc_health's own sends to its watchers under the lock that a watcher's end asks for, from the
thread that completes what is sent: one that left while the server ended stopped both for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN

Send = Callable[[Any], None]


class _Watcher:
    """One open stream. `tell` sends where there is something new; a stream that has ended takes it and drops it."""

    def __init__(self, status: Callable[[], int], send: Send) -> None:
        self._status = status
        self._send = send
        self._told: int | None = None
        self._turn = threading.Lock()

    def tell(self) -> None:
        with self._turn:
            if (status := self._status()) != self._told:
                self._told = status
                self._send(health_pb2.HealthCheckResponse(status=status))


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """A status for each name, NOT_SERVING at first. No lock is held while something is sent."""

    def __init__(self, names: tuple[str, ...], most: int) -> None:
        """names: of services, "" for the whole server. most: streams that may watch at once."""
        self._status = dict.fromkeys(names, NOT_SERVING)
        self._most = most
        self._ended = False
        self._watchers: dict[Any, _Watcher] = {}
        self._lock = threading.Lock()

    def set(self, status: int, *names: str) -> None:
        """Of these names from now on, until `end`."""
        if not self._ended and any(self._status[name] != status for name in names):
            self._status.update(dict.fromkeys(names, status))
            self._tell()

    def end(self) -> None:
        """NOT_SERVING for good, all of them."""
        self._ended = True
        self._status = dict.fromkeys(self._status, NOT_SERVING)
        self._tell()

    def Check(self, request: Any, context: grpc.ServicerContext) -> Any:
        """NOT_FOUND for a name that is not there, as the standard says."""
        status = self._status.get(request.service)
        if status is None:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service[:100]!r} here")
        return health_pb2.HealthCheckResponse(status=status)

    def Watch(self, request: Any, context: grpc.ServicerContext, send_response_callback: Send | None = None) -> None:
        """The status now, and whenever it changes; takes no thread."""
        assert send_response_callback is not None  # gRPC's, since it may return at once
        watcher = _Watcher(lambda: self._status.get(request.service, _UNKNOWN), send_response_callback)
        with self._lock:
            full = len(self._watchers) >= self._most
            if not full:
                self._watchers[context] = watcher
        if full:
            context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"{self._most} watch health here already: ask Check every few seconds"
            )
        if not context.add_callback(lambda: self._gone(context)):
            self._gone(context)
        watcher.tell()

    Watch.experimental_non_blocking = True  # type: ignore[attr-defined]

    def _gone(self, context: grpc.ServicerContext) -> None:
        with self._lock:
            self._watchers.pop(context, None)

    def _tell(self) -> None:
        with self._lock:
            watchers = list(self._watchers.values())
        for watcher in watchers:
            watcher.tell()
