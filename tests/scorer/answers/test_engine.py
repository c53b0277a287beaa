from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from schemas.bags import Bags
from schemas.errors import SnapshotError
from schemas.fields import Encoder, Field, FieldSchema, Slate, load
from schemas.snapshot import unpack
from scorer.answers.engine import LONG, Blueprint, Engine
from scorer.answers.engine import load as load_engine
from tests.scorer.lineage import Lineage, small

SCHEMA = load("appstore")
SINGLE = FieldSchema("single", (
    Field(name="app", number=1, kind="categorical", side="item"),
    Field(name="user", number=2, kind="categorical", side="context"),
    Field(name="shelf", number=3, kind="categorical", side="item"),
    Field(name="hour", number=4, kind="categorical", side="context"),
))


def clock() -> int:
    return 7


def some_bags(items: int = 5, seed: int = 0) -> Bags:
    """A slate with sets of several sizes and missing values."""
    random = np.random.default_rng(seed)
    columns: dict[str, list[Any]] = {
        "category": [f"c{random.integers(5)}" for _ in range(items)],
        "price": [None if random.random() < 0.3 else float(random.integers(20)) for _ in range(items)],
        "tags": [[f"t{tag}" for tag in range(random.integers(0, 4))] for _ in range(items)],
    }
    slate = Slate([f"app{n}" for n in range(items)], {"user": "u1", "hour": 10, "installed": ["games", "food"]}, columns)
    return Encoder(SCHEMA, training=False).encode(slate)[0]


def single_ids(items: int) -> Bags:
    """A slate of one id per field, as requests with ready ids are; the context stands neither first nor in one piece."""
    columns = {name: [f"{name}{n % 7}" for n in range(items)] for name in ("app", "shelf")}
    slate = Slate([f"app{n}" for n in range(items)], {"user": "u1", "hour": "ten"}, columns)
    return Encoder(SINGLE, training=False).encode(slate)[0]


def published(lineage: Lineage, rows: int = 20):
    pairs = lineage.publish(rows)
    manifest = lineage.manifests[lineage.next - 1]
    return manifest, unpack(manifest, [value for _, value in pairs[:-1]])


def test_scores_are_those_of_the_whole_table_in_double_precision():
    """After a few versions, each touching some rows, every logit is what the written-out sum over the table gives."""
    lineage = Lineage(small(), SCHEMA)
    engine = Engine(Blueprint(small(), SCHEMA), clock)
    bags = some_bags(50)
    for _ in range(6):
        manifest, content = published(lineage)
        engine.apply(manifest, content)
        scores = engine.score(bags)
        truth = lineage.truth(manifest.number, bags)
        np.testing.assert_allclose(scores.logits, truth, atol=2e-6)
        np.testing.assert_allclose(scores.probabilities, 1 / (1 + np.exp(-truth)), atol=1e-6)
        assert (scores.version.number, scores.version.applied_us) == (manifest.number, 7)


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("slates", [None, "fp32"])
def test_a_long_slate_is_what_its_halves_are(single, slates):
    """Computed by two threads, its scores stand in the order of its items and are the truth's."""
    schema = SINGLE if single else SCHEMA
    lineage = Lineage(small(), schema)
    engine = load_engine(Blueprint(small(), schema, slates), clock, [published(lineage, rows=300)])
    bags = single_ids(LONG + 1) if single else some_bags(LONG + 1)
    np.testing.assert_allclose(engine.score(bags).logits, lineage.truth(1, bags), atol=2e-6)


def test_a_load_from_one_rotation_equals_following_from_the_first():
    """The newest `rotation` versions alone give the same bits as all of them in order."""
    lineage = Lineage(small(), SCHEMA, rotation=4)
    parts = [published(lineage) for _ in range(11)]
    blueprint = Blueprint(small(), SCHEMA)
    followed, loaded = load_engine(blueprint, clock, parts), load_engine(blueprint, clock, parts[-4:])
    bags = some_bags(200)
    np.testing.assert_array_equal(followed.score(bags).logits, loaded.score(bags).logits)


def test_a_version_is_applied_only_onto_its_parent():
    """A gap, another lineage and a version twice are refused with both sides named; the present one goes on."""
    lineage, other = Lineage(small(), SCHEMA), Lineage(small(), SCHEMA, name="b" * 32)
    first, second, third = published(lineage), published(lineage), published(lineage)
    engine = load_engine(Blueprint(small(), SCHEMA), clock, [first])
    before = engine.score(some_bags()).logits
    published(other)
    for wrong in (third, first, published(other)):
        with pytest.raises(SnapshotError, match="holds 1 of aaaaaaaa"):
            engine.apply(*wrong)
        np.testing.assert_array_equal(engine.score(some_bags()).logits, before)
    engine.apply(*second)
    assert engine.version is not None
    assert engine.version.number == 2


@pytest.mark.parametrize("theirs", [small(bits=10), small(factors=4), small(hidden=(8,)), small(seed=2)])
def test_a_version_of_another_model_is_refused_naming_both_sides(theirs):
    """The error names the setting, its value there and its value here."""
    engine = Engine(Blueprint(small(), SCHEMA), clock)
    with pytest.raises(SnapshotError, match=r"does not fit: model\.\w+ is .* there and .* here"):
        engine.apply(*published(Lineage(theirs, SCHEMA)))
    with pytest.raises(SnapshotError, match="no version"):
        engine.score(some_bags())


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("gently", [False, True])
def test_no_answer_is_made_of_two_versions(gently, single, monkeypatch):
    """While versions land as fast as they can, every answer of four threads equals its own version's truth: also where
    their rows are written a few at a time, and where the context's rows are taken once for a slate of single ids."""
    monkeypatch.setattr("scorer.answers.engine.PIECE_ROWS", 16)
    schema = SINGLE if single else SCHEMA
    lineage = Lineage(small(), schema)
    parts = [published(lineage, rows=300) for _ in range(60)]
    blueprint = Blueprint(small(), schema, "fp32")
    engine = load_engine(blueprint, clock, parts[:1])
    bags = single_ids(20) if single else some_bags(20)
    answers, stop = [], threading.Event()

    def ask():
        while not stop.is_set():
            answers.append(engine.score(bags))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for manifest, content in parts[1:]:
        engine.apply(manifest, content, gently)
    stop.set()
    for thread in threads:
        thread.join()
    assert len({answer.version.number for answer in answers}) > 1
    truth = {number: lineage.truth(number, bags) for number in {answer.version.number for answer in answers}}
    for answer in answers:
        np.testing.assert_allclose(answer.logits, truth[answer.version.number], atol=2e-6)
