"""The snapshot format: what goes in comes out, and nothing else is taken for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from schemas.config import ModelConfig
from schemas.errors import SnapshotError
from schemas.snapshot import (
    LAST,
    Manifest,
    chain,
    chunk_key,
    closed,
    decode_manifest,
    decode_rows,
    decode_tensors,
    described,
    encode_manifest,
    encode_rows,
    encode_tensors,
    manifest_key,
    model_config,
    model_identity,
    number_of,
    places,
    refuse_other_model,
    unpack,
    weights_digest,
)

FIELDS = ((1, 0x0123456789ABCDEF), (7, 0xFEDCBA9876543210))


def a_manifest(**changes: Any) -> Manifest:
    """A version without content."""
    plain: dict[str, Any] = {
        "kind": "version", "lineage": "5eed" * 4, "number": 3, "parent": 2, "rotation": 64, "share": 3,
        "model": model_identity(ModelConfig(), 11), "fields": FIELDS, "chunks": (), "rows": 0, "width": 11,
        "created_us": 1_790_000_000_000_000, "examples_learnt": 768, "batches_learnt": 3,
        "cursors": {0: (99, 98, 5), 11: (7, 7, 0)}, "offsets": {0: 41}, "tallies": {"learnt": 768, "late": 1},
        "traces": ({"click_us": 5, "joined_us": 6, "learnt_us": 7},), "training": {"row_optimiser": "adam"},
        "control": 12, "pinned": (2, 3), "back_to": 1,
    }
    return Manifest(**{**plain, **changes})


def packed(
    rows: NDArray[Any], floats: NDArray[Any], chunk_bytes: int = 1 << 20, **tensors: NDArray[Any]
) -> tuple[Manifest, list[bytes]]:
    """A whole snapshot: manifest and chunks."""
    chunks = list(encode_rows(rows, floats, chunk_bytes))
    if tensors:
        chunks += encode_tensors(tensors, "dense", chunk_bytes)
    manifest = a_manifest(
        chunks=tuple(described(chunk) for chunk in chunks), rows=len(rows), width=floats.shape[1]
    )
    return manifest, chunks


some_rows = st.lists(st.integers(0, 2**20 - 1), unique=True, max_size=40).map(sorted)


@given(rows=some_rows, width=st.integers(1, 12), chunk_bytes=st.integers(16, 400), seed=st.integers(0, 99))
def test_rows_come_back_as_they_went_in(rows: list[int], width: int, chunk_bytes: int, seed: int) -> None:
    """Numbers and floats survive to the bit, however they are cut into chunks; NaN and -0.0 included."""
    floats = np.random.default_rng(seed).integers(0, 2**32, (len(rows), width), dtype=np.uint32).view(np.float32)
    manifest, chunks = packed(np.array(rows, np.int64), floats, chunk_bytes)
    got = unpack(manifest, chunks).rows
    assert [int(row) for numbers, _ in got for row in numbers] == rows
    assert b"".join(block.tobytes() for _, block in got) == floats.tobytes()


@given(
    shapes=st.dictionaries(st.text(max_size=9), st.lists(st.integers(0, 4), max_size=3), max_size=5),
    kind=st.sampled_from(["<f4", "<f8", "<i8", "|u1"]),
    chunk_bytes=st.integers(5, 300),
)
def test_tensors_come_back_as_they_went_in(shapes: dict[str, list[int]], kind: str, chunk_bytes: int) -> None:
    """Names, shapes, number types and bytes survive any cut into chunks."""
    named = {name: np.arange(np.prod(shape, dtype=int)).astype(kind).reshape(shape) for name, shape in shapes.items()}
    if "__metadata__" in named:
        return
    got = decode_tensors(list(encode_tensors(named, "state", chunk_bytes)), "state")
    assert got.keys() == named.keys()
    for name, array in named.items():
        assert got[name].dtype == array.dtype
        np.testing.assert_array_equal(got[name], array)


@given(
    number=st.integers(1, LAST), parent=st.none() | st.integers(0, LAST), share=st.integers(0, 63),
    cursors=st.dictionaries(
        st.integers(0, 2**31),
        st.tuples(st.integers(-1, 2**62), st.integers(-1, 2**62), st.integers(0, 1000)),
        max_size=4,
    ),
    tallies=st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.integers(0, 2**62), max_size=4),
)
def test_a_manifest_comes_back_as_it_went_in(
    number: int, parent: int | None, share: int, cursors: dict[int, tuple[int, int, int]], tallies: dict[str, int]
) -> None:
    """Every field of it, under its key."""
    manifest, _ = packed(np.arange(5), np.ones((5, 3), np.float32), bias=np.zeros(1, np.float32))
    manifest = replace(manifest, number=number, parent=parent, share=share, cursors=cursors, tallies=tallies)
    assert decode_manifest(encode_manifest(manifest), manifest_key("version", number)) == manifest


@given(bit=st.integers(0), data=st.data())
def test_a_flipped_bit_or_a_cut_is_refused(bit: int, data: st.DataObject) -> None:
    """Any one bit turned, or any end cut off, of any chunk or of the manifest."""
    rng = np.random.default_rng(3)
    manifest, chunks = packed(
        np.arange(0, 60, 3), rng.random((20, 3), np.float32), 200, w=rng.random((7, 5)), b=np.zeros(1, np.float32)
    )
    parts = [encode_manifest(manifest), *chunks]
    which = data.draw(st.integers(0, len(parts) - 1))
    if data.draw(st.booleans()):
        broken = bytearray(parts[which])
        at = bit % (8 * len(broken))
        broken[at // 8] ^= 1 << at % 8
        parts[which] = bytes(broken)
    else:
        parts[which] = parts[which][: bit % len(parts[which])]
    with pytest.raises(SnapshotError):
        unpack(decode_manifest(parts[0]), parts[1:])


@given(st.binary(max_size=80))
def test_garbage_is_refused(data: bytes) -> None:
    """No bytes make the decoders fail in any other way."""
    for decode in (decode_manifest, decode_rows, lambda piece: decode_tensors([piece])):
        for given_bytes in (data, b"fS\x01\x00" + data, b"fS\x01\x01" + data, b"fM\x01\x00" + data):
            try:
                decode(given_bytes)
            except SnapshotError:
                continue
            assert given_bytes[:2] == b"fS"  # a chunk alone proves nothing: the checksum is in the manifest


@pytest.mark.parametrize(
    "change", ["missing", "a hole", "extra", "swapped", "another row count", "beyond the table", "overlapping chunks"]
)
def test_a_snapshot_that_is_not_what_its_manifest_says_is_refused(change: str) -> None:
    """Chunks missing, too many, in another order; rows that the manifest or the table does not have."""
    manifest, whole = packed(np.arange(30), np.ones((30, 3), np.float32), 200)
    chunks: list[bytes | None] = [*whole]
    assert len(chunks) == 3
    if change == "missing":
        chunks.pop()
    elif change == "a hole":
        chunks[1] = None
    elif change == "extra":
        chunks.append(chunks[0])
    elif change == "swapped":
        chunks[0], chunks[1] = chunks[1], chunks[0]
    elif change == "another row count":
        manifest = replace(manifest, rows=29)
    elif change == "beyond the table":
        manifest = replace(manifest, model={**manifest.model, "bits": 4})
    else:
        manifest = replace(manifest, chunks=(manifest.chunks[0],) * 2, rows=22)
        chunks = [chunks[0]] * 2
    with pytest.raises(SnapshotError, match="version 3 of lineage 5eed5eed"):
        unpack(manifest, chunks)


def test_one_content_can_be_read_without_the_others() -> None:
    """What older snapshots of a chain are needed for is their rows alone."""
    manifest, chunks = packed(np.arange(30), np.ones((30, 3), np.float32), 200, bias=np.ones(2, np.float32))
    rows = unpack(manifest, [chunks[place] for place in places(manifest, "rows")], "rows")
    assert sum(len(numbers) for numbers, _ in rows.rows) == 30
    assert rows.dense == {}
    dense = unpack(manifest, [chunks[place] for place in places(manifest, "dense")], "dense")
    assert not dense.rows
    assert dense.dense["bias"].tolist() == [1, 1]


def test_a_manifest_under_another_key_is_refused() -> None:
    """A version's manifest is not taken for another number's or a checkpoint's."""
    data = encode_manifest(a_manifest())
    for key in (manifest_key("version", 4), manifest_key("checkpoint", 3)):
        with pytest.raises(SnapshotError, match="under the key"):
            decode_manifest(data, key)


def test_keys_sort_by_number() -> None:
    """So that the newest manifest is the last before the end of its prefix, and chunks are apart from manifests."""
    numbers = [1, 255, 256, 2**32, 2**63, LAST]
    keys = [manifest_key("version", number) for number in numbers]
    assert keys == sorted(keys)
    assert [number_of("version", key) for key in keys] == numbers
    assert number_of("checkpoint", keys[0]) is None
    assert number_of("version", chunk_key("version", 1, 0)) is None
    assert chunk_key("version", 1, 2**32 - 1) < chunk_key("version", 2, 0)


def line(numbers: list[int], rotation: int = 4) -> dict[int, Manifest]:
    """A lineage of these numbers, each the parent of the next."""
    return {
        number: a_manifest(number=number, parent=parent, rotation=rotation, share=number % rotation)
        for parent, number in zip([None, *numbers[:-1]], numbers, strict=True)
    }


def test_a_chain_is_one_rotation_or_reaches_back_to_the_first() -> None:
    """Four shares need four snapshots; fewer there are only since the first, which holds everything."""
    manifests = line([1, 2, 3, 4, 5, 6])
    assert chain(manifests, 6) == [3, 4, 5, 6]
    assert chain(manifests, 3) == [1, 2, 3]
    assert chain(line([1, 2, 3], rotation=1), 3) == [3]


def test_a_chain_over_a_change_of_rotation_holds_every_share_of_one_of_them() -> None:
    """2, 3 have halves; 4 to 6 have quarters: 6 alone misses a quarter, so the halves come too."""
    manifests = line([1, 2, 3, 4, 5, 6])
    for number in (2, 3):
        manifests[number] = replace(manifests[number], rotation=2, share=number % 2)
    assert chain(manifests, 6) == [2, 3, 4, 5, 6]


def test_what_is_wanted_is_kept_with_all_that_it_needs() -> None:
    """One rotation back from each; one that is not whole any more takes nothing from the next, which is."""
    manifests = line([1, 2, 3, 4, 5, 6, 7, 8])
    assert closed(manifests, {7, 8}) == {4, 5, 6, 7, 8}
    assert closed(manifests, {1, 8}) == {1, 5, 6, 7, 8}
    del manifests[1], manifests[2]
    assert closed(manifests, {5, 6}) == {3, 4, 5, 6}


def test_a_gap_in_a_chain_is_named() -> None:
    """With the number missing, the one that needs it and the one that was wanted."""
    manifests = line([1, 2, 3, 4, 5, 6])
    del manifests[4]
    with pytest.raises(SnapshotError, match="snapshot 4, parent of 5, is not there: 6 cannot be loaded whole"):
        chain(manifests, 6)
    with pytest.raises(SnapshotError, match="snapshot 9 is not there: 9 cannot"):
        chain(manifests, 9)


def test_a_chain_does_not_cross_into_another_lineage() -> None:
    """A parent by number that belongs to another lineage is a gap too."""
    manifests = line([1, 2, 3])
    manifests[2] = replace(manifests[2], lineage="0ther")
    with pytest.raises(SnapshotError, match="another lineage"):
        chain(manifests, 3)


def test_another_model_is_refused_with_both_sides() -> None:
    """Every difference, in settings and in fields, with what is there and what is here."""
    manifest = a_manifest()
    same = model_identity(ModelConfig(name="another name"), 11)
    refuse_other_model(manifest, same, FIELDS, "")
    other = model_identity(ModelConfig(bits=22, hidden=(8, 4)), 11)
    with pytest.raises(SnapshotError) as refused:
        refuse_other_model(manifest, other, [FIELDS[0], (9, 5)], "Still serving 2.")
    for part in ("version 3", "model.bits is 20 there and 22 here", "[64] there and [8, 4] here",
                 "field 7 is fedcba9876543210 there and absent here", "field 9 is absent there", "Still serving 2."):
        assert part in str(refused.value)


def test_the_configuration_comes_back_from_a_manifest() -> None:
    """So that a reader can build the model from the snapshot alone."""
    config = ModelConfig(name="m", schema="s", hidden=(8, 4), bits=9)
    assert model_config(a_manifest(model=model_identity(config, 11)), "m", "s") == config
    with pytest.raises(SnapshotError, match="cannot build"):
        model_config(a_manifest(model={**model_identity(config, 11), "wheels": 4}), "m", "s")


def test_same_weights_have_the_same_digest_and_others_another() -> None:
    """It sees every row number, weight and dense weight, and nothing else."""
    rows, weights = np.array([1, 5]), np.arange(6, dtype=np.float32).reshape(2, 3)
    dense = {"a": np.zeros(2, np.float32), "b": np.ones((1, 2), np.float32)}
    digest = weights_digest(rows, weights, dense)
    assert weights_digest(rows.astype(np.uint32), weights.copy(), dict(reversed(dense.items()))) == digest
    others = [
        weights_digest(np.array([1, 6]), weights, dense),
        weights_digest(rows, weights + np.float32(1e-6), dense),
        weights_digest(rows, weights, {**dense, "a": np.array([0, 1e-30], np.float32)}),
        weights_digest(rows, weights, {"a": dense["a"], "c": dense["b"]}),
        weights_digest(rows, weights, {**dense, "b": np.ones((2, 1), np.float32)}),
    ]
    assert len({digest, *others}) == 6
