"""SIGKILLs at random moments, spread over two joiners, the trainer and the broker, while Criteo's rows flow: `make campaign`.

All else is as it was: every process is started again at once when it ends, whoever ended it. At the end the oracle is
`ops.offline.evaluate`: the same rows through the same code in one process that nobody kills. On one partition the weights must
be equal bit for bit, on several every example must have been learnt once.

How long until learning went on: from the kill until a version holds more examples than rows had been sent by then. Rows
wait for their window and for a full batch, so that takes a while in quiet times too; the same figure at moments when nobody
was killed stands beside it.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from ops import formats
from ops.events.replay import replay
from ops.formats import EventRecord
from ops.kafka.topics import ensure_topics
from ops.machine.ports import free_port, is_open
from ops.offline.evaluate import evaluate
from ops.watching.journals import last, wait_until_learnt
from schemas.config import Settings, Source, build
from schemas.errors import SnapshotError
from scorer.versions.reader import SnapshotReader
from tests.kit.processes import Process, wait_until

CRITEO = Path(__file__).resolve().parents[3] / "shared" / "data" / "criteo_60k.tsv.gz"
OPEN_ROWS = 32        # impressions open at any time: a joiner that dies loses something
BATCH_ROWS = 25       # small, so that waiting for a full batch takes little of the time that is measured
QUIET_S = 6.0         # before the first kill: the figure without one
QUIET_MOMENTS = 20
LOOK_S = 0.05
OVERLAP = 0.25        # share of kills that do not wait until the one before is got over
RECOVERY_S = 90.0     # a kill that is not got over by then does not hold up the next one any more
PATIENCE_S = 120.0    # after the last row, for the last version


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What is done. pause_s: mean time from learning having gone on to the next kill. rate: events a second while there are
    kills (fewer where the rows would not last), as fast as possible after them. Moments, victims, and which kills overlap
    are drawn from `seed`."""

    kills: int = 100
    seed: int = 1
    partitions: int = 1
    rows: int = 60_000
    rate: float = 80.0
    pause_s: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Kill:
    """One of them. at_s: since the load began. recovery_s: until learning went on; None = it never did."""

    what: str
    at_s: float
    overlaps: bool          # with the kill before it, which was not got over
    sent_rows: int
    recovery_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """crashes: ends by themselves, by process, mostly for want of the broker. equal: as if nobody had been killed."""

    kills: list[Kill]
    quiet_s: list[float]
    crashes: dict[str, int]
    examples_learnt: int
    weights_digest: str
    expected_digest: str
    tallies: dict[str, int]
    expected_tallies: dict[str, int]
    seconds: float
    equal: bool


class Crew:
    """Processes that are started again whenever they end, until `stop`."""

    def __init__(self, settings: Settings) -> None:
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self.crashes: dict[str, int] = {}
        self.members: dict[str, Process] = {}
        self._thread = threading.Thread(target=self._look_after, name="crew", daemon=True)
        self._settings = settings

    def start(self, name: str, verb: str) -> None:
        with self._lock:
            self.members[name] = Process(self._settings, verb)
            self.crashes[name] = 0
        if not self._thread.is_alive():
            self._thread.start()

    def kill(self, name: str) -> None:
        """SIGKILL to it and what it started, and the same process again."""
        with self._lock:
            with suppress(psutil.NoSuchProcess):
                for child in psutil.Process(self.members[name].pid).children(recursive=True):
                    child.kill()
            self.members[name].kill()
            self.members[name].restart()

    def stop(self) -> None:
        """Clients first, the broker last."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        for name in sorted(self.members, key="broker".__eq__):
            self.members[name].stop()

    def _look_after(self) -> None:
        while not self._stopping.wait(LOOK_S):
            with self._lock:
                for name, process in self.members.items():
                    if not process.alive:
                        self.crashes[name] += 1
                        process.restart()


class Progress:
    """How many examples the newest version holds, by time, as a scorer would see it."""

    def __init__(self, settings: Settings, var: Path) -> None:
        self._reader = SnapshotReader(settings.store_dir, var / "campaign-secondary")
        self._seen: list[tuple[float, int]] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="progress", daemon=True)
        self._thread.start()

    def after(self, moment: float, examples: int) -> float | None:
        """Seconds from that moment until a version held so many."""
        return next((at - moment for at, learnt in self._seen if at >= moment and learnt >= examples), None)

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()
        self._reader.close()

    def _follow(self) -> None:
        newest = None
        while not self._stopping.wait(2 * LOOK_S):
            with suppress(SnapshotError):
                number = self._reader.poll()
                if number is not None and number != newest:
                    self._seen.append((time.monotonic(), self._reader.manifest(number).examples_learnt))
                    newest = number


class Load:
    """The replay beside the kills. It starts when it is made."""

    def __init__(self, settings: Settings, records: Iterator[EventRecord], rate: float) -> None:
        self.sent = 0
        self.began = time.monotonic()
        self.rate = rate        # events a second
        self._hurry = threading.Event()
        self._failed: list[BaseException] = []
        self._thread = threading.Thread(target=self._send, args=(settings, records), name="load", daemon=True)
        self._thread.start()

    @property
    def flows(self) -> bool:
        """Whether rows are still to come."""
        return self._thread.is_alive()

    def finish(self) -> None:
        """Send what is left as fast as possible. Raises what went wrong."""
        self._hurry.set()
        self._thread.join()
        if self._failed:
            raise self._failed[0]

    def _paced(self, records: Iterator[EventRecord]) -> Iterator[EventRecord]:
        due = self.began
        for record in records:
            self._hurry.wait(max(0.0, due - time.monotonic()))
            due = max(due + 1 / self.rate, time.monotonic() - 1)      # what a dead broker held up comes quickly, not at once
            yield record

    def _send(self, settings: Settings, records: Iterator[EventRecord]) -> None:
        try:
            replay(settings, self._paced(records), progress=self._count)
        except BaseException as wrong:  # noqa: BLE001 told in `wait`
            self._failed.append(wrong)

    def _count(self, rows: int) -> None:
        self.sent += rows


def settings_for(plan: Plan, var: Path, port: int) -> Settings:
    """Batches by count alone; versions and checkpoints often, so that kills hit them; all versions kept."""
    return build(Source("campaign", {
        "var": str(var), "kafka.bootstrap": f"127.0.0.1:{port}", "kafka.event_partitions": plan.partitions,
        "kafka.example_partitions": plan.partitions, "model.schema": "criteo", "model.bits": 18, "learn.batch_wait_s": 0,
        "learn.batch_rows": BATCH_ROWS, "snapshot.version_every_s": 0.1, "snapshot.checkpoint_every_s": 1,
        "snapshot.rotation": 16, "join.commit_every_s": 0.5,
    }))[0]


def rows(settings: Settings, plan: Plan) -> Iterator[EventRecord]:
    """The first of Criteo's rows."""
    interval_us = formats.row_interval_us(settings, settings.join.window_s / OPEN_ROWS)
    return formats.first_rows(formats.read(CRITEO, "criteo", interval_us, "click"), plan.rows)


@dataclass(frozen=True, slots=True)
class Shot:
    """A kill to come: after that pause, and (unless it overlaps) after learning went on from the one before."""

    what: str
    pause_s: float
    overlaps: bool


def drawn(plan: Plan) -> list[Shot]:
    """Each process as often as the others, in any order, at any time."""
    rng = random.Random(plan.seed)
    names = ["joiner-1", "joiner-2", "trainer", "broker"]
    victims = [names[number % len(names)] for number in range(plan.kills)]
    rng.shuffle(victims)
    return [Shot(what, rng.uniform(0, 2 * plan.pause_s), rng.random() < OVERLAP) for what in victims]


def campaign(plan: Plan, var: Path, say: Any = lambda _: None) -> Outcome:
    """Run it in an empty directory. say: told a line at a time how it goes."""
    began = time.monotonic()
    port = free_port()
    settings = settings_for(plan, var, port)
    crew = Crew(settings)
    try:
        crew.start("broker", "broker")
        wait_until(lambda: is_open("127.0.0.1", port), 120, "the broker")
        ensure_topics(settings)
        for name in ("joiner-1", "joiner-2", "trainer"):
            crew.start(name, name.partition("-")[0])
        wait_until(lambda: last(settings, "trainer", "trainer.status"), 120, "the trainer's first status")
        progress = Progress(settings, var)
        load = Load(settings, rows(settings, plan), plan.rate)
        quiet = _quiet(load, plan)
        kills: list[Kill] = []
        for shot in drawn(plan):
            kills.append(_killed(crew, load, progress, shot, kills))
            say(f"{len(kills):4}  {kills[-1].at_s:6.1f} s  {shot.what} is killed")
            load.rate = min(plan.rate, _rate_until_the_end(load, plan, kills))
        if kills and not load.flows:
            raise AssertionError(f"all {plan.rows} rows were sent before the last kill: more --rows, or a lower --rate")
        load.finish()
        found = wait_until_learnt(settings, plan.partitions, PATIENCE_S)
        wait_until(lambda: progress.after(load.began, plan.rows), 30, "a version that holds every row")
        progress.stop()
    finally:
        crew.stop()
    kills = [replace(kill, recovery_s=_recovery(progress, load, kill)) for kill in kills]
    for number, kill in enumerate(kills, 1):
        say(line(number, kill))
    say("the same rows in one process that nobody kills …")
    expected = evaluate(settings, rows(settings, plan))
    same = found["weights_digest"] == expected.weights_digest or plan.partitions > 1
    tallies = expected.tallies | {"flush": plan.partitions}
    return Outcome(
        kills=kills, quiet_s=[s for at, sent in quiet if (s := progress.after(at, sent + 1)) is not None],
        crashes=crew.crashes, examples_learnt=found["examples_learnt"], weights_digest=found["weights_digest"],
        expected_digest=expected.weights_digest, tallies=found["tallies"], expected_tallies=tallies,
        seconds=time.monotonic() - began, equal=same and found["tallies"] == tallies,
    )


def _quiet(load: Load, plan: Plan) -> list[tuple[float, int]]:
    """Moments at which nobody is killed, with the rows sent by then; before them, time for the first batches."""
    rng = random.Random(plan.seed + 1)
    moments = []
    for at_s in sorted(rng.uniform(QUIET_S / 2, QUIET_S * 0.9) for _ in range(QUIET_MOMENTS)):
        _sleep_until(load.began + at_s)
        moments.append((time.monotonic(), load.sent))
    return moments


def _killed(crew: Crew, load: Load, progress: Progress, shot: Shot, before: list[Kill]) -> Kill:
    last_one = before[-1] if before else None
    if last_one is not None and not shot.overlaps:
        deadline = time.monotonic() + RECOVERY_S
        while _recovery(progress, load, last_one) is None and time.monotonic() < deadline:
            time.sleep(LOOK_S)
    time.sleep(shot.pause_s)
    overlaps = last_one is not None and _recovery(progress, load, last_one) is None
    sent, moment = load.sent, time.monotonic()
    crew.kill(shot.what)
    return Kill(what=shot.what, at_s=moment - load.began, overlaps=overlaps, sent_rows=sent)


def _rate_until_the_end(load: Load, plan: Plan, kills: list[Kill]) -> float:
    """At which rows are left for the last kill on a machine as slow as this one has been so far."""
    per_kill_s = (time.monotonic() - load.began) / len(kills)
    return 0.9 * (plan.rows - load.sent) / (per_kill_s * (plan.kills - len(kills) + 1))


def _recovery(progress: Progress, load: Load, kill: Kill) -> float | None:
    return progress.after(load.began + kill.at_s, kill.sent_rows + 1)


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))


# --- what is told ---


def line(number: int, kill: Kill) -> str:
    """One kill."""
    went_on = "never" if kill.recovery_s is None else f"{kill.recovery_s:5.1f} s"
    return (f"{number:4}  {kill.at_s:6.1f} s  {kill.what:<9}  learning went on after {went_on}"
            f"{'  (the kill before was not got over)' if kill.overlaps else ''}")


def figures(outcome: Outcome) -> dict[str, Any]:
    """Recovery by process: kills, median and longest; and without a kill. Kills that overlap stand in a row of their own."""
    by_name: dict[str, list[float]] = {}
    for number, kill in enumerate(outcome.kills):
        alone = not kill.overlaps and not any(after.overlaps for after in outcome.kills[number + 1 : number + 2])
        seconds = float("inf") if kill.recovery_s is None else kill.recovery_s
        by_name.setdefault(kill.what if alone else "overlapping", []).append(seconds)
    by_name["nobody"] = outcome.quiet_s
    return {
        name: {"moments": len(found), "p50_s": round(statistics.median(found), 2), "max_s": round(max(found), 2)}
        for name, found in sorted(by_name.items()) if found
    }


def report(outcome: Outcome) -> str:
    """The end of it, for people."""
    lines = [f"{name:<11}  {row['moments']:3} moments   p50 {row['p50_s']:5.1f} s   max {row['max_s']:5.1f} s"
             for name, row in figures(outcome).items()]
    lines.append("ended by themselves: " + ", ".join(f"{name} {times}" for name, times in outcome.crashes.items()))
    lines.append(f"{outcome.examples_learnt:,} examples learnt; {outcome.seconds:.0f} s in all")
    lines.append(f"weights {outcome.weights_digest}, undisturbed {outcome.expected_digest}")
    lines.append("every event ended as in the undisturbed run" if outcome.tallies == outcome.expected_tallies
                 else f"ends: {outcome.tallies}, undisturbed: {outcome.expected_tallies}")
    return "\n".join(lines)


def main() -> int:
    """`python -m tests.integration.campaign`."""
    parser = argparse.ArgumentParser(prog="make campaign", description=(__doc__ or "").split("\n\n")[0])
    plan = Plan()
    parser.add_argument("--kills", type=int, default=plan.kills)
    parser.add_argument("--seed", type=int, default=plan.seed)
    parser.add_argument("--partitions", type=int, default=plan.partitions, help="of events and of examples")
    parser.add_argument(
        "--rows", type=int, default=plan.rows, help="of Criteo; what is left after the last kill goes as fast as possible"
    )
    parser.add_argument("--rate", type=float, default=plan.rate, help="events a second while there are kills")
    parser.add_argument("--json", action="store_true", help="one object on stdout")
    options = vars(parser.parse_args())
    as_json = options.pop("json")
    if not CRITEO.is_file():
        print(f"needs {CRITEO}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="campaign-") as place:
        outcome = campaign(Plan(**options), Path(place), lambda text: print(text, file=sys.stderr, flush=True))
    if as_json:
        print(json.dumps(asdict(outcome) | {"recovery_s": figures(outcome)}))
    else:
        print(report(outcome))
    return 0 if outcome.equal else 1


if __name__ == "__main__":
    sys.exit(main())
