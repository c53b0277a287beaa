"""`freshet bench labels`, and `freshet evaluate` in modes whose labels are not final at once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ops.bench.labels import STORE, Log, compare, delay_quantiles_s, install_log, store_log, ways
from ops.cli import main
from ops.formats import EventRecord
from ops.offline.evaluate import evaluate
from schemas.config import JoinConfig, LearnConfig, ModelConfig, NegativeCorrection, Settings
from schemas.errors import ConfigError

SETTINGS = Settings(
    model=ModelConfig(schema="appstore", architecture="lr", bits=14),
    learn=LearnConfig(device="cpu", batch_rows=100, batch_wait_s=0, guard=False),
    join=JoinConfig(window_s=12),
)
OPTIONS = replace(
    STORE, seed=2, users=300, apps=40, slate=5, candidates=5, click_rate=0.3, delay_most_s=2.5, delay_median_s=0.8,
    late_after_s=3.0,
)


@pytest.fixture(scope="module")
def log() -> Log:
    return store_log(OPTIONS, 60)


def test_the_bias_of_fake_negatives_is_visible_and_put_right(log: Log) -> None:
    """With 30 % of the items clicked an uncorrected model comes to rest at .3 / 1.3, a calibration of .77; corrected it is
    within a tenth of the oracle's. A quarter of the clicks comes after the short window, and is missed by it."""
    left_out = "eager, 3 s", "eager, 12 s", "wait, 12 s"
    tried = [way for way in ways(SETTINGS.join, 3.0, 12.0, 12.0) if way.name not in left_out]
    found = {one.way: one for one in compare(SETTINGS, log, tried, lambda _: None)}
    oracle, immediate = found["oracle"].calibration, found["immediate, 12 s"].calibration
    naive, short = found["immediate, 12 s, uncorrected"].calibration, found["wait, 3 s"]
    assert oracle is not None
    assert immediate == pytest.approx(oracle, rel=0.1)
    assert naive == pytest.approx(0.77 * oracle, rel=0.1)
    assert short.missed == pytest.approx(0.25, abs=0.04)
    assert short.calibration is not None
    assert short.calibration < 0.85 * oracle
    assert found["corrected, 3 s then 12 s"].calibration == pytest.approx(oracle, rel=0.12)


def test_a_known_delay_is_found_again(log: Log) -> None:
    """A quarter of the clicks comes after 3 s: the quantiles lie where the options put them."""
    quantiles = delay_quantiles_s(log)
    assert 0.7 < quantiles["p50"] < 1.5
    assert quantiles["p90"] > 3


def records(log: Log) -> list[EventRecord]:
    return [EventRecord(b"", value, time_us, row + 1) for row, (time_us, value) in enumerate(log.events)]


def test_evaluate_judges_fake_negatives_by_their_final_labels(log: Log) -> None:
    """Mode immediate learns every click as another example, and is judged on the same rows with the same labels as wait."""
    waited, at_once = (
        evaluate(replace(SETTINGS, join=replace(SETTINGS.join, mode=mode)), records(log)) for mode in ("wait", "immediate")
    )
    assert sorted(waited.labels.tolist()) == sorted(at_once.labels.tolist())
    assert at_once.rows_learnt > waited.rows_learnt
    assert at_once.figures.calibration == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("correction", ["weight", "serving"])
def test_sampled_negatives_leave_calibration_and_ranking(log: Log, correction: NegativeCorrection) -> None:
    """Every third negative is learnt: calibration stays at 1 within what 300 clicks can say, AUC within .03 of all."""
    join = replace(SETTINGS.join, mode="wait", negative_rate=1 / 3, negative_correction=correction)
    everything = evaluate(replace(SETTINGS, join=replace(SETTINGS.join, mode="wait")), records(log))
    sampled = evaluate(replace(SETTINGS, join=join), records(log))
    assert sampled.tallies["sampled_out"] == pytest.approx(2 / 3 * float(np.sum(everything.labels < 0.5)), rel=0.05)
    assert sampled.figures.calibration == pytest.approx(everything.figures.calibration, rel=0.12)
    assert sampled.figures.auc == pytest.approx(everything.figures.auc, abs=0.03)


def test_installs_keep_their_own_time(tmp_path: Path) -> None:
    """TalkingData's attributed_time is when the install came."""
    path = tmp_path / "train.csv"
    path.write_text(
        "ip,app,device,os,channel,click_time,attributed_time,is_attributed\n"
        "1,2,1,13,497,2017-11-07 09:30:38,,0\n"
        "2,2,1,13,497,2017-11-07 09:30:00,2017-11-07 10:30:00,1\n"
    )
    found = install_log(path, "click")
    assert found.true == {("row1", "ad")}
    assert delay_quantiles_s(found)["most"] == 3600
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match="TalkingData"):
        install_log(path, "click")


def test_the_verb_prints_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    """--json: eight ways over the store, the oracle first."""
    with pytest.raises(SystemExit) as ended:
        main(["bench", "labels", "--seconds", "10", "--json", "--set", "model.architecture=lr", "--set", "model.bits=14"])
    assert ended.value.code == 0
    report = json.loads(capsys.readouterr().out)
    assert [one["way"].split(",")[0] for one in report["store"]["ways"]] == [
        "oracle", "eager", "wait", "eager", "wait", "immediate", "immediate", "corrected",
    ]
