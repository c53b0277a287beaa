"""From `examples` in Kafka to weights: `freshet trainer` reads what was written before it started, everything on one machine.

The trainer is the one that users run, with its guard, its versions every half second and its checkpoints; what it did is
read off its journal, from its first status line with examples to its last before the end.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ops.bench.learn_child import RECORD_ROWS, Rows, record
from ops.bench.turns import TurnFailed
from ops.broker import start_broker
from ops.cluster import admin, producer
from ops.processes import end, tied
from ops.settings import Loaded, broker_is_ours, load
from ops.topics import ensure_topics
from schemas.errors import BrokerError
from schemas.journal import newest

STOP_TIMEOUT_S = 60.0
LOOK_EVERY_S = 0.1
STALLED_S = 60.0           # nothing learnt for so long


class FromKafka:
    """A broker with examples in it, and trainers that learn them, one after the other."""

    def __init__(self, loaded: Loaded, folder: Path, model: Mapping[str, Any], say: Callable[[str], None]) -> None:
        """folder: holds the generated rows. model: settings of the trainer."""
        self._loaded, self._folder, self._model, self._say = loaded, folder, model, say
        self._name = f"bench-{secrets.token_hex(3)}"
        self._bootstrap: str | None = None
        self._examples = 0
        self._broker_pid: int | None = None

    @contextmanager
    def broker(self, examples: int) -> Iterator[None]:
        """Kafka of our own, or the one that FRESHET_KAFKA names, with so many examples written. Raises BrokerError."""
        node = None
        try:
            if broker_is_ours(self._loaded, os.environ):
                node = start_broker(self._folder / "broker")
                self._bootstrap, self._broker_pid = node.bootstrap, node.pid
            self._write(examples // RECORD_ROWS)
            yield
        finally:
            if node is not None:
                node.stop()
                shutil.rmtree(self._folder / "broker", ignore_errors=True)
            else:
                self._drop_topics()

    def run(self, threads: int) -> dict[str, Any]:
        """Examples a second that a new trainer learnt, how many cores it and the broker took, and what share of the time its
        learner waited for examples. Raises TurnFailed."""
        name = f"learn{threads}"
        loaded = self._with(name, threads)
        settings = loaded.settings
        journal = settings.metrics_dir / "trainer.jsonl"
        log = self._folder / f"{name}.log"
        with log.open("wb") as errors:
            child = subprocess.Popen(
                [sys.executable, "-m", "ops.cli", "trainer"], env=loaded.child_environment(os.environ),
                stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, preexec_fn=tied(),
            )
        seen: list[tuple[int, float, float, float, float]] = []  # examples; seconds: clock, CPU of trainer, of broker, idle
        moved = time.monotonic()
        try:
            while not seen or seen[-1][0] < self._examples:
                time.sleep(LOOK_EVERY_S)
                row = newest(journal, "trainer.replay_ended") or newest(journal, "trainer.status")
                if row is not None and row["examples_learnt"] > (seen[-1][0] if seen else -1):
                    moved = time.monotonic()
                    cpu = _cpu_s(child.pid), _cpu_s(self._broker_pid)
                    seen.append((row["examples_learnt"], row["time_us"] / 1e6, *cpu, row["idle_s"]))
                if child.poll() is not None or time.monotonic() - moved > STALLED_S:
                    raise TurnFailed(
                        f"the trainer learnt {seen[-1][0] if seen else 0:,} of {self._examples:,} examples, its exit code is "
                        f"{child.poll()}:\n" + "\n".join(log.read_text(errors="replace").splitlines()[-6:])
                    )
        finally:
            end(child, STOP_TIMEOUT_S)
            shutil.rmtree(settings.store_dir, ignore_errors=True)
        # What the first second learnt was waiting already, and the end waits for a last version: where there are enough
        # lines between, those two are left out.
        first, last = (seen[1], seen[-2]) if len(seen) > 4 else (seen[0], seen[-1])
        examples, seconds, *spent = (after - before for before, after in zip(first, last, strict=True))
        trainer, broker, idle = (part / seconds for part in spent)
        found = {
            "threads": threads, "examples": examples, "seconds": seconds, "examples_per_s": examples / seconds,
            "trainer_cores": trainer, "broker_cores": broker, "idle": idle,
        }
        self._say(
            f"from Kafka, {threads} threads: {found['examples_per_s']:,.0f} examples/s, trainer {trainer:.2f} cores, broker "
            f"{broker:.2f}, its learner idle {idle:.0%} of the time"
        )
        return found

    def _with(self, name: str, threads: int = 1) -> Loaded:
        """Settings of a model that has learnt nothing yet."""
        own = {
            **self._model, "kafka.prefix": f"{self._name}-", "kafka.example_partitions": 1, "kafka.event_partitions": 1,
            "model.name": f"{self._name}-{name}", "model.schema": self._folder / "schema.toml", "learn.threads": threads,
            "var": self._folder / "var",
        }
        if self._bootstrap is not None:
            own["kafka.bootstrap"] = self._bootstrap
        flags = dict(self._loaded.overrides) | {
            key: ",".join(map(str, value)) if isinstance(value, tuple) else str(value) for key, value in own.items()
        }
        return load(self._loaded.file, [f"{key}={value}" for key, value in flags.items()], os.environ)

    def _write(self, records: int) -> None:
        rows, settings, failed = Rows(self._folder), self._with("any").settings, list[BaseException]()
        ensure_topics(settings)
        sender = producer(settings.kafka, "bench")
        try:
            for number in range(records):
                value = record(rows, number, ends=number == records - 1)
                sender.send(settings.kafka.topic("examples"), value, partition=0).add_errback(failed.append)
            sender.flush(timeout=120)
        finally:
            sender.close(timeout=10)
        if failed:
            raise BrokerError(f"the broker did not take a record: {failed[0]}") from failed[0]
        self._examples = records * RECORD_ROWS
        self._say(f"from Kafka: {self._examples:,} examples written")

    def _drop_topics(self) -> None:
        """Leave a Kafka that is not ours as it was."""
        with admin(self._with("any").settings.kafka) as client:
            ours = [name for name in client.list_topics() if name.startswith(f"{self._name}-")]
            if ours:
                client.delete_topics(ours)


def _cpu_s(pid: int | None) -> float:
    """CPU seconds of a process; 0 where it is not ours or the system has no /proc."""
    try:
        times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")
