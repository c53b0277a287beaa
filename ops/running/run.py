"""`freshet run`: the Procfile's processes on this machine until Ctrl-C, and in one line each how far the loop has come.

honcho starts the processes and shows their lines. Ours on top: the broker ends after those that still write to it,
every process ends with this one even if it is killed, and a thread creates the topics and tells the steps.
"""

from __future__ import annotations

import functools
import os
import re
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from honcho.environ import parse_procfile
from honcho.manager import Manager
from honcho.printer import Message, Printer
from honcho.process import Popen, Process

from ops.broker.java import PROJECT
from ops.broker.node import REMEDY
from ops.kafka.cluster import wait_for_broker
from ops.kafka.topics import START_TIMEOUT_S, ensure_topics
from ops.machine.ports import reached, require_free, split_address
from ops.machine.processes import tie_to_parent, tied
from ops.settings import Loaded, broker_is_ours
from schemas.config import Settings
from schemas.errors import BrokerError, ConfigError, FreshetError

PROCFILE = PROJECT / "Procfile"
BROKER = "broker"      # the Procfile's line that is left out when there is another Kafka
UPDATES = "updates"    # the one that is left out unless snapshot.updates is set
OURS = "freshet"       # the name before our own lines
_TERMINAL_CODE = re.compile(r"\x1b\[[?0-9;]*[A-Za-z]")
STOP_TIMEOUT_S = 25.0  # a broker ends in 3 s, a trainer writes its last checkpoint first


class _Plain(Printer):  # type: ignore[misc]
    """Lines as they are, without the codes that some library sends to a terminal it does not have."""

    def write(self, message: Message) -> None:
        data = message.data.decode("utf-8", "replace") if isinstance(message.data, bytes) else message.data
        text = _TERMINAL_CODE.sub("", data)
        if text.strip():
            super().write(message._replace(data=text))


class _Line(Process):  # type: ignore[misc]
    """One line of the Procfile. honcho runs it from a child of its own, which must not outlive us either."""

    def run(self, events: Any = None, ignore_signals: bool = False) -> None:
        tie_to_parent(os.getppid())
        self._child_ctor = functools.partial(Popen, preexec_fn=tied(signal.SIGTERM))
        super().run(events, ignore_signals)


class Crew(Manager):  # type: ignore[misc]
    """All processes of a run. begun: called once in a thread of its own, after the last of them was forked."""

    def __init__(self, begun: Callable[[], None]) -> None:
        super().__init__(_Plain(sys.stdout))
        self._process_ctor = _Line
        self._printer.width = len(OURS)
        self._begun: Callable[[], None] | None = begun
        self._said: deque[str] = deque()
        self._asked: dict[str, float] = {}
        self._killed = False

    @property
    def ending(self) -> bool:
        return bool(self._terminating)

    def say(self, text: str) -> None:
        """Show a line of ours, from any thread or signal handler."""
        self._said.append(text)

    def terminate(self) -> None:
        """Ask all to end: from a signal handler too, so the asking itself waits for the next turn."""
        self._terminating = True

    def kill(self) -> None:
        """honcho would kill after 5 s; our own patience is in _turn."""

    def _system_print(self, data: str) -> None:
        self.say(data.rstrip("\n"))

    def _all_started(self) -> bool:
        # honcho asks this on every turn of its loop, ten times a second when nothing happens.
        self._turn()
        return bool(super()._all_started())

    def _turn(self) -> None:
        if self._begun is not None:
            threading.Thread(target=self._begun, name="steps", daemon=True).start()
            self._begun = None
        self._show()
        if not self._terminating:
            return
        running = [name for name, line in self._processes.items() if "pid" in line and "returncode" not in line]
        others = [name for name in running if name != BROKER]
        for name in others or running:
            if name not in self._asked:
                self._asked[name] = time.monotonic()
                self._procmgr.terminate(self._processes[name]["pid"])
            elif time.monotonic() - self._asked[name] > STOP_TIMEOUT_S:
                self.say(f"{name} did not end in {STOP_TIMEOUT_S:.0f} s: killed")
                self._procmgr.kill(self._processes[name]["pid"])
                self._asked[name] = time.monotonic()

    def _show(self) -> None:
        while self._said:
            text = self._said.popleft()
            self._printer.write(Message("line", text, datetime.now(), OURS, None))  # noqa: DTZ005 shown, as honcho's


def run(
    loaded: Loaded, environ: Mapping[str, str], procfile: Path | None = None, without: Collection[str] = ()
) -> int:
    """Run everything until SIGINT or SIGTERM. Returns an exit code; raises PortTaken before anything is started.

    without: names of lines to leave out; raises ConfigError for one that is not there.
    """
    settings, ours = loaded.settings, broker_is_ours(loaded, environ)
    if ours:
        _, port = split_address(settings.kafka.bootstrap)
        require_free("127.0.0.1", port, "Kafka", REMEDY.format(port=port))
    remedy = "End it, or choose another port: score.port (freshet.toml, FRESHET_SCORE_PORT or --set)."
    require_free(settings.score.host, settings.score.port, "the scorer", remedy)

    failed: list[str] = []

    def begun() -> None:
        try:
            _tell_steps(settings, ours, crew)
        except FreshetError as wrong:
            if not crew.ending:
                failed.append(str(wrong))
                crew.terminate()

    crew = Crew(begun)
    child = loaded.child_environment(environ) | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), environ.get("PATH", os.defpath)]),
        "PYTHONUNBUFFERED": "1",
    }
    lines = parse_procfile((procfile or PROCFILE).read_text()).processes
    for name, command in chosen(lines, settings, ours, without).items():
        crew.add_process(name, command, env=child, cwd=str(Path.cwd()))
    where = f"our own, on {settings.kafka.bootstrap}" if ours else f"yours, at {settings.kafka.bootstrap}"
    crew.say(f"Kafka is {where}; all that is written goes to {settings.var}/; Ctrl-C ends everything")
    crew.loop()
    crew._show()
    if failed:
        raise BrokerError(failed[0])
    if crew.returncode in (0, 128 + signal.SIGINT, 128 + signal.SIGTERM):
        print("freshet: everything has ended", flush=True)
        return 0
    gave_up = [name for name, line in crew._processes.items() if line.get("returncode") in (1, 2)]
    raise FreshetError(f"{', '.join(gave_up) or 'a process'} gave up (see above), so everything was ended")


def chosen(lines: Mapping[str, str], settings: Settings, ours: bool, without: Collection[str]) -> dict[str, str]:
    """The Procfile's lines that are to be started. ours: the broker is. Raises ConfigError for a name that is not there."""
    for name in set(without) - set(lines):
        raise ConfigError(f"--without {name}: no such process; there are {', '.join(lines)}")
    left_out = {*without, *([] if ours else [BROKER]), *([] if settings.snapshot.updates else [UPDATES])}
    return {name: command for name, command in lines.items() if name not in left_out}


def _tell_steps(settings: Settings, ours: bool, crew: Crew) -> None:
    """The steps to the first served score, each with its time. Ends quietly when the crew ends."""
    began = time.monotonic()

    def tell(what: str) -> None:
        crew.say(f"{time.monotonic() - began:5.1f} s  {what}")

    # 1. The broker and the topics: the others wait for these by themselves.
    wait_for_broker(settings.kafka, START_TIMEOUT_S, gone=lambda: crew.ending)
    tell(f"Kafka answers on {settings.kafka.bootstrap}")
    report = ensure_topics(settings)
    tell(f"topics are there ({len(report.created)} made, {len(report.existing)} found)")
    for text in report.mismatches:
        tell(f"{text}; it stays as it is")

    # 2. The scorer says SERVING as soon as it has loaded a version; then one slate of our own, of nothing but an item.
    # Imported here: grpc must not be there yet when the processes are forked.
    from scorer.client import ScorerClient, ScorerUnavailable
    from scorer.client.access import access_of

    address = reached(settings.score.host, settings.score.port)
    if settings.score.port == 0:
        tell("the scorer is on a port of its own choice (score.port=0): its lines name it")
        return
    with ScorerClient(address, access_of(settings.score)) as client:
        while not crew.ending:
            try:
                client.wait_ready(1.0, settings.model.name)
                tell(f"the first version serves on {address}")
                scored = client.score({}, [{"id": "first"}])
            except ScorerUnavailable:
                continue
            age_ms = scored.version_age_s * 1000
            tell(f"first score: {scored.items[0].probability:.4f}, by version {scored.version}, {age_ms:.0f} ms old")
            return
