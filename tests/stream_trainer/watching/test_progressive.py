"""Figures of a stream scored before it is learnt, against scikit-learn and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from schemas.errors import ShapeError
from stream_trainer.watching.progressive import Progressive
from stream_trainer.watching.windows import BINS, Window, auc_of_bins, figures


def stream(rows: int, seed: int = 1, ties: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Scores that know something, and clicks; `ties`: so many distinct scores."""
    rng = np.random.default_rng(seed)
    logit = rng.normal(-1.2, 1.1, rows)
    labels = (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.float32)
    said = 1 / (1 + np.exp(-logit + rng.normal(0, 0.5, rows)))
    if ties:
        said = np.floor(said * ties) / ties
    return said.astype(np.float32), labels


def cut(progressive: Progressive, said: np.ndarray, labels: np.ndarray, sizes: list[int]) -> list[Window]:
    """Fed in batches of these sizes, in turns."""
    windows, at, turn = [], 0, 0
    while at < len(labels):
        size = sizes[turn % len(sizes)]
        windows += progressive.add(said[at : at + size], labels[at : at + size])
        at, turn = at + size, turn + 1
    return windows


@pytest.mark.parametrize("ties", [None, 3, 50])
def test_a_window_agrees_with_scikit_learn(ties: int | None) -> None:
    """AUC with ties, log loss; normalised entropy and calibration from their definitions."""
    said, labels = stream(5000, ties=ties)
    (window,) = Progressive(5000).add(said, labels)
    assert window.auc == pytest.approx(roc_auc_score(labels, said), abs=1e-12)
    clipped = np.clip(said.astype(np.float64), 1e-7, 1 - 1e-7)
    assert window.log_loss == pytest.approx(log_loss(labels, clipped), abs=1e-12)
    rate = labels.mean(dtype=np.float64)
    constant = log_loss(labels, np.full(5000, rate))
    assert window.normalized_entropy == pytest.approx(window.log_loss / constant, abs=1e-9)
    assert window.calibration == pytest.approx(said.sum(dtype=np.float64) / labels.sum(), abs=1e-9)
    assert (window.rows, window.clicks) == (5000, int(labels.sum()))
    assert window.click_rate == pytest.approx(rate)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.lists(st.booleans(), min_size=12, max_size=12))
def test_auc_is_the_share_of_pairs_in_the_right_order(scores: list[int], clicks: list[bool]) -> None:
    """The written-out double loop over all pairs, ties half; None where there is no pair."""
    labels = clicks[: len(scores)]
    pairs = [
        (a > b) + (a == b) / 2
        for a, clicked in zip(scores, labels, strict=True) if clicked
        for b, other in zip(scores, labels, strict=True) if not other
    ]
    got = figures(0, np.array([score / 4 for score in scores], np.float32), np.array(labels, np.float32)).auc
    assert got == (pytest.approx(sum(pairs) / len(pairs), abs=1e-12) if pairs else None)


@given(sizes=st.lists(st.integers(1, 700), min_size=1, max_size=6), window_rows=st.integers(100, 900))
def test_windows_do_not_depend_on_how_batches_were_cut(sizes: list[int], window_rows: int) -> None:
    """Any cut gives to the last bit the windows and the lifetime that one piece gives."""
    said, labels = stream(1200)
    whole, parts = Progressive(window_rows), Progressive(window_rows)
    expected = whole.add(said, labels)
    assert cut(parts, said, labels, sizes) == expected
    assert [window.rows for window in expected] == [window_rows] * (1200 // window_rows)
    assert [window.first_row for window in expected] == [window_rows * place for place in range(len(expected))]
    assert parts.lifetime() == whole.lifetime()
    assert parts.partial() == whole.partial()
    assert parts.rows == 1200


def test_the_lifetime_agrees_with_scikit_learn() -> None:
    """Over 60,000 rows of continuous scores the binned AUC is off by less than 1e-6, and says by how much at most."""
    for seed in range(3):
        said, labels = stream(60_000, seed)
        progressive = Progressive(7_000)
        cut(progressive, said, labels, [256])
        life = progressive.lifetime()
        assert life is not None
        assert life.auc is not None
        off = abs(life.auc - roc_auc_score(labels, said))
        assert off < 1e-6
        assert off <= life.auc_error < 1e-4
        assert life.log_loss == pytest.approx(log_loss(labels, said.astype(np.float64)), abs=1e-9)
        assert (life.first_row, life.last_row, life.rows) == (0, 59_999, 60_000)


@given(st.integers(0, 50), st.integers(2, 40))
def test_the_bound_on_the_binned_auc_holds(seed: int, bins: int) -> None:
    """However coarse the bins, the exact AUC is within the bound."""
    rng = np.random.default_rng(seed)
    scores, labels = rng.random(60), (rng.random(60) < 0.4).astype(np.float32)
    labels[:2] = 0, 1
    counts = np.bincount((scores * bins).astype(int) + bins * (labels > 0.5), minlength=2 * bins).reshape(2, bins)
    auc, error = auc_of_bins(counts)
    assert auc is not None
    assert abs(auc - roc_auc_score(labels, scores)) <= error + 1e-12


def test_one_class_has_no_auc() -> None:
    """It does not exist, which is said, instead of 0.5; so for normalised entropy, and calibration without clicks."""
    said = np.array([0.1, 0.9], np.float32)
    none, all_of_them = figures(0, said, np.zeros(2, np.float32)), figures(0, said, np.ones(2, np.float32))
    assert (none.auc, none.normalized_entropy, none.calibration, none.click_rate) == (None, None, None, 0)
    assert (all_of_them.auc, all_of_them.normalized_entropy) == (None, None)
    assert all_of_them.calibration == pytest.approx(0.5)
    assert auc_of_bins(np.zeros((2, 4), np.int64)) == (None, 0.0)
    progressive = Progressive(100)
    assert progressive.lifetime() is None
    assert progressive.partial() is None
    progressive.add(said, np.zeros(2, np.float32))
    life = progressive.lifetime()
    assert life is not None
    assert life.auc is None


def test_certainty_costs_what_the_clip_says() -> None:
    """Probabilities of 0 and 1 that are wrong cost ln 1e7 each, and fall into a bin."""
    said, labels = np.array([0.0, 1.0], np.float32), np.array([1.0, 0.0], np.float32)
    progressive = Progressive(2)
    (window,) = progressive.add(said, labels)
    assert window.log_loss == pytest.approx(np.log(1e7), rel=1e-9)
    life = progressive.lifetime()
    assert life is not None
    assert life.auc == 0.0
    assert progressive.state()["bins"].max() < BINS


@pytest.mark.parametrize("stop", [0, 1, 999, 1000, 1001, 3456])
def test_restored_is_never_interrupted(stop: int) -> None:
    """The state taken anywhere and restored elsewhere gives the same windows and the same lifetime, to the bit."""
    said, labels = stream(5000)
    undisturbed, first = Progressive(1000), Progressive(1000)
    expected = undisturbed.add(said, labels)
    windows = first.add(said[:stop], labels[:stop])
    second = Progressive(1000)
    second.restore(first.state())
    assert second.rows == stop
    assert windows + second.add(said[stop:], labels[stop:]) == expected
    assert second.lifetime() == undisturbed.lifetime()


def test_shapes_must_fit() -> None:
    """A label for each score."""
    with pytest.raises(ShapeError):
        Progressive(10).add(np.zeros(3, np.float32), np.zeros(2, np.float32))
