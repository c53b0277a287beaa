"""An object in a process of its own: asked as if it were here, gone when either side is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from stream_trainer.watching.apart import Apart, Lost
from tests.kit.processes import wait_until


class Sum:
    """Of what it was given."""

    def __init__(self, start: float) -> None:
        self._sum = start

    def add(self, numbers: np.ndarray) -> float:
        if not len(numbers):
            raise ValueError("nothing to add")
        self._sum += float(numbers.sum())
        return self._sum

    def back(self, parts: list[np.ndarray]) -> list[np.ndarray]:
        return [part + 1 for part in parts]

    def where(self) -> int:
        return os.getpid()


def test_it_is_asked_as_an_object_is() -> None:
    """It keeps what it was told, in another process; arrays larger than a pipe's buffer go through."""
    apart = Apart("sum", lambda: Sum(1.0))
    assert apart.ask("where") == apart.pid != os.getpid()
    assert apart.ask("add", np.ones(5)) == 6.0
    assert apart.ask("add", np.ones(1_000_000)) == 1_000_006.0
    other = Apart("sum", lambda: Sum(2.0))      # holds what it was forked from
    apart.close()
    assert not psutil.pid_exists(apart.pid)
    assert other.ask("add", np.ones(1)) == 3.0
    other.close()


@pytest.mark.parametrize("sizes", [[0], [0, 5, 0], [1] * 1500, [300_000, 0, 7, 300_000], [3] * 600 + [200_000]])
def test_any_number_of_arrays_of_any_size_comes_and_goes(sizes: list[int]) -> None:
    """Also more than one call of the system takes, and empty ones; what came can be written to."""
    apart = Apart("sum", lambda: Sum(1.0))
    given = [np.arange(size, dtype=np.int64) * number for number, size in enumerate(sizes)]
    found = apart.ask("back", given)
    assert all((one == other + 1).all() and one.shape == other.shape for one, other in zip(found, given, strict=True))
    found[-1] += 1
    apart.close()


def test_what_goes_wrong_there_is_told_here() -> None:
    """With its own words, and it goes on from where it was."""
    apart = Apart("sum", lambda: Sum(1.0))
    with pytest.raises(Lost, match=r"sum, asked to add:(?s:.*)ValueError: nothing to add"):
        apart.ask("add", np.ones(0))
    assert apart.ask("add", np.ones(1)) == 2.0
    apart.close()


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_everybody_is_not_for_it(told: signal.Signals) -> None:
    """Whoever asks it ends first, in order."""
    apart = Apart("sum", lambda: Sum(1.0))
    assert apart.ask("add", np.ones(1)) == 2.0
    os.kill(apart.pid, told)
    assert apart.ask("add", np.ones(1)) == 3.0
    apart.close()


def test_whoever_asks_one_that_was_killed_is_told() -> None:
    """By an error, at once."""
    apart = Apart("sum", lambda: Sum(1.0))
    os.kill(apart.pid, signal.SIGKILL)
    with pytest.raises(Lost, match="sum: its process ended"):
        apart.ask("add", np.ones(1))
    apart.close()


MAKER = """
import sys, time
from stream_trainer.watching.apart import Apart
class Slow:
    def work(self):
        time.sleep(60)
apart = Apart("slow", Slow)
print(apart.pid, flush=True)
apart.ask("work")
"""


def test_it_ends_with_its_maker() -> None:
    """Also where that is killed while it is at work: nothing of the old one is written when a new one has begun."""
    with subprocess.Popen([sys.executable, "-c", MAKER], stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]) as maker:
        assert maker.stdout is not None
        pid = int(maker.stdout.readline())
        assert psutil.pid_exists(pid)
        maker.kill()
    wait_until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE, 5, "its end")
