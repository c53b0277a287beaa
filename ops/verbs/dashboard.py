"""freshet dashboard."""

from __future__ import annotations

import importlib.util
import json
import time
from typing import Annotated

import typer

from schemas.config import Settings
from schemas.errors import ConfigError


def dashboard(
    settings: Settings,
    *,
    show: Annotated[bool, typer.Option("--open", help="Open it in a browser, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="What the page would show now, as one object on stdout.")] = False,
) -> None:
    """A live page on dashboard.port: is it right, how old, how fast, what drifts; versions, dead letters, a slate by hand.

    Whoever has the token of dashboard.token_file (or FRESHET_DASHBOARD_TOKEN) can pin versions and roll back from it.
    """
    if as_json:
        from ops.dashboard.reader import Reader

        reader = Reader(settings, lambda: time.time_ns() // 1000)
        print(json.dumps(reader.read().as_dict()))
        reader.close()
        return
    if importlib.util.find_spec("nicegui") is None:
        raise ConfigError("the page needs NiceGUI: pip install 'freshet[dashboard]' (--json works without it)")
    from ops.dashboard.server import serve

    serve(settings, show)
