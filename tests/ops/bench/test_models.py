"""Ours beside the libraries: the same rows for all, differences with their errors, and how far the same models lie apart."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import log_loss, roc_auc_score

from ops import formats
from ops.bench import models as bench
from ops.bench.measuring.paired import difference
from ops.bench.peers import environment
from ops.offline.evaluate import evaluate
from ops.offline.judging import draws
from schemas import fields
from schemas.config import Settings
from schemas.errors import ConfigError, ShapeError
from schemas.models import MODELS

ROWS = 2000
PEERS = Path(__file__).parents[3] / "var" / "peers"
needs_peers = pytest.mark.skipif(
    not environment.is_made(PEERS), reason="the libraries are not installed: run `freshet bench models` once"
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clicks that hang on the first category; a tenth of all values is missing."""
    rng = random.Random(5)
    lines = []
    for _ in range(ROWS):
        kinds = [rng.randrange(30) for _ in range(26)]
        label = int(rng.random() < (0.7 if kinds[0] % 3 == 0 else 0.1))
        shown = ["" if rng.random() < 0.1 else f"kind {kind} of {at}" for at, kind in enumerate(kinds)]
        count = rng.choice(["", "0", str(rng.randrange(1, 5000))])
        lines.append("\t".join([str(label), count, *[""] * 12, *shown]))
    file = tmp_path_factory.mktemp("rows") / "rows.tsv"
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.fixture(scope="module")
def rows(path: Path) -> bench.Rows:
    return bench.read(formats.read(path, "criteo", 1_000_000, "click"), fields.load("criteo"))


def test_codes_and_lines_say_what_the_file_says(path: Path, rows: bench.Rows) -> None:
    """Two rows have one code in a field where the file has one text there; and so have the lines for Vowpal Wabbit."""
    raw = [line.split("\t") for line in path.read_text().splitlines()]
    assert rows.labels.tolist() == [int(line[0]) for line in raw]
    lines = [line.rstrip("\n").split(" ") for line in bench.vw_lines(rows)]
    assert [line[0] for line in lines] == ["1" if line[0] == "1" else "-1" for line in raw]
    for field in range(1, 39):                      # the count is binned: several texts, one code
        texts = [line[1 + field] for line in raw]
        for shown in (rows.codes[:, field].tolist(), [line[2 + field] for line in lines]):
            assert len(set(zip(texts, shown, strict=True))) == len(set(texts)) == len(set(shown))
    assert all(len(set(line[2:])) == 39 for line in lines)
    ids = np.stack([values[codes] for values, codes in zip(rows.values, rows.codes.T, strict=True)], axis=1)
    assert (ids.reshape(-1) == rows.bags.ids).all()


@pytest.mark.parametrize("name", ["deepfm", "wide_deep", "default", "ffm_stats"])
def test_ours_say_what_evaluate_says(name: str, path: Path, rows: bench.Rows) -> None:
    """The benchmark's short way through the rows leads to the scores of `freshet evaluate`, bit for bit."""
    settings = bench.settings_of(name, Settings(), 3)
    records = formats.read(path, "criteo", formats.row_interval_us(settings, None), settings.join.action)
    ours = bench.learn(bench.learner_of(name, Settings(), 3), rows)
    assert ours.said.tolist() == evaluate(settings, records).probabilities.tolist()


def test_what_is_timed_learns_what_it_learns_alone(rows: bench.Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns change nothing: each ends at the weights of a learner that had the rows to itself. Only the best are timed, and
    plain DeepFM is 1 x itself."""
    monkeypatch.setattr(bench, "TURN_ROWS", 512)
    names = ["plain", "default", "ffm_stats"]
    learners = {name: bench.learner_of(name, Settings(), 3) for name in names}
    took = bench.passes(learners, rows)
    assert all(took[name] > 0 for name in names)
    for name, learner in learners.items():
        alone = bench.learner_of(name, Settings(), 3)
        for at in range(0, ROWS, 256):
            alone.learn(rows.bags.slice(at, min(at + 256, ROWS)), rows.labels[at : at + 256])
        assert learner.digest() == alone.digest()
        assert (learner.model.statistics is None) == (name == "plain")
    made = bench.Bench(Settings(), rows, PEERS)
    assert made.times(["lr"], [1]) == {}
    times = made.times(["lr", "default"], [1, 2])
    assert list(times) == ["plain", "default"]
    assert times["plain"]["times_plain"] == 1
    assert times["default"]["least"] <= times["default"]["times_plain"] <= times["default"]["most"]
    assert "x plain" in bench.times_told(times)


def test_the_tables_hold_every_model() -> None:
    """Each architecture is compared, by settings that are settings; each model beside ours is known."""
    made = {name: bench.settings_of(name, Settings(), 1) for name in bench.NAMES}
    assert {settings.model.architecture for settings in made.values()} >= set(MODELS)
    assert {theirs.start for theirs in bench.THEIRS.values()} <= set(bench.OURS)
    assert all(ours in bench.OURS and theirs in bench.THEIRS for ours, theirs in bench.ANOTHER)
    assert {key for name in bench.OURS for key in bench.opponents(name)} == set(bench.THEIRS)


def test_only_takes_names_that_are_there() -> None:
    """A misspelt name is an error with the nearest, before anything runs."""
    assert bench.chosen("deepfm, lr") == ["lr", "deepfm"]
    assert bench.chosen("") == list(bench.NAMES)
    with pytest.raises(ConfigError, match="nearest: deepfm"):
        bench.chosen("deepfn")


def scores(seed: int, n: int = 300) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]], NDArray[np.float32]]:
    """Two models, of two seeds and one, with ties between their scores, and labels."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.3).astype(np.float32)
    signal = labels + rng.normal(0, 1.5, n)

    def said(noise: float) -> NDArray[np.float32]:
        logit = np.round(signal + rng.normal(0, noise, n), 1)
        return (1 / (1 + np.exp(-logit + 1.5))).astype(np.float32)

    return [said(0.5), said(0.5)], [said(1.0)], labels


def mean_auc(said: Sequence[NDArray[np.float32]], labels: NDArray[np.float32], rows: NDArray[np.int64]) -> float:
    return float(np.mean([roc_auc_score(labels[rows], one[rows]) for one in said]))


def test_differences_are_those_of_the_figures() -> None:
    """AUC and log loss by scikit-learn, averaged over seeds and subtracted."""
    one, other, labels = scores(1)
    found = difference(one, other, labels)
    everything = np.arange(len(labels))
    assert found.auc == pytest.approx(mean_auc(one, labels, everything) - mean_auc(other, labels, everything), abs=1e-12)
    losses = [np.mean([log_loss(labels, said.astype("f8")) for said in model]) for model in (one, other)]
    assert found.log_loss == pytest.approx(losses[0] - losses[1], abs=1e-7)


def test_the_auc_error_is_delongs_written_out() -> None:
    """Components by all pairs of a click and a non-click, each pair looked at by itself."""
    one, other, labels = scores(2, 80)
    clicks, rest = np.flatnonzero(labels), np.flatnonzero(labels == 0)
    wins = np.zeros((len(clicks), len(rest)))
    for (i, click), (j, no_click) in itertools.product(enumerate(clicks), enumerate(rest)):
        for sign, model in ((1, one), (-1, other)):
            for said in model:
                won = 1.0 if said[click] > said[no_click] else 0.5 if said[click] == said[no_click] else 0.0
                wins[i, j] += sign * won / len(model)
    variance = wins.mean(axis=1).var(ddof=1) / len(clicks) + wins.mean(axis=0).var(ddof=1) / len(rest)
    assert difference(one, other, labels).auc_error == pytest.approx(variance**0.5, rel=1e-9)


def test_errors_are_those_of_drawing_the_rows_again() -> None:
    """Standard errors against 2,000 draws of the rows with replacement, to the tenth that so many draws of so few rows tell."""
    one, other, labels = scores(3)
    drawn = [[draws(said, labels, resamples=2000) for said in model] for model in (one, other)]
    found = difference(one, other, labels)
    for figure, error in {"auc": found.auc_error, "log_loss": found.log_loss_error}.items():
        mean = [np.mean([draw[figure] for draw in model], axis=0) for model in drawn]
        assert error == pytest.approx(np.std(mean[0] - mean[1]), rel=0.1)


def test_a_difference_takes_both_classes_and_rows_that_match() -> None:
    """No figure is made up where none exists."""
    one, other, labels = scores(5)
    with pytest.raises(ShapeError, match="two rows of each class"):
        difference(one, other, np.zeros_like(labels))
    with pytest.raises(ShapeError, match="probabilities for"):
        difference(one, [other[0][:-1]], labels)


class Another(bench.Bench):
    """A library whose DeepFM says what ours says, or what the label is."""

    knows_labels = False

    def theirs(self, name: str, seed: int) -> bench.Run:
        return bench.Run(self._rows.labels) if self.knows_labels else self.ours(bench.THEIRS[name].start, seed)


@pytest.mark.parametrize(
    ("knows_labels", "apart"), [(False, []), (True, ["deepfm and deepctr_deepfm", "deepfm and fuxi_deepfm"])]
)
def test_models_that_should_be_one_and_are_not_are_named(knows_labels: bool, apart: list[str], rows: bench.Rows) -> None:
    """Equal scores lie within the tolerance, and scores that rank every click first beyond it."""
    made = Another(Settings(), rows, PEERS)
    made.knows_labels = knows_labels
    found = [made.compare("deepfm", [1], 500)]
    assert bench.beyond(found) == apart
    assert ("beyond 0.002" in bench.table(found)) == bool(apart)


def test_without_an_index_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip's own complaint and a way on; the environment counts as not made."""
    nowhere = {"INDEX_URL": "http://127.0.0.1:9", "RETRIES": "0", "NO_CACHE_DIR": "1", "CONFIG_FILE": "/dev/null"}
    for name, value in nowhere.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    with pytest.raises(environment.PeerError, match=r"needs a network[^$]*Exit code 1"):
        environment.make(tmp_path / "peers", lambda _: None)
    assert not environment.is_made(tmp_path / "peers")


@needs_peers
@pytest.mark.parametrize("name", ["deepctr_pnn_both", "fuxi_dcn"])
def test_a_library_begun_at_our_weights_says_what_we_say(name: str, rows: bench.Rows) -> None:
    """After eight batches learnt apart, another code of the same model has led to the same scores, but for rounding. (These
    values share no row of ours: the libraries have no collisions.)"""
    ids = np.concatenate(rows.values)
    assert len(np.unique(ids % np.uint64(1 << bench.MATCHED["model.bits"]))) == len(ids)
    made = bench.Bench(Settings(), rows, environment.python_of(PEERS))
    ours, theirs = made.ours(bench.THEIRS[name].start, 2).said, made.theirs(name, 2).said
    assert np.ptp(ours[-256:]) > 0.01
    np.testing.assert_allclose(theirs, ours, atol=2e-5)


@needs_peers
def test_vowpal_wabbit_scores_each_row_before_it_learns_it(rows: bench.Rows) -> None:
    """Its first score knows nothing, its last ones rank the clicks."""
    said = bench.Bench(Settings(), rows, environment.python_of(PEERS)).theirs("vw_pairs", 1).said
    assert said[0] == 0.5
    assert said.shape == (ROWS,)
    assert roc_auc_score(rows.labels[1000:], said[1000:]) > 0.6


@needs_peers
def test_a_peer_that_fails_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    """An empty folder holds no rows: the peer, its exit code and what it complained of."""
    with pytest.raises(environment.PeerError, match=r"vw did not do[^$]*Exit code 1[^$]*rows\.vw"):
        environment.run(environment.python_of(PEERS), "vw", tmp_path, {"arguments": ""}, 5)
