"""The one file that reads RocksDB: a secondary of the trainer's store.

Nothing in the store is ever overwritten (a secondary can serve stale values of overwritten keys for ever), so whatever
is found is right; what is missing was deleted, or is not whole yet. All reads go through iterators, which saw new keys
in every trial. rocksdict holds the GIL while catching up: 0.5 ms where nothing is new, about 5 ms for 100,000 rows.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray
from rocksdict import AccessType, Options, Rdict

from schemas.errors import SnapshotError
from schemas.snapshot import (
    LAST,
    Floats,
    Kind,
    Manifest,
    Unpacked,
    chain,
    chunk_key,
    decode_manifest,
    manifest_key,
    number_of,
    unpack,
    verify,
)

ANYWAY_S = 1.0  # a catch-up that RocksDB ended short of what was there is made good after so long, even if nothing is written


@dataclass(frozen=True, slots=True, eq=False)
class Whole:
    """All rows ever touched, ascending, and the dense weights. numbers: the snapshots that it took, oldest first."""

    numbers: tuple[int, ...]
    rows: NDArray[np.int64]
    floats: Floats
    dense: dict[str, NDArray[Any]]


class SnapshotReader:
    """The versions (or checkpoints) in a store that another process writes. For one thread."""

    def __init__(self, store_dir: Path, secondary_dir: Path, kind: Kind = "version") -> None:
        """secondary_dir: a directory of this reader alone (RocksDB keeps its log there), made here, removed by `close`.

        The store need not exist yet: until it does, `poll` finds nothing.
        """
        self.store_dir = store_dir
        self.kind: Kind = kind
        self._secondary_dir = secondary_dir
        self._db: Rdict | None = None
        self._identity: tuple[int, int] | None = None
        self._written: list[tuple[str, int, int]] | None = None  # as of the last catch-up that succeeded
        self._caught_up_at = 0.0
        self._newest: int | None = None

    def __enter__(self) -> SnapshotReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def poll(self) -> int | None:
        """Catch up with the writer; the number of the newest snapshot, None where there is none yet.

        Raises SnapshotError if the store cannot be read now.
        """
        if not self._open():
            return None
        assert self._db is not None
        written = self._logs()  # before it catches up: what is written meanwhile is seen the next time
        now = time.monotonic()
        if written is not None and written == self._written and now - self._caught_up_at < ANYWAY_S:
            return self._newest
        self._written = None
        try:
            self._db.try_catch_up_with_primary()
        except Exception as broken:  # rocksdict raises bare Exception for all that RocksDB reports
            self._drop()
            raise SnapshotError(f"{self.store_dir}: cannot catch up with the writer: {broken}") from broken
        cursor = self._db.iter()
        cursor.seek_for_prev(manifest_key(self.kind, LAST))
        self._written, self._caught_up_at = written, now
        self._newest = number_of(self.kind, cursor.key()) if cursor.valid() else None
        return self._newest

    def numbers(self) -> list[int]:
        """Numbers of all snapshots as of the last `poll`, ascending."""
        return [number for number, _ in self._manifest_bytes()]

    def manifest(self, number: int) -> Manifest:
        """One manifest as of the last `poll`. Raises SnapshotError if it is broken or not there."""
        key = manifest_key(self.kind, number)
        return decode_manifest(self._value(key), key)

    def manifests(self) -> Mapping[int, Manifest]:
        """All as of the last `poll`, by number, each read when it is asked for; a broken one counts as absent."""
        return _Manifests(self)

    def read(self, manifest: Manifest) -> Unpacked:
        """The snapshot's rows and tensors, each chunk checked against the manifest. Raises SnapshotError."""
        return unpack(manifest, self._chunks(manifest))

    def pairs(self, manifest: Manifest) -> Iterator[tuple[bytes, bytes]]:
        """A snapshot as it stands in the store: key and value of each chunk, checked, then of the manifest. Raises
        SnapshotError."""
        place = -1
        for place, data in enumerate(self._chunks(manifest)):
            verify(manifest.chunks[place], data)
            yield chunk_key(self.kind, manifest.number, place), data
        if place + 1 != len(manifest.chunks):
            raise SnapshotError(f"{self.kind} {manifest.number}: {place + 1} chunks of the {len(manifest.chunks)} listed")
        key = manifest_key(self.kind, manifest.number)
        yield key, self._value(key)

    def whole(self, number: int, read: Callable[[], None] = lambda: None) -> Whole:
        """The whole table as it was at one snapshot, put together from its chain. Raises SnapshotError.

        read: called after each snapshot of the chain.
        """
        manifests = self.manifests()
        numbers = chain(manifests, number)
        last = manifests[number]
        table = np.zeros((1 << int(last.model["bits"]), last.width), np.float32)     # (2^bits, width)
        touched = np.zeros(len(table), bool)
        dense: dict[str, NDArray[Any]] = {}
        for one in numbers:
            content = self.read(manifests[one])
            for rows, floats in content.rows:
                if floats.shape[1] != last.width:
                    raise SnapshotError(f"{self.kind} {one} has rows of {floats.shape[1]} floats, {number} of {last.width}")
                table[rows] = floats
                touched[rows] = True
            dense = content.dense
            read()
        rows_touched = np.flatnonzero(touched)
        return Whole(tuple(numbers), rows_touched, table[rows_touched], dense)

    def close(self) -> None:
        """Let go of the store and remove the secondary's directory."""
        self._drop()
        shutil.rmtree(self._secondary_dir, ignore_errors=True)

    def _logs(self) -> list[tuple[str, int, int]] | None:
        """Name, size and time of the files that the writer appends to for all that it does; None where they cannot be listed.

        Where they stand still there is nothing to catch up on: a look at them takes a tenth of the time that RocksDB's does.
        """
        try:
            with os.scandir(self.store_dir) as entries:
                logs = [entry for entry in entries if entry.name.endswith(".log") or entry.name.startswith("MANIFEST")]
                return sorted((entry.name, (found := entry.stat()).st_size, found.st_mtime_ns) for entry in logs)
        except OSError:
            return None

    def _value(self, key: bytes) -> bytes:
        """Of a manifest's key."""
        if self._db is not None:
            cursor = self._db.iter()
            cursor.seek(key)
            if cursor.valid() and cursor.key() == key:
                found: bytes = cursor.value()
                return found
        raise SnapshotError(f"{self.kind} {number_of(self.kind, key)} is not in {self.store_dir}")

    def _chunks(self, manifest: Manifest) -> Iterator[bytes]:
        if self._db is None:
            return
        cursor = self._db.iter()
        cursor.seek(chunk_key(manifest.kind, manifest.number, 0))
        for place in range(len(manifest.chunks)):
            if not cursor.valid() or cursor.key() != chunk_key(manifest.kind, manifest.number, place):
                return  # `unpack` says how many there were
            yield cursor.value()
            cursor.next()

    def _manifest_bytes(self) -> Iterator[tuple[int, bytes]]:
        if self._db is None:
            return
        cursor = self._db.iter()
        cursor.seek(manifest_key(self.kind, 0))
        while cursor.valid():
            number = number_of(self.kind, cursor.key())
            if number is None:
                return
            yield number, cursor.value()
            cursor.next()

    def _open(self) -> bool:
        """True once the store is open. A store that was removed and made anew is opened anew."""
        try:
            status = (self.store_dir / "IDENTITY").stat()  # written once, when RocksDB creates a store
        except OSError:
            self._drop()
            return False
        identity = (status.st_ino, status.st_ctime_ns)
        if self._db is not None and identity == self._identity:
            return True
        self._drop()
        self._secondary_dir.mkdir(parents=True, exist_ok=True)
        options = Options(raw_mode=True)
        options.create_if_missing(False)
        options.set_max_open_files(-1)  # files that the writer has removed stay readable
        options.set_max_log_file_size(1 << 20)  # RocksDB logs every catch-up: 400 MB a day at 50 a second
        options.set_keep_log_file_num(2)
        try:
            self._db = Rdict(
                str(self.store_dir), options, access_type=AccessType.secondary(str(self._secondary_dir))
            )
        except Exception as broken:  # the same
            if not (self.store_dir / "CURRENT").exists():
                return False  # in the middle of its creation: RocksDB writes that file last
            raise SnapshotError(f"{self.store_dir} cannot be opened: {broken}") from broken
        self._identity = identity
        return True

    def _drop(self) -> None:
        if self._db is not None:
            with suppress(Exception):  # closing a reader cannot lose anything
                self._db.close()
        self._db = None
        self._identity = None
        self._written = None


class _Manifests(Mapping[int, Manifest]):
    def __init__(self, reader: SnapshotReader) -> None:
        self._reader = reader
        self._read: dict[int, Manifest] = {}

    def __getitem__(self, number: int) -> Manifest:
        if number not in self._read:
            try:
                self._read[number] = self._reader.manifest(number)
            except SnapshotError as absent:
                raise KeyError(number) from absent
        return self._read[number]

    def __iter__(self) -> Iterator[int]:
        return iter(self._reader.numbers())

    def __len__(self) -> int:
        return len(self._reader.numbers())


def own_secondary_dir(parent: Path, role: str) -> Path:
    """A directory for this process's secondary; those that killed processes left behind are removed."""
    if parent.is_dir():
        for left in parent.iterdir():
            pid = left.name.rpartition("-")[2]
            if pid.isdigit() and not psutil.pid_exists(int(pid)):
                shutil.rmtree(left, ignore_errors=True)
    return parent / f"{role}-{os.getpid()}"
