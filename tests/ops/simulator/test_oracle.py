from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from ops.simulator.oracle import Ledger, auc


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=60))
def test_auc_is_that_of_scikit_learn_ties_included(rows):
    """Scores from six values, so most are tied; where one class is missing it is NaN instead of an error."""
    scores, labels = [score / 5 for score, _ in rows], [label for _, label in rows]
    if len(set(labels)) < 2:
        assert math.isnan(auc(scores, labels))
    else:
        assert auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_auc_is_that_of_scikit_learn_on_many_rows():
    """Continuous scores, rare positives."""
    rng = np.random.default_rng(5)
    scores = rng.normal(size=20_000)
    labels = rng.random(20_000) < 1 / (1 + np.exp(3 - scores))
    assert auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_thirds_are_cut_by_time_and_leave_out_what_nobody_scored():
    """Nine slates a second apart: three to each third, the unscored one in none of the AUCs."""
    ledger, rng = Ledger(), np.random.default_rng(1)
    slates = []
    for second in range(9):
        served = np.full(40, np.nan) if second == 4 else rng.random(40)
        slates.append((served, rng.random(40), rng.random(40), rng.random(40) < 0.3))
        ledger.add(second * 1_000_000, *slates[-1])
    thirds = ledger.auc_thirds(0, 8_000_000)
    assert thirds.rows == (120, 80, 120)
    for third, places in enumerate([(0, 1, 2), (3, 5), (6, 7, 8)]):
        served, oracle, with_position, clicked = (
            np.concatenate([slates[place][column] for place in places]) for column in range(4)
        )
        assert thirds.clicks[third] == clicked.sum()
        assert thirds.served[third] == pytest.approx(roc_auc_score(clicked, served))
        assert thirds.oracle[third] == pytest.approx(roc_auc_score(clicked, oracle))
        assert thirds.oracle_with_position[third] == pytest.approx(roc_auc_score(clicked, with_position))
    assert ledger.auc_thirds(0, 8_000_000, served_only=False).rows == (120, 120, 120)


def test_a_ledger_keeps_the_newest_rows_and_takes_thirds_of_their_time():
    """A store that runs for ever keeps a bounded ledger."""
    ledger = Ledger(most_rows=100)
    for second in range(50):
        half = np.full(10, 0.5)
        ledger.add(second * 1_000_000, half, half, half, np.arange(10) < 3)
    time_us = ledger.columns()[0]
    assert len(time_us) == 100
    assert time_us[0] == 40_000_000
    assert ledger.auc_thirds(0, 49_000_000).rows == (40, 30, 30)


def test_an_empty_ledger_has_no_auc():
    """NaN, not an error: a store may be stopped before its first random slate."""
    assert all(math.isnan(value) for value in Ledger().auc_thirds(0, 1).served)
