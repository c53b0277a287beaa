"""Calls that hold a thread while their client does nothing: ended when their time is over.

gRPC gives a call its thread as soon as the call begins, and lets it wait there for the request's message. A client that never
sends it, and whose connection lives on, would hold that thread for ever: as many as there are threads, and nobody is answered.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Never

import grpc

MESSAGE_S = 3.0  # from the moment that a thread waits for it; 8 MB at 22 Mbit/s
LOOK_S = 0.25    # between two looks for calls whose time is over


class Patience:
    """Wraps the methods of a server before they are registered with it; `start` begins to look."""

    def __init__(self, message_s: float = MESSAGE_S) -> None:
        self._message_s = message_s
        self._until: dict[grpc.ServicerContext, float] = {}  # each operation on it is one step, so no lock
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._look, name="patience", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """Stop looking."""
        self._closing.set()
        if self._thread.ident is not None:  # a worker may be told to end before it began
            self._thread.join()

    def begin(self, context: grpc.ServicerContext, limit_s: float) -> None:
        """This call is cancelled in so many seconds, unless it ends before."""
        self._until[context] = time.monotonic() + limit_s

    def end(self, context: grpc.ServicerContext) -> None:
        """It need not be."""
        self._until.pop(context, None)

    def registrar(self, server: grpc.Server) -> Any:
        """What a generated add_…Servicer_to_server takes instead of the server."""
        return _Registrar(server, self._patient)

    def _patient(self, method: Any) -> Any:
        """A method for one message, as one for a stream of which it takes the first: so the wait is in our hands. It costs the
        same (docs/lab.md)."""
        answer = method.unary_unary or method.unary_stream
        if answer is None:
            return method

        @functools.wraps(answer)  # what gRPC reads from a method: a thread pool of its own, whether it may return at once
        def first(messages: Iterator[Any], context: grpc.ServicerContext, *more: Any, **named: Any) -> Any:
            self.begin(context, self._message_s)
            try:
                message = next(messages, None)
            finally:
                self.end(context)
            return answer(message, context, *more, **named) if message is not None else _refuse(context)

        kind = grpc.stream_unary_rpc_method_handler if method.unary_unary else grpc.stream_stream_rpc_method_handler
        return kind(first, method.request_deserializer, method.response_serializer)

    def _look(self) -> None:
        while not self._closing.wait(LOOK_S):
            now = time.monotonic()
            for context, until in list(self._until.items()):
                if until < now:
                    self.end(context)
                    context.cancel()


class _Registrar:
    def __init__(self, server: grpc.Server, wrap: Callable[[Any], Any]) -> None:
        self._server = server
        self._wrap = wrap

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Not as they are: the next call has them by name."""

    def add_registered_method_handlers(self, service: str, methods: Mapping[str, Any]) -> None:
        wrapped = {name: self._wrap(method) for name, method in methods.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, wrapped),))
        self._server.add_registered_method_handlers(service, wrapped)


def _refuse(context: grpc.ServicerContext) -> Never:
    context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call ended without a request")
    raise AssertionError("abort raises")
