"""One pass over a file: its figures against another library's, and rows in the order of the file."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from sklearn.metrics import log_loss, roc_auc_score

from ops import formats
from ops.evaluate import Evaluation, NothingLearnt, evaluate
from schemas.config import JoinConfig, LearnConfig, MetricsConfig, ModelConfig, Settings
from schemas.errors import ConfigError

SETTINGS = Settings(
    model=ModelConfig(schema="criteo", bits=12, hidden=(8,)), learn=LearnConfig(batch_rows=50),
    metrics=MetricsConfig(window_rows=500),
)
ROWS = 1200


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Clicks that hang on the first category."""
    rng = random.Random(2)
    lines = []
    for _ in range(ROWS):
        kind = rng.randrange(20)
        label = int(rng.random() < (0.7 if kind < 5 else 0.1))
        lines.append("\t".join([str(label), *[""] * 13, f"{kind:08x}", *[""] * 25]))
    file = tmp_path / "rows.tsv"
    file.write_text("\n".join(lines) + "\n")
    return file


def run(path: Path, settings: Settings = SETTINGS, from_row: int = 0, interval_s: float | None = None) -> Evaluation:
    interval_us = formats.row_interval_us(settings, interval_s)
    return evaluate(settings, formats.read(path, "criteo", interval_us, settings.join.action), from_row)


def test_figures_are_those_of_another_library(path: Path) -> None:
    """AUC and log loss of the rows asked for, by scikit-learn on the scores themselves."""
    found = run(path, from_row=300)
    labels = [int(line[0]) for line in path.read_text().splitlines()]
    assert found.labels.tolist() == labels
    assert found.figures.rows == ROWS - 300
    assert found.figures.auc == pytest.approx(roc_auc_score(labels[300:], found.probabilities[300:]), abs=1e-12)
    assert found.figures.log_loss == pytest.approx(log_loss(labels[300:], found.probabilities[300:].astype("f8")), abs=1e-9)
    assert [(window.first_row, window.rows) for window in found.windows] == [(0, 500), (500, 500)]


def test_the_mode_changes_nothing_where_rows_do_not_overlap(path: Path) -> None:
    """Each row's label is final before the next row comes: eager and wait learn the file in its order."""
    wait = replace(SETTINGS, join=JoinConfig(mode="wait"))
    assert run(path).weights_digest == run(path, wait).weights_digest
    assert run(path, interval_s=0.1).weights_digest != run(path, wait, interval_s=0.1).weights_digest


def test_nothing_to_judge_is_said(path: Path) -> None:
    """Not an AUC of .5."""
    with pytest.raises(NothingLearnt, match="1,200 examples"):
        run(path, from_row=ROWS)
    with pytest.raises(ConfigError, match="no such file"):
        run(path.with_name("absent"))
