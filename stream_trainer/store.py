"""The snapshot store: the one file that writes RocksDB.

A snapshot's chunks go in first, its manifest last, in the same WriteBatch unless it is large: whole or absent, wherever
the process is killed. Keys carry the snapshot's number and are never written twice (a RocksDB secondary can serve stale
values of overwritten keys for ever); a number whose chunks were cut short by a kill is not used again either. What is
too old goes by deleting ranges. Versions survive the process being killed, checkpoints the machine losing power too.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rocksdict import DBCompressionType, Options, Rdict, ReadOptions, WriteBatch, WriteOptions

from schemas.errors import SnapshotError
from schemas.snapshot import (
    LAST,
    MIRROR,
    Chunk,
    Content,
    Kind,
    Manifest,
    Unpacked,
    chain,
    chunk_key,
    closed,
    decode_manifest,
    described,
    each_rows,
    encode_manifest,
    manifest_key,
    number_of,
    places,
    unpack,
    weights_digest,
)
from stream_trainer.learning.distinct import distinct

BATCH_BYTES = 4 << 20  # a snapshot larger than this is written in several batches: 8 MB take a third longer in one

_KINDS: tuple[Kind, ...] = ("version", "checkpoint")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A whole table: rows (n,) ascending, floats (n, W), and what the newest snapshot holds beside them."""

    manifest: Manifest
    rows: NDArray[np.int64]
    floats: NDArray[np.float32]
    dense: dict[str, NDArray[Any]]
    state: dict[str, NDArray[Any]]

    def weights_digest(self) -> str:
        """Equal to the trainer's `Learner.digest` where this is a version's table."""
        return weights_digest(self.rows, self.floats, self.dense)


class SnapshotStore:
    """Checkpoints and versions in one RocksDB directory. For one process and one thread."""

    def __init__(self, store_dir: Path) -> None:
        """Opens it, or makes it. Raises SnapshotError if another process has it open or it cannot be read."""
        self.dir = store_dir
        store_dir.mkdir(parents=True, exist_ok=True)
        options = Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_compression_type(DBCompressionType.none())  # floats do not compress
        options.set_keep_log_file_num(2)
        try:
            self._db = Rdict(str(store_dir), options)
        except Exception as broken:  # rocksdict raises bare Exception for all that RocksDB reports
            raise SnapshotError(
                f"{store_dir} cannot be opened for writing: {broken}. Is another trainer running on it?"
            ) from broken
        if self._db.get(MIRROR) is not None:
            self._db.close()
            raise SnapshotError(f"{store_dir} is filled by `freshet mirror`, from another trainer's: choose another var")
        self._manifests: dict[Kind, dict[int, Manifest]] = {kind: self._read_manifests(kind) for kind in _KINDS}
        self._next: dict[Kind, int] = {}
        self._torn: dict[Kind, list[int]] = {}
        for kind in _KINDS:
            written = self._newest_chunk(kind)
            newest = max(self._manifests[kind], default=0)
            self._torn[kind] = list(range(newest + 1, written + 1))  # chunks without a manifest
            self._next[kind] = max(newest, written) + 1

    def __enter__(self) -> SnapshotStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the directory."""
        self._db.close()

    # --- reading ---

    def manifests(self, kind: Kind) -> Mapping[int, Manifest]:
        """All there are, by number, ascending."""
        return MappingProxyType(self._manifests[kind])

    def newest(self, kind: Kind, lineage: str | None = None) -> Manifest | None:
        """The newest of that kind; of that lineage, if one is named."""
        newest_first = reversed(self._manifests[kind].values())
        return next((manifest for manifest in newest_first if lineage in (None, manifest.lineage)), None)

    def newest_version(self) -> Manifest | None:
        """What scorers load."""
        return self.newest("version")

    def newest_checkpoint(self) -> Manifest | None:
        """What a trainer resumes from."""
        return self.newest("checkpoint")

    def read(self, manifest: Manifest, only: Content | None = None) -> Unpacked:
        """Its content, checked to the bit. Raises SnapshotError."""
        return unpack(manifest, self._chunks(manifest, places(manifest, only)), only)

    def tensors(self, manifest: Manifest) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
        """Its dense weights and its state, without reading its rows. Raises SnapshotError."""
        return self.read(manifest, "dense").dense, self.read(manifest, "state").state

    def replay(self, kind: Kind, number: int, apply: Callable[[NDArray[np.int64], NDArray[np.float32]], None]) -> None:
        """Hand over the rows of the whole table at that snapshot, from its oldest part to the newest: later ones win."""
        manifests = self._manifests[kind]
        for part in chain(manifests, number):
            wanted = places(manifests[part], "rows")
            for rows, floats in each_rows(manifests[part], self._chunks(manifests[part], wanted)):
                apply(rows.astype(np.int64), floats)

    def set_aside_broken_checkpoints(self) -> dict[int, str]:
        """Check the newest checkpoint to the bit, and count it as not there if it cannot be loaded; so on with the one before
        it. Returns why, by number. Raises SnapshotError where none is left of those there were."""
        kept, broken = self._manifests["checkpoint"], {}
        for number in list(reversed(kept)):
            try:
                self.replay("checkpoint", number, lambda _rows, _floats: None)
                self.tensors(kept[number])
                break
            except SnapshotError as wrong:
                broken[number] = str(wrong)
                del kept[number]
                self._torn["checkpoint"].append(number)
        if broken and not kept:
            raise SnapshotError(
                f"{self.dir}: no checkpoint can be read any more ({broken[max(broken)]}). Move the directory away to begin "
                "anew."
            )
        return broken

    def load(self, kind: Kind, number: int | None = None) -> Loaded:
        """The whole table at that snapshot, the newest by default. Raises SnapshotError."""
        manifest = self.newest(kind) if number is None else self._manifests[kind].get(number)
        if manifest is None:
            raise SnapshotError(f"{self.dir} holds no {kind}{'' if number is None else f' {number}'}")
        table = np.zeros((1 << int(manifest.model["bits"]), manifest.width), np.float32)   # (2^bits, W), memory as rows come
        touched = np.zeros(len(table), bool)

        def keep(rows: NDArray[np.int64], floats: NDArray[np.float32]) -> None:
            table[rows] = floats
            touched[rows] = True

        self.replay(kind, manifest.number, keep)
        rows = np.flatnonzero(touched)
        return Loaded(manifest, rows, table[rows], *self.tensors(manifest))

    def load_version(self, number: int | None = None) -> Loaded:
        """The whole table of weights at a version."""
        return self.load("version", number)

    def load_checkpoint(self, number: int | None = None) -> Loaded:
        """The whole table of weights and optimiser state at a checkpoint."""
        return self.load("checkpoint", number)

    def rows_touched_since(self, version: int | None, lineage: str) -> NDArray[np.int64]:
        """Row numbers in all versions of a lineage later than that one (None: in all of them), ascending."""
        later = [
            manifest for number, manifest in self._manifests["version"].items()
            if number > (version or 0) and manifest.lineage == lineage
        ]
        parts = [rows.astype(np.int64) for manifest in later for rows, _ in self.read(manifest, "rows").rows]
        return distinct(np.empty(0, np.int64), *parts)

    # --- writing ---

    def write_version(self, manifest: Manifest, chunks: Iterable[bytes]) -> Manifest:
        """Write a version; see `_write`."""
        return self._write(manifest, chunks, sync=False)

    def write_checkpoint(self, manifest: Manifest, chunks: Iterable[bytes]) -> Manifest:
        """Write a checkpoint, and wait until the disk has it; see `_write`."""
        return self._write(manifest, chunks, sync=True)

    def write_both(
        self, version: Manifest, version_chunks: Iterable[bytes], checkpoint: Manifest, checkpoint_chunks: Iterable[bytes]
    ) -> tuple[Manifest, Manifest]:
        """Write a version and a checkpoint that are there together or not at all, and wait until the disk has them."""
        first, batch = self._put(version, version_chunks, WriteBatch(raw_mode=True))
        second, batch = self._put(checkpoint, checkpoint_chunks, batch)
        self._publish(batch, [first, second], sync=True)
        return first, second

    def expire(self, now_us: int, keep_s: float, pinned: Collection[int] = ()) -> int:
        """Delete snapshots older than keep_s; returns how many. pinned: numbers of versions that stay.

        What stays can be loaded whole: all that it is made of stays too. So does what resuming needs: the newest
        checkpoint, and the versions that were published after it. And for each version that stays, the checkpoint that
        going back to it begins from.
        """
        checkpoint = self.newest_checkpoint()
        resume_from = (checkpoint.version or 0) if checkpoint else 0
        batch, gone = WriteBatch(raw_mode=True), 0
        starts: set[int] = set()
        for kind in _KINDS:
            manifests = self._manifests[kind]
            newest = max(manifests, default=0)
            wanted = {
                number
                for number, manifest in manifests.items()
                if number == newest
                or manifest.created_us >= now_us - keep_s * 1e6
                or (kind == "version" and (number > resume_from or number in pinned))
                or (kind == "checkpoint" and number in starts)
            }
            if kind == "version":
                starts = self._starts(wanted)
            kept = closed(manifests, wanted)
            old = [number for number in manifests if number not in kept]
            torn = [number for number in self._torn[kind] if number < newest]
            for first, last in _runs(sorted([*old, *torn])):
                batch.delete_range(manifest_key(kind, first), manifest_key(kind, last + 1))
                batch.delete_range(chunk_key(kind, first, 0), chunk_key(kind, last + 1, 0))
            for number in old:
                del manifests[number]
            self._torn[kind] = [number for number in self._torn[kind] if number > newest]
            gone += len(old)
        if not batch.is_empty():
            self._commit(batch, sync=False)
        return gone

    def next_number(self, kind: Kind) -> int:
        """The number that the next snapshot of that kind gets."""
        return self._next[kind]

    def _write(self, manifest: Manifest, chunks: Iterable[bytes], sync: bool) -> Manifest:
        """Chunks, then the manifest with what they turned out to be. Returns that manifest.

        Raises SnapshotError if the number is not the next one, or the disk does not take it: then nothing is published.
        """
        whole, batch = self._put(manifest, chunks, WriteBatch(raw_mode=True))
        self._publish(batch, [whole], sync)
        return whole

    def _put(self, manifest: Manifest, chunks: Iterable[bytes], batch: WriteBatch) -> tuple[Manifest, WriteBatch]:
        """Chunks alone. Returns the manifest with what they turned out to be, and the batch that is not written yet."""
        kind, number = manifest.kind, manifest.number
        if number != self._next[kind]:
            raise SnapshotError(f"{kind} {number} cannot be written: {self._next[kind]} is the next")
        self._next[kind] = number + 1
        listed: list[Chunk] = []
        for place, chunk in enumerate(chunks):
            if batch.size_in_bytes() + len(chunk) > BATCH_BYTES:
                self._commit(batch, sync=False)
                batch = WriteBatch(raw_mode=True)
            batch.put(chunk_key(kind, number, place), chunk)
            listed.append(described(chunk))
        return replace(manifest, chunks=tuple(listed)), batch

    def _publish(self, batch: WriteBatch, manifests: Sequence[Manifest], sync: bool) -> None:
        """The batch and these manifests at once: from here on the snapshots are there."""
        for whole in manifests:
            batch.put(manifest_key(whole.kind, whole.number), encode_manifest(whole))
        self._commit(batch, sync)
        for whole in manifests:
            self._manifests[whole.kind][whole.number] = whole

    def _chunks(self, manifest: Manifest, wanted: Sequence[int]) -> Iterator[bytes | None]:
        """Those at these places, which ascend; None where one is not there. With an iterator: half of what `get` takes."""
        cursor = self._db.iter(_in_bulk())
        for place in wanted:
            key = chunk_key(manifest.kind, manifest.number, place)
            if not cursor.valid() or cursor.key() != key:
                cursor.seek(key)
            there = cursor.valid() and cursor.key() == key
            yield cursor.value() if there else None
            if there:
                cursor.next()

    def _commit(self, batch: WriteBatch, sync: bool) -> None:
        options = WriteOptions()
        options.sync = sync
        try:
            self._db.write(batch, options)
        except Exception as broken:  # the same
            raise SnapshotError(f"{self.dir} does not take a write: {broken}") from broken

    def _starts(self, versions: Iterable[int]) -> set[int]:
        """Numbers of `checkpoint_before` of each of those versions, found faster than one by one."""
        by_lineage: dict[str, list[Manifest]] = {}
        checkpoints = self._manifests["checkpoint"].values()
        for manifest in sorted(checkpoints, key=lambda one: (one.examples_learnt, one.number)):
            by_lineage.setdefault(manifest.lineage, []).append(manifest)
        found = set()
        for number in versions:
            version = self._manifests["version"][number]
            those = by_lineage.get(version.lineage, [])
            place = bisect_right(those, version.examples_learnt, key=lambda manifest: manifest.examples_learnt)
            if place:
                found.add(those[place - 1].number)
        return found

    def _read_manifests(self, kind: Kind) -> dict[int, Manifest]:
        found: dict[int, Manifest] = {}
        cursor = self._db.iter()
        cursor.seek(manifest_key(kind, 0))
        while cursor.valid() and (number := number_of(kind, cursor.key())) is not None:
            found[number] = decode_manifest(cursor.value(), cursor.key())
            cursor.next()
        return found

    def _newest_chunk(self, kind: Kind) -> int:
        """The largest number that any chunk carries, 0 if there is none."""
        cursor = self._db.iter()
        cursor.seek_for_prev(chunk_key(kind, LAST, 2**32 - 1))
        if not cursor.valid() or cursor.key()[:1] != chunk_key(kind, 0, 0)[:1]:
            return 0
        return int.from_bytes(cursor.key()[1:9], "big")


def _in_bulk() -> ReadOptions:
    """For what is read once, and checked by us."""
    options = ReadOptions()
    options.set_verify_checksums(False)
    return options


def _runs(numbers: list[int]) -> Iterable[tuple[int, int]]:
    """First and last of each run of consecutive numbers. numbers: ascending."""
    first = last = None
    for number in numbers:
        if last is not None and number == last + 1:
            last = number
            continue
        if first is not None and last is not None:
            yield first, last
        first = last = number
    if first is not None and last is not None:
        yield first, last
