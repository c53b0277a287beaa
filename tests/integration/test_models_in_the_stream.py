"""Every architecture and every optimiser does what the default does: learns, survives a kill, is served as it was learnt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from schemas.bags import Bags
from schemas.config import LearnConfig, ModelConfig, SnapshotConfig
from schemas.errors import ConfigError, SnapshotError
from schemas.fields import FieldSchema, parse
from schemas.models import MODELS
from schemas.snapshot import chain
from scorer.answers.engine import Blueprint, Engine, load
from stream_trainer.learning.learner import Diverged, Learner
from stream_trainer.publishing.publisher import Publisher
from stream_trainer.store import SnapshotStore
from stream_trainer.watching.progressive import Progressive
from stream_trainer.watching.windows import figures

pytestmark = pytest.mark.integration

FIELDS = [
    {"name": "user", "number": 1, "kind": "categorical", "side": "context"},
    {"name": "app", "number": 2, "kind": "categorical", "side": "item"},
    {"name": "tags", "number": 3, "kind": "set", "side": "item"},
    {"name": "price", "number": 4, "kind": "numeric", "side": "item", "transform": "raw"},
]
SCHEMA = parse({"field": FIELDS}, "test")
CROSSED = parse({"field": FIELDS, "cross": [{"number": 5, "fields": ["user", "app"]}]}, "test")
MODEL = ModelConfig(
    bits=10, factors=3, hidden=(8, 4), init_scale=0.1, attention_factors=3, cross_layers=2, fnn_pretrain_rows=2000
)
LEARN = LearnConfig(device="cpu", row_rate=0.1, dense_rate=0.01)
ROWS, BATCHES, KILLED_AT, CHECKPOINT_AT = 50, 100, 45, 35

WIDE_AND_DEEP: dict[str, Any] = {
    "first_order_optimiser": "ftrl", "l1": 0.05, "l2": 0.01, "row_rate": 0.05, "dense_optimiser": "adagrad", "dense_rate": 0.03,
}
VARIANTS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    *(({"architecture": name}, {}) for name in MODELS),
    ({"statistics": False}, {}), ({"statistics": True, "dropout": 0.2}, {"row_optimiser": "adam", "row_rate": 0.01}),
    ({"heads": 2}, {}), ({"architecture": "ffm_stats", "heads": 2, "dropout": 0.2}, {}),
    ({"architecture": "pnn", "product": "both"}, {}),
    ({"architecture": "pnn_pairs", "product": "both", "activation": "prelu"}, {}),
    ({"architecture": "nfm", "batch_norm": True, "dropout": 0.2}, {}),
    ({"architecture": "fnn", "activation": "tanh", "dropout": 0.1}, {}),
    ({"activation": "dice", "batch_norm": True}, {}),
    ({"architecture": "lr"}, {"row_optimiser": "ftrl", "l1": 0.1}),
    ({"architecture": "lr_dnn"}, WIDE_AND_DEEP),
    ({}, {"row_optimiser": "ftrl"}),
    ({}, {"row_optimiser": "sgd", "row_rate": 0.05}),
    ({}, {"row_optimiser": "rowwise_adagrad", "clip": 1.0}),
    ({}, {"row_optimiser": "adam", "row_rate": 0.01, "first_order_rate": 0.02, "decay": 0.001}),
]


def batch(number: int) -> tuple[Bags, np.ndarray]:
    """The log: batch by number, always the same. Clicks depend on each field and on user with app."""
    rng = np.random.default_rng(number)
    truth = np.random.default_rng(0).normal(0, 1, (3, 12))
    user, app = rng.integers(0, 12, (2, ROWS))
    counts, price = rng.integers(1, 4, ROWS), rng.normal(0, 1, ROWS)
    ids, lengths, logits = [], [], []
    for row in range(ROWS):
        tags = rng.choice(12, counts[row], replace=False)
        ids += [user[row], 100 + app[row], *(200 + tags), 300]
        lengths += [1, 1, counts[row], 1]
        logits.append(truth[0, user[row]] + truth[1, app[row]] + truth[2, tags].mean() + 0.7 * price[row])
        logits[-1] += 0.5 * truth[0, user[row]] * truth[1, app[row]]
    values = np.ones(len(ids), np.float32)
    values[np.cumsum(lengths)[3::4] - 1] = price
    labels = (rng.random(ROWS) < 1 / (1 + np.exp(-np.array(logits)))).astype(np.float32)
    return Bags(4, np.array(ids, np.uint64), values, np.array(lengths, np.uint16)), labels


class Trainer:
    """What the trainer app does, over a log of batches."""

    def __init__(
        self, directory: Path, model: ModelConfig, learn: LearnConfig, schema: FieldSchema = SCHEMA
    ) -> None:
        self.store = SnapshotStore(directory)
        self.schema = schema
        self.learner = Learner(model, learn, schema, 4)
        config = SnapshotConfig(rotation=4)
        self.publisher = Publisher(self.store, self.learner, Progressive(1000), config, "ab" * 16)
        restored = self.publisher.restore()
        self.next = restored.batches_learnt if restored else 0

    def learn(self, until: int) -> np.ndarray:
        """Up to that batch. Returns what it said before learning."""
        said = []
        while self.next < until:
            said.append(self.learner.learn(*batch(self.next)))
            self.next += 1
        return np.concatenate(said)

    def checkpoint(self) -> None:
        done = {0: (self.next, 0, 0)}
        assert self.publisher.maybe_checkpoint(0, cursors=done, offsets={0: self.next}, tallies={}, force=True)

    def served(self) -> Engine:
        """A scorer that holds the newest version."""
        manifests = self.store.manifests("version")
        parts = [(manifests[number], self.store.read(manifests[number])) for number in chain(manifests, max(manifests))]
        return load(Blueprint(self.learner.model_config, self.schema), lambda: 1, parts)


def named(variant: tuple[dict[str, Any], dict[str, Any]]) -> str:
    """For the list of tests."""
    return "-".join(str(value) for part in variant for value in part.values())


@pytest.mark.parametrize("variant", VARIANTS, ids=named)
def test_it_learns_survives_a_kill_and_is_served(variant: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path) -> None:
    """What was learnt is above chance; killed ten batches after its checkpoint it ends with the same bits; a scorer loaded
    from the store says what the trainer says, to 1e-6, of rows seen and not seen, at each of two versions."""
    model, learn = replace(MODEL, **variant[0]), replace(LEARN, **variant[1])
    whole = Trainer(tmp_path / "whole", model, learn)
    said = whole.learn(BATCHES)
    labels = np.concatenate([batch(number)[1] for number in range(BATCHES)])
    auc = figures(0, said[-2500:], labels[-2500:]).auc
    assert auc is not None
    assert auc > 0.65

    killed = Trainer(tmp_path / "killed", model, learn)
    killed.learn(CHECKPOINT_AT)
    killed.checkpoint()
    killed.learn(KILLED_AT)
    assert killed.publisher.maybe_publish(0, force=True)
    bags = batch(1000)[0]
    seen_and_not = Bags(4, np.concatenate([bags.ids, bags.ids + np.uint64(500)]),
                        np.tile(bags.all_values(), 2), np.tile(bags.all_lengths(), 2))
    np.testing.assert_allclose(
        killed.served().score(seen_and_not).probabilities, killed.learner.score(seen_and_not), rtol=0, atol=1e-6
    )
    killed.store.close()

    again = Trainer(tmp_path / "killed", model, learn)
    assert again.next == CHECKPOINT_AT
    np.testing.assert_array_equal(again.learn(BATCHES), said[CHECKPOINT_AT * ROWS :])
    assert again.learner.digest() == whole.learner.digest()
    assert again.publisher.maybe_publish(1, force=True)
    scores = again.served().score(seen_and_not).probabilities
    np.testing.assert_allclose(scores, again.learner.score(seen_and_not), rtol=0, atol=1e-6)
    assert float(np.ptp(scores)) > 0.05
    again.store.close()


def test_fnn_changes_its_stage_in_the_trainer_and_in_the_scorer(tmp_path: Path) -> None:
    """Up to the set number of examples it is an FM, bit for bit; then its network answers, its output bias begun at the
    FM's; each served version answers by the stage that it was published in."""
    fnn = Trainer(tmp_path / "fnn", replace(MODEL, architecture="fnn"), LEARN)
    fm = Learner(replace(MODEL, architecture="fm"), LEARN, SCHEMA)
    for number in range(40):                                                   # 2,000 examples
        np.testing.assert_array_equal(fnn.learner.learn(*batch(number)), fm.learn(*batch(number)))
        fnn.next += 1
        if number == 38:
            assert fnn.publisher.maybe_publish(0, force=True)
            early = fnn.served()
            np.testing.assert_array_equal(early.score(batch(99)[0]).probabilities, fm.score(batch(99)[0]))
    dense = fnn.learner.dense()
    assert dense["examples"].tolist() == [2000]
    np.testing.assert_array_equal(dense["output_bias"], dense["bias"])
    assert np.abs(fnn.learner.score(batch(99)[0]) - fm.score(batch(99)[0])).max() > 0.01
    before = dense["mlp.layers.0.weight"]
    fnn.learn(41)
    assert (fnn.learner.dense()["mlp.layers.0.weight"] != before).any()
    assert fnn.publisher.maybe_publish(1, force=True)
    np.testing.assert_allclose(
        fnn.served().score(batch(99)[0]).probabilities, fnn.learner.score(batch(99)[0]), rtol=0, atol=1e-6
    )
    fnn.store.close()


@pytest.mark.parametrize("pretrain_rows", [0, 1, 10**6])
def test_fnn_begins_at_the_first_batch_s_share_of_clicks(pretrain_rows: int) -> None:
    """Whether the first batch is learnt as an FM or by the network, and whichever of them scores the second."""
    model = replace(MODEL, architecture="fnn", fnn_pretrain_rows=pretrain_rows, init_scale=0.001)
    learner = Learner(model, replace(LEARN, row_rate=1e-6, dense_rate=1e-6), SCHEMA)
    bags, labels = batch(0)
    zeros = Bags(4, bags.ids, np.zeros(len(bags.ids), np.float32), bags.lengths)
    learner.learn(zeros, np.zeros_like(labels))
    w0 = float(learner.dense()["bias"][0])
    assert w0 == pytest.approx(np.log(1 / 51), abs=1e-3)
    if pretrain_rows == 10**6:
        np.testing.assert_allclose(learner.score(zeros), 1 / 52, rtol=1e-3)
    else:
        assert float(learner.dense()["output_bias"][0]) == pytest.approx(w0, abs=1e-3)


def test_a_cross_is_learnt_and_served(tmp_path: Path) -> None:
    """Clicks that depend on a pair of values alone: LR without the cross finds nothing, LR and Wide&Deep with it do; the
    scorer makes the same crosses from the bare bags; after a kill the same bits. A model that takes none is as without."""

    def pair_batch(number: int) -> tuple[Bags, np.ndarray]:
        rng = np.random.default_rng(number)
        bags = batch(number)[0]
        starts = np.cumsum(bags.all_lengths())[3::4] - bags.all_lengths().reshape(-1, 4).sum(axis=1)
        user, app = bags.ids[starts], bags.ids[starts + 1] - np.uint64(100)
        return bags, (rng.random(ROWS) < np.where((user + app) % 2 == 1, 0.9, 0.1)).astype(np.float32)

    def last_auc(trainer: Trainer, until: int = 120) -> float:
        said = np.concatenate([trainer.learner.learn(*pair_batch(number)) for number in range(until)])
        labels = np.concatenate([pair_batch(number)[1] for number in range(until)])
        found = figures(0, said[-2000:], labels[-2000:]).auc
        assert found is not None
        return found

    learn = replace(LEARN, **WIDE_AND_DEEP, first_order_rate=0.3)
    wide = replace(MODEL, architecture="wide_deep", bits=12)
    with_cross = Trainer(tmp_path / "wide_deep", wide, learn, CROSSED)
    assert last_auc(with_cross) > 0.8
    assert last_auc(Trainer(tmp_path / "lr", replace(MODEL, architecture="lr"), learn, CROSSED)) > 0.8
    assert last_auc(Trainer(tmp_path / "plain", replace(MODEL, architecture="lr"), learn, SCHEMA)) < 0.6

    assert with_cross.publisher.maybe_publish(0, force=True)
    bags = pair_batch(999)[0]
    served = with_cross.served().score(bags).probabilities
    np.testing.assert_allclose(served, with_cross.learner.score(bags), rtol=0, atol=1e-6)
    assert float(np.ptp(served)) > 0.5
    with_cross.next = 120
    with_cross.checkpoint()
    digest = with_cross.learner.digest()
    with_cross.store.close()
    again = Trainer(tmp_path / "wide_deep", wide, learn, CROSSED)
    assert again.learner.digest() == digest
    again.store.close()
    with pytest.raises(SnapshotError, match=r"field 5 is .* there and absent here"):
        Trainer(tmp_path / "wide_deep", wide, learn, SCHEMA)

    ignoring, without = (Learner(replace(MODEL, statistics=False), LEARN, schema) for schema in (CROSSED, SCHEMA))
    for number in range(5):
        np.testing.assert_array_equal(ignoring.learn(*batch(number)), without.learn(*batch(number)))
    assert ignoring.schema.identity == without.schema.identity


def test_batch_norm_scores_by_running_statistics_and_learns_a_batch_of_one(tmp_path: Path) -> None:
    """A row's score does not depend on the others scored with it; a batch of one leaves the running statistics; the scores
    that learning returns are those said before, as for any model."""
    learner = Learner(replace(MODEL, batch_norm=True, activation="dice"), LEARN, SCHEMA)
    for number in range(5):
        bags, labels = batch(number)
        before = learner.score(bags)
        np.testing.assert_array_equal(learner.learn(bags, labels), before)
    alone = np.concatenate([learner.score(bags.slice(row, row + 1)) for row in range(ROWS)])
    np.testing.assert_allclose(alone, learner.score(bags), rtol=0, atol=1e-6)
    statistics = {name: array for name, array in learner.dense().items() if "running" in name}
    assert len(statistics) == 8
    assert all((array != 0).any() and (array != 1).any() for array in statistics.values())
    digest = learner.digest()
    learner.learn(bags.slice(0, 1), labels[:1])
    after = learner.dense()
    assert learner.digest() != digest
    assert all((after[name] == array).all() for name, array in statistics.items())


def test_a_batch_that_diverges_leaves_running_statistics_and_counts_as_they_were() -> None:
    """Nothing of it is learnt, batch norm's statistics included."""
    for changes in ({"batch_norm": True}, {"architecture": "fnn"}):
        learner = Learner(replace(MODEL, **changes), LEARN, SCHEMA)
        learner.learn(*batch(0))
        digest = learner.digest()
        bags, labels = batch(1)
        with pytest.raises(Diverged):
            learner.learn(Bags(4, bags.ids, np.full(len(bags.ids), np.inf, np.float32), bags.lengths), labels)
        assert learner.digest() == digest


@pytest.mark.parametrize(
    ("model", "learn", "text"),
    [
        ({"architecture": "fm"}, {}, r"model\.architecture is deepfm there and fm here"),
        ({"activation": "tanh"}, {}, r"model\.activation is relu there and tanh here"),
        ({}, {"row_optimiser": "adam"}, "'adagrad'.*'adam'"),
        ({}, {"dense_optimiser": "adam"}, "optimiser's state does not fit"),
        ({}, {"first_order_rate": 0.5}, "optimiser's state does not fit"),
    ],
)
def test_a_store_of_another_model_or_optimiser_is_refused(
    model: dict[str, Any], learn: dict[str, Any], text: str, tmp_path: Path
) -> None:
    """Naming what differs."""
    first = Trainer(tmp_path / "store", MODEL, LEARN)
    first.learn(2)
    first.checkpoint()
    first.store.close()
    with pytest.raises(SnapshotError, match=text):
        Trainer(tmp_path / "store", replace(MODEL, **model), replace(LEARN, **learn))


def test_first_order_settings_for_a_model_without_first_order_weights_are_refused() -> None:
    """At the start, not silently ignored."""
    with pytest.raises(ConfigError, match="no first-order weights"):
        Learner(replace(MODEL, architecture="dcn"), replace(LEARN, first_order_optimiser="ftrl"), SCHEMA)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("variant", VARIANTS, ids=named)
def test_a_gpu_learns_the_same(variant: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path) -> None:
    """Scores before each of ten batches to 1e-3 of the CPU's; restored from the GPU's checkpoint, the same scores."""
    model, learn = replace(MODEL, **variant[0], fnn_pretrain_rows=200), replace(LEARN, **variant[1])
    if model.dropout:
        pytest.skip("the two devices draw other neurons")
    cpu = Learner(model, learn, SCHEMA)
    gpu = Trainer(tmp_path / "gpu", model, replace(learn, device="cuda"))
    for number in range(10):
        np.testing.assert_allclose(gpu.learn(number + 1), cpu.learn(*batch(number)), rtol=0, atol=1e-3)
    gpu.checkpoint()
    gpu.store.close()
    again = Trainer(tmp_path / "gpu", model, replace(learn, device="cuda"))
    np.testing.assert_allclose(again.learner.score(batch(10)[0]), gpu.learner.score(batch(10)[0]), rtol=0, atol=1e-6)
    again.learn(12)
    again.store.close()
