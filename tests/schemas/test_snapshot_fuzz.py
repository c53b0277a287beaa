"""Snapshots that somebody has damaged, or made up: refused with a reason, at once, whatever they are.

The decoders are given valid data with pieces changed, checksums mended where they would stop it early, so that what lies
behind them is reached too. FUZZ_INPUTS=100000 makes as many; the suite makes a few thousand.
"""

from __future__ import annotations

import os
import random
import struct
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import orjson
import pytest
import xxhash

from schemas.config import ModelConfig
from schemas.errors import SnapshotError
from schemas.snapshot import (
    Manifest,
    chain,
    checkpoint_before,
    closed,
    decode_manifest,
    decode_rows,
    decode_tensors,
    described,
    encode_manifest,
    encode_rows,
    encode_tensors,
    model_config,
    model_identity,
    places,
    refuse_other_model,
    unpack,
    verify,
)
from schemas.updates import Told, is_of, manifest_headers, told

INPUTS = int(os.environ.get("FUZZ_INPUTS", "4000"))
LONGEST_S = 1.0 if INPUTS == 4000 else 5.0    # for one input; a busy machine may stop us for a while in a long run

VALUES: list[Any] = [
    None, True, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 0.5, 1e308, "", "a", "ffffffffffffffff", "-1", [], [None], [[]],
    [[1, 2, 3]], [["rows", 9, "00"]], {}, {"": None}, {"0": [1]}, {"bits": 99}, "version", "checkpoint", "rows",
]


def whole() -> tuple[Manifest, list[bytes]]:
    """A version as a trainer writes it."""
    rng = np.random.default_rng(5)
    chunks = [
        *encode_rows(np.arange(0, 90, 3), rng.random((30, 3), np.float32), 200),
        *encode_tensors({"w": rng.random((5, 4), np.float32), "b": np.zeros(1, np.float32)}, "dense", 150),
    ]
    manifest = Manifest(
        kind="version", lineage="5eed" * 8, number=7, parent=6, rotation=4, share=3,
        model=model_identity(ModelConfig(bits=9), 3), fields=((1, 99), (2, 98)), chunks=tuple(map(described, chunks)),
        rows=30, width=3, created_us=5, examples_learnt=70, batches_learnt=7, cursors={0: (1, 2, 3)}, offsets={0: 4},
        tallies={"late": 1}, traces=({"click_us": 1},), pinned=(3,),
    )
    return manifest, chunks


def signed(body: bytes) -> bytes:
    """A manifest of that JSON with a checksum that fits."""
    return struct.pack("<2sBBQ", b"fM", 1, 0, xxhash.xxh3_64_intdigest(body)) + body


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Bits turned, bytes cut out, put in, overwritten with runs and large numbers."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        at = rng.randrange(len(out) + 1)
        kind = rng.randrange(6)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[at : at + rng.choice([1, 4, 50])]
        elif kind == 2:
            out[at:at] = rng.randbytes(rng.choice([1, 4, 50]))
        elif kind == 3:
            out[at : at + 4] = struct.pack("<I", rng.choice([0, 1, 2**31, 2**32 - 1]))
        elif kind == 4:
            out[at : at + 8] = struct.pack("<Q", rng.choice([0, 2**32, 2**63, 2**64 - 1]))
        else:
            del out[at:]
    return bytes(out)


def strange(rng: random.Random, plain: dict[str, Any]) -> bytes:
    """The manifest's JSON with values that it cannot have, keys missing or added."""
    changed = orjson.loads(orjson.dumps(plain))
    for _ in range(rng.choice([1, 1, 2, 4])):
        key = rng.choice([*changed, "wheels"])
        kind = rng.randrange(4)
        if kind == 0:
            changed.pop(key, None)
        elif kind == 1 and isinstance(changed.get(key), dict) and changed[key]:
            changed[key][rng.choice(list(changed[key]))] = rng.choice(VALUES)
        elif kind == 2 and isinstance(changed.get(key), list) and changed[key]:
            changed[key][rng.randrange(len(changed[key]))] = rng.choice(VALUES)
        else:
            changed[key] = rng.choice(VALUES)
    try:
        return orjson.dumps(changed)
    except (TypeError, orjson.JSONEncodeError):
        return orjson.dumps({})


def used(manifest: Manifest, chunks: list[bytes]) -> None:
    """All that a reader does with a manifest that it could decode."""
    unpack(manifest, chunks)
    for only in ("rows", "dense", "state"):
        unpack(manifest, [chunks[place] for place in places(manifest, only) if place < len(chunks)], only)


def manifest_alone(manifest: Manifest) -> None:
    """What is done with it before any chunk is read."""
    chain({manifest.number: manifest}, manifest.number)


def settings_of(manifest: Manifest) -> None:
    model_config(manifest, "m", "s")
    refuse_other_model(manifest, model_identity(ModelConfig(), 3), [(1, 99)], "")


def attempts(rng: random.Random) -> list[Callable[[], object]]:
    """What to do with one made-up input; each may raise SnapshotError and nothing else."""
    manifest, chunks = WHOLE
    place = rng.randrange(len(chunks))
    chunk = damaged(rng, chunks[place])
    kind = rng.randrange(5)
    if kind == 0:
        mine = damaged(rng, encode_manifest(manifest))
        return [lambda: decode_manifest(mine), lambda: decode_manifest(signed(mine[12:]))]
    if kind == 1:
        made = decode_or_none(signed(strange(rng, PLAIN)))
        if made is None:
            return []
        return [
            lambda: used(made, chunks), lambda: manifest_alone(made), lambda: settings_of(made),
            lambda: closed({made.number: made}, {made.number}), lambda: checkpoint_before([made, manifest], manifest),
            lambda: decode_manifest(encode_manifest(made)),
        ]
    if kind == 2:
        return [
            lambda: decode_rows(chunk), lambda: decode_tensors([chunk]), lambda: decode_tensors([chunk], "state"),
            lambda: described(chunk), lambda: verify(manifest.chunks[place], chunk),
        ]
    if kind == 3:     # a chunk that its manifest vouches for
        listed = list(manifest.chunks)
        try:
            listed[place] = described(chunk)
        except SnapshotError:
            return []
        both = [*chunks[:place], chunk, *chunks[place + 1 :]]
        liar = decode_or_none(encode_manifest(with_chunks(manifest, listed)))
        return [] if liar is None else [lambda: used(liar, both)]
    headers = [(name, damaged(rng, value)) for name, value in HEADERS if rng.random() < 0.9]
    return [lambda: told(headers), lambda: is_of("m", headers)]


def with_chunks(manifest: Manifest, listed: list[Any]) -> Manifest:
    return replace(manifest, chunks=tuple(listed))


def decode_or_none(data: bytes) -> Manifest | None:
    try:
        return decode_manifest(data)
    except SnapshotError:
        return None


WHOLE = whole()
PLAIN: dict[str, Any] = orjson.loads(encode_manifest(WHOLE[0])[12:])
HEADERS = manifest_headers(Told("m", 5, ("5eed" * 8, 6), 17, (3, 4)))


@pytest.mark.parametrize("seed", range(4))
def test_nothing_but_a_snapshot_error_and_no_hang(seed: int) -> None:
    """Every input is taken or refused with SnapshotError, in at most a second."""
    rng = random.Random(seed)
    made, refused = 0, 0
    while made < INPUTS // 4:
        for attempt in attempts(rng):
            made += 1
            began = time.thread_time()
            try:
                attempt()
            except SnapshotError:
                refused += 1
            assert time.thread_time() - began < LONGEST_S
    assert refused > made // 4
