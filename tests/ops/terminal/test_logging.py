"""Where events go."""

from __future__ import annotations

import io
import sys

import pytest
import structlog

from ops.terminal.logging import configure


def test_events_go_to_the_stderr_of_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that stood in for stderr when a logger was first used may be closed by now."""
    log = structlog.get_logger()
    first, second = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", first)
    configure()
    log.info("one.thing", rows=3)
    assert first.getvalue().endswith("info one.thing rows=3\n")
    first.close()
    monkeypatch.setattr(sys, "stderr", second)
    log.info("another.thing")
    assert second.getvalue().endswith("info another.thing\n")
