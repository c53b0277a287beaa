"""One node: format once, start, wait until it answers, stop."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from ops.broker.java import LIBS, find_java, find_libs
from ops.broker.properties import Listener, render
from ops.kafka.cluster import wait_for_broker
from ops.machine.ports import free_port, require_free
from ops.machine.processes import tied
from schemas.config import KafkaConfig
from schemas.errors import BrokerError

HEAP = "512m"           # 320 MB of memory when idle, 440 MB after load
STOP_TIMEOUT_S = 20.0   # a clean end takes 2.6 s
# Java's quick compiler alone: 2.3 s of CPU to start instead of 4.1, and half of it for 600 records/s in the minute after
# (5.0 → 2.6 s of 30), which is what a laptop's broker is: young and never busy. 100,000 records took as long.
COMPILER = "-XX:TieredStopAtLevel=1"
REMEDY = (
    "If that is your Kafka: FRESHET_KAFKA=127.0.0.1:{port} uses it. Else end it, or choose another port: "
    "kafka.bootstrap=127.0.0.1:PORT (freshet.toml, FRESHET_KAFKA_BOOTSTRAP or --set)."
)


@dataclass
class Broker:
    """A running node. Its data stays in `dir`: start_broker on the same `dir` goes on where this one ended."""

    bootstrap: str
    dir: Path
    process: subprocess.Popen[bytes] = field(repr=False)
    started_in_s: float

    @property
    def port(self) -> int:
        return int(self.bootstrap.rpartition(":")[2])

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        """End it as a crash does."""
        self.process.kill()
        self.process.wait()

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """End it cleanly; outright if it takes too long."""
        self.process.terminate()
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()


def start_broker(
    dir: Path, *, port: int = 0, libs: Path = LIBS, heap: str = HEAP, timeout_s: float = 60.0, remedy: str = REMEDY,
    listeners: Sequence[Listener] = (), more: Mapping[str, str] | None = None,
) -> Broker:
    """Start a node whose data, configuration and log are in `dir`, and return when it answers.

    port: 0 = any free one. listeners: more doors than the plain one; more: properties beside ours (ops/broker/properties.py).
    Called from the main thread the node ends with this process, however that ends (Linux).
    Raises PortTaken, and BrokerError: no Java, no jars, or it did not come up (with the end of its log).
    """
    began = time.monotonic()
    java, libs = find_java(), find_libs(libs)
    port = port or free_port()
    require_free("127.0.0.1", port, "Kafka", remedy.format(port=port))
    temporary = dir / "tmp"  # Java would unpack its native libraries into /tmp, and leave them there when killed
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    command = [java.path, f"-Xmx{heap}", COMPILER, "-XX:+ExitOnOutOfMemoryError", "-Djava.awt.headless=true",
               f"-Djava.io.tmpdir={temporary}", "-XX:-UsePerfData",
               "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true",
               "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd HH:mm:ss.SSS", "-cp", f"{libs}/*"]

    # 1. The configuration, made anew each time: the ports may have changed.
    config = dir / "broker.properties"
    config.write_text(
        render(data=dir / "data", port=port, controller_port=free_port(), listeners=listeners, more=more or {})
    )

    # 2. Format once. Beside its place, then renamed: a format that was interrupted leaves nothing that looks formatted.
    if not (dir / "data").exists():
        _format(dir, command, port)

    # 3. Start. The log of the run before is kept: after a crash it is the one that matters.
    log = dir / "broker.log"
    if log.exists():
        log.replace(dir / "broker.log.1")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "kafka.Kafka", str(config)],
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches whoever started it, who then ends it in good order
            preexec_fn=tied() if threading.current_thread() is threading.main_thread() else None,
        )

    # 4. Wait until a client gets an answer.
    bootstrap = f"127.0.0.1:{port}"
    try:
        wait_for_broker(KafkaConfig(bootstrap=bootstrap), timeout_s, gone=lambda: process.poll() is not None)
    except BaseException as failed:
        process.kill()
        process.wait()
        if isinstance(failed, BrokerError):
            raise BrokerError(f"Kafka did not start (exit code {process.returncode}). {_end_of(log)}") from failed
        raise
    return Broker(bootstrap, dir, process, time.monotonic() - began)


def run_in_foreground(dir: Path, port: int) -> int:
    """Run a node until it ends or this process is told to; SIGTERM and SIGINT are passed on. Returns an exit code."""
    node: list[Broker] = []
    told: list[int] = []

    def pass_on(signum: int, _frame: object) -> None:
        told.append(signum)
        if not node:
            raise KeyboardInterrupt  # still starting: start_broker ends what it began
        node[0].process.terminate()

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, pass_on)
    try:
        node.append(start_broker(dir, port=port))
    except KeyboardInterrupt:
        return 0
    broker = node[0]
    structlog.get_logger().info(
        "broker.ready", bootstrap=broker.bootstrap, pid=broker.pid, dir=str(dir), seconds=round(broker.started_in_s, 1)
    )
    code = broker.process.wait()
    if told:
        return 0
    raise BrokerError(f"Kafka ended by itself (exit code {code}). {_end_of(dir / 'broker.log')}")


def _format(dir: Path, command: Sequence[str], port: int) -> None:
    fresh = dir / "data.new"
    shutil.rmtree(fresh, ignore_errors=True)
    config = dir / "format.properties"
    config.write_text(render(data=fresh, port=port, controller_port=port + 1 if port < 65535 else port - 1))
    done = subprocess.run(
        [*command, "kafka.tools.StorageTool", "format", "--cluster-id", _random_uuid(), "--config", str(config)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )
    if done.returncode != 0:
        raise BrokerError(f"Kafka's storage could not be formatted in {fresh}:\n{(done.stdout + done.stderr)[-2000:]}")
    os.replace(fresh, dir / "data")
    config.unlink()


def _random_uuid() -> str:
    """As `kafka-storage random-uuid` prints them, without starting Java: URL-safe base64 that begins with no dash."""
    while True:
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        if not text.startswith("-"):
            return text


def _end_of(log: Path, lines: int = 15) -> str:
    if not log.exists():
        return f"There is no {log}."
    return "\n".join([f"{log} ends:", *log.read_text(errors="replace").splitlines()[-lines:]])
