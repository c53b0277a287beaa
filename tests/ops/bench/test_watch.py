"""`freshet bench watch`: what it makes of turns, and a short run of all its ways."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ops.bench import watch
from ops.settings import load
from schemas.config import MetricsConfig, ModelConfig, Settings, variable_name


def test_a_cost_is_the_median_of_the_rounds_own() -> None:
    """A part that takes a tenth more time costs 1 − 1/1.1 of the throughput, however slow each round was; the bar is on all
    parts, where the trainer was not measured."""
    slow = [1.0, 3.0, 1.0, 2.0, 5.0]
    turns = {
        what: [watch.Turn(took * times, took, took * 2) for took in slow]
        for what, times in zip(watch.WAYS, (1.0, 1.1, 1.1, 1.25), strict=True)
    }
    found = watch.judged(watch.report(turns, 1000), None)
    assert found["cost"]["watch"]["wall"]["median"] == pytest.approx(1 - 1 / 1.1)
    assert found["cost"]["watch"]["thread"]["median"] == pytest.approx(0)
    assert found["examples_per_s"]["off"] == 500.0
    assert found["bar"] == {"wanted": 0.05, "seen": pytest.approx(0.2), "met": False}
    assert "MISSED" in watch.table(found)


def test_every_way_learns_the_same(tmp_path: Path) -> None:
    """Turns of all ways over a store's log: what is watched, and by whom, changes no bit of the weights."""
    settings = replace(
        Settings(), var=tmp_path, model=ModelConfig(bits=12, factors=2, hidden=(4,)), metrics=MetricsConfig(window_rows=2000),
    )
    with watch.ways(settings, 10.0) as made:
        digests = set()
        for way in made.values():
            for _ in range(3):
                turn = way.turn(5000)
                assert turn.wall > 0
            digests.add(way.digest())
    assert len(digests) == 1
    assert not list((tmp_path / "bench").iterdir())


def test_a_trainer_that_learns_less_or_works_more_for_it_costs() -> None:
    """By the clock, and by CPU time per example, the median of the turns' own ratios; the bar is on the clock."""
    runs = {
        what: [{"examples_per_s": speed, "trainer_cores": cores} for speed in speeds]
        for what, speeds, cores in (("off", (100.0, 90.0, 200.0), 1.0), ("on", (80.0, 70.0, 96.0), 0.9))
    }
    found = watch.judged(None, watch.of_trainers(runs))
    cost = found["from_kafka"]["cost"]      # .2, .22 and .52 by the clock
    assert cost["wall"]["median"] == pytest.approx(1 - 70 / 90)
    assert cost["process"]["median"] == pytest.approx(1 - (1 / 90) / (0.9 / 70))
    assert found["bar"] == {"wanted": 0.05, "seen": pytest.approx(1 - 70 / 90), "met": False}
    assert found["from_kafka"]["examples_per_s"] == {"off": pytest.approx(100), "on": pytest.approx(80)}
    assert "22.2% (20.0% to 52.0%) lost by the clock, 13.6%" in watch.table(found)


@pytest.mark.timeout(180)
def test_real_trainers_learn_from_kafka_with_and_without(
    kafka_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One turn of each, on a real broker: one writes lines of windows, the other none."""
    from ops.bench.learning.from_kafka import FromKafka

    settings = kafka_settings()
    monkeypatch.setenv("FRESHET_KAFKA", settings.kafka.bootstrap)
    monkeypatch.setenv(variable_name("var"), str(settings.var))
    written: dict[str, bool] = {}
    race = FromKafka.race

    def watched(
        self: FromKafka, threads: int, own: Mapping[str, Mapping[str, Any]], after: int
    ) -> dict[str, dict[str, Any]]:
        found = race(self, threads, own, after)
        for name in own:
            written[name] = any((settings.var / "bench").glob(f"watch-*/var/metrics/*{name}*/windows/*.parquet"))
        return found

    monkeypatch.setattr(FromKafka, "race", watched)
    monkeypatch.setattr(watch, "FIRST_WINDOWS", 0)      # all of it is learnt within a second or two
    small = {"model.hidden": (4,), "model.bits": 12}
    found = watch.from_kafka(load(None, ["metrics.window_rows=500"], os.environ), 1, lambda _: None, 10.0, small)
    assert written == {"off0-": False, "on0-": True}
    assert found["examples_per_s"].keys() == {"off", "on"}
    assert not list((settings.var / "bench").iterdir())
