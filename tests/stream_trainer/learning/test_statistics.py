"""Row statistics against a dictionary of counts, and in the hands of trainer and scorer."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from schemas.bags import Bags
from schemas.config import LearnConfig, ModelConfig, SnapshotConfig
from schemas.crosses import cross_ids
from schemas.errors import SnapshotError
from schemas.fields import Encoder, FieldSchema, Slate, parse
from schemas.models import build
from schemas.models.statistics import HALVED_AT, add_counts
from schemas.snapshot import chain
from scorer.answers.engine import Blueprint, load
from stream_trainer.learning.learner import Diverged, Learner
from stream_trainer.publishing.publisher import Publisher
from stream_trainer.store import SnapshotStore
from stream_trainer.watching.progressive import Progressive

FIELDS = [
    {"name": "user", "number": 1, "kind": "categorical", "side": "context"},
    {"name": "app", "number": 2, "kind": "categorical", "side": "item"},
    {"name": "tags", "number": 3, "kind": "set", "side": "item", "pool": "sum"},
    {"name": "price", "number": 4, "kind": "numeric", "side": "item", "transform": "log_bins_and_log"},
]
PLAIN = parse({"field": FIELDS}, "test")
CROSSED = parse({"field": FIELDS, "cross": [{"number": 9, "fields": ["user", "app"]}]}, "test")
MODEL = ModelConfig(bits=16, factors=2, hidden=(6,), statistics=True)
LEARN = LearnConfig(device="cpu", row_rate=0.1, dense_rate=0.01)
KINDS = [(MODEL, PLAIN), (MODEL, CROSSED), (replace(MODEL, architecture="ffm_stats"), CROSSED)]


def batch(number: int, rows: int = 40) -> tuple[Bags, np.ndarray]:
    """Few values, so that each comes often; sets in which nothing comes twice."""
    rng = np.random.default_rng(number)
    columns: dict[str, list[Any]] = {
        "app": [f"a{one}" for one in rng.integers(0, 9, rows)],
        "tags": [[f"t{one}" for one in rng.choice(9, rng.integers(0, 4), replace=False)] for _ in range(rows)],
        "price": [None if one < 10 else float(one) for one in rng.integers(0, 50, rows)],
    }
    slate = Slate([str(row) for row in range(rows)], {"user": f"u{number % 5}"}, columns)
    return Encoder(PLAIN, training=True).encode(slate)[0], (rng.random(rows) < 0.3).astype(np.float32)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("model", "schema"), KINDS)
def test_rows_count_what_a_dictionary_counts(model: ModelConfig, schema: FieldSchema, weighted: bool) -> None:
    """Each id of each example once, by the example's weight, crosses too; rows that the batch does not have stay; the
    totals are those of the examples."""
    learner = Learner(model, LEARN, schema)
    counts: dict[int, list[float]] = defaultdict(lambda: [0.0, 0.0])
    totals = [0.0, 0.0]
    for number in range(20):
        bags, labels = batch(number)
        weights = np.random.default_rng(number).integers(1, 4, 40).astype(np.float32) if weighted else None
        learner.learn(bags, labels, weights)
        at, lengths = 0, bags.all_lengths().reshape(40, 4)
        for row in range(40):
            weight = 1.0 if weights is None else float(weights[row])
            ids = bags.ids[at : at + int(lengths[row].sum())]
            at += len(ids)
            found = list(map(int, ids))
            if schema is CROSSED:
                found.append(int(cross_ids(9, ids[:1], ids[1:2])[0]))
            for one in found:
                counts[one % 2**16][0] += weight
                counts[one % 2**16][1] += weight * float(labels[row])
            totals[0] += weight
            totals[1] += weight * float(labels[row])
    rows = learner.table.touched()
    assert rows.tolist() == sorted(counts)
    np.testing.assert_array_equal(learner.table.weights(rows)[:, -2:], [counts[row] for row in rows.tolist()])
    assert learner.dense()["statistics.totals"].tolist() == totals


@pytest.mark.parametrize(("model", "schema"), KINDS)
def test_an_example_is_scored_by_the_counts_before_it(model: ModelConfig, schema: FieldSchema) -> None:
    """`learn` says what `score` said just before, to the bit where nothing is dropped."""
    learner = Learner(model, LEARN, schema)
    for number in range(10):
        bags, labels = batch(number)
        before = learner.score(bags)
        np.testing.assert_allclose(learner.learn(bags, labels), before, rtol=0, atol=1e-6)
    assert float(np.ptp(before)) > 0.01


@pytest.mark.parametrize(("model", "schema"), KINDS)
def test_killed_and_restored_and_served_as_never_killed(model: ModelConfig, schema: FieldSchema, tmp_path: Path) -> None:
    """Counts go through checkpoints and versions like weights: the same bits after a kill, equal scores in the scorer."""
    whole = Learner(model, LEARN, schema, 4)
    said = [whole.learn(*batch(number)) for number in range(20)]
    for until in (8, 20):
        store, learner = SnapshotStore(tmp_path), Learner(model, LEARN, schema, 4)
        publisher = Publisher(store, learner, Progressive(1000), SnapshotConfig(rotation=4), "ab" * 16)
        restored = publisher.restore()
        for number in range(restored.batches_learnt if restored else 0, until):
            np.testing.assert_array_equal(learner.learn(*batch(number)), said[number])
        done = {0: (until, 0, 0)}
        assert publisher.maybe_checkpoint(until, cursors=done, offsets={0: until}, tallies={}, force=True)
        assert publisher.maybe_publish(until, force=True)
        manifests = store.manifests("version")
        parts = [(manifests[one], store.read(manifests[one])) for one in chain(manifests, max(manifests))]
        served = load(Blueprint(model, schema), lambda: 1, parts)
        bags = batch(99)[0]
        np.testing.assert_allclose(served.score(bags).probabilities, learner.score(bags), rtol=0, atol=1e-6)
        with pytest.raises(SnapshotError, match=r"model\.(statistics|architecture|row_width) is"):
            load(Blueprint(replace(model, statistics=False, architecture="deepfm"), schema), lambda: 1, parts)
        store.close()
    assert learner.digest() == whole.digest()


def test_what_diverges_is_not_counted() -> None:
    """The batch that shows it leaves rows and totals as they were."""
    learner = Learner(MODEL, LEARN, PLAIN)
    learner.learn(*batch(1))
    before = learner.digest()
    bags, labels = batch(2)
    values = bags.all_values().copy()
    values[:] = np.inf
    with pytest.raises(Diverged):
        learner.learn(Bags(bags.fields, bags.ids, values, bags.lengths), labels)
    assert learner.digest() == before


def test_old_counts_fade_before_float32_stops_counting() -> None:
    """Beyond 2^22 both are halved: one more click still counts, and the rate stays."""
    counts = torch.tensor([[HALVED_AT, HALVED_AT / 4], [7.0, 3.0]])
    add_counts(counts, torch.tensor([[4.0, 4.0], [1.0, 1.0]]))
    assert counts.tolist() == [[HALVED_AT / 2 + 2, HALVED_AT / 8 + 2], [8.0, 4.0]]


def test_a_value_never_seen_says_nothing_and_a_clicked_one_much() -> None:
    """0 without counts, whatever the prior; the log-odds of a rate far above it after many."""
    statistics = build(MODEL, 1).statistics
    assert statistics is not None
    statistics.count(torch.tensor(998.0), torch.tensor(99.0))                   # prior 0.1
    found = statistics.numbers(torch.tensor([[[0.0, 0.0]], [[1e6, 5e5]], [[10.0, 0.0]]]))
    expected = [0.0, 2.1972, float(np.log(0.3 / 12.7) - np.log(1 / 9))]         # logit(.5) − logit(.1) = ln 9 = 2.1972
    np.testing.assert_allclose(found[:, 0], expected, atol=1e-3)


def test_a_model_without_statistics_is_as_wide_as_its_paper_says() -> None:
    """No count, no column, no buffer."""
    learner = Learner(replace(MODEL, statistics=False), LEARN, PLAIN)
    learner.learn(*batch(1))
    assert learner.table.width == 3
    assert not any("statistics" in name for name in learner.dense())
