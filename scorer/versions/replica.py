"""A store that another machine's trainer fills: what `model-updates` brings, written so that a scorer follows it as it follows
the trainer's own.

A version's chunks are written as they come, its manifest last, with the place in the topic where its reader goes on: killed
anywhere, the store holds whole versions, and goes on behind the newest.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType

from rocksdict import DBCompressionType, Options, Rdict, WriteBatch

from schemas.errors import ConfigError, SnapshotError
from schemas.snapshot import (
    LAST,
    MIRROR,
    Manifest,
    chain,
    chunk_key,
    closed,
    decode_manifest,
    manifest_key,
    number_of,
)


class Replica:
    """Versions in one RocksDB directory, with the place in the topic behind the newest. For one process and one thread."""

    def __init__(self, store_dir: Path) -> None:
        """Opens it, or makes it. Raises SnapshotError if another process has it open or it cannot be read, ConfigError if it
        is a trainer's own."""
        self.dir = store_dir
        self._manifests: dict[int, Manifest] = {}
        self._place: tuple[int, int] | None = None
        self._taken_last = 0
        self._open()

    def close(self) -> None:
        """Let go of the directory."""
        self._db.close()

    @property
    def manifests(self) -> Mapping[int, Manifest]:
        """All versions there are, by number, ascending."""
        return MappingProxyType(self._manifests)

    @property
    def newest(self) -> Manifest | None:
        return next(reversed(self._manifests.values()), None)

    @property
    def place(self) -> tuple[int, int] | None:
        """History, and the offset behind the version taken last; None before the first."""
        return self._place

    @property
    def taken_last(self) -> Manifest | None:
        """The version in front of `place`; None where it is gone again."""
        return self._manifests.get(self._taken_last)

    def whole(self) -> bool:
        """Whether the newest can be loaded whole."""
        if not self._manifests:
            return False
        try:
            chain(self._manifests, max(self._manifests))
        except SnapshotError:
            return False
        return True

    def put_chunk(self, key: bytes, value: bytes) -> None:
        """A chunk of a version that is not there yet."""
        batch = WriteBatch(raw_mode=True)
        batch.put(key, value)
        self._write(batch)

    def take(self, manifest: Manifest, key: bytes, value: bytes, history: int, offset: int) -> None:
        """The version is whole: from here on it is there. key, value: the manifest as it came."""
        batch = WriteBatch(raw_mode=True)
        batch.put(key, value)
        batch.put(MIRROR, f"{history} {offset} {manifest.number}".encode())
        self._write(batch)
        self._manifests = dict(sorted([*self._manifests.items(), (manifest.number, manifest)]))
        self._place, self._taken_last = (history, offset), manifest.number

    def expire(self, now_us: int, keep_s: float, pinned: Collection[int]) -> int:
        """Delete versions older than keep_s, as the trainer's store does: what stays can be loaded whole. Returns how many."""
        newest = max(self._manifests, default=0)
        wanted = {
            number for number, manifest in self._manifests.items()
            if number == newest or number in pinned or manifest.created_us >= now_us - keep_s * 1e6
        }
        kept = closed(self._manifests, wanted)
        gone = [number for number in self._manifests if number not in kept]
        batch = WriteBatch(raw_mode=True)
        for number in gone:
            batch.delete_range(manifest_key("version", number), manifest_key("version", number + 1))
            batch.delete_range(chunk_key("version", number, 0), chunk_key("version", number + 1, 0))
            del self._manifests[number]
        if gone:
            self._write(batch)
        return len(gone)

    def forget(self) -> None:
        """All of it: what comes next is of another history. A new directory, since nothing in a store is ever overwritten:
        those who read it notice, and open it anew."""
        self._db.close()
        shutil.rmtree(self.dir)
        self._open()

    def _open(self) -> None:
        self.dir.mkdir(parents=True, exist_ok=True)
        options = Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_compression_type(DBCompressionType.none())  # floats do not compress
        options.set_keep_log_file_num(2)
        try:
            self._db = Rdict(str(self.dir), options)
        except Exception as broken:  # rocksdict raises bare Exception for all that RocksDB reports
            raise SnapshotError(
                f"{self.dir} cannot be opened for writing: {broken}. Is another process writing it?"
            ) from broken
        self._manifests = {}
        cursor = self._db.iter()
        cursor.seek(manifest_key("checkpoint", 0))
        if cursor.valid() and number_of("checkpoint", cursor.key()) is not None:
            del cursor
            self._db.close()
            raise ConfigError(f"{self.dir} is a trainer's own store: give the mirror another `var`")
        cursor.seek(manifest_key("version", 0))
        while cursor.valid() and (number := number_of("version", cursor.key())) is not None:
            self._manifests[number] = decode_manifest(cursor.value(), cursor.key())
            cursor.next()
        del cursor
        self._place, self._taken_last = None, 0
        if (place := self._db.get(MIRROR)) is not None:
            history, offset, self._taken_last = map(int, place.split())
            self._place = (history, offset)
        self._drop_torn()

    def _drop_torn(self) -> None:
        """Chunks that a kill left without their manifest."""
        batch, after = WriteBatch(raw_mode=True), 0
        for number in [*self._manifests, LAST]:
            if number > after:
                batch.delete_range(chunk_key("version", after, 0), chunk_key("version", number, 0))
            after = number + 1
        self._write(batch)

    def _write(self, batch: WriteBatch) -> None:
        try:
            self._db.write(batch)
        except Exception as broken:  # the same
            raise SnapshotError(f"{self.dir} does not take a write: {broken}") from broken
