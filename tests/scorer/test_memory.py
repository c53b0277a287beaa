"""A scorer that would not fit says so before it makes a table."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable

import pytest

from schemas.config import Settings
from schemas.memory import BESIDE_BYTES, DoesNotFit, Room
from scorer.memory import check_scorer, wanted


def test_each_process_may_have_the_table_twice(make_settings: Callable[..., Settings]) -> None:
    """Three workers and the follower: eight tables of 13 floats a row; with a byte less than that there is an error."""
    settings = make_settings(**{"model.bits": 20, "score.workers": 3})
    needed = 8 * (1 << 20) * 13 * 4
    assert wanted(settings).bytes == needed
    check_scorer([settings], Room(needed + BESIDE_BYTES, "free now"))
    with pytest.raises(DoesNotFit, match=r"4 processes.*model.bits=20 wants 1,048,576 rows of 416 bytes.*Set model.bits=19"):
        check_scorer([settings], Room(needed + BESIDE_BYTES - 1, "free now"))


def test_several_models_must_fit_together(make_settings: Callable[..., Settings]) -> None:
    """In the processes that the first one's settings ask for; who is told is the largest, and what the others take."""
    first = make_settings(**{"model.bits": 10, "score.workers": 3})
    large = make_settings(**{"model.name": "games", "model.bits": 20, "score.workers": 1})
    needed = 8 * (1 << 20) * 13 * 4 + 8 * (1 << 10) * 13 * 4
    check_scorer([first, large], Room(needed + BESIDE_BYTES, "free now"))
    with pytest.raises(DoesNotFit, match=r"'games' in the scorer's 4 processes.*now, less 0 MiB for the scorer's other models"):
        check_scorer([first, large], Room(needed + BESIDE_BYTES - 1, "free now"))


def test_a_follower_that_starts_again_does_not_count_its_workers_twice() -> None:
    """A sibling of 64 MiB: what a child finds besides its own is that much and the interpreter it runs in."""
    siblings = textwrap.dedent("""
        import subprocess, sys
        worker = subprocess.Popen(
            [sys.executable, "-c", "held = bytearray(b'x') * (64 << 20); print(1, flush=True); input()"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )
        worker.stdout.readline()
        subprocess.run([sys.executable, "-c", "from scorer.memory import _held_beside; print(_held_beside())"], check=True)
        worker.communicate(b"\\n")
    """)
    done = subprocess.run(
        [sys.executable, "-c", siblings], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": "."}
    )
    assert 64 << 20 < int(done.stdout) < 96 << 20
