"""The snapshot store, on a real RocksDB."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rocksdict import WriteBatch

import stream_trainer.store as store_module
from schemas.config import ModelConfig
from schemas.errors import SnapshotError
from schemas.snapshot import Kind, Manifest, chain, chunk_key, encode_rows, encode_tensors, model_identity
from stream_trainer.store import SnapshotStore

S = 1_000_000  # a second in µs


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SnapshotStore]:
    """Empty."""
    with SnapshotStore(tmp_path / "store") as opened:
        yield opened


def write(
    store: SnapshotStore, rows: list[int], value: float, *, kind: Kind = "version", rotation: int = 4, **more: Any
) -> Manifest:
    """The next snapshot: these rows, each float of them `value`."""
    parent = store.newest(kind)
    manifest = Manifest(**{
        "kind": kind, "lineage": "5eed", "number": store.next_number(kind), "parent": parent.number if parent else None,
        "rotation": rotation, "share": (parent.share + 1) % rotation if parent else 0,
        "model": model_identity(ModelConfig(), 3), "fields": ((1, 1),), "chunks": (), "rows": len(rows), "width": 3,
        "created_us": 0, "examples_learnt": 0, "batches_learnt": 0, **more,
    })
    floats = np.full((len(rows), 3), value, np.float32)
    chunks = [*encode_rows(np.array(rows, np.int64), floats), *encode_tensors({"bias": np.array([value])})]
    return store.write_version(manifest, chunks) if kind == "version" else store.write_checkpoint(manifest, chunks)


def test_what_was_written_is_there_after_opening_again(tmp_path: Path) -> None:
    """Manifests and content of both kinds, apart from each other; numbers go on."""
    with SnapshotStore(tmp_path) as store:
        assert store.newest_version() is None
        assert store.newest_checkpoint() is None
        version = write(store, [1, 5], 0.5, tallies={"learnt": 7})
        checkpoint = write(store, [9], 1.5, kind="checkpoint", version=1)
    with SnapshotStore(tmp_path) as store:
        assert store.newest_version() == version
        assert store.newest_checkpoint() == checkpoint
        content = store.read(version)
        assert content.rows[0][0].tolist() == [1, 5]
        assert content.dense["bias"].tolist() == [0.5]
        assert store.load_checkpoint().rows.tolist() == [9]
        assert (store.next_number("version"), store.next_number("checkpoint")) == (2, 2)


def test_the_whole_table_is_the_newest_of_each_row(store: SnapshotStore) -> None:
    """Over a chain, and at an older version as it was then."""
    write(store, [1, 2, 3], 1)
    write(store, [2], 2)
    write(store, [3, 7], 3)
    newest = store.load_version()
    assert newest.rows.tolist() == [1, 2, 3, 7]
    assert newest.floats[:, 0].tolist() == [1, 2, 3, 3]
    assert newest.dense["bias"].tolist() == [3]
    older = store.load_version(2)
    assert (older.rows.tolist(), older.floats[:, 0].tolist()) == ([1, 2, 3], [1, 2, 1])
    assert older.weights_digest() != newest.weights_digest()
    with pytest.raises(SnapshotError, match="no version 9"):
        store.load_version(9)
    with pytest.raises(SnapshotError, match="no checkpoint"):
        store.load_checkpoint()


def test_rows_touched_since_a_version(store: SnapshotStore) -> None:
    """The union over all later ones of the lineage."""
    for rows in ([1, 2], [2, 3], [9], [3, 4]):
        write(store, rows, 0)
    write(store, [77], 0, lineage="0ther")
    assert store.rows_touched_since(2, "5eed").tolist() == [3, 4, 9]
    assert store.rows_touched_since(4, "5eed").tolist() == []
    assert store.rows_touched_since(None, "5eed").tolist() == [1, 2, 3, 4, 9]


def test_only_one_process_writes(store: SnapshotStore) -> None:
    """The second is told so."""
    with pytest.raises(SnapshotError, match="Is another trainer running"):
        SnapshotStore(store.dir)


def test_a_number_is_written_once(store: SnapshotStore) -> None:
    """Neither again nor ahead."""
    manifest = write(store, [1], 0)
    with pytest.raises(SnapshotError, match="version 1 cannot be written: 2 is the next"):
        store.write_version(manifest, [])


def test_a_large_snapshot_is_whole_too(store: SnapshotStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written in several batches, the manifest in the last."""
    monkeypatch.setattr(store_module, "BATCH_BYTES", 100_000)
    write(store, list(range(60_000)), 2)
    assert len(store.load_version().rows) == 60_000


def test_a_number_whose_writing_was_cut_short_is_not_used_again(tmp_path: Path) -> None:
    """Its chunks stay behind, go with the next expiry, and the next snapshot gets a number of its own."""
    with SnapshotStore(tmp_path) as store:
        write(store, [1], 1)
        batch = WriteBatch(raw_mode=True)
        batch.put(chunk_key("version", 2, 0), b"torn")  # what a kill between two batches leaves
        store._db.write(batch)
    with SnapshotStore(tmp_path) as store:
        assert store.newest_version() == store.manifests("version")[1]
        third = write(store, [2], 3)
        assert (third.number, third.parent) == (3, 1)
        assert store.load_version().rows.tolist() == [1, 2]
        assert store._db.get(chunk_key("version", 2, 0)) is not None
        store.expire(0, 300)
        assert store._db.get(chunk_key("version", 2, 0)) is None
        assert store.load_version().rows.tolist() == [1, 2]


def test_a_broken_chunk_is_named(store: SnapshotStore) -> None:
    """With the version and the place, and what is wrong."""
    manifest = write(store, [1], 1)
    store._db.put(chunk_key("version", 1, 0), b"fS\x01\x00 something else")
    with pytest.raises(SnapshotError, match="version 1 of lineage 5eed, chunk 0"):
        store.read(manifest)
    store._db.delete(chunk_key("version", 1, 1))
    with pytest.raises(SnapshotError, match="chunk 1: not there"):
        store.read(manifest, "dense")


def test_broken_checkpoints_are_set_aside_until_one_is_whole(tmp_path: Path) -> None:
    """The newest two are broken: the one before is the newest there is, its numbers are not used again, and they go with
    the next expiry. Where none is whole, that is said instead of beginning anew."""
    with SnapshotStore(tmp_path) as store:
        for row in range(3):
            write(store, [row], row, kind="checkpoint", created_us=row * S)
        assert store.set_aside_broken_checkpoints() == {}
        for number in (2, 3):
            store._db.put(chunk_key("checkpoint", number, 0), b"spoilt")
        assert list(store.set_aside_broken_checkpoints()) == [3, 2]
        assert [store.newest_checkpoint()] == list(store.manifests("checkpoint").values())
        after = write(store, [7], 7, kind="checkpoint")
        assert (after.number, after.parent) == (4, 1)
        assert store.load_checkpoint().rows.tolist() == [0, 7]
        store.expire(0, 300)
        assert store._db.get(chunk_key("checkpoint", 3, 0)) is None
        for number in (1, 4):
            store._db.put(chunk_key("checkpoint", number, 0), b"spoilt")
        with pytest.raises(SnapshotError, match=r"no checkpoint can be read any more .*chunk 0"):
            store.set_aside_broken_checkpoints()


def test_expiry_keeps_what_going_back_needs(store: SnapshotStore) -> None:
    """The checkpoint at or before each version that stays, with what that is made of."""
    for second in range(20):
        at: dict[str, Any] = {"created_us": second * S, "examples_learnt": second}
        write(store, [second], second, rotation=1, **at)
        if second % 5 == 0:
            write(store, [second], second, kind="checkpoint", rotation=2, version=second + 1, **at)
    store.expire(19 * S, 2, pinned={8})   # version 8 was written after 7 examples
    assert list(store.manifests("version")) == [8, *range(17, 21)]
    assert [one.examples_learnt for one in store.manifests("checkpoint").values()] == [0, 5, 10, 15]
    store.expire(19 * S, 2)
    assert [one.examples_learnt for one in store.manifests("checkpoint").values()] == [10, 15]


def test_expiry_keeps_what_can_be_loaded_whole(store: SnapshotStore) -> None:
    """Versions of the last 3 s, and the rotation behind the oldest of them; a pinned one with its own."""
    write(store, [0], 0, kind="checkpoint", version=99)
    for second in range(20):
        write(store, [second], second, created_us=second * S)
    store.expire(19 * S, 3, pinned={8})
    assert list(store.manifests("version")) == [5, 6, 7, 8, *range(14, 21)]
    for number in (8, *range(17, 21)):
        assert len(store.load_version(number).rows) == 4
    assert store.expire(19 * S, 3) == 4
    assert list(store.manifests("version")) == list(range(14, 21))


def test_expiry_keeps_what_resuming_needs(store: SnapshotStore) -> None:
    """Versions published after the newest checkpoint, however old; all where there is none; the newest checkpoints."""
    for second in range(10):
        write(store, [second], second, created_us=second * S)
    assert store.expire(10**6 * S, 1) == 0
    for _ in range(6):
        write(store, [1], 1, kind="checkpoint", version=7)
    assert store.expire(10**6 * S, 1) == 4 + 2  # versions 1 to 4 (5 begins the rotation that 8 needs), checkpoints 1, 2
    assert list(store.manifests("version")) == [5, 6, 7, 8, 9, 10]
    assert list(store.manifests("checkpoint")) == [3, 4, 5, 6]


@settings(max_examples=25)
@given(st.lists(st.tuples(st.sampled_from(["write", "expire", "reopen", "checkpoint"]), st.integers(0, 5)), max_size=40))
def test_whatever_happens_the_newest_can_be_loaded_whole(
    tmp_path_factory: pytest.TempPathFactory, history: list[tuple[str, int]]
) -> None:
    """Any order of writing, expiring and opening again: kept versions in the time asked for load, rows as written."""
    directory = tmp_path_factory.mktemp("store")
    store, now = SnapshotStore(directory), 0
    table: dict[int, float] = {}
    for what, number in history:
        now += S
        if what == "write":
            parent = store.newest_version()
            share = (parent.share + 1) % 3 if parent else 0
            rows = sorted({number, number + 7, *(row for row in table if row % 3 == share)})
            table.update(dict.fromkeys((number, number + 7), float(now)))
            _write_rows(store, {row: table[row] for row in rows}, now)
        elif what == "checkpoint":
            version = store.newest_version()
            write(store, [1], 1, kind="checkpoint", created_us=now, version=version.number if version else None)
        elif what == "expire":
            store.expire(now, number)
        else:
            store.close()
            store = SnapshotStore(directory)
        if store.newest_version():
            loaded = store.load_version()
            assert dict(zip(loaded.rows.tolist(), loaded.floats[:, 0].tolist(), strict=True)) == table
        for manifest in store.manifests("version").values():
            if manifest.created_us >= now - number * S and what == "expire":
                chain(store.manifests("version"), manifest.number)
    store.close()


def _write_rows(store: SnapshotStore, rows: dict[int, float], now: int) -> None:
    """A version with a value of its own for each row."""
    parent = store.newest_version()
    manifest = Manifest(
        kind="version", lineage="5eed", number=store.next_number("version"), parent=parent.number if parent else None,
        rotation=3, share=(parent.share + 1) % 3 if parent else 0, model={"bits": 8}, fields=(), chunks=(),
        rows=len(rows), width=1, created_us=now, examples_learnt=0, batches_learnt=0,
    )
    floats = np.array([[value] for value in rows.values()], np.float32)
    store.write_version(manifest, encode_rows(np.array(list(rows), np.int64), floats))


def test_killed_anywhere_it_opens_with_whole_snapshots_only(tmp_path: Path) -> None:
    """A writer killed with SIGKILL at different moments, six times: every snapshot there is loads, numbers only rise."""
    program = textwrap.dedent("""
        import sys
        from pathlib import Path
        import numpy as np
        import stream_trainer.store as module
        from tests.stream_trainer.test_store import write
        module.BATCH_BYTES = 50_000
        with module.SnapshotStore(Path(sys.argv[1])) as store:
            print("open", flush=True)
            while True:
                write(store, list(range(20_000)), 1.0, created_us=store.next_number("version"))
                write(store, [1], 1.0, kind="checkpoint", version=store.newest_version().number)
                store.expire(store.next_number("version"), 5e-6)
    """)
    seen = 0
    for turn in range(6):
        writer = subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": "."}
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"open\n"
        with pytest.raises(subprocess.TimeoutExpired):
            writer.wait(0.05 + 0.037 * turn)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        with SnapshotStore(tmp_path) as store:
            newest = store.newest_version()
            assert newest is not None
            assert newest.number > seen
            seen = newest.number
            for kind in ("version", "checkpoint"):
                for manifest in store.manifests(kind).values():
                    store.read(manifest)
            assert len(store.load_version().rows) == 20_000
            assert store.next_number("version") > seen
