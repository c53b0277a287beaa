"""The gate with real Kafka, a real store and a scorer that answers meanwhile: nothing implausible goes live."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ops import formats
from ops.formats import EventRecord
from ops.machine.ports import free_port
from ops.simulator.drifts import planted
from ops.simulator.live import Record
from ops.simulator.options import StoreOptions
from ops.simulator.slates import Simulator
from ops.simulator.store import AppStore, VirtualClock
from ops.verbs.gate import status_text, told
from ops.versions.orders import to_gate
from ops.versions.store import opened
from ops.watching.journals import last, wait_until_learnt
from schemas.config import Settings
from schemas.journal import newest_rows
from schemas.snapshot import Manifest
from scorer.client import ScorerClient
from stream_trainer.watching.alarms import standing
from tests.integration.test_exactly_once import made, published, running
from tests.kit.processes import Process, wait_until

START_US = 1_767_225_600_000_000
SOUND_S, FLIPPED_S, SLATES_A_S = 40, 20, 20      # 16,000 examples as they should be, then 8,000 with the labels turned round


def flipped(path: Path) -> Iterator[EventRecord]:
    """A store's log; from the 40th second on a click is sent of whatever was not clicked."""
    return log(path, f"labels_flipped@{SOUND_S}")


def log(path: Path, *drifts: str) -> Iterator[EventRecord]:
    options = StoreOptions(seed=3)
    store = Simulator(options, START_US)
    for drift in drifts:
        store.plant(planted(drift, options, START_US))
    AppStore(store, VirtualClock(START_US), Record(path), rate=SLATES_A_S, seconds=SOUND_S + FLIPPED_S).run()
    return formats.read(path, "jsonl", 1, "click")


def newest(settings: Settings) -> Manifest:
    with opened(settings, "version") as reader:
        return reader.manifest(reader.numbers()[-1])


def held(settings: Settings) -> bool:
    return bool(told(settings)["held"])


def alarms(settings: Settings) -> list[str]:
    """What stands open."""
    return [row["what"] for row in standing(newest_rows(settings.alarms_file, 1 << 20))]


def said_after(settings: Settings, time_us: int) -> bool:
    """Whether the trainer has said something since."""
    row = last(settings, "trainer", "trainer.status")
    return row is not None and row["time_us"] > time_us


def now_us(settings: Settings) -> int:
    row = last(settings, "trainer", "trainer.status")
    assert row is not None
    return int(row["time_us"])


def of_hold(settings: Settings) -> dict[str, Any]:
    """What must be the same, whoever was killed."""
    status = told(settings)
    return {key: status[key] for key in ("held", "reason", "since_us", "until_us")}


def test_flipped_labels_never_go_live_until_somebody_says_so(broker: str, prefix: str, tmp_path: Path) -> None:
    """Labels turn round in a stream: versions stop, the scorer stays with what it has, learning goes on. SIGKILL and a clean
    stop change nothing of that, neither the reason nor the end of patience. A release publishes all at once."""
    settings = made(broker, prefix, tmp_path / "var", **{
        "model.schema": "appstore", "learn.batch_rows": 256, "gate.rows": 1024, "gate.history_rows": 8000,
        "snapshot.checkpoint_every_s": 2, "score.port": free_port(), "score.operator_port": 0, "score.metrics_port": 0,
        "score.workers": 1,
    })
    with running(settings) as crew, ScorerClient(f"127.0.0.1:{settings.score.port}") as client:
        crew["scorer"] = Process(settings, "scorer")
        client.wait_ready(60)
        published(settings, flipped(tmp_path / "log"), 600)
        wait_until(partial(held, settings), 60, "a hold")
        kept, hold = newest(settings), of_hold(settings)
        assert hold["reason"] in ("labels", "calibration", "jump")
        assert hold["until_us"] - hold["since_us"] == 600_000_000
        assert alarms(settings) == ["gate.held"]
        assert "is served on" in status_text(told(settings))
        assert kept.tallies["positives"] < 0.2 * kept.examples_learnt      # a tenth were, nine tenths come

        done = wait_until_learnt(settings, 1, 60)                     # the end of a replay publishes otherwise
        assert done["examples_learnt"] > kept.examples_learnt + 2000
        assert newest(settings).number == kept.number
        assert client.score({}, [{"id": "a", "features": {}}]).version == kept.number

        before = now_us(settings)
        crew["trainer"].kill()
        crew["trainer"].restart()
        wait_until(partial(said_after, settings, before), 60, "the trainer is back")
        assert of_hold(settings) == hold
        before = now_us(settings)
        assert crew["trainer"].stop() == 0
        assert newest(settings).number == kept.number                 # a clean stop writes a last version otherwise
        crew["trainer"].restart()
        wait_until(partial(said_after, settings, before), 60, "the trainer is back")
        assert of_hold(settings) == hold

        assert to_gate(settings, "release", 30)["obeyed"]
        after = newest(settings)
        assert (after.parent, after.examples_learnt) == (kept.number, done["examples_learnt"])
        wait_until(
            lambda: client.score({}, [{"id": "a", "features": {}}]).version == after.number, 20, "the scorer has what was held"
        )
        wait_until(lambda: not held(settings), 10, "said in the status")
        assert alarms(settings) == []

        assert to_gate(settings, "hold", 30)["obeyed"]
        wait_until(partial(held, settings), 10, "held by hand")
        before = now_us(settings)
        crew["trainer"].kill()
        crew["trainer"].restart()
        wait_until(partial(said_after, settings, before), 60, "the trainer is back")
        assert (told(settings)["reason"], told(settings)["until_us"]) == ("by hand", 0)


def test_weights_that_explode_do_not_stay_live(broker: str, prefix: str, tmp_path: Path) -> None:
    """A trainer that has learnt well is started again with the largest rates there are, which throw its weights far off, and
    without its guard: what it learns is held back within four blocks of the gate, though it is right on average, and the
    scorer stays where it was then."""
    sound = made(broker, prefix, tmp_path / "var", **{
        "model.schema": "appstore", "learn.batch_rows": 256, "learn.guard": False, "gate.rows": 1024, "gate.history_rows": 8000,
        "score.port": free_port(), "score.operator_port": 0, "score.metrics_port": 0, "score.workers": 1,
    })

    def learnt() -> int:
        row = last(sound, "trainer", "trainer.status")
        return int(row["examples_learnt"]) if row is not None else 0

    with running(sound) as crew, ScorerClient(f"127.0.0.1:{sound.score.port}") as client:
        crew["scorer"] = Process(sound, "scorer")
        client.wait_ready(60)
        published(sound, log(tmp_path / "log"), 600)
        wait_until(lambda: learnt() > 12_000, 60, "a model that has a usual")
        assert crew["trainer"].stop() == 0
        kept = newest(sound)
        assert not held(sound)

        wild = replace(sound, learn=replace(sound.learn, row_rate=1.0, dense_rate=1.0))
        crew["trainer"] = Process(wild, "trainer")
        wait_until(partial(held, sound), 60, "a hold")
        at_last = newest(sound)
        assert at_last.examples_learnt - kept.examples_learnt <= 4 * 1024
        wait_until(lambda: learnt() > at_last.examples_learnt + 4000, 60, "learning goes on")
        assert newest(sound).number == at_last.number
        assert client.score({}, [{"id": "a", "features": {}}]).version == at_last.number
