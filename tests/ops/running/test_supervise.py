"""The supervisor: when it starts a process again, when it stops, and that nothing stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ops.running.supervise import GIVE_UP_AFTER, HEALTHY_S, Patience


def _supervise(*command: str, give_up_after: int = 3) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ops.cli", "supervise", "--give-up-after", str(give_up_after), "--", *command],
        stderr=subprocess.PIPE, text=True,
    )


def _wait_for(path: Path, timeout_s: float = 60) -> str:
    deadline = time.monotonic() + timeout_s
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, f"{path} was never written"
        time.sleep(0.02)
    return path.read_text()


def test_pauses_double_to_ten_seconds_and_then_it_is_enough():
    """Quick failures: 0.5, 1, 2, 4, 8, 10, 10, and the eighth is the last."""
    patience = Patience()
    assert [patience.failed(0.1) for _ in range(GIVE_UP_AFTER)] == [0.5, 1, 2, 4, 8, 10, 10, None]


def test_half_a_minute_of_health_forgets_what_was():
    """A process that ran long starts again quickly, however often it failed before."""
    patience = Patience()
    for _ in range(5):
        patience.failed(1)
    assert patience.failed(HEALTHY_S) == 0.5
    assert patience.failed(1) == 1


def test_it_starts_again_after_a_crash_until_it_ends_well(tmp_path):
    """Two crashes, one by SIGKILL, then success: three runs, exit code 0."""
    runs = tmp_path / "runs"
    script = f"echo run >> {runs}; case $(wc -l < {runs}) in 1) exit 1;; 2) kill -9 $$;; esac"
    process = _supervise("sh", "-c", script)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 0
    assert runs.read_text().count("run") == 3
    assert "SIGKILL" in told


def test_it_gives_up_loudly():
    """After the number of quick failures it was given: exit code 1, and a line that says so."""
    process = _supervise("false", give_up_after=2)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "supervise.gave_up" in told
    assert "failures=2" in told


def test_wrong_use_is_not_tried_again(tmp_path):
    """Exit code 2 is a wrong setting: one run, and the same code."""
    runs = tmp_path / "runs"
    process = _supervise("sh", "-c", f"echo run >> {runs}; exit 2")
    process.communicate(timeout=60)
    assert process.returncode == 2
    assert runs.read_text().count("run") == 1


def test_a_command_that_does_not_exist_is_wrong_use():
    """It is named, and not tried again."""
    process = _supervise("no-such-command-of-ours")
    _, told = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "no-such-command-of-ours" in told


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_passed_on_once_and_end_it(tmp_path, signum):
    """The child gets the signal, ends in its own way, and is not started again."""
    ready, got = tmp_path / "ready", tmp_path / "got"
    child = (
        "import os, pathlib, signal, sys, time\n"
        f"def end(s, f): open({str(got)!r}, 'a').write(f'{{s}} '); time.sleep(.3); sys.exit(0)\n"
        f"signal.signal({int(signum)}, end)\n"
        f"pathlib.Path({str(ready)!r}).write_text(str(os.getpid()))\n"
        "time.sleep(60)\n"
    )
    process = _supervise(sys.executable, "-c", child)
    pid = int(_wait_for(ready))
    process.send_signal(signum)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert got.read_text() == f"{int(signum)} "
    assert not psutil.pid_exists(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: no other kernel ends a child with its parent")
def test_a_supervisor_killed_outright_leaves_no_child(tmp_path):
    """SIGKILL of the supervisor ends the child too, even one that ignores SIGTERM."""
    ready = tmp_path / "ready"
    process = _supervise("sh", "-c", f"trap '' TERM; echo $$ > {ready}; while :; do sleep 0.1; done")
    pid = int(_wait_for(ready))
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    deadline = time.monotonic() + 30
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the child outlived its supervisor"
        time.sleep(0.02)
