"""The river estimator: river's own checks, the code of docs/river.md, and what river does not check."""

from __future__ import annotations

import copy
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from river import checks, datasets, evaluate, linear_model, metrics, preprocessing

from ops.river_estimator import FreshetClassifier
from schemas.errors import BadEvent, ConfigError

SMALL: dict[str, Any] = {"bits": 12, "hidden": (8,), "slots": 16}
DOCS = Path(__file__).parents[2] / "docs" / "river.md"


@pytest.mark.parametrize("batch_rows", [1, 64])
def test_river_finds_nothing_to_complain_about(batch_rows):
    """All of river's checks for an estimator; with one step per row, none is skipped."""
    model = FreshetClassifier(batch_rows=batch_rows, **SMALL)
    names = {check.__name__ for check in checks.yield_checks(model)}
    assert {"check_pickling", "check_shuffle_features_no_impact", "check_learn_many_matches_learn_one"} <= names
    assert batch_rows > 1 or not model._unit_test_skips()
    checks.check_estimator(model)


def test_the_code_in_the_docs_runs(capsys):
    """As it stands there, one block after the other; and it has learnt something."""
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, names)
    assert float(capsys.readouterr().out.split("ROCAUC: ")[1].split("%")[0]) > 90


def test_it_learns_interactions_that_a_linear_model_cannot():
    """Clicks that depend on two categories being of one kind: river's logistic regression is at chance."""
    rng = np.random.default_rng(3)
    pairs = rng.integers(0, 6, (2500, 2)).tolist()
    stream: list[tuple[dict[Any, Any], Any]] = [({"a": f"a{a}", "b": f"b{b}"}, bool((a + b) % 2)) for a, b in pairs]
    ours = evaluate.progressive_val_score(stream, FreshetClassifier(bits=12, row_rate=0.05), metrics.ROCAUC()).get()
    linear = preprocessing.OneHotEncoder() | linear_model.LogisticRegression()
    assert ours > 0.8 > 0.6 > evaluate.progressive_val_score(stream, linear, metrics.ROCAUC()).get()


def test_a_pickled_model_goes_on_as_the_original():
    """Halfway pickled, copied, and not: the same scores to the end, to the bit."""
    rows = list(datasets.Phishing().take(300))
    model = FreshetClassifier(guard=True, **SMALL)
    for x, y in rows[:150]:
        model.learn_one(x, y)
    others = [pickle.loads(pickle.dumps(model)), copy.deepcopy(model), model.clone(include_attributes=True)]
    for x, y in rows[150:]:
        said = model.predict_proba_one(x)
        assert all(other.predict_proba_one(x) == said for other in others)
        for one in (model, *others):
            one.learn_one(x, y)


def test_missing_is_missing_however_it_is_written():
    """None, "", NaN, a name that is not there, and a frame's empty cell score alike; 7 and 7.0 are one number."""
    model = FreshetClassifier(**SMALL)
    rows: list[Any] = [({"a": "u", "b": 7}, True), ({"a": "v", "b": 1}, False), ({"a": "w"}, False)]
    for x, y in rows:
        model.learn_one(x, y)
    ways: list[Any] = [{"b": 7}, {"a": None, "b": 7.0}, {"a": "", "b": np.int64(7)}]
    ways += [{"a": float("nan"), "b": np.float32(7)}]
    assert len({model.predict_proba_one(x)[True] for x in ways}) == 1
    frame = pd.DataFrame({"a": [None, "u"], "b": [7.0, np.nan]}, index=["first", "second"])
    many = model.predict_proba_many(frame)
    assert list(many.index) == ["first", "second"]
    assert many[True].tolist() == pytest.approx([model.predict_proba_one(x)[True] for x in [ways[0], {"a": "u"}]])


def test_more_names_than_slots_share_them_and_keep_them():
    """A name keeps its slot for life; memory does not grow with names."""
    model = FreshetClassifier(bits=10, slots=3, hidden=(4,))
    for number in range(200):
        model.learn_one({f"word{number}": 1, "always": "x"}, number % 2)
    assert len(model._engine.places) == 3
    assert model.predict_proba_one({"never": 1, "seen": 2})[True] < 1
    before = dict(model._engine.places)
    model.learn_one({"another": 1}, y=True)
    assert model._engine.places == before


def test_an_example_with_a_weight_of_two_is_two():
    """w multiplies the loss; a weight of 0 moves no weight of the rows."""
    twice, once = (FreshetClassifier(row_optimiser="sgd", **SMALL) for _ in range(2))
    twice.learn_one({"a": "u"}, True, w=2.0)
    once.learn_one({"a": "u"}, True)
    assert twice.predict_proba_one({"a": "u"})[True] > once.predict_proba_one({"a": "u"})[True]


def test_what_cannot_be_learnt_is_refused_and_changes_nothing():
    """Labels of three kinds, values that are none, settings that do not exist: an error that names them."""
    model = FreshetClassifier(**SMALL)
    model.learn_one({"a": "u"}, True)
    before = pickle.dumps(model)
    wrongs: list[Any] = [
        ({"a": "u"}, "yes", "yes"), ({"a": "u"}, 2, "2"), ({"when": object()}, True, "when"), ({"n": float("inf")}, True, "n"),
    ]
    for x, y, named in wrongs:
        with pytest.raises(BadEvent, match=named):
            model.learn_one(x, y)
    with pytest.raises(BadEvent, match="weight"):
        model.learn_one({"a": "u"}, True, w=float("nan"))
    assert pickle.dumps(model) == before
    with pytest.raises(ConfigError, match="adagrad"):
        FreshetClassifier(row_optimiser="adagrat")
