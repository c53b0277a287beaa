"""Figures of windows by slice, within groups and over longer times, against scikit-learn, pandas and written-out loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score

from schemas import fields
from schemas.config import MetricsConfig
from schemas.errors import ConfigError, SchemaError
from stream_trainer.watching import slices
from stream_trainer.watching.marks import NOTHING, Marker, slice_id
from stream_trainer.watching.progressive import Progressive
from stream_trainer.watching.watch import OTHERS, Watch
from stream_trainer.watching.windows import Rows, Tally, Windows

SCHEMA = fields.parse(
    {"name": "watched", "field": [
        {"name": "user", "number": 1, "kind": "categorical", "side": "context"},
        {"name": "country", "number": 2, "kind": "categorical", "side": "context", "slice": True, "values": ["NO", "SE"]},
        {"name": "tags", "number": 3, "kind": "set", "side": "item"},
        {"name": "age", "number": 4, "kind": "numeric", "side": "item", "slice": True},
        {"name": "position", "number": 5, "kind": "categorical", "side": "item", "slice": True},
    ]},
    "test",
)
COUNTRIES = ["NO", "SE", "DK"]   # the last is not named in the schema


class Made:
    """n rows: scores of both kinds, some of them tied, clicks, weights, and what they are watched by."""

    def __init__(self, n: int, seed: int = 1, weighted: bool = False, told: float = 1.0) -> None:
        random = np.random.default_rng(seed)
        logit = random.normal(-1.0, 1.0, n)
        self.labels = (random.random(n) < 1 / (1 + np.exp(-logit))).astype(np.float32)
        self.said = np.round(1 / (1 + np.exp(-logit + random.normal(0, 0.6, n))), 3).astype(np.float32)
        self.served = np.round(1 / (1 + np.exp(-logit + random.normal(0, 0.9, n))), 2).astype(np.float32)
        self.served[random.random(n) >= told] = np.nan
        self.weights = random.integers(1, 5, n).astype(np.float32) if weighted else np.ones(n, np.float32)
        self.country = random.choice(COUNTRIES, n, p=[0.6, 0.3, 0.1])
        self.position = random.integers(1, 6, n)
        self.slate = np.arange(n) // 5
        country, position = SCHEMA.fields[1], SCHEMA.fields[4]
        self.keys = np.stack([
            self.slate.astype(np.uint64) + np.uint64(1),
            np.array([slice_id(country, one) for one in self.country], np.uint64),
            np.full(n, 7, np.uint64),
            np.array([slice_id(position, str(one)) for one in self.position], np.uint64),
        ], axis=1)

    @property
    def rows(self) -> Rows:
        return Rows(self.said, self.labels, self.weights, self.served, self.keys)

    def watched(self, n: int, config: MetricsConfig | None = None) -> tuple[Progressive, Watch]:
        config = config or MetricsConfig()
        watch = Watch(Marker(SCHEMA, config), config)
        return Progressive(n, Windows(watch)), watch

    def table(self, config: MetricsConfig | None = None) -> pd.DataFrame:
        """What a window of all rows leads to."""
        progressive, watch = self.watched(len(self.labels), config)
        progressive.add(self.said, self.labels, self.weights, self.served, self.keys)
        (table,) = watch.take()
        return pd.DataFrame(table)


def expected(said: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """scikit-learn's, and the definitions."""
    labels, weights = labels.astype(np.float64), weights.astype(np.float64)
    p = np.clip(said.astype(np.float64), 1e-7, 1 - 1e-7)
    rate = np.average(labels, weights=weights)
    loss = log_loss(labels, p, sample_weight=weights, labels=[0, 1])
    base = log_loss(labels, np.full(len(labels), rate), sample_weight=weights, labels=[0, 1])
    return {
        "auc": roc_auc_score(labels, said, sample_weight=weights), "log_loss": loss, "normalized_entropy": loss / base,
        "calibration": (weights * said.astype(np.float64)).sum() / (weights * labels).sum(), "click_rate": rate,
        "rows": len(labels), "clicks": labels.sum(), "weight": weights.sum(), "click_weight": (weights * labels).sum(),
    }


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("told", [1.0, 0.7])
def test_every_slice_agrees_with_scikit_learn(weighted: bool, told: float) -> None:
    """For the model's score and, over the rows of which it was told, the served one: to 1e-9, weights and ties heeded."""
    made = Made(4000, weighted=weighted, told=told)
    table = made.table().set_index(["field", "value"])
    known = np.isfinite(made.served)
    masks = {("", ""): np.ones(4000, bool), ("country", "NO"): made.country == "NO", ("country", "SE"): made.country == "SE"}
    masks |= {("position", str(place)): made.position == place for place in range(1, 6)}
    for named, rows in masks.items():
        for score, said, mine in (("", made.said, rows), ("served_", made.served, rows & known)):
            for figure, value in expected(said[mine], made.labels[mine], made.weights[mine]).items():
                assert table.loc[named, score + figure] == pytest.approx(value, abs=1e-9), (named, score, figure)
    (unnamed,) = {value for field, value in table.index if field == "country"} - {"NO", "SE"}
    assert unnamed == f"#{slice_id(SCHEMA.fields[1], 'DK'):016x}"


@pytest.mark.parametrize("weighted", [False, True])
def test_the_calibration_slope_of_each_slice_is_that_of_a_logistic_regression(weighted: bool) -> None:
    """1 + score / information, to what one Newton step is off, is scikit-learn's coefficient of the clicks on the log-odds that
    were said; and both sums of a field's values are those of the whole."""
    made = Made(40_000, weighted=weighted)
    logit = 0.75 * np.log(made.said / (1 - made.said))     # the noise of what was said makes it overdo by a third
    made.said = (1 / (1 + np.exp(-logit))).astype(np.float32)
    table = made.table().set_index(["field", "value"])
    masks = {("", ""): made.position > 0, ("country", "NO"): made.country == "NO", ("position", "2"): made.position == 2}
    for named, rows in masks.items():
        fitted = LogisticRegression(C=np.inf).fit(logit[rows].reshape(-1, 1), made.labels[rows], made.weights[rows])
        slope = 1 + table.loc[named, "slope_score"] / table.loc[named, "slope_information"]
        assert slope == pytest.approx(fitted.coef_[0, 0], abs=0.02), named
    for column in ("slope_score", "slope_information"):
        for field in ("country", "position"):
            assert table.loc[field, column].sum() == pytest.approx(table.loc[("", ""), column], rel=1e-9)


def test_auc_within_groups_is_the_weighted_mean_of_scikit_learns() -> None:
    """Slates of one class are left out; each other counts by the weight of its rows."""
    made = Made(3000, weighted=True)
    sums, weight, count = 0.0, 0.0, 0
    for slate in np.unique(made.slate):
        rows = made.slate == slate
        if len(set(made.labels[rows])) == 2:
            auc, own = roc_auc_score(made.labels[rows], made.said[rows], sample_weight=made.weights[rows]), made.weights[rows]
            sums, weight, count = sums + auc * float(own.sum()), weight + float(own.sum()), count + 1
    whole = made.table().iloc[0]
    assert whole["group_auc"] == pytest.approx(sums / weight, abs=1e-9)
    assert whole["groups"] == count
    nobody = slices.group_auc(slices.Scored.of(*made.rows[:3]), *slices.grouped(np.full(3000, NOTHING, np.uint64)))
    assert nobody == (None, 0)


def test_deciles_are_those_of_pandas_where_no_scores_are_equal() -> None:
    """Σ w·p over Σ w of clicks in each tenth of the rows."""
    made = Made(5000)
    made.said = np.random.default_rng(2).permutation(np.linspace(0.01, 0.9, 5000)).astype(np.float32)
    whole = made.table().iloc[0]
    tenth = pd.qcut(made.said.astype(np.float64), 10, labels=False)
    for place in range(10):
        rows = tenth == place
        assert whole["decile_weight"][place] == 500 == rows.sum()
        assert whole["decile_probability_sum"][place] == pytest.approx(made.said[rows].sum(dtype=np.float64), abs=1e-9)
        assert whole["decile_click_weight"][place] == made.labels[rows].sum()


def test_equal_scores_are_not_torn_apart() -> None:
    """One score for all is one tenth, that of the middle."""
    made = Made(100)
    made.said[:] = 0.25
    whole = made.table().iloc[0]
    assert whole["decile_weight"] == [0, 0, 0, 0, 0, 100, 0, 0, 0, 0]
    assert whole["auc"] == 0.5


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.integers(0, 3)), min_size=1, max_size=30))
def test_deciles_are_the_written_out_loop_where_scores_are_equal(rows: list[tuple[int, bool, int]]) -> None:
    """Rows of one score go together to the tenth that the middle of their weight lies in, whatever they weigh."""
    scores, clicked, weights = (np.array(column, np.float32) for column in zip(*rows, strict=True))
    total = sum(weight for _, _, weight in rows) or 1
    wanted, below = np.zeros((3, 10)), 0
    for score in sorted({score for score, _, _ in rows}):
        mine = [(click, weight) for other, click, weight in rows if other == score]
        weight = sum(weight for _, weight in mine)
        tenth = min(int((below + weight / 2) * 10 / total), 9)
        wanted[:, tenth] += weight, weight * score / 8, sum(weight for click, weight in mine if click)
        below += weight
    np.testing.assert_allclose(slices.deciles(slices.Scored.of(scores / np.float32(8), clicked, weights)), wanted, atol=1e-12)


@given(st.lists(st.floats(-0.0, 1, width=32), max_size=40))
def test_scores_in_order_are_those_of_numpy(scores: list[float]) -> None:
    """Of all floats from 0 to 1, −0 and the smallest included, in the order of rows where they are equal."""
    said = np.array(scores * 2, np.float32)
    np.testing.assert_array_equal(slices.by_score(said), np.argsort(said, kind="stable"))


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.integers(0, 2), st.integers(0, 3)), max_size=14))
def test_auc_by_value_is_the_written_out_double_loop(rows: list[tuple[int, bool, int, int]]) -> None:
    """Any ties, classes, weights (of zero too) and values, none at all included."""
    scores, clicked, codes, weights = (np.array(column) for column in (zip(*rows, strict=True) if rows else ([], [], [], [])))
    scored = slices.Scored.of(
        (scores / 4).astype(np.float32), clicked.astype(np.float32), weights.astype(np.float32)
    )
    got = slices.auc_by_value(scored, codes.astype(np.intp), 4)
    for value in range(4):
        mine = [row for row in rows if row[2] == value]
        pairs = [
            (wa * wb, (a > b) + (a == b) / 2) for a, click, _, wa in mine if click for b, other, _, wb in mine if not other
        ]
        total = sum(weight for weight, _ in pairs)
        if total:
            assert got[value] == pytest.approx(sum(weight * win for weight, win in pairs) / total, abs=1e-12)
        else:
            assert math.isnan(got[value])


def test_the_parts_make_the_whole_in_any_order() -> None:
    """Rows of several processes put together in any order, and tallies added up, give the figures of one."""
    made = Made(6000, weighted=True, told=0.8)
    whole = made.table()
    shuffled = Made(6000, weighted=True, told=0.8)
    order = np.random.default_rng(5).permutation(6000)
    for name in ("said", "labels", "weights", "served", "keys"):
        setattr(shuffled, name, getattr(made, name)[order])
    pd.testing.assert_frame_equal(shuffled.table(), whole, rtol=1e-12, check_exact=False)
    parts, one = [Tally(1 << 12) for _ in range(3)], Tally(1 << 12)
    one.add(slices.Scored.of(*made.rows[:3]))
    for part, start in zip(parts, range(0, 6000, 2000), strict=True):
        part.add(slices.Scored.of(*made.rows.take(slice(start, start + 2000))[:3]))
    together = (parts[0] + parts[1] + parts[2]).figures(0, 6000)
    assert together.auc == one.figures(0, 6000).auc
    assert together.log_loss == pytest.approx(one.figures(0, 6000).log_loss, abs=1e-12)


def test_decayed_and_lifetime_figures_are_scikit_learns_with_weights() -> None:
    """A window that ended n examples ago weighs 2^(−n / half-life); the AUC is within its bound, the rest exact."""
    made, config = Made(6000, told=0.9), MetricsConfig(half_life_rows=1500)
    progressive, watch = made.watched(1000, config)
    progressive.add(made.said, made.labels, made.weights, made.served, made.keys)
    last = watch.take()[-1]
    age = (5 - np.arange(6000) // 1000) * 1000
    known = np.isfinite(made.served)
    for name, said, rows, weights in (
        ("decayed", made.said, np.ones(6000, bool), 2.0 ** (-age / 1500)),
        ("served_decayed", made.served, known, 2.0 ** (-age / 1500)),
        ("served_lifetime", made.served, known, np.ones(6000)),
    ):
        wanted = expected(said[rows], made.labels[rows], weights[rows])
        error = last[f"{name}_auc_error"][0]
        assert abs(last[f"{name}_auc"][0] - wanted["auc"]) <= error < 0.02   # these scores have three decimals: ties
        for figure in ("log_loss", "normalized_entropy", "calibration"):
            assert last[f"{name}_{figure}"][0] == pytest.approx(wanted[figure], abs=1e-9)


def test_one_class_has_no_auc_and_no_entropy_to_compare_with() -> None:
    """It is said that they do not exist, for the window and for each slice; so where nobody told what was served."""
    made = Made(500, told=0.0)
    made.labels[:] = 0
    table = made.table()
    for column in ("auc", "normalized_entropy", "calibration", "served_auc", "served_log_loss", "served_calibration"):
        assert table[column].isna().all(), column
    assert table["log_loss"].notna().all()
    assert table.loc[0, "group_auc"] is None
    assert table.loc[0, "served_decayed_auc"] is None
    assert (table["served_rows"] == 0).all()


def test_values_beyond_the_most_frequent_are_counted_together() -> None:
    """They are one line, and no row is lost."""
    made = Made(2000)
    table = made.table(MetricsConfig(slice_values=2))
    position = table[table["field"] == "position"]
    counts = pd.Series(made.position).value_counts()
    assert set(position["value"]) == {str(counts.index[0]), str(counts.index[1]), OTHERS}
    assert position["rows"].sum() == 2000
    others = ~np.isin(made.position, counts.index[:2])
    auc = roc_auc_score(made.labels[others], made.said[others])
    assert position.set_index("value").loc[OTHERS, "auc"] == pytest.approx(auc, abs=1e-9)


@given(st.lists(st.integers(0, 2**64 - 1), max_size=30), st.booleans())
def test_distinct_keys_are_those_of_numpy(keys: list[int], close: bool) -> None:
    """Also where hashes agree in their upper bits."""
    given_keys = np.array([key & 0xFFFF if close else key for key in keys] * 2, np.uint64)
    wanted, inverse = np.unique(given_keys, return_inverse=True)
    for values, codes in (slices.distinct(given_keys), slices.grouped(given_keys)):
        np.testing.assert_array_equal(values, wanted)
        np.testing.assert_array_equal(codes, inverse)


def test_keys_are_the_ids_that_the_encoder_made() -> None:
    """With sets between them: each slice's id, its name where it can be told; the group as the settings want it."""
    slate = fields.Slate(["a", "b"], {"user": "u1", "country": "SE"}, {"tags": [["x", "y"], []], "age": [3.0, None]}, [1, 2])
    bags, _ = fields.Encoder(SCHEMA, training=True).encode(slate)
    source, impression = np.array([3, 3]), np.array([41, 41])
    marker = Marker(SCHEMA, MetricsConfig())
    keys = marker.keys(bags, source, impression)
    assert keys[0, 0] == keys[1, 0] != marker.keys(bags, source + 1, impression)[0, 0]
    named = [[marker.name(place, int(row[1 + place])) for place in range(3)] for row in keys]
    assert named == [["SE", "2.83 to 4", "1"], ["SE", "(missing)", "2"]]
    by_user = Marker(SCHEMA, MetricsConfig(group="user"))
    users = by_user.keys(bags, source, impression)
    assert users[:, 0].tolist() == [slice_id(SCHEMA.fields[0], "u1")] * 2
    np.testing.assert_array_equal(users[:, 1:], keys[:, 1:])
    without, _ = fields.Encoder(SCHEMA, training=True).encode(slate._replace(context={}))
    assert by_user.keys(without, source, impression)[0, 0] == NOTHING


@pytest.mark.parametrize(("wrong", "told"), [
    ({"kind": "set", "slice": True}, "one category an example"),
    ({"kind": "numeric", "transform": "log", "slice": True}, "one category an example"),
    ({"kind": "categorical", "values": ["NO"]}, "slice = true"),
    ({"kind": "categorical", "slice": True, "values": "NO"}, "a list of names"),
])
def test_what_cannot_be_a_slice_is_refused(wrong: dict[str, Any], told: str) -> None:
    """Sets and real numbers have no one value; names are those of a slice."""
    with pytest.raises(SchemaError, match=told):
        fields.parse({"field": [{"name": "f", "number": 1, "side": "item", **wrong}]}, "test")


def test_a_group_that_does_not_exist_is_refused() -> None:
    """With the nearest name."""
    with pytest.raises(ConfigError, match=r"metrics.group=usr.*nearest: user"):
        Marker(SCHEMA, MetricsConfig(group="usr"))


@pytest.mark.parametrize("stop", [0, 999, 1000, 2500])
def test_restored_is_never_interrupted(stop: int) -> None:
    """Tables after a state was taken and restored are those of an undisturbed run, to the bit."""
    made = Made(4000, told=0.9)

    def run(progressive: Progressive, watch: Watch, start: int, end: int) -> list[dict[str, Any]]:
        rows = made.rows.take(slice(start, end))
        progressive.add(*rows)
        return watch.take()

    undisturbed = run(*made.watched(1000), 0, 4000)
    first, second = made.watched(1000), made.watched(1000)
    tables = run(*first, 0, stop)
    second[0].restore(first[0].state())
    tables += run(*second, stop, 4000)
    for got, wanted in zip(tables, undisturbed, strict=True):
        pd.testing.assert_frame_equal(pd.DataFrame(got), pd.DataFrame(wanted), check_exact=True)


def test_a_checkpoint_of_other_slices_loses_its_marks_and_nothing_else() -> None:
    """What waited then is in the next window as not noted."""
    made = Made(1000)
    old = Progressive(1000)
    old.add(made.said[:400], made.labels[:400])
    progressive, watch = made.watched(1000)
    progressive.restore(old.state())
    progressive.add(*made.rows.take(slice(400, 1000)))
    table = pd.DataFrame(watch.take()[0]).set_index(["field", "value"])
    assert table.loc[("country", "(not noted)"), "rows"] == 400
    assert table.loc[("", ""), "auc"] == pytest.approx(roc_auc_score(made.labels, made.said), abs=1e-9)
