"""`freshet bench drift`, small."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from ops.bench import drift as bench
from ops.cli import main
from schemas.config import GateConfig, JoinConfig, LearnConfig, MetricsConfig, ModelConfig, Settings, SnapshotConfig
from schemas.errors import ConfigError

SETTINGS = Settings(
    model=ModelConfig(bits=15, hidden=(16,)), learn=LearnConfig(device="cpu"), metrics=MetricsConfig(window_rows=4000),
    gate=GateConfig(rows=1024, history_rows=8_192), join=JoinConfig(window_s=1.0), snapshot=SnapshotConfig(version_every_s=1.0),
)
PLAN = bench.Plan(warm_s=100.0, after_s=15.0, day_s=120.0, rate=80.0)


def found(name: str) -> bench.Found:
    (case,) = bench.chosen(name)
    return bench.Bench(SETTINGS, PLAN, 1, lambda _: None).follow(case)


@pytest.fixture(scope="module")
def flipped() -> bench.Found:
    return found("labels_flipped")


def test_flipped_labels_are_noticed_and_held_back(flipped: bench.Found) -> None:
    """Within seconds; what little slipped through is counted, and what was served ranks as before: the truth is known."""
    assert flipped.detected
    assert flipped.held_back
    assert flipped.wrong == []
    assert flipped.held_after_s is not None
    assert flipped.held_after_s <= 10
    assert flipped.slipped_versions is not None
    assert flipped.slipped_versions <= flipped.held_after_s / SETTINGS.snapshot.version_every_s
    assert flipped.auc_after.served is not None
    assert flipped.auc_after.ungated is not None
    assert flipped.auc_after.served > 0.6 > flipped.auc_after.ungated


def test_night_and_day_raise_nothing() -> None:
    """After a day was seen, a second one: as many come at noon as ever, few at night, and all of it was told."""
    one = found("night_and_day")
    assert one.alarms == []
    assert not one.held_back
    assert one.wrong == []


def test_what_was_said_beforehand_is_what_is_judged(flipped: bench.Found) -> None:
    """A drift that the gate had to let pass, and held; one that had to be noticed, and was not; false alarms above the bar."""
    silent = replace(flipped, wrong=["not noticed"], name="new_apps")
    still = bench.Stationary(events=1_000_000, seconds=1.0, windows=50, raised=["a", "b"], versions_held=0)
    assert bench.missed([flipped], replace(still, raised=[])) == []
    assert [line[:8] for line in bench.missed([flipped, silent], still)] == ["new_apps", "2.00 fal"]


def test_the_report_has_the_keys_that_others_read(flipped: bench.Found) -> None:
    """As JSON, with more beside them."""
    report: dict[str, Any] = json.loads(json.dumps(bench.as_json([flipped], None, PLAN)))
    assert report["false_alarms_per_million"] is None
    (one,) = report["drifts"]
    assert {"name", "detected", "events", "seconds", "blamed", "held_back"} <= one.keys()
    assert one["name"] == "labels_flipped"
    assert "labels_flipped" in bench.table([flipped], None)


def test_names_that_are_no_drift_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, before anything is learnt."""
    with pytest.raises(ConfigError, match="taste_shift"):
        bench.chosen("labels_flipped,nonsense")
    with pytest.raises(SystemExit) as ended:
        main(["bench", "drift", "--only", "nonsense"])
    assert ended.value.code == 2
    assert "taste_shift" in capsys.readouterr().err
