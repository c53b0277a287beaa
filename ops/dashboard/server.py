"""The page's server: on one port, everything from itself alone, and one look a second for all viewers together."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
import webbrowser
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import structlog
import uvicorn
from fastapi import FastAPI
from nicegui import app as pages
from nicegui import ui
from starlette.middleware.trustedhost import TrustedHostMiddleware

from ops.dashboard.data import Board
from ops.dashboard.desk import Desk
from ops.dashboard.panels import View
from ops.dashboard.reader import Reader
from ops.machine.ports import is_open
from schemas.config import Settings, is_loopback
from schemas.errors import ConfigError

EVERY_S = 1.0
END_S = 2               # viewers' connections are cut after so long
# Nothing from elsewhere, whatever the front end would like; it makes functions from text (unsafe-eval).
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)
HEADERS = [
    (b"content-security-policy", POLICY.encode()), (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]

log = structlog.get_logger()

Message = MutableMapping[str, Any]
Told = Callable[[Message], Awaitable[None]]


class Feed:
    """What the viewers see. Nobody looks where nobody watches."""

    def __init__(self, settings: Settings, reader: Reader) -> None:
        self.views: set[View] = set()
        self._reader = reader
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="reader")
        self._board = Board(time_us=0, model=settings.model.name, processes=())
        self._looked_at = -EVERY_S
        self._one = asyncio.Lock()

    async def board(self) -> Board:
        """How everything is, at most a second old."""
        async with self._one:
            if time.monotonic() - self._looked_at >= EVERY_S:
                try:
                    self._board = await asyncio.get_running_loop().run_in_executor(self._thread, self._reader.read)
                except Exception as wrong:      # whatever it is, the page says so and looks again
                    log.exception("dashboard.look_failed")
                    self._board = replace(self._board, troubles=(f"this page cannot be brought up to date: {wrong!r}",))
                self._looked_at = time.monotonic()
            return self._board

    async def run(self) -> None:
        """Push it to all viewers, again and again."""
        while True:
            await asyncio.sleep(EVERY_S)
            if self.views:
                board = await self.board()
                for view in list(self.views):
                    view.show(board)

    def close(self) -> None:
        """Let go of what the reader holds, in its own thread."""
        self._thread.submit(self._reader.close).result()
        self._thread.shutdown()


def serve(settings: Settings, show: bool) -> None:
    """Until SIGINT or SIGTERM. show: in a browser, once it answers. Raises ConfigError, SchemaError."""
    desk, reader = Desk(settings), Reader(settings, lambda: time.time_ns() // 1000)
    listening = _listening(settings)
    host, port = listening.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    feed = Feed(settings, reader)

    @ui.page("/", title=f"freshet {settings.model.name}", response_timeout=15)
    async def page() -> None:
        view = View(desk, await feed.board())
        feed.views.add(view)
        ui.context.client.on_delete(lambda: feed.views.discard(view))

    pages.on_startup(feed.run)
    server = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    if is_loopback(settings.dashboard.host):      # whoever points a name of theirs here must not read this page by it
        names = ["localhost", "127.0.0.1", "[::1]", host]
        server.add_middleware(TrustedHostMiddleware, allowed_hosts=names, www_redirect=False)
    server.add_middleware(_Headers)
    ui.run_with(
        server, title="freshet", language="en-US", dark=None, tailwind=False, show_welcome_message=False, favicon="🌊",
        reconnect_timeout=10, message_history_length=100, binding_refresh_interval=None,
        cache_control_directives="public, max-age=3600",
    )
    if show:
        threading.Thread(target=_show, args=(host, port, url), name="browser", daemon=True).start()
    log.info("dashboard.listening", url=url, orders="behind the token" if desk.takes_orders else "none: no token is set")
    config = uvicorn.Config(
        server, log_config=None, access_log=False, timeout_graceful_shutdown=END_S, ws_ping_interval=None, server_header=False
    )
    try:
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        feed.close()


def _listening(settings: Settings) -> socket.socket:
    host, port = settings.dashboard.host, settings.dashboard.port
    found = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
    except OSError as refused:
        found.close()
        raise ConfigError(
            f"dashboard.port={port}: cannot listen on {host}:{port} ({refused.strerror}): end the process that does, or set "
            "another port"
        ) from refused
    return found


def _show(host: str, port: int, url: str) -> None:
    while not is_open(host, port):
        time.sleep(0.1)
    webbrowser.open(url)


class _Headers:
    """What every answer carries."""

    def __init__(self, app: Callable[[Message, Any, Told], Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Any, send: Told) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        await self._app(scope, receive, with_headers if scope["type"] == "http" else send)
