"""A version as one file in memory: the follower writes it once, each worker maps it, and it is gone when nobody holds it.

Made by memfd_create, so it has no name, survives no process and needs no cleaning up; sealed, so that what one worker
reads no other can change. Linux only.

    bytes of the manifest and of the list: 2 x u64 LE · manifest (schemas/snapshot.py) · list: JSON [[name, type, shape], …]
    then the arrays of the list, each from a multiple of 64 on: rows, floats (or table), and the dense part's by name
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from schemas.snapshot import Arrays, Floats, Manifest, Unpacked, decode_manifest, encode_manifest

_HEAD = struct.Struct("<QQ")
_ALIGN = 64  # a cache line, and what vector instructions like best
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_POPULATE_READ = 22  # MADV_POPULATE_READ, which Python does not name; MAP_POPULATE would copy every page to be written to
_ROWS, _FLOATS, _TABLE = "rows", "floats", "table"
_DENSE = "dense."


@dataclass(frozen=True, slots=True)
class Segment:
    """What a worker maps. content: the version's rows, in one piece. table: instead of them all rows, (2^bits, W)."""

    manifest: Manifest
    content: Unpacked
    table: Floats | None


def of_version(manifest: Manifest, content: Unpacked) -> int:
    """The file of a version that is applied onto its parent. Returns its descriptor, which the caller closes."""
    if not content.rows:
        return _sealed(manifest, {}, content.dense)
    rows = np.concatenate([numbers for numbers, _ in content.rows])
    return _sealed(manifest, {_ROWS: rows, _FLOATS: np.concatenate([floats for _, floats in content.rows])}, content.dense)


def of_table(manifest: Manifest, table: Floats, dense: Arrays) -> int:
    """The file of the whole table as it is at a version. The same."""
    return _sealed(manifest, {_TABLE: table}, dense)


def opened(descriptor: int) -> Segment:
    """What is in a file, mapped; its descriptor may be closed. The arrays are this process's own to write to."""
    mapped = mmap.mmap(descriptor, 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
    with suppress(OSError):  # Linux before 5.14 has no such advice: pages then come one by one, while rows are copied
        mapped.madvise(_POPULATE_READ)
    about, listed = _HEAD.unpack_from(mapped)
    manifest = decode_manifest(mapped[_HEAD.size : _HEAD.size + about])
    at = _HEAD.size + about + listed
    arrays: dict[str, NDArray[Any]] = {}
    for name, kind, shape in orjson.loads(mapped[at - listed : at]):
        at = _aligned(at)
        arrays[name] = np.frombuffer(mapped, kind, math.prod(shape), at).reshape(shape)
        at += arrays[name].nbytes
    dense = {name.removeprefix(_DENSE): array for name, array in arrays.items() if name.startswith(_DENSE)}
    rows = ((arrays[_ROWS], arrays[_FLOATS]),) if _ROWS in arrays else ()
    return Segment(manifest, Unpacked(rows, dense, {}), arrays.get(_TABLE))


def _sealed(manifest: Manifest, rows: Mapping[str, NDArray[Any]], dense: Arrays) -> int:
    arrays = {name: np.require(array, requirements="C") for name, array in (
        *rows.items(), *((_DENSE + name, array) for name, array in dense.items())
    )}
    about = encode_manifest(manifest)
    listed = orjson.dumps([[name, array.dtype.str, array.shape] for name, array in arrays.items()])
    descriptor = os.memfd_create("freshet-version", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        at = _write(descriptor, 0, b"".join((_HEAD.pack(len(about), len(listed)), about, listed)))
        for array in arrays.values():
            at = _write(descriptor, _aligned(at), array.reshape(-1).view(np.uint8).data)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _write(descriptor: int, at: int, data: bytes | memoryview) -> int:
    """Returns where it ends."""
    left = memoryview(data)
    while left:
        written = os.pwrite(descriptor, left, at)
        at, left = at + written, left[written:]
    return at


def _aligned(at: int) -> int:
    return -(-at // _ALIGN) * _ALIGN
