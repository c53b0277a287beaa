"""`freshet bench learn`: all learn the same rows, only one works at a time, and it says which bar was missed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ops.bench import learn
from ops.bench.learning.child import RECORD_ROWS, Rows, record
from ops.bench.measuring.meters import Meters
from ops.bench.measuring.turns import Contender, Turn, TurnFailed, close
from ops.bench.peers import environment
from ops.settings import Loaded, load
from schemas.config import Settings, variable_name
from schemas.errors import ConfigError
from schemas.examples import NOTHING, decode
from stream_trainer.learning.intake import Intake

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bench of seconds: few rows, few values, short turns, a small table."""
    for name, value in {"ROWS": 8192, "VALUES": 3900, "TURN_S": 0.05, "BITS": 14}.items():
        monkeypatch.setattr(learn, name, value)


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loaded:
    """Settings as the command line has them."""
    monkeypatch.setenv("FRESHET_VAR", str(tmp_path / "var"))
    return load(None, ["model.hidden=32"], os.environ)


def test_rows_are_39_fields_of_a_million_values_by_zipfs_law() -> None:
    """Of each field the second value comes 2^-1.1 as often as the first; the same seed makes the same rows."""
    codes, sizes = learn.codes(20_000, 3)
    assert (len(sizes), sum(sizes), codes.shape) == (39, 1_000_000, (20_000, 39))
    assert (codes < np.array(sizes)).all()
    counts = np.bincount(codes.reshape(-1))
    assert counts[1] / counts[0] == pytest.approx(2**-1.1, rel=0.05)
    assert (learn.codes(20_000, 3)[0] == codes).all()
    clicked = learn.labels(codes, sizes, 4)
    assert 0.1 < clicked.mean() < 0.4


@pytest.mark.timeout(180)
def test_a_small_bench_gives_every_figure(small: None, loaded: Loaded) -> None:
    """Ours, the limit, tables, guard, bytes and phases; ratios of what was measured; shares of a step add up to one."""
    found = learn.compare(
        loaded, device="cpu", threads=[1], batches=[64, 1024], tables=[12, 14], rounds=2,
        parts=["limit", "tables", "stream", "phases"], examples=0, say=lambda _: None,
    )
    speeds = found["examples_per_s"]
    who = ("ours", "ours_fp32", "limit_bf16", "limit_fp32")
    names = [f"{one} 1 threads batch {batch}" for batch in (64, 1024) for one in who]
    assert set(speeds) == {*names, "guarded 1 threads batch 1024", "bytes 1 threads batch 1024", "2^12", "2^14"}
    assert all(0 < speed["least"] <= speed["median"] <= speed["most"] for speed in speeds.values())
    assert 0 < found["of_limit_bf16"] < 1          # its products are a part of our step
    assert found["tables"] >= 1
    assert set(found["bars"]) == {"of_limit_bf16", "tables"}   # one thread alone has no share of two's
    for shares in found["phases"].values():
        assert sum(share for phase, share in shares.items() if phase != "ms") == pytest.approx(1)
        assert min(shares["forward"], shares["backward"], shares["rows back"]) > 0
    assert not list((loaded.settings.var / "bench").iterdir())


def turn(rate: float, cores: float = 1.0) -> Turn:
    """A second at that rate."""
    return Turn(examples=round(rate), seconds=1.0, cpu_s=cores)


def test_ratios_are_medians_of_the_rounds_own() -> None:
    """A round in which the machine was slow counts as one round, and by CPU time it does not count at all."""
    ours, theirs = "ours 2 threads batch 1024", "deepctr 2 threads batch 1024"
    turns = {
        ours: [turn(150_000, 2), turn(30_000, 0.4), turn(150_000, 2)],
        theirs: [turn(15_000, 2), turn(15_000, 2), turn(14_000, 2)],
    }
    found = learn.report(turns, [(2, 1024)], [])
    assert found["over_deepctr"] == pytest.approx(10)
    assert found["ratios"]["2 threads batch 1024"]["over_deepctr_by_cpu"] == pytest.approx(10)
    assert found["examples_per_s"][ours] == {"median": 150_000, "least": 30_000, "most": 150_000, "per_cpu_s": 75_000}


def test_of_several_runs_the_medians_are_judged() -> None:
    """With the least and most of each figure; one bad run misses no bar. A figure that one of them lacks is none."""
    ours, limit = "ours 2 threads batch 1024", "limit_bf16 2 threads batch 1024"
    runs = [
        learn.report({ours: [turn(rate)], limit: [turn(100_000)]}, [(2, 1024)], [], kafka)
        for rate, kafka in ((60_000, [{"examples_per_s": 1.0}]), (30_000, []), (50_000, []))
    ]
    found = learn.together([{**run, "phases": {}} for run in runs])
    assert found["figures"] == {"of_limit_bf16": {"median": 0.5, "least": 0.3, "most": 0.6}}
    assert found["bars"] == {"of_limit_bf16": {"wanted": 0.45, "seen": 0.5, "met": True}}
    assert learn.missed(found) == ""
    assert "0.50      0.30      0.60      0.45" in learn.spread(found)


@pytest.mark.parametrize(("changed", "wanted"), [
    ({}, ""), ({"deepctr 2 threads batch 1024": 20_000}, "7.00 × DeepCTR-Torch, wanted 9"),
    ({"fuxi 2 threads batch 1024": 28_000}, "5.00 × FuxiCTR, wanted 7"),
    ({"limit_bf16 2 threads batch 1024": 350_000}, "0.40 of the limit in bf16, wanted 0.45"),
    ({"ours 1 threads batch 1024": 70_000}, "0.50 one thread's share"),
    ({"ours 2 threads batch 256": 60_000}, "0.43 batch 256"),
    ({"2^24": 100_000}, "1.40 fastest table over slowest"), ({"kafka": 50_000}, "50000.00 examples/s from Kafka, wanted 60000"),
])
def test_a_missed_bar_is_named(changed: dict[str, float], wanted: str) -> None:
    """Each bar by itself; a figure that was not taken misses none."""
    rates = {
        "ours 2 threads batch 1024": 140_000, "ours 2 threads batch 256": 90_000, "ours 1 threads batch 1024": 80_000,
        "deepctr 2 threads batch 1024": 15_000, "fuxi 2 threads batch 1024": 17_000, "limit_bf16 2 threads batch 1024": 300_000,
        "2^18": 140_000, "2^24": 120_000, "kafka": 65_000,
    } | changed
    kafka = [{"examples_per_s": rates.pop("kafka")}]
    cells = [(2, 256), (2, 1024), (1, 1024)]
    found = learn.report({name: [turn(rate)] for name, rate in rates.items()}, cells, [18, 24], kafka) | {"phases": {}}
    assert wanted in learn.missed(found)
    assert bool(learn.missed(found)) == bool(wanted)
    assert ("MISSED" in learn.table(found)) == bool(wanted)


def test_records_of_the_bench_are_examples(small: None, loaded: Loaded) -> None:
    """What the trainer is fed reads as the joiner's: no gap, nothing dropped, the generated rows in their order."""
    rows = Rows(learn.Bench(loaded, "cpu", [], lambda _: None)._dir)
    intake = Intake(rows.schema, 512)
    for number in range(10):
        examples = decode(record(rows, number, ends=number == 9))
        assert number or examples.after == NOTHING
        intake.offer(0, number, examples)
    batches = [batch for _ in range(20) if (batch := intake.take()) is not None]
    assert (intake.gaps, intake.dropped, intake.tallies["examples"], intake.tallies["flush"]) == (0, 0, 10 * RECORD_ROWS, 1)
    ids = np.concatenate([batch.bags.ids for batch in batches]).reshape(-1, 39)
    assert (ids[:8192] == rows.ids).all()
    assert (ids[8192:] == rows.ids[:2048]).all()


def test_a_turn_is_what_was_done_in_it(tmp_path: Path) -> None:
    """A contender works in its turn and is counted then; one that ends is told of with its last words."""
    program = (
        "import time\nfrom ops.bench.measuring.turns import Work, serve\n"
        "def make(task):\n    def step():\n        end = time.process_time() + task['busy_s']\n"
        "        while time.process_time() < end: pass\n        return 7\n    return step\n"
        "serve(lambda: Work(make))\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    one = Contender("one", [sys.executable, "-c", program], env, tmp_path / "one.log")
    try:
        done = one.turn({"busy_s": 0.02}, 0.1)
        assert done.examples % 7 == 0
        assert done.seconds >= 0.1
        assert done.cpu_s >= 0.05
        assert done.cpu_s / (done.examples / 7) == pytest.approx(0.02, rel=0.3)
        with pytest.raises(TurnFailed, match=r"one ended with 1 .*\n(.*\n)*KeyError: 'busy_s'"):
            one.turn({}, 0.1)
    finally:
        close([one])


@pytest.mark.timeout(180)
@pytest.mark.parametrize("peer", ["deepctr", "fuxi"])
def test_a_peer_learns_when_it_has_its_turn(small: None, loaded: Loaded, peer: str, capfd: pytest.CaptureFixture[str]) -> None:
    """The libraries as their users run them, on a tiny model."""
    peers = ROOT / "var" / "peers"
    if not environment.is_made(peers):
        pytest.skip("needs var/peers: freshet bench learn or bench models installs it on first use")
    bench = learn.Bench(loaded, "cpu", [], lambda _: None)
    command = [str(environment.python_of(peers)), "-m", "ops.bench.peers.speed", peer, str(bench._dir)]
    task = json.loads((bench._dir / "task.json").read_text())
    (bench._dir / "task.json").write_text(json.dumps(task | {"hidden": [16]}))
    child = Contender(peer, command, environment.variables(), bench._dir / "log")
    try:
        assert child.turn({"threads": 1, "batch": 256}, 0.05).examples >= 256
    finally:
        close([child])


def on_the_broker(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Loaded:
    """What a child process reads too: that broker, that var."""
    monkeypatch.setenv("FRESHET_KAFKA", settings.kafka.bootstrap)
    monkeypatch.setenv(variable_name("var"), str(settings.var))
    return load(None, [], os.environ)


@pytest.mark.timeout(180)
def test_from_kafka_counts_what_the_trainer_says(
    small: None, kafka_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real trainer on a real broker learns all that was written before it started."""
    from ops.bench.learning.from_kafka import FromKafka

    loaded, told = on_the_broker(kafka_settings(), monkeypatch), list[str]()
    bench = learn.Bench(loaded, "cpu", [], told.append)
    model: dict[str, Any] = {"model.hidden": (16,), "model.bits": 14, "learn.batch_rows": 512, "learn.guard": False}
    kafka = FromKafka(loaded, bench._dir, model, told.append)
    with kafka.broker(20 * RECORD_ROWS):
        found = kafka.run(1)
    assert 0 < found["examples"] <= 20 * RECORD_ROWS
    assert found["examples_per_s"] == pytest.approx(found["examples"] / found["seconds"])
    assert found["trainer_cores"] > 0
    assert 0 <= found["idle"] < 1
    assert told[0].endswith("20,480 examples written")


@pytest.mark.timeout(180)
def test_a_steady_trainer_is_fed_and_its_memory_looked_at(
    small: None, kafka_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real trainer on a real broker gets about as many examples a second as were asked for."""
    from ops.bench.learning import from_kafka

    loaded, told = on_the_broker(kafka_settings(), monkeypatch), list[str]()
    monkeypatch.setattr(from_kafka, "SAMPLE_S", 0.5)
    bench = learn.Bench(loaded, "cpu", [], told.append)
    model: dict[str, Any] = {"model.hidden": (16,), "learn.batch_rows": 512, "learn.guard": False}
    kafka = from_kafka.FromKafka(loaded, bench._dir, model, told.append)
    with kafka.broker(0):
        found = kafka.steady(0.1, 2 * RECORD_ROWS)
    assert 0 < found["examples"] <= 7 * 2 * RECORD_ROWS
    assert 100 < found["first_mib"] <= found["most_mib"]
    assert found["last_mib"] <= found["most_mib"]
    assert len(found["sixths_mib"]) == 6


def test_stages_count_for_themselves_alone() -> None:
    """A stage within another takes its time from it; after the block the calls are the old ones."""
    now = [0.0]

    class Clockwork:
        def inner(self) -> None:
            now[0] += 2

        def outer(self) -> None:
            now[0] += 1
            self.inner()

    meters, before = Meters(lambda: now[0]), Clockwork.outer
    with meters.over([(Clockwork, "outer", "out"), (Clockwork, "inner", "in"), (Clockwork, "absent", "no")]):
        Clockwork().outer()
    assert dict(meters.seconds) == {"in": 2, "out": 1}
    assert Clockwork.outer is before


@pytest.mark.parametrize("text", ["", "a", "0", "1,-2"])
def test_numbers_are_whole_and_positive(text: str) -> None:
    """Anything else names the option."""
    with pytest.raises(ConfigError, match="--threads"):
        learn.numbers("--threads", text)
    assert learn.parts_of("steady") == [learn.STEADY]
    assert learn.STEADY not in learn.parts_of("")
    with pytest.raises(ConfigError, match=r"--only=limitt.*nearest: limit"):
        learn.parts_of("limitt")
