"""Figures with intervals: against scikit-learn on rows written out, and against a truth that is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from ops.offline.judging import NO_GROUP, Ranking, draws, group_auc, interval, intervals


def rows(n: int, seed: int, groups: int = 7):
    """Scores with ties, labels that hang on them, groups of unequal size, some rows without."""
    random = np.random.default_rng(seed)
    scores = (np.round(random.random(n) * 50) / 50).astype(np.float32)
    labels = (random.random(n) < 0.1 + 0.5 * scores).astype(np.float32)
    group = np.minimum(random.geometric(0.4, n), groups).astype(np.int64) - 2   # NO_GROUP = -1 is one of them
    return scores, labels, group


def test_every_draw_gives_the_figures_of_its_rows_written_out():
    """With each row repeated as often as it was drawn, scikit-learn says the same."""
    scores, labels, group = rows(400, 1)
    drawn = draws(scores, labels, group, resamples=5, seed=3)
    taken = np.random.default_rng(3).integers(0, 400, (5, 400))
    for at in range(5):
        y, p, g = labels[taken[at]], scores[taken[at]].astype("f8"), group[taken[at]]
        loss = log_loss(y, np.clip(p, 1e-7, 1 - 1e-7))
        rate = y.mean(dtype="f8")
        assert drawn["auc"][at] == pytest.approx(roc_auc_score(y, p), abs=1e-12)
        assert drawn["log_loss"][at] == pytest.approx(loss, abs=1e-12)
        assert drawn["normalized_entropy"][at] == pytest.approx(loss / log_loss(y, np.full(400, rate)), abs=1e-12)
        assert drawn["calibration"][at] == pytest.approx(p.sum() / y.sum(), abs=1e-12)
        assert drawn["group_auc"][at] == pytest.approx(by_hand(y, p, g)[0], abs=1e-12)


def by_hand(y, p, g) -> tuple[float, int, int]:
    """(mean AUC weighted by rows, groups that count, groups of one class)."""
    found = [(roc_auc_score(y[g == one], p[g == one]), (g == one).sum())
             for one in set(g.tolist()) - {NO_GROUP} if 0 < y[g == one].sum() < (g == one).sum()]
    others = len(set(g.tolist()) - {NO_GROUP}) - len(found)
    return float(np.average([auc for auc, _ in found], weights=[n for _, n in found])), len(found), others


def test_auc_within_groups_is_the_mean_over_groups_with_both_classes():
    """Weighted by rows; what is left out is counted."""
    scores, labels, group = rows(300, 2)
    group[:4], labels[:4] = 90, 1       # a group of clicks alone
    group[4:6], labels[4:6] = 91, 0     # and one without any
    found = group_auc(scores, labels, group)
    mean, counted, left_out = by_hand(labels, scores.astype("f8"), group)
    assert found.auc == pytest.approx(mean, abs=1e-12)
    assert (found.groups, found.left_out, found.rows_without) == (counted, left_out, int((group == NO_GROUP).sum()))
    assert found.rows == 300 - 6 - found.rows_without
    nobody = group_auc(scores, labels, np.full(300, NO_GROUP))
    assert (nobody.auc, nobody.groups, nobody.rows) == (None, 0, 0)


def test_a_group_boundary_between_equal_scores_is_no_tie():
    """Two groups of one score each: each group's AUC is a half, whatever stands beside it in the order."""
    scores = np.full(4, 0.5, np.float32)
    ranking = Ranking(scores, np.array([1, 0, 1, 0], np.float32), np.array([0, 0, 1, 1]))
    assert ranking.mean(np.ones((1, 4))).tolist() == [0.5]


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """Normal scores one standard deviation apart have an AUC of Φ(1/√2); 200 samples of 400 rows, intervals of 95 %."""
    truth = 0.5 * (1 + math.erf(0.5))
    random = np.random.default_rng(5)
    inside = 0
    for _ in range(200):
        labels = (random.random(400) < 0.4).astype(np.float32)
        scores = (1 / (1 + np.exp(-(random.standard_normal(400) + labels)))).astype(np.float32)
        low, high = intervals(draws(scores, labels, resamples=200))["auc"] or (0, 0)
        inside += low <= truth <= high
    assert 0.90 <= inside / 200 <= 0.99   # three standard errors of 200 trials round .95


def test_two_models_on_the_same_rows_are_compared_on_the_same_draws():
    """The interval of the difference between near-equal models is far narrower than either's own."""
    random = np.random.default_rng(6)
    labels = (random.random(3000) < 0.3).astype(np.float32)
    logit = random.standard_normal(3000) + labels
    first, second = ((1 / (1 + np.exp(-(logit + 0.1 * random.standard_normal(3000))))).astype(np.float32) for _ in range(2))
    a, b = draws(first, labels)["auc"], draws(second, labels)["auc"]
    own, apart = interval(a), interval(a - b)
    assert own
    assert apart
    assert (apart[1] - apart[0]) < (own[1] - own[0]) / 4


def test_draws_hang_on_the_seed_alone_not_on_the_chunk(monkeypatch):
    """Cut into single draws or taken at once: the same."""
    scores, labels, group = rows(200, 7)
    whole = draws(scores, labels, group, resamples=9)
    monkeypatch.setattr("ops.offline.judging.CHUNK_BYTES", 1)
    for name, values in draws(scores, labels, group, resamples=9).items():
        assert values.tolist() == pytest.approx(whole[name].tolist(), abs=1e-12)  # sums are in another order
    assert draws(scores, labels, resamples=9, seed=2)["auc"].tolist() != whole["auc"].tolist()


def test_one_class_has_no_auc_and_no_interval():
    """Neither 0 nor .5, and no warning on the way."""
    scores, nothing = np.full(50, 0.1, np.float32), np.zeros(50, np.float32)
    found = intervals(draws(scores, nothing, resamples=20))
    assert (found["auc"], found["normalized_entropy"], found["calibration"]) == (None, None, None)
    assert found["log_loss"] is not None
