"""A first model from a file: the weights of evaluate, in a store that has all of it or nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rocksdict import WriteBatch
from typer.testing import CliRunner

from ops import formats
from ops.cli import command_line
from ops.formats import EventRecord
from ops.offline.evaluate import NothingLearnt, evaluate
from ops.offline.train import Trained, train
from schemas import fields
from schemas.config import SnapshotConfig
from schemas.errors import ConfigError, SnapshotError
from schemas.memory import DoesNotFit
from scorer.answers.engine import Blueprint
from scorer.metrics import Metrics
from scorer.versions.follower import Follower
from scorer.versions.reader import SnapshotReader
from stream_trainer.learning.learner import Learner
from stream_trainer.publishing.control import Control
from stream_trainer.publishing.publisher import Publisher
from stream_trainer.store import SnapshotStore
from stream_trainer.watching.progressive import Progressive
from tests.ops.offline.test_evaluate import ROWS, SETTINGS
from tests.ops.offline.test_evaluate import path as path

SCHEMA = fields.load("criteo")


def events(path: Path, rows: int = 0) -> Iterable[EventRecord]:
    return formats.first_rows(formats.read(path, "criteo", 10_000_000, "click"), rows)


def learnt(path: Path, store: Path, rows: int = 0, replace: bool = False) -> Trained:
    return train(SETTINGS, events(path, rows), store, replace=replace, now_us=lambda: 7_000_000)


def resumed(store: SnapshotStore) -> tuple[Publisher, Learner]:
    """What a trainer has after its start."""
    learner = Learner(SETTINGS.model, SETTINGS.learn, SCHEMA, SETTINGS.snapshot.rotation)
    publisher = Publisher(store, learner, Progressive(500), SETTINGS.snapshot, "0" * 32)
    publisher.restore()
    return publisher, learner


def test_the_store_holds_what_evaluate_learns(path: Path, tmp_path: Path) -> None:
    """Version and checkpoint have evaluate's weights to the bit, and its figures; no cursor; and a trainer begins there with
    nothing to publish."""
    found, expected = learnt(path, tmp_path / "store"), evaluate(SETTINGS, events(path))
    assert (found.figures.rows, found.rows_learnt) == (ROWS, ROWS)
    assert found.windows == expected.windows
    assert found.figures.log_loss == pytest.approx(expected.figures.log_loss, abs=1e-12)
    assert found.figures.auc == pytest.approx(expected.figures.auc, abs=found.figures.auc_error)
    with SnapshotStore(tmp_path / "store") as store:
        whole = store.load_version()
        assert whole.weights_digest() == expected.weights_digest
        assert len(whole.rows) == found.rows_touched
        checkpoint = store.newest_checkpoint()
        assert checkpoint is not None
        assert (checkpoint.cursors, checkpoint.offsets, checkpoint.version) == ({}, {}, found.version.number)
        publisher, learner = resumed(store)
        assert learner.digest() == expected.weights_digest
        assert learner.examples_learnt == ROWS
        assert publisher.maybe_publish(8_000_000, force=True) is None
        assert len(learner.table.pending("version")) == 0


def test_a_store_with_a_model_is_left_alone(path: Path, tmp_path: Path) -> None:
    """Unless told otherwise, and also where another process writes it."""
    found = learnt(path, tmp_path / "store", 300)
    with pytest.raises(ConfigError, match=r"has a model already: checkpoint 1, of 300 examples.*--replace"):
        learnt(path, tmp_path / "store")
    with SnapshotStore(tmp_path / "store") as store:
        assert store.newest_version() == found.version
        with pytest.raises(SnapshotError, match="another trainer"):
            learnt(path, tmp_path / "store", replace=True)


def test_replacing_begins_a_line_that_scorers_and_trainers_go_over_to(path: Path, tmp_path: Path) -> None:
    """Numbers go on; a scorer that serves the old line loads the new one; orders that were obeyed stay obeyed."""
    learnt(path, tmp_path / "store", 300)
    with SnapshotStore(tmp_path / "store") as store:
        publisher, _ = resumed(store)
        publisher.control = Control(next_offset=4, pinned=frozenset({1}))
        publisher.maybe_checkpoint(9_000_000, cursors={0: (1, 1, 1)}, offsets={0: 5}, tallies={}, force=True)
    with SnapshotReader(tmp_path / "store", tmp_path / "secondary") as reader:
        follower = Follower(reader, Blueprint(SETTINGS.model, SCHEMA), 0.01, Metrics(), lambda: 1)
        assert follower.step()
        found = learnt(path, tmp_path / "store", replace=True)
        assert follower.step()
        assert follower.engine is not None
        assert follower.engine.version is not None
        assert (follower.engine.version.number, follower.engine.version.lineage) == (2, found.version.lineage)
    with SnapshotStore(tmp_path / "store") as store:
        publisher, learner = resumed(store)
        assert learner.digest() == evaluate(SETTINGS, events(path)).weights_digest
        assert publisher.control == Control(next_offset=4, pinned=frozenset({1}))
        assert publisher.lineage == found.version.lineage
        assert 1 in store.manifests("version")   # pinned: the way back


class Killed(Exception):
    """Stands for SIGKILL."""


def test_cut_short_at_any_write_there_is_nothing(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of 4 kB: whichever is the last to be written, the store has neither version nor checkpoint, or both; and a
    second try succeeds."""
    monkeypatch.setattr("stream_trainer.store.BATCH_BYTES", 4096)
    monkeypatch.setattr("stream_trainer.publishing.publisher.PIECE_ROWS", 16)   # hence small chunks
    real, written, stop = SnapshotStore._commit, 0, 0

    def commit(self: SnapshotStore, batch: WriteBatch, sync: bool) -> None:
        nonlocal written
        if written == stop:
            raise Killed
        real(self, batch, sync)
        written += 1

    monkeypatch.setattr(SnapshotStore, "_commit", commit)
    while True:
        written = 0
        try:
            learnt(path, tmp_path / "store", 50)
            break
        except Killed:
            with SnapshotStore(tmp_path / "store") as store:
                assert store.newest_version() is None
                assert store.newest_checkpoint() is None
        stop += 1
    assert stop > 3
    with SnapshotStore(tmp_path / "store") as store:
        assert store.load_version().weights_digest() == evaluate(SETTINGS, events(path, 50)).weights_digest
        assert store.load_checkpoint().manifest.examples_learnt == 50


def test_weights_that_are_no_numbers_are_not_written(path: Path, tmp_path: Path) -> None:
    """A row that is infinite at the end: an error, and a store as if nothing had been."""
    learner = Learner(SETTINGS.model, SETTINGS.learn, SCHEMA, SETTINGS.snapshot.rotation)
    learner.table.load(np.array([5]), np.full((1, learner.table.wide), np.inf, np.float32))
    with SnapshotStore(tmp_path / "store") as store:
        publisher = Publisher(store, learner, Progressive(500), SnapshotConfig(), "0" * 32)
        with pytest.raises(Exception, match="no version is written"):
            publisher.begin(0, {})
        assert store.newest_version() is None
    assert learnt(path, tmp_path / "store", 100).version.rows > 0


def test_a_file_without_examples_and_a_table_too_large_write_nothing(path: Path, tmp_path: Path) -> None:
    """The first is told when the file is at its end, the second before it is opened."""
    with pytest.raises(NothingLearnt):
        train(SETTINGS, iter(()), tmp_path / "store")
    with SnapshotStore(tmp_path / "store") as store:
        assert store.newest_checkpoint() is None
    huge = replace(SETTINGS, model=replace(SETTINGS.model, bits=30, factors=1000))
    with pytest.raises(DoesNotFit, match=r"wants 1,073,741,824 rows of [\d,]+ bytes"):
        train(huge, events(path), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_verb_tells_what_was_learnt_and_how_it_goes_on(path: Path, tmp_path: Path) -> None:
    """Figures and numbers as JSON on stdout; for a person, where the stream begins; exit code 2 the second time."""
    words = ["train", str(path), "--format", "criteo", "--set", f"var={tmp_path}", "--set", "model.schema=criteo",
             "--set", "model.bits=12", "--set", "model.hidden=8", "--set", "learn.batch_rows=50"]
    told = CliRunner().invoke(command_line(words), [*words, "--json"])
    assert told.exit_code == 0, told.stderr
    report = json.loads(told.stdout)
    assert (report["rows"], report["version"], report["checkpoint"]) == (ROWS, 1, 1)
    assert report["store"] == str(tmp_path / "models" / "appstore" / "store")
    again = CliRunner().invoke(command_line(words), words)
    assert (again.exit_code, "--replace" in again.stderr) == (2, True)
    last = CliRunner().invoke(command_line(words), [*words, "--replace", "--set", "learn.start_at=2026-11-20T10:00:00Z"])
    assert last.exit_code == 0, last.stderr
    assert "learn.start_at=2026-11-20T10:00:00Z" in last.stdout
    assert "version 2 and checkpoint 2" in last.stdout
