"""Processes that take turns: one works while all others wait on their pipes. Standard library alone: peers import it too."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ops.machine.processes import tied
from schemas.errors import FreshetError

Task = Mapping[str, Any]
Step = Callable[[], int]   # does a little of its work, returns how many examples that were
REST_S = 0.02              # between two turns: OpenMP's threads spin a few ms after their work


class TurnFailed(FreshetError):
    """A process ended before it had its turn, or in it."""


@dataclass(frozen=True, slots=True)
class Turn:
    """examples done in `seconds` of wall time, for which the process was given `cpu_s` of all cores together."""

    examples: int
    seconds: float
    cpu_s: float

    @property
    def rate(self) -> float:
        """Examples a second."""
        return self.examples / self.seconds


class Contender:
    """The parent's end: a process that runs `serve`."""

    def __init__(self, name: str, command: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        self.name = name
        self._log = log
        with log.open("wb") as errors:
            self._child = subprocess.Popen(
                command, env=dict(env), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
                preexec_fn=tied(),
            )

    def turn(self, task: Task, seconds: float) -> Turn:
        """Let it work on a task for about so long; the first turn of each task has a warm-up before it. Raises TurnFailed."""
        time.sleep(REST_S)
        return Turn(**self.ask(task, seconds))

    def ask(self, task: Task, seconds: float) -> dict[str, Any]:
        """Whatever it answers. Raises TurnFailed."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.write(json.dumps({"task": dict(task), "seconds": seconds}) + "\n")
            self._child.stdin.flush()
        line = self._child.stdout.readline()
        if not line:
            said = self._log.read_text(errors="replace").strip().splitlines()[-6:]
            raise TurnFailed(f"{self.name} ended with {self._child.wait()} at {dict(task)}:\n" + "\n".join(said))
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Tell it that there are no more turns."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.close()
        try:
            self._child.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._child.send_signal(signal.SIGKILL)
            self._child.wait()
        self._child.stdout.close()


def close(contenders: Sequence[Contender]) -> None:
    """No more turns for any of them."""
    for contender in contenders:
        contender.close()


@dataclass(frozen=True, slots=True)
class Work:
    """What a child can do. make: prepares a task at its first turn, and warms it up. finish: waits for a device's queue.
    asked: what a task with "ask" in it is answered by, given (task, seconds)."""

    make: Callable[[Task], Step]
    finish: Callable[[], None] = lambda: None
    asked: Mapping[str, Callable[[Task, float], dict[str, Any]]] = field(default_factory=dict)


def serve(start: Callable[[], Work]) -> None:
    """The child's end: take turns until the pipe is closed. What is printed meanwhile goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    work = start()
    steps: dict[str, Step] = {}
    for line in sys.stdin:
        said = json.loads(line)
        task, seconds = said["task"], said["seconds"]
        if "ask" in task:
            answer = work.asked[task["ask"]](task, seconds)
        else:
            key = json.dumps(task, sort_keys=True)
            if key not in steps:
                steps[key] = work.make(task)
            answer = _timed(steps[key], work.finish, seconds)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _timed(step: Step, finish: Callable[[], None], seconds: float) -> dict[str, Any]:
    """As many steps as fit, at least one; more time for a process that gets less than half a core."""
    began, cpu, examples = time.perf_counter(), time.process_time(), 0
    while not examples or min(time.perf_counter() - began, 2 * (time.process_time() - cpu)) < seconds:
        examples += step()
    finish()
    return {"examples": examples, "seconds": time.perf_counter() - began, "cpu_s": time.process_time() - cpu}
