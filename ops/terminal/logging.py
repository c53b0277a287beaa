"""Logs: events with fields, on stderr. `snapshot.published version=841 rows=10482 ms=11`."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from datetime import UTC, datetime
from typing import Any, TextIO

import structlog

# Libraries that talk much. Both Kafka clients report every refused connection as an error of its own, several a second while
# a broker is away; what that means for us, our own events say.
_LEVELS = {"kafka": logging.CRITICAL, "aiokafka": logging.CRITICAL, "faust": logging.WARNING, "mode": logging.WARNING}


def configure(stream: TextIO | None = None, level: int = logging.INFO) -> None:
    """Send structlog's events and libraries' warnings to stderr: in colour on a terminal, as plain lines elsewhere."""
    shown = stream or sys.stderr
    renderer: Any = structlog.dev.ConsoleRenderer(pad_event_to=30) if shown.isatty() else event_line
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.TimeStamper(fmt="%Y-%m-%dT%H:%M:%S.%fZ", utc=True),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        # Looked up anew for each event: whoever puts another stderr in its place may close it before we end. There are a
        # few events a second at most.
        logger_factory=lambda *_: structlog.PrintLogger(stream or sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(shown)
    handler.setFormatter(_LibraryLine())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name, least in _LEVELS.items():
        logging.getLogger(name).setLevel(least)


def event_line(_logger: object, _method: str, event: MutableMapping[str, Any]) -> str:
    """time level event key=value …, one line; an exception's text follows on lines of its own."""
    fields = dict(event)
    head = f"{fields.pop('timestamp')} {fields.pop('level')} {fields.pop('event')}"
    exception = fields.pop("exception", None)
    line = " ".join([head, *(f"{key}={_value(value)}" for key, value in fields.items())])
    return f"{line}\n{exception}" if exception else line


def _value(value: object) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return repr(text) if not text or any(c.isspace() or c in '="' for c in text) else text


class _LibraryLine(logging.Formatter):
    """A library's record in the same form: its logger's name is the event."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        text = f"{time} {record.levelname.lower()} {record.name} {record.getMessage()}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text
