"""How full a table is: the estimate against ids really thrown, and from versions of a store against the rows really touched."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from ops.cli import command_line
from ops.versions.table_load import Load, load_of
from schemas.config import Settings
from schemas.fields import parse
from scorer.versions.reader import SnapshotReader
from stream_trainer.learning.learner import Learner
from stream_trainer.publishing.publisher import Publisher
from stream_trainer.store import SnapshotStore
from stream_trainer.watching.progressive import Progressive

FIELDS = parse({"field": [{"name": "f", "number": 1, "kind": "categorical", "side": "item"}]}, "test")


@pytest.mark.parametrize(("ids", "bits"), [(1_000, 14), (20_000, 16), (60_000, 16), (200_000, 16)])
def test_ids_and_the_share_that_collides_are_near_the_truth(ids: int, bits: int) -> None:
    """Ids thrown at random: how many there are and how many share a row, known, against what the rows touched tell."""
    rows = np.random.default_rng(ids).integers(0, 1 << bits, ids)
    in_row = np.bincount(rows, minlength=1 << bits)
    load = Load(bits, int((in_row > 0).sum()))
    assert load.ids == pytest.approx(ids, rel=0.03)
    assert load.share == pytest.approx((in_row[rows] > 1).mean(), abs=0.01)
    other = np.bincount(np.random.default_rng(1).integers(0, 1 << 18, ids), minlength=1 << 18)
    assert load.share_at(18) == pytest.approx((other[other > 0] * (other[other > 0] > 1)).sum() / ids, abs=0.01)


def test_the_advice_is_the_smallest_table_in_which_few_share() -> None:
    """A fifth of the ids at most; a table that is large enough, or nothing but full, keeps its size or takes the most."""
    load = Load(16, 50_000)
    assert load.share > 0.7
    assert load.share_at(load.advised_bits) <= 0.2 < load.share_at(load.advised_bits - 1)
    assert Load(20, 100_000).advised_bits == 20
    assert Load(10, 1 << 10).advised_bits == 30


def lived(settings: Settings, rows: int, versions: int) -> int:
    """A store whose table had so many rows touched over so many versions; how many differ."""
    learner = Learner(settings.model, settings.learn, FIELDS, settings.snapshot.rotation)
    rng = np.random.default_rng(rows)
    with SnapshotStore(settings.store_dir) as store:
        publisher = Publisher(store, learner, Progressive(100), settings.snapshot, "ab" * 16)
        publisher.restore()
        for at in range(versions):
            learner.table.touch(np.unique(rng.integers(0, 1 << settings.model.bits, rows // versions)))
            learner.examples_learnt += 1
            assert publisher.maybe_publish(1_000_000 * (at + 1), force=True)
        publisher.maybe_checkpoint(1, cursors={}, offsets={}, tallies={}, force=True)
    return len(learner.table)


@pytest.mark.parametrize(("rows", "versions", "error"), [(50_000, 1, 0.0), (300_000, 30, 0.02), (1_500, 3, 0.5)])
def test_a_store_tells_how_many_rows_were_touched(
    make_settings: Callable[..., Settings], tmp_path: Path, rows: int, versions: int, error: float
) -> None:
    """All of them in the first version; else from the shares that the newest carry, which are few where few were touched."""
    settings = make_settings(**{"model.bits": 19, "model.hidden": "4", "snapshot.rotation": 16})
    touched = lived(settings, rows, versions)
    with SnapshotReader(settings.store_dir, tmp_path / "secondary") as reader:
        load = load_of(reader)
    assert load is not None
    assert load.touched == pytest.approx(touched, rel=error)
    assert load.bits == 19


def test_doctor_says_how_full_the_table_is_and_what_to_set(make_settings: Callable[..., Settings]) -> None:
    """Load, ids that share a row, and the table that would do; bytes of a row; what the store writes. More than half: a check
    that fails."""
    settings = make_settings(**{"model.bits": 12, "model.hidden": "4", "snapshot.rotation": 4})
    touched = lived(settings, 6_000, 1)
    given = [f"var={settings.var}", "kafka.bootstrap=127.0.0.1:1", "model.bits=12"]
    words = ["doctor", "--json", *(word for one in given for word in ("--set", one))]
    checks = {one["check"]: one for one in json.loads(CliRunner().invoke(command_line(words), words).stdout)["checks"]}
    assert f"{touched:,} of 2^12 rows touched" in checks["table"]["found"]
    assert not checks["table"]["ok"]
    assert "model.bits=15 would make it" in checks["table"]["remedy"]
    assert "1 versions and 1 checkpoints" in checks["store"]["found"]
    assert "a row is 109 bytes in the trainer (24 floats: 13 weights and counts, 11 of adagrad" in checks["memory"]["found"]
