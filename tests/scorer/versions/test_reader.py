from __future__ import annotations

import os
import shutil

import numpy as np
import pytest

from schemas.errors import SnapshotError
from schemas.fields import load
from scorer.versions.reader import SnapshotReader, own_secondary_dir
from tests.scorer.lineage import Lineage, RocksWriter, small, spoilt

SCHEMA = load("appstore")

pytestmark = pytest.mark.integration


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def reader(tmp_path, store):
    with SnapshotReader(store, tmp_path / "secondary") as reader:
        yield reader


@pytest.fixture
def writer(store):
    writer = RocksWriter(store)
    yield writer
    writer.close()


def test_a_store_that_does_not_exist_yet_is_waited_for(tmp_path, store, reader):
    """Before the trainer's first start there is nothing to read, and no store is made by reading."""
    assert reader.poll() is None
    assert not store.exists()
    writer = RocksWriter(store)
    assert reader.poll() is None
    writer.write(Lineage(small(), SCHEMA).publish())
    assert reader.poll() == 1
    writer.close()


def test_what_is_read_is_what_was_written(reader, writer):
    """Manifest, rows and dense arrays of each version, while the writer goes on; numbers ascend over byte borders."""
    lineage = Lineage(small(), SCHEMA, first=254)
    for number in range(254, 260):
        writer.write(lineage.publish(rows=200))
        assert reader.poll() == number
        manifest = reader.manifest(number)
        assert manifest == lineage.manifests[number]
        content = reader.read(manifest)
        for rows, floats in content.rows:
            np.testing.assert_array_equal(floats, lineage.tables[number][rows])
        for name, array in content.dense.items():
            np.testing.assert_array_equal(array, lineage.states[number][name].numpy())
    assert reader.numbers() == list(range(254, 260))
    assert dict(reader.manifests()) == lineage.manifests


def test_a_flush_without_a_write_after_it_hides_nothing(reader, writer):
    """RocksDB secondaries have served stale values then; keys written once are found, memtable or file."""
    lineage = Lineage(small(), SCHEMA)
    for number in range(1, 6):
        writer.write(lineage.publish())
        writer.db.flush()
        assert reader.poll() == number
        assert reader.read(reader.manifest(number)).rows
        writer.db.compact_range(None, None)
        assert reader.poll() == number
        assert reader.read(reader.manifest(1)).rows


def test_a_deleted_version_is_gone_and_a_broken_one_is_named(reader, writer):
    """Both are a SnapshotError that says which."""
    lineage = Lineage(small(), SCHEMA)
    writer.write(lineage.publish())
    second = lineage.publish()
    writer.write(spoilt(second))
    writer.write(lineage.publish())
    reader.poll()
    first = reader.manifest(1)
    writer.delete(1)
    reader.poll()
    with pytest.raises(SnapshotError, match="version 1 is not in"):
        reader.manifest(1)
    with pytest.raises(SnapshotError, match=r"version 1 of lineage aaaaaaaa: 0 chunks of the \d+ listed"):
        reader.read(first)
    with pytest.raises(SnapshotError, match="version 2 of lineage aaaaaaaa, chunk 0: a chunk has checksum"):
        reader.read(reader.manifest(2))
    assert reader.manifests().get(1) is None
    assert reader.numbers() == [2, 3]


def test_a_store_that_cannot_be_opened_is_an_error(store, reader):
    """A directory that only looks like a store: said with its name, not waited for in silence."""
    store.mkdir()
    (store / "IDENTITY").write_text("not a store")
    assert reader.poll() is None
    (store / "CURRENT").write_text("nonsense")
    with pytest.raises(SnapshotError, match="store cannot be opened"):
        reader.poll()


def test_a_store_that_was_removed_and_made_anew_is_read_anew(store, reader):
    """`rm -r var` under a running scorer: it waits, and follows the new store."""
    writer = RocksWriter(store)
    lineage = Lineage(small(), SCHEMA)
    for _ in range(3):
        writer.write(lineage.publish())
    assert reader.poll() == 3
    writer.close()
    shutil.rmtree(store)
    assert reader.poll() is None
    again = RocksWriter(store)
    again.write(Lineage(small(), SCHEMA, name="b" * 32).publish())
    assert reader.poll() == 1
    assert reader.manifest(1).lineage == "b" * 32
    again.close()


def test_the_writer_may_close_and_open_again(store, reader):
    """A trainer that starts again goes on with the same store; the secondary stays open."""
    lineage = Lineage(small(), SCHEMA)
    for number in range(1, 4):
        writer = RocksWriter(store)
        writer.write(lineage.publish())
        assert reader.poll() == number
        writer.close()
        assert reader.poll() == number


def test_directories_of_killed_readers_are_removed(tmp_path):
    """Each process has its own; those of processes that are gone do not pile up."""
    (tmp_path / f"scorer-{2**22 + 1}").mkdir()
    (tmp_path / f"other-{os.getppid()}").mkdir()
    own = own_secondary_dir(tmp_path, "scorer")
    assert own.name == f"scorer-{os.getpid()}"
    assert [left.name for left in tmp_path.iterdir()] == [f"other-{os.getppid()}"]
