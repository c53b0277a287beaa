"""`freshet run`: what it starts, how it ends, and that nothing is left running."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from honcho.environ import parse_procfile

from ops.machine.ports import free_port, is_open
from ops.running.run import PROCFILE, chosen
from schemas.config import Source, build
from tests.conftest import needs_own_broker

pytestmark = pytest.mark.integration

FRESHET = f"{sys.executable} -m ops.cli"
BROKER = f"broker: exec {FRESHET} supervise -- {FRESHET} broker\n"


def _alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`freshet run` of these Procfile lines, in a session of its own as on a terminal; its output in tmp_path/out."""
    needs_own_broker()
    started: list[subprocess.Popen[str]] = []

    def run(lines: str, port: int, environ: dict[str, str] | None = None) -> subprocess.Popen[str]:
        (tmp_path / "Procfile").write_text(lines)
        given = [f"--set={text}" for text in (f"var={tmp_path / 'var'}", "score.port=0")]
        given += [] if environ else [f"--set=kafka.bootstrap=127.0.0.1:{port}"]
        command = [sys.executable, "-m", "ops.cli", "run", "--procfile", str(tmp_path / "Procfile"), *given]
        with (tmp_path / "out").open("w") as out:
            started.append(
                subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, text=True,
                    start_new_session=True, env=os.environ | (environ or {}),
                )
            )
        return started[-1]

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


def _wait_for(path: Path, *texts: str, timeout_s: float = 90) -> str:
    deadline = time.monotonic() + timeout_s
    while not (path.exists() and all(text in path.read_text() for text in texts)):
        assert time.monotonic() < deadline, f"{texts} never came: {path.read_text() if path.exists() else 'no file'}"
        time.sleep(0.05)
    return path.read_text()


def _worker(tmp_path: Path, name: str) -> str:
    """A line whose process writes its pid, and on SIGTERM takes a second, then whether Kafka still answered."""
    script = tmp_path / f"{name}.py"
    script.write_text(
        "import os, pathlib, signal, socket, sys, time\n"
        f"here = pathlib.Path({str(tmp_path)!r})\n"
        "def end(s, f):\n"
        "    time.sleep(1)\n"
        "    host, port = os.environ['FRESHET_KAFKA_BOOTSTRAP'].split(':')\n"
        "    try: socket.create_connection((host, int(port)), 1).close(); found = 'kafka answers'\n"
        "    except OSError: found = 'kafka is gone'\n"
        f"    (here / '{name}.end').write_text(found)\n"
        "    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        f"(here / '{name}.pid').write_text(str(os.getpid()) + '\\n')\n"
        "while True: time.sleep(0.1)\n"
    )
    return f"{name}: exec {FRESHET} supervise -- {sys.executable} {script}\n"


def test_ctrl_c_ends_everything_the_broker_last(tmp_path, start):
    """SIGINT: exit code 0; the others end while Kafka still answers; no process and no port is left."""
    port = free_port()
    process = start(BROKER + _worker(tmp_path, "one") + _worker(tmp_path, "two"), port)
    _wait_for(tmp_path / "out", "topics are there (5 made, 0 found)")
    family = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
    assert len(family) >= 7, "ourselves, and per line honcho's child, the supervisor and the process"

    os.killpg(process.pid, signal.SIGINT)

    assert process.wait(timeout=90) == 0
    assert (tmp_path / "one.end").read_text() == "kafka answers"
    assert (tmp_path / "two.end").read_text() == "kafka answers"
    assert not [pid for pid in family if _alive(pid)]
    assert not is_open("127.0.0.1", port)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: no other kernel ends a child with its parent")
def test_killed_outright_it_leaves_nothing_running(tmp_path, start):
    """SIGKILL of `freshet run` alone: within seconds all that it started is gone, Kafka too."""
    port = free_port()
    process = start(BROKER + _worker(tmp_path, "one"), port)
    _wait_for(tmp_path / "out", "topics are there")
    family = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while left := [pid for pid in family if _alive(pid)]:
        assert time.monotonic() < deadline, f"still running: {[psutil.Process(pid).cmdline() for pid in left]}"
        time.sleep(0.1)
    assert not is_open("127.0.0.1", port)


def test_a_killed_process_is_started_again_and_kafka_too(tmp_path, start):
    """SIGKILL of a worker and of Kafka: both are back by themselves."""
    port = free_port()
    process = start(BROKER + _worker(tmp_path, "one"), port)
    _wait_for(tmp_path / "out", "topics are there")
    first = int(_wait_for(tmp_path / "one.pid", "\n"))
    java = next(c for c in psutil.Process(process.pid).children(recursive=True) if "kafka.Kafka" in c.cmdline())
    java.kill()
    os.kill(first, signal.SIGKILL)
    _wait_for(tmp_path / "out", "ended=SIGKILL", "Kafka ended by itself")
    deadline = time.monotonic() + 90
    while not is_open("127.0.0.1", port) or int((tmp_path / "one.pid").read_text() or first) == first:
        assert time.monotonic() < deadline, (tmp_path / "out").read_text()
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=90) == 0


def test_a_process_that_gives_up_ends_the_run(tmp_path, broker, start):
    """Exit code 1, and the last line names it. With FRESHET_KAFKA no broker is started."""
    lines = BROKER + f"bad: exec {FRESHET} supervise --give-up-after 2 -- false\n" + "good: exec sleep 60\n"
    process = start(lines, 0, {"FRESHET_KAFKA": broker, "FRESHET_KAFKA_PREFIX": "gives-up-"})
    assert process.wait(timeout=90) == 1
    told = (tmp_path / "out").read_text()
    assert "freshet: bad gave up" in told
    assert "broker started" not in told
    assert "bad started" in told


def test_a_taken_port_stops_the_start_and_is_named(tmp_path, start):
    """Exit code 1, the port, who holds it, and what to set; nothing was started."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        process = start(BROKER, port)
        assert process.wait(timeout=90) == 1
    told = (tmp_path / "out").read_text()
    for wanted in (f"127.0.0.1:{port}", f"pid {os.getpid()}", "kafka.bootstrap", "FRESHET_KAFKA"):
        assert wanted in told
    assert "started" not in told


def test_versions_are_sent_to_kafka_only_where_the_settings_say_so():
    """Of the Procfile's lines: no `updates` by default, no broker where there is one; the rest in their order."""
    lines = parse_procfile(PROCFILE.read_text()).processes
    plain, sends = build()[0], build(Source("test", {"snapshot.updates": True}))[0]
    assert list(chosen(lines, plain, True, [])) == ["broker", "joiner", "trainer", "scorer", "appstore"]
    assert list(chosen(lines, sends, False, ["appstore"])) == ["joiner", "trainer", "updates", "scorer"]
