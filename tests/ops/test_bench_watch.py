"""`freshet bench watch`: what it makes of turns, and a short run of all its ways."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ops.bench import watch
from schemas.config import MetricsConfig, ModelConfig, Settings


def test_a_cost_is_the_median_of_the_rounds_own() -> None:
    """A part that takes a tenth more time costs 1 − 1/1.1 of the throughput, however slow each round was; the bar is on all."""
    slow = [1.0, 3.0, 1.0, 2.0, 5.0]
    turns = {
        what: [watch.Turn(took * times, took, took * 2) for took in slow]
        for what, times in zip(watch.WAYS, (1.0, 1.1, 1.1, 1.1, 1.25), strict=True)
    }
    found = watch.report(turns, 1000)
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
