"""Windows closed on a thread beside the learner: what is known of them is what it was, and of the moment asked about."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from schemas import fields
from schemas.config import MetricsConfig
from stream_trainer.faust_driver import CRASHED
from stream_trainer.watching.beside import WAITING, Beside
from stream_trainer.watching.marks import Marker
from stream_trainer.watching.progressive import Doer, Progressive
from stream_trainer.watching.watch import Table, Watch
from stream_trainer.watching.windows import Windows

ROWS, WINDOW = 7_000, 500
SCHEMA = fields.load("appstore")


def unexpected(error: BaseException) -> None:
    raise AssertionError(error)


class Life:
    """Scores, clicks and keys of a stream, judged in pieces of any size; what came of it."""

    def __init__(self, doer: Doer | None, seed: int = 3) -> None:
        random = np.random.default_rng(seed)
        self.tables: list[Table] = []
        config = MetricsConfig(window_rows=WINDOW)
        marker = Marker(SCHEMA, config)
        watch = Watch(marker, config, lambda windows, _: self.tables.append(windows))
        self.progressive = Progressive(WINDOW, Windows(watch), doer)
        self._said = random.random(ROWS, np.float32)
        self._labels = (random.random(ROWS) < self._said).astype(np.float32)
        self._keys = random.integers(1, 5, (ROWS, 1 + len(marker.slices))).astype(np.uint64) << np.uint64(48)
        self.states: list[dict[str, Any]] = []
        self.lifetimes: list[Any] = []

    def run(self) -> None:
        """Ask for the state in the middle of windows, right after one was completed, and now and then for all rows' figures."""
        start = 0
        for number, size in enumerate(np.random.default_rng(5).integers(1, 400, 200).tolist()):
            part = slice(start, start + size)
            self.progressive.add(self._said[part], self._labels[part], None, None, self._keys[part])
            start += size
            if number % 5 == 0:
                self.states.append(self.progressive.state())
            if number % 7 == 0:
                self.lifetimes.append(self.progressive.lifetime())


def test_closed_beside_is_closed_at_once() -> None:
    """Every table, every state and all rows' figures, to the bit, whenever they were asked for."""
    beside = Beside(unexpected)
    one, other = Life(None), Life(beside)
    one.run()
    other.run()
    beside.close()
    assert len(one.tables) == len(other.tables) == ROWS // WINDOW
    for table, wanted in zip(other.tables, one.tables, strict=True):
        pd.testing.assert_frame_equal(pd.DataFrame(table), pd.DataFrame(wanted), check_exact=True)
    assert other.lifetimes == one.lifetimes
    for state, wanted_state in zip(other.states, one.states, strict=True):
        assert state.keys() == wanted_state.keys()
        for name, array in wanted_state.items():
            np.testing.assert_array_equal(state[name], array, err_msg=name)


def test_figures_of_lately_are_those_of_when_they_were_asked_for() -> None:
    """Nobody waits: while a window is being closed the answer is that of before, and what comes meanwhile is not in it."""
    beside, may = Beside(unexpected), threading.Event()
    life = Life(beside)
    life.progressive.add(life._said[:700], life._labels[:700], None, None, life._keys[:700])
    then = life.progressive.lifetime()
    assert life.progressive.lately() is None
    beside.settle()
    beside.give(lambda: None if may.wait(10) else unexpected(TimeoutError()))
    assert life.progressive.lately() == then            # and has those of now made
    now, part = life.progressive.rows, slice(700, 900)
    life.progressive.add(life._said[part], life._labels[part], None, None, life._keys[part])
    assert life.progressive.lately() == then
    may.set()
    beside.settle()
    newer = life.progressive.lately()
    assert newer is not None
    assert newer.rows == now == 700
    beside.settle()
    assert life.progressive.lately() == life.progressive.lifetime()
    beside.close()


def test_whoever_gives_too_much_waits_and_nothing_is_lost() -> None:
    """With WAITING pieces behind the one that is being done, the next is not taken before one is done; the order stays."""
    beside, may, done = Beside(unexpected), threading.Semaphore(0), []

    def piece(number: int) -> None:
        may.acquire()
        done.append(number)

    def give() -> None:
        for number in range(WAITING + 3):
            beside.give(partial(piece, number))
            given.append(number)

    given: list[int] = []
    giver = threading.Thread(target=give)
    giver.start()
    deadline = time.monotonic() + 10
    while len(given) < WAITING + 1 and time.monotonic() < deadline:
        time.sleep(0.005)
    giver.join(0.1)                      # the one in hand, and those that wait; the giver stands before the next
    assert given == list(range(WAITING + 1))
    for _ in range(WAITING + 3):
        may.release()
    giver.join()
    beside.settle()
    assert done == list(range(WAITING + 3))
    beside.close()


DIES = """
import time
from stream_trainer import faust_driver
from stream_trainer.watching.beside import Beside
beside = Beside(faust_driver.crash)
beside.give(lambda: 1 / 0)
beside.settle()
print("went on")
"""


def test_an_error_beside_ends_the_process() -> None:
    """As one in the learner's thread does: with the same code, and nothing is done after it."""
    told = subprocess.run(
        [sys.executable, "-c", DIES], capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[3], check=False
    )
    assert told.returncode == CRASHED
    assert "went on" not in told.stdout
    assert "ZeroDivisionError" in told.stdout + told.stderr


@pytest.mark.parametrize("beside", [False, True])
def test_restored_is_never_interrupted_beside_too(beside: bool) -> None:
    """A state taken while windows were being closed leads to the tables that would have come."""
    doers = [Beside(unexpected) if beside else None for _ in range(2)]
    first, second, whole = Life(doers[0]), Life(doers[1]), Life(None)
    whole.run()
    at = 3 * WINDOW + 17
    first.progressive.add(first._said[:at], first._labels[:at], None, None, first._keys[:at])
    second.progressive.restore(first.progressive.state())
    second.progressive.add(second._said[at:], second._labels[at:], None, None, second._keys[at:])
    for doer in doers:
        if doer is not None:
            doer.close()
    for got, wanted in zip([*first.tables, *second.tables], whole.tables, strict=True):
        pd.testing.assert_frame_equal(pd.DataFrame(got), pd.DataFrame(wanted), check_exact=True)
