"""Figures of fields, of new values and of a reference model: against loops over the stream's own examples, and scikit-learn."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from schemas import fields
from schemas.bags import Bags, concat
from schemas.config import LearnConfig, MetricsConfig, ModelConfig, SnapshotConfig
from schemas.errors import ConfigError, SchemaError
from schemas.examples import Examples, Stage, after_all_of, empty_ends
from schemas.hashing import hash_missing
from stream_trainer.learning.intake import Batch, Intake
from stream_trainer.learning.learner import Learner
from stream_trainer.publishing.publisher import Publisher
from stream_trainer.store import SnapshotStore
from stream_trainer.training import Step, Training
from stream_trainer.watching.inputs import FIELD_COLUMNS, stability
from stream_trainer.watching.marks import KNOWN, NEW, Marker
from stream_trainer.watching.metric_log import FIELDS_SCHEMA, MetricLog
from stream_trainer.watching.progressive import Progressive
from stream_trainer.watching.reference import Reference, asked_for
from stream_trainer.watching.sampling import Sampler, among, identity
from stream_trainer.watching.watch import Table, Watch
from stream_trainer.watching.windows import Windows

SCHEMA = fields.parse(
    {"name": "fed", "field": [
        {"name": "user", "number": 1, "kind": "categorical", "side": "context"},
        {"name": "tags", "number": 2, "kind": "set", "side": "context", "pool": "sum"},
        {"name": "item_id", "number": 3, "kind": "categorical", "side": "item", "slice": "new"},
        {"name": "price", "number": 4, "kind": "numeric", "side": "item", "transform": "log"},
        {"name": "hour", "number": 5, "kind": "categorical", "side": "item", "slice": True},
    ]},
    "test",
)
ROWS, BATCH, WINDOW, ONE_IN, HALF_LIFE = 2_400, 64, 500, 3, 900
MODEL = ModelConfig(bits=12, factors=2, hidden=(4,))
LEARN = LearnConfig(device="cpu", batch_rows=BATCH, guard=False)
METRICS = MetricsConfig(window_rows=WINDOW, half_life_rows=HALF_LIFE, sample=ONE_IN, new_below=20)


def examples(rows: int = ROWS, seed: int = 1, slate: int = 5) -> list[Examples]:
    """A log: users come again, half of the slates have no tags, items are more as time goes on, prices are sometimes missing or
    0 and move in the second half; records of 240 rows."""
    random = np.random.default_rng(seed)
    encoder = fields.Encoder(SCHEMA, training=True)
    bags, labels = [], []
    for number in range(rows // slate):
        items = random.integers(0, 10 + number // 8, slate)
        price = np.exp(random.normal(3 if number > rows // slate // 2 else 0, 1, slate))
        bags.append(encoder.encode(fields.Slate(
            [f"i{item}" for item in items],
            {"user": f"u{random.integers(50)}", "tags": [] if number % 2 else [f"t{tag}" for tag in random.integers(0, 9, 3)]},
            {"price": [None if draw < 0.2 else 0 if draw < 0.3 else float(cost)
                       for draw, cost in zip(random.random(slate), price, strict=True)],
             "hour": [str(random.integers(24))] * slate},
        ))[0])
        labels.append((random.random(slate) < 0.1 + 0.06 * (items % 5)).astype(np.float32))
    found, per = [], 240 // slate
    for first in range(0, len(bags), per):
        own = concat(bags[first : first + per])
        count, last = len(own), first + len(bags[first : first + per]) - 1
        impression = np.repeat(np.arange(first, last + 1), slate)
        found.append(Examples(
            source_partition=0, after=after_all_of(first - 1), through=after_all_of(last), field_numbers=SCHEMA.numbers,
            field_digests=SCHEMA.digests, trigger=impression, impression=impression,
            item=np.tile(np.arange(slate, dtype=np.uint16), count // slate), label=np.concatenate(labels[first : first + per]),
            event_time_us=np.full(count, 1_700_000_000_000_000), click_time_us=np.zeros(count, np.int64), bags=own,
            ends=empty_ends(), joined_us=1_700_000_000_000_000,
        ))
    return found




class Life:
    """A trainer's thread over that log; every batch that it learnt, and the tables that came of it."""

    def __init__(self, model: ModelConfig = MODEL, metrics: MetricsConfig = METRICS) -> None:
        self.learner = Learner(model, LEARN, SCHEMA)
        self.tables: list[tuple[Table, Table]] = []
        marker = Marker(SCHEMA, metrics)
        self.watch = Watch(marker, metrics, lambda windows, own: self.tables.append((windows, own)))
        self.sampler = Sampler(metrics.sample, model.bits)
        self.progressive = Progressive(metrics.window_rows, Windows(self.watch), sampler=self.sampler)
        self.keys = partial(marker.keys, places=self.learner.table.places)
        self.training = Training(Intake(SCHEMA, BATCH, keys=self.keys), self.learner, self.progressive, None, marker)
        self.steps: list[Step] = []

    def run(self, given: list[Examples], start: int = 0, batches: int | None = None) -> Life:
        for offset, record in enumerate(given[start:], start):
            self.training.intake.offer(0, offset, record)
            while (step := self.training.step()) is not None:
                self.steps.append(step)
                if batches is not None and len(self.steps) == batches:
                    return self
        return self


def batch_of(step: Step) -> Batch:
    """Every step of this log has one."""
    assert step.batch is not None
    return step.batch


def rows_of(step: Step) -> list[tuple[list[list[int]], list[float]]]:
    """Each example's ids, field by field, and the value of each field's first."""
    bags = batch_of(step).bags
    starts, lengths = bags.starts(), bags.all_lengths().reshape(-1, bags.fields)
    values = bags.all_values()
    return [
        ([bags.ids[at : at + n].tolist() for at, n in zip(own, count, strict=True)], [float(values[at]) for at in own])
        for own, count in zip(starts.tolist(), lengths.tolist(), strict=True)
    ]


def looked_at(step: Step) -> np.ndarray:
    """Which of a batch's examples the sample has."""
    batch = batch_of(step)
    return identity(batch.source, batch.impression, batch.item) <= np.uint64((1 << 64) // ONE_IN - 1)


def expected_fields(life: Life) -> list[pd.DataFrame]:
    """The tables by the definitions: loops over examples."""
    touched: set[int] = set()
    mask = (1 << MODEL.bits) - 1
    tables: list[pd.DataFrame] = []
    waiting: list[tuple[list[list[int]], list[float], list[list[bool]]]] = []
    learnt = 0
    before: dict[str, dict[Any, float]] = {spec.name: {} for spec in SCHEMA.fields}
    squares: dict[str, float] = dict.fromkeys(before, 0.0)
    for step in life.steps:
        sampled, rows = looked_at(step), rows_of(step)
        for row, chosen in zip(rows, sampled, strict=True):
            if chosen:
                waiting.append((*row, [[one & mask not in touched for one in ids] for ids in row[0]]))
        touched |= {one & mask for row in rows for ids in row[0] for one in ids}
        learnt += len(rows)
        if learnt // WINDOW == len(tables):
            continue
        lines = []
        for place, spec in enumerate(SCHEMA.fields):
            bins: Counter[Any] = Counter()
            missing, unseen, present = hash_missing(spec.number), 0, 0
            for ids, values, fresh in waiting:
                for one, new in zip(ids[place], fresh[place], strict=True):
                    if one == missing:
                        bins["missing"] += 1
                        continue
                    present, unseen = present + 1, unseen + new
                    if spec.name == "price":
                        v = values[place]
                        half = min(max(math.floor(2 * math.log2(abs(v))), -15), 15) if v else None
                        bins[("zero",) if half is None else (half, v > 0)] += 1
                    else:
                        bins[one >> 58] += 1
            n, old = sum(bins.values()), before[spec.name]
            m, names = sum(old.values()), {*bins, *(name for name, count in old.items() if count)}
            more = len(names) / 2
            shares = [((bins[one] + 0.5) / (n + more), (old.get(one, 0) + 0.5) / (m + more)) for one in names]
            lines.append({
                "field": spec.name, "rows": len(waiting), "values": n, "missing_share": bins["missing"] / len(waiting),
                "unseen_share": unseen / present, "bins": len(names),
                "psi": sum((p - q) * math.log(p / q) for p, q in shares) if m else math.nan,
                "psi_chance": (len(names) - 1) * (1 / n + squares[spec.name] / m**2) if m else math.nan,
            })
            fade = 2 ** (-WINDOW / HALF_LIFE)
            before[spec.name] = {one: fade * old.get(one, 0) + bins[one] for one in names}
            squares[spec.name] = fade**2 * squares[spec.name] + n
        tables.append(pd.DataFrame(lines))
        waiting = []
    return tables


def test_fields_are_counted_as_written_out() -> None:
    """Missing and unseen shares and the stability index of each field and window, sets and real numbers too, to 1e-9; and what
    moved is seen: prices in the second half, nothing else as far."""
    life = Life().run(examples())
    wanted = expected_fields(life)
    assert len(life.tables) == len(wanted) == ROWS // WINDOW
    for (_, got), table in zip(life.tables, wanted, strict=True):
        assert set(got) == set(FIELD_COLUMNS)
        pd.testing.assert_frame_equal(pd.DataFrame(got)[list(table.columns)], table, rtol=1e-9, check_dtype=False)
        assert (got["first_row"][0] % WINDOW, got["last_row"][0] % WINDOW) == (0, WINDOW - 1)
    found = pd.concat([pd.DataFrame(own) for _, own in life.tables]).set_index("field")
    assert (found.loc["tags", "missing_share"] - 0.5).abs().max() < 0.15
    assert 0.1 < found.loc["price", "missing_share"].mean() < 0.3
    assert found.loc["user", "unseen_share"].iloc[0] > 0.2
    assert found.loc["user", "unseen_share"].iloc[-1] == 0
    assert found.loc["item_id", "unseen_share"].tolist()[-1] > 0
    excess = (found["psi"] / found["psi_chance"]).groupby("field").max()
    assert excess.idxmax() == "price"
    assert excess["price"] > 3 * excess.drop("price").max()


@given(st.lists(st.integers(0, 30), max_size=20), st.lists(st.integers(0, 30), max_size=8))
def test_among_is_what_numpy_says(numbers: list[int], some: list[int]) -> None:
    """Also of none, and where some come twice."""
    one, other = np.array(numbers, np.int64), np.array(some, np.int64)
    np.testing.assert_array_equal(among(one, other), np.isin(one, other))


def test_nobody_moved_is_what_chance_makes() -> None:
    """Values drawn from one distribution: the index has the mean that is stated for it, within its standard error."""
    random = np.random.default_rng(4)
    share = random.dirichlet(np.ones(30))

    def counts(n: int) -> np.ndarray:
        return random.multinomial(n, share)[None, :].astype(float)

    drawn = [stability(counts(800), counts(4000), np.array([4000.0])) for _ in range(400)]
    index, chance = (np.array([float(one[place][0]) for one in drawn]) for place in (0, 1))
    assert index.mean() == pytest.approx(chance.mean(), rel=0.06)


def test_the_sample_is_one_in_so_many_whatever_the_cut() -> None:
    """By identity: shares of all, within chance; the same examples in any batch; partitions and places apart."""
    impression, item = np.repeat(np.arange(20_000), 10), np.tile(np.arange(10, dtype=np.uint16), 20_000)
    source = np.zeros(200_000, np.int64)
    found = identity(source, impression, item)
    assert len(np.unique(found)) == 200_000
    for one_in in (4, 16):
        taken = found <= np.uint64((1 << 64) // one_in - 1)
        assert taken.mean() == pytest.approx(1 / one_in, rel=0.05)
        per_slate = taken.reshape(-1, 10).sum(axis=1)
        assert per_slate.var() == pytest.approx(10 / one_in * (1 - 1 / one_in), rel=0.1)   # as if each were drawn by itself
    np.testing.assert_array_equal(identity(source[7:50], impression[7:50], item[7:50]), found[7:50])
    assert not np.isin(identity(source + 1, impression, item), found).any()


@pytest.mark.parametrize("statistics", [True, False])
def test_new_values_are_those_that_few_examples_had(statistics: bool) -> None:
    """Counted before each batch; where rows do not count, new is what no example had. The slice has their rows and clicks."""
    model = ModelConfig(bits=22, factors=2, hidden=(4,), statistics=statistics)
    life = Life(model).run(examples())
    had: Counter[int] = Counter()
    rows: defaultdict[tuple[int, str], list[float]] = defaultdict(list)
    row = 0
    for step in life.steps:
        items = [ids[2][0] for ids, _ in rows_of(step)]
        for item, label in zip(items, batch_of(step).labels.tolist(), strict=True):
            name = "new" if had[item] < (METRICS.new_below if statistics else 1) else "known"
            rows[row // WINDOW, name].append(label)
            row += 1
        had.update(items)
    for number, (windows, _) in enumerate(life.tables):
        table = pd.DataFrame(windows).set_index(["field", "value"])
        for name in ("new", "known"):
            if own := rows[number, name]:
                assert table.loc[("item_id", name), "rows"] == len(own)
                assert table.loc[("item_id", name), "clicks"] == sum(own)
            else:
                assert ("item_id", name) not in table.index
    assert {name for _, name in rows} == {"new", "known"}


def test_only_single_values_can_be_new() -> None:
    """A set has no one value; other words are refused."""
    one = {"name": "f", "number": 1, "side": "item", "kind": "categorical"}
    assert fields.parse({"field": [one | {"slice": "new"}]}, "test").fields[0].slice == "new"
    with pytest.raises(SchemaError, match="one category an example"):
        fields.parse({"field": [one | {"kind": "set", "slice": "new"}]}, "test")
    with pytest.raises(SchemaError, match="slice='old'"):
        fields.parse({"field": [one | {"slice": "old"}]}, "test")
    with pytest.raises(SchemaError, match="slice = true"):
        fields.parse({"field": [one | {"slice": "new", "values": ["a"]}]}, "test")
    spec = fields.parse({"field": [one | {"slice": "new"}]}, "test")
    assert [Marker(spec, METRICS).name(0, key) for key in (NEW, KNOWN, 0)] == ["new", "known", "(not noted)"]


@pytest.mark.parametrize("stop", [3, 8, 21])
def test_restored_is_never_interrupted(stop: int, tmp_path: Path) -> None:
    """Tables after a checkpoint and a kill are those of an undisturbed run, to the bit: what waited, what was before, what is
    new."""
    given = examples()
    whole = Life().run(given)

    def publisher(life: Life, store: SnapshotStore) -> Publisher:
        return Publisher(store, life.learner, life.progressive, SnapshotConfig(), "ab" * 16)

    first = Life()
    with SnapshotStore(tmp_path / "store") as store:
        written = publisher(first, store)
        written.restore()
        first.run(given, batches=stop)
        intake = first.training.intake
        written.maybe_checkpoint(1, cursors=intake.cursors, offsets=intake.resume, tallies=intake.tallies, force=True)
    second = Life()
    with SnapshotStore(tmp_path / "store") as store:
        restored = publisher(second, store).restore()
        assert restored is not None
        second.training.intake = Intake(
            SCHEMA, BATCH, {p: type(intake.cursors[p])(*at) for p, at in restored.cursors.items()}, restored.tallies,
            restored.offsets, second.keys,
        )
        second.run(given, start=restored.offsets[0])
    for got, wanted in zip([*first.tables, *second.tables], whole.tables, strict=True):
        for table, other in zip(got, wanted, strict=True):
            pd.testing.assert_frame_equal(pd.DataFrame(table), pd.DataFrame(other), check_exact=True)


def frozen(life: Life, store: SnapshotStore) -> int:
    """A version of what it has learnt."""
    publisher = Publisher(store, life.learner, Progressive(WINDOW), SnapshotConfig(), "ab" * 16)
    publisher.restore()
    version = publisher.maybe_publish(1, force=True)
    assert version is not None
    return version.number


def test_a_reference_is_judged_on_the_rows_of_the_model(tmp_path: Path) -> None:
    """Figures of both, by scikit-learn, on the sampled rows of each window, to 1e-9; the reference says what its version's
    weights say, to a rounding of float32, and never learns."""
    given = examples()
    with SnapshotStore(tmp_path / "store") as store:
        early = Life().run(given, batches=10)
        number = frozen(early, store)
        assert asked_for("", [number], store, MODEL, LEARN, SCHEMA) is None
        assert asked_for("pinned", [], store, MODEL, LEARN, SCHEMA) is None
        assert asked_for("77", [], store, MODEL, LEARN, SCHEMA) is None
        reference = asked_for("pinned", [number], store, MODEL, LEARN, SCHEMA)
    assert isinstance(reference, Reference)
    life = Life()
    life.sampler.still = reference
    life.run(given)
    parts: list[tuple[np.ndarray, Bags, np.ndarray]] = []
    learnt, window = 0, 0
    for step in life.steps:
        chosen = looked_at(step)
        rows = np.flatnonzero(chosen)
        parts.append((step.probabilities[rows], batch_of(step).bags.take(rows), batch_of(step).labels[rows]))
        learnt += len(batch_of(step))
        if learnt // WINDOW == window:
            continue
        own, labels = (np.concatenate([part[place] for part in parts]) for place in (0, 2))
        bags = concat([part[1] for part in parts])
        still = reference.score(bags)
        np.testing.assert_allclose(still, early.learner.score(bags), rtol=1e-5)
        line = pd.DataFrame(life.tables[window][0]).iloc[0]
        assert line["reference_version"] == number
        for score, said in (("own_", own), ("reference_", still)):
            assert line[f"{score}rows"] == len(labels) == sum(len(part[0]) for part in parts)
            assert line[f"{score}auc"] == pytest.approx(roc_auc_score(labels, said), abs=1e-9)
            assert line[f"{score}log_loss"] == pytest.approx(log_loss(labels, said.astype(np.float64)), abs=1e-9)
            assert line[f"{score}calibration"] == pytest.approx(said.sum(dtype=np.float64) / labels.sum(), abs=1e-9)
        parts, window = [], window + 1
    slices = pd.DataFrame(life.tables[0][0]).iloc[1:]
    assert slices[["own_auc", "reference_auc", "reference_version"]].isna().all(axis=None)
    assert window == ROWS // WINDOW


def test_one_class_has_no_auc_beside_the_reference_either(tmp_path: Path) -> None:
    """It is not there, rather than .5; the log loss is."""
    given = examples(600)
    for record in given:
        record.label[:] = 0
    life = Life()
    with SnapshotStore(tmp_path / "store") as store:
        life.sampler.still = Reference(store, frozen(Life().run(given, batches=2), store), MODEL, LEARN, SCHEMA)
    life.run(given)
    line = life.tables[0][0]
    for score in ("own_", "reference_"):
        assert math.isnan(line[f"{score}auc"][0])
        assert math.isnan(line[f"{score}calibration"][0])
        assert math.isfinite(line[f"{score}log_loss"][0])


def test_what_is_judged_later_is_not_compared() -> None:
    """In mode immediate labels are not final when they are learnt: fields are looked at, scores are not."""
    given = examples(600)
    for place, record in enumerate(given):
        given[place] = type(record)(**{
            **{name: getattr(record, name) for name in record.__dataclass_fields__},
            "stage": np.full(len(record), Stage.IMMEDIATE, np.uint8),
        })
    life = Life().run(given)
    batches, sampler = [batch_of(step) for step in life.steps], Sampler(1, MODEL.bits)
    for batch in batches:
        sampler.note(batch, batch.labels, [])
    sample = sampler.cut()().sample()
    assert sample is not None
    assert len(sample) == len(batches) * BATCH
    assert not sample.judged.any()


def test_fields_are_logged(tmp_path: Path) -> None:
    """As Parquet, a line per field and window, what does not exist as null."""
    life = Life().run(examples(1200))
    log = MetricLog(tmp_path, "ab" * 16, 0, 1 << 30, FIELDS_SCHEMA)
    for number, (_, own) in enumerate(life.tables):
        log.write(1_700_000_000_000_000 + number, own)
    log.close()
    found = pd.read_parquet(tmp_path)
    assert found["field"].tolist() == [spec.name for spec in SCHEMA.fields] * 2
    assert found["psi"].isna().tolist() == [True] * 5 + [False] * 5
    np.testing.assert_allclose(found["unseen_share"][:5], life.tables[0][1]["unseen_share"])


def test_settings_that_make_no_sense_are_refused() -> None:
    """A reference needs a sample, and a name that means something."""
    with pytest.raises(ConfigError, match="needs a sample"):
        MetricsConfig(reference="pinned", sample=0)
    with pytest.raises(ConfigError, match=r"metrics\.reference=best"):
        MetricsConfig(reference="best")
