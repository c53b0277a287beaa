"""A model in a file: what another program reads from it, and what is begun with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import stream_trainer.store as store_module
from ops.versions.export_model import exported
from ops.versions.import_model import import_model, imported
from ops.versions.model_file import read
from schemas.bags import Bags, concat
from schemas.config import Settings, Source, build
from schemas.errors import ConfigError, SnapshotError
from schemas.fields import Encoder, load
from scorer.answers import engine
from scorer.answers.engine import Blueprint
from scorer.versions.reader import SnapshotReader
from stream_trainer.learning.guard import Guard
from stream_trainer.learning.learner import Learner
from stream_trainer.publishing.publisher import Publisher
from stream_trainer.store import SnapshotStore
from stream_trainer.watching.progressive import Progressive
from tests.integration.test_scorer_follows_trainer import slate

SCHEMA = load("appstore")
SMALL = {"model.bits": 9, "model.factors": 3, "model.hidden": "8,4", "model.init_scale": 0.1, "snapshot.rotation": 4,
         "snapshot.keep_s": 10**9, "learn.device": "cpu", "learn.guard_rows": 200}
ROOT = Path(__file__).resolve().parents[3]


def encoded(number: int, training: bool = True) -> Bags:
    encoder = Encoder(SCHEMA, training=training)
    return concat([encoder.encode(slate(seed))[0] for seed in range(5 * number, 5 * number + 5)])


class Life:
    """A trainer over the store of these settings, without Kafka: what `learn` learns is a function of its number."""

    def __init__(self, settings: Settings) -> None:
        self.learner = Learner(settings.model, settings.learn, SCHEMA, settings.snapshot.rotation)
        self.store = SnapshotStore(settings.store_dir)
        self.guard = Guard(self.learner)
        progressive = Progressive(settings.metrics.window_rows)
        self.publisher = Publisher(self.store, self.learner, progressive, settings.snapshot, "c" * 32, self.guard)
        self.restored = self.publisher.restore()

    def learn(self, number: int) -> None:
        bags = encoded(number)
        self.guard.learn(bags, (np.random.default_rng(number).random(len(bags)) < 0.4).astype(np.float32))

    def publish(self) -> int:
        manifest = self.publisher.maybe_publish(1, force=True)
        assert manifest is not None
        return manifest.number

    def checkpoint(self) -> None:
        self.publisher.maybe_checkpoint(
            1, cursors={0: (self.learner.batches_learnt, 0, 0)}, offsets={}, tallies={"examples": self.learner.examples_learnt},
            force=True,
        )


def lived(settings: Settings, checkpoint_after: int | None = 6) -> tuple[int, str]:
    """Six batches, a version after each; the last one's number and the digest of its weights."""
    life = Life(settings)
    for number in range(6):
        life.learn(number)
        last = life.publish()
        if number + 1 == checkpoint_after:
            life.checkpoint()
    life.store.close()
    return last, life.learner.digest()


@pytest.fixture
def there(make_settings: Callable[..., Settings]) -> Callable[..., Settings]:
    """Settings of another place: there("b", **changes)."""

    def made(name: str, **changes: Any) -> Settings:
        settings = make_settings(**SMALL | changes)
        return replace(settings, var=settings.var / name)

    return made


def test_an_independent_reader_gives_the_served_scores(there: Callable[..., Settings], tmp_path: Path) -> None:
    """An FM computed from the file with numpy alone says what the scorer's engine says of that version, not the newest."""
    settings = there("a", **{"model.architecture": "fm", "model.statistics": False})
    last, _ = lived(settings)
    exported(settings, last - 1, tmp_path / "m.safetensors")

    tensors = safetensors.numpy.load_file(tmp_path / "m.safetensors")
    with SnapshotReader(settings.store_dir, tmp_path / "secondary") as reader:
        reader.poll()
        numbers = [number for number in reader.numbers() if number < last]
        parts = [(reader.manifest(number), reader.read(reader.manifest(number))) for number in numbers]
        served = engine.load(Blueprint(settings.model, SCHEMA), lambda: 1, parts)
    for number in range(5):     # slates that were learnt: each of their rows is in the file
        bags = encoded(number)
        assert bags.lengths is not None
        place = np.searchsorted(tensors["rows"], (bags.ids % 512).astype(np.int64))
        assert (tensors["rows"][place] == bags.ids % 512).all()
        weights, at, logits = tensors["weights"].astype(np.float64), 0, []
        for lengths in bags.lengths.reshape(len(bags), -1):
            fields = []
            for spec, length in zip(SCHEMA.fields, lengths, strict=True):
                rows = weights[place[at : at + length]]
                fields.append(rows.mean(axis=0) if spec.kind == "set" and spec.pool == "mean" else rows.sum(axis=0))
                at += int(length)
            block = np.array(fields)
            pairs = [block[i, 1:] @ block[j, 1:] for i in range(len(block)) for j in range(i)]
            logits.append(tensors["dense/bias"][0] + block[:, 0].sum() + sum(pairs))
        np.testing.assert_allclose(served.score(bags).logits, logits, atol=1e-5)


@pytest.mark.parametrize("optimiser", ["adagrad", "adam", "ftrl", "sgd"])
def test_training_goes_on_from_the_file_as_if_nothing_had_happened(
    there: Callable[..., Settings], tmp_path: Path, optimiser: str
) -> None:
    """Exported where there was a checkpoint of that moment: the same digest, counts and state; and three batches later the
    bits of a trainer that was never moved. The lineage is a new one."""
    settings, other = there("a", **{"learn.row_optimiser": optimiser}), there("b", **{"learn.row_optimiser": optimiser})
    last, digest = lived(settings)
    file = tmp_path / "m.safetensors"
    told = exported(settings, last, file)
    assert (told["weights_digest"], told["state_behind_examples"]) == (digest, 0)
    assert safetensors.numpy.load_file(file)["counts"].shape[1] == 2
    found = imported(other, file, replace=False, fresh_state=False)
    assert (found["weights_digest"], found["from_version"], found["from_lineage"]) == (digest, last, "c" * 32)
    moved, stayed = Life(other), Life(settings)
    assert moved.restored is not None
    assert stayed.restored is not None
    assert moved.restored.examples_learnt == stayed.restored.examples_learnt
    assert moved.restored.lineage == found["lineage"] != "c" * 32
    for number in range(6, 9):
        moved.learn(number)
        stayed.learn(number)
        moved.publish()
    assert moved.learner.digest() == stayed.learner.digest() != digest
    assert moved.store.load_version().weights_digest() == stayed.learner.digest()
    for life in (moved, stayed):
        life.store.close()


def test_state_of_an_earlier_moment_is_told_and_none_must_be_allowed(there: Callable[..., Settings], tmp_path: Path) -> None:
    """A checkpoint two batches before the version: its state goes with it. No checkpoint: --fresh-state or nothing."""
    settings, file = there("a"), tmp_path / "m.safetensors"
    last, digest = lived(settings, checkpoint_after=4)
    assert exported(settings, last, file)["state_behind_examples"] == 2 * len(encoded(0))
    assert imported(there("b"), file, replace=False, fresh_state=False)["weights_digest"] == digest

    bare = there("c")
    last, digest = lived(bare, checkpoint_after=None)
    assert exported(bare, last, file)["state_behind_examples"] is None
    with pytest.raises(SnapshotError, match=r"no optimiser state.*--fresh-state"):
        imported(there("d"), file, replace=False, fresh_state=False)
    assert imported(there("d"), file, replace=False, fresh_state=True)["weights_digest"] == digest
    life = Life(there("d"))
    life.learn(6)
    life.store.close()


def test_a_model_that_is_there_stays_unless_told(there: Callable[..., Settings], tmp_path: Path) -> None:
    """Refused, with nothing changed; --replace begins a new lineage after it. A trainer that runs is named."""
    settings, other, file = there("a"), there("b"), tmp_path / "m.safetensors"
    last, digest = lived(settings)
    exported(settings, last, file)
    lived(other)
    with pytest.raises(ConfigError, match=r"has a model already.*cccccccc.*--replace"):
        imported(other, file, replace=False, fresh_state=False)
    found = imported(other, file, replace=True, fresh_state=False)
    with SnapshotStore(other.store_dir) as store:
        newest = store.newest_version()
        assert newest is not None
        assert (newest.number, newest.parent, newest.lineage) == (last + 1, None, found["lineage"])
        assert store.load_version().weights_digest() == digest
        with pytest.raises(SnapshotError, match="another trainer"):
            imported(other, file, replace=True, fresh_state=False)


def refused(settings: Settings, file: Path) -> str:
    """What an import says that must not make a store."""
    with pytest.raises(SnapshotError) as why:
        imported(settings, file, replace=False, fresh_state=False)
    assert not settings.store_dir.exists()
    return str(why.value)


def test_a_file_that_is_not_what_it_should_be_is_refused(there: Callable[..., Settings], tmp_path: Path) -> None:
    """Cut short, damaged, without a tensor, another program's, not there: each says what is wrong, and no store is made."""
    settings, file = there("a"), tmp_path / "m.safetensors"
    last, _ = lived(settings)
    exported(settings, last, file)
    whole, other = file.read_bytes(), there("b")
    assert "no such file" in refused(other, tmp_path / "nowhere")
    for end in (0, 5, 300, len(whole) - 1):
        file.write_bytes(whole[:end])
        assert "cut short, or no safetensors file" in refused(other, file)
    tensors = safetensors.numpy.load(whole)
    with safetensors.safe_open(_written(tmp_path / "again", whole), framework="numpy") as opened:
        about = opened.metadata()
    for name in ("rows", "weights"):
        file.write_bytes(safetensors.numpy.save({n: t for n, t in tensors.items() if n != name}, about))
        assert f"tensor {name}: not there" in refused(other, file)
    file.write_bytes(safetensors.numpy.save(tensors | {"dense/bias": tensors["dense/bias"] + 1}, about))
    assert "the file is damaged" in refused(other, file)
    file.write_bytes(safetensors.numpy.save(tensors))
    assert "its format is None, this program reads 'freshet-model/1'" in refused(other, file)
    file.write_bytes(safetensors.numpy.save(tensors, about | {"manifest": "{}"}))
    assert "a manifest cannot be read" in refused(other, file)


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_another_model_or_schema_is_refused_with_both_sides(there: Callable[..., Settings], tmp_path: Path) -> None:
    """Settings by name and value, fields by number, name and kind; an optimiser's state by its optimiser."""
    settings, file = there("a"), tmp_path / "m.safetensors"
    last, _ = lived(settings)
    exported(settings, last, file)
    assert "model.bits is 9 there and 10 here" in refused(there("b", **{"model.bits": 10}), file)
    assert "'row_optimiser': 'adagrad'" in refused(there("b", **{"learn.row_optimiser": "sgd"}), file)
    toml = tmp_path / "other.toml"
    toml.write_text('name = "other"\n[[field]]\nname = "user"\nnumber = 1\nkind = "set"\nside = "context"\n')
    said = refused(there("b", **{"model.schema": str(toml)}), file)
    assert "field 1 is " in said
    assert "Schema appstore there, other here: user (categorical) against user (set)" in said


class Killed(BaseException):
    """Nothing of the process runs after this; RocksDB's own lock is let go, as the system does for a dead process."""


def test_killed_anywhere_an_import_leaves_the_model_whole_or_none(
    there: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before and after each write to the disk, with small writes: no version and no checkpoint, or both."""
    settings = there("a")
    last, digest = lived(settings)
    exported(settings, last, tmp_path / "m.safetensors")
    model, write = read(tmp_path / "m.safetensors"), SnapshotStore._commit
    monkeypatch.setattr(store_module, "BATCH_BYTES", 10_000)
    whole, turn, killed = [], 0, True
    while killed:
        left = turn

        def commit(store: SnapshotStore, batch: Any, sync: bool) -> None:
            nonlocal left
            if left == 0:
                raise Killed
            write(store, batch, sync)
            if left == 1:
                raise Killed
            left -= 2

        monkeypatch.setattr(SnapshotStore, "_commit", commit)
        try:
            imported_into(model, tmp_path / str(turn))
            killed = False
        except Killed:
            pass
        monkeypatch.setattr(SnapshotStore, "_commit", write)
        whole.append(_is_whole(tmp_path / str(turn), digest))
        turn += 1
    assert turn > 6
    assert whole == [False] * (turn - 2) + [True, True]     # killed after its last write, and not at all


def test_an_import_killed_by_the_system_leaves_nothing_half(there: Callable[..., Settings], tmp_path: Path) -> None:
    """SIGKILL just before the write that makes it a model: the same command then makes it."""
    settings = there("a")
    last, digest = lived(settings)
    exported(settings, last, tmp_path / "m.safetensors")
    program = textwrap.dedent("""
        import os, signal, sys
        from pathlib import Path
        import stream_trainer.store as module
        from ops.versions.model_file import read
        from tests.ops.versions.test_model_file import imported_into
        module.SnapshotStore._publish = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
        module.BATCH_BYTES = 10_000
        imported_into(read(Path(sys.argv[1])), Path(sys.argv[2]))
    """)
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "m.safetensors"), str(tmp_path / "b")], cwd=ROOT, timeout=120,
        env={**os.environ, "PYTHONPATH": "."}, capture_output=True, check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert not _is_whole(tmp_path / "b", digest)
    imported_into(read(tmp_path / "m.safetensors"), tmp_path / "b")
    assert _is_whole(tmp_path / "b", digest)


def _is_whole(var: Path, digest: str) -> bool:
    """Whether there is a model; never half of one."""
    with SnapshotStore(var / "models" / "appstore" / "store") as store:
        assert (store.newest_version() is None) == (store.newest_checkpoint() is None)
        if store.newest_version() is None:
            return False
        assert store.load_version().weights_digest() == digest
        store.load_checkpoint()
        return True


def imported_into(model: Any, var: Path) -> None:
    """Also for a process of its own."""
    settings, _ = build(Source("test", SMALL | {"var": var}))
    import_model(settings, model, "d" * 32, 1)


def test_the_verbs_say_what_they_did(
    there: Callable[..., Settings], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """diff, export and import as a person meets them; a wrong file is exit code 1 and one line."""
    settings, file = there("a"), tmp_path / "m.safetensors"
    last, _ = lived(settings)

    def freshet(place: Settings, *words: str) -> subprocess.CompletedProcess[str]:
        given = [f"--set={key}={value}" for key, value in (SMALL | {"var": place.var}).items()]
        return subprocess.run(
            [sys.executable, "-m", "ops.cli", "snapshot", *words, *given], cwd=ROOT, capture_output=True, text=True,
            timeout=120, check=False,
        )

    found = json.loads(freshet(settings, "diff", str(last - 1), str(last), "--json").stdout)
    assert found["same_lineage"]
    assert 0 < found["rows"]["differ"] <= found["rows"]["b"]
    assert found["dense"]["bias"]["differ"] == 1
    exported(settings, last, file)
    assert "read version 6: 4 versions" in capfd.readouterr().err
    file.write_bytes(file.read_bytes()[:1000])
    cut = freshet(there("c"), "import", str(file))
    assert (cut.returncode, cut.stdout) == (1, "")
    assert "cut short" in cut.stderr
    assert "Traceback" not in cut.stderr


def test_what_was_written_is_what_is_read(there: Callable[..., Settings], tmp_path: Path) -> None:
    """Every tensor, the manifest but its chunks, and the schema as it stands in its file."""
    settings, file = there("a"), tmp_path / "m.safetensors"
    last, digest = lived(settings)
    exported(settings, last, file)
    model = read(file)
    assert model.digest == digest
    assert (model.manifest.number, model.manifest.lineage, model.manifest.chunks) == (last, "c" * 32, ())
    assert model.manifest.fields == SCHEMA.identity
    assert model.schema == (ROOT / "schemas/fieldsets/appstore.toml").read_text()
    assert model.state is not None
    assert model.state.training["row_optimiser"] == "adagrad"
