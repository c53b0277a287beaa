"""The snapshot format: what the trainer writes and scorers read. Bytes in, bytes out; who keeps them is another file.

A snapshot is a *version* (what serving needs) or a *checkpoint* (what resuming needs): chunks, then one manifest that
lists them with length and checksum. It exists once its manifest does; nothing is ever overwritten, no number used
twice.

    key of a chunk      "V" | "K"   number u64 BE   place of the chunk u32 BE
    key of a manifest   "v" | "k"   number u64 BE       (so a reverse seek finds the newest)
    chunk               "fS" format u8 content u8 · then by content:
      rows              count, width, 0 u32 LE · row numbers u32 LE ascending · floats f32 LE (count, width)
      dense, state      a piece of one safetensors file: the pieces of all chunks of that content, in order
    manifest            "fM" format u8 0 · xxh3_64 of the rest u64 LE · JSON

A snapshot carries the rows touched since its parent and, of all rows ever touched, those with row mod rotation =
share; its share is the one after its parent's. So `rotation` snapshots in a row hold the whole table: applied from the
oldest to the newest, the last occurrence of a row is the right one. The first of a lineage holds everything.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import numpy as np
import orjson
import xxhash
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as tensors_from_bytes
from safetensors.numpy import save as tensors_to_bytes

from schemas.config import ModelConfig
from schemas.errors import ConfigError, SnapshotError

Kind = Literal["version", "checkpoint"]
Content = Literal["rows", "dense", "state"]
Rows = NDArray[np.uint32]
Floats = NDArray[np.float32]
Arrays = Mapping[str, NDArray[Any]]

FORMAT = 1
# RocksDB reads and writes values of 64 KiB to 1 MiB fastest (4.4 ms per 100k rows). Not all of the MiB: with its key, headers
# and Kafka's own bytes a chunk is a record below 1,048,588 bytes, the limit of a broker that nobody has configured.
CHUNK_BYTES = (1 << 20) - 4096

_CONTENTS: tuple[Content, ...] = ("rows", "dense", "state")
_CHUNK_HEAD = struct.Struct("<2sBB")
_ROWS_HEAD = struct.Struct("<2sBBIII")
_MANIFEST_HEAD = struct.Struct("<2sBBQ")
_LETTERS: dict[Kind, tuple[bytes, bytes]] = {"version": (b"V", b"v"), "checkpoint": (b"K", b"k")}


@dataclass(frozen=True, slots=True)
class Chunk:
    """What the manifest keeps of a chunk."""

    content: Content
    bytes: int
    checksum: int  # xxh3_64 over the whole chunk


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """All about one snapshot but its chunks.

    parent: number of the one before it in this lineage, None for the first. model: `model_identity`, what a reader must
    agree on; fields: number and digest of each field, in the order of the model's columns. A checkpoint names the
    newest version there was (`version`), how its rows are laid out (`training`), and where each input goes on: cursors
    by source partition (trigger, offset, item), offsets by partition of `examples`. It also names the first order of
    model-control that it does not know (`control`), and the versions pinned by those that it does. The first version
    after a rollback names the one whose weights it has (`back_to`).
    """

    kind: Kind
    lineage: str
    number: int
    parent: int | None
    rotation: int
    share: int
    model: Mapping[str, Any]
    fields: tuple[tuple[int, int], ...]
    chunks: tuple[Chunk, ...]
    rows: int
    width: int                                        # floats per row in this snapshot
    created_us: int                                   # wall clock
    examples_learnt: int
    batches_learnt: int
    cursors: Mapping[int, tuple[int, int, int]] = field(default_factory=dict)
    offsets: Mapping[int, int] = field(default_factory=dict)
    tallies: Mapping[str, int] = field(default_factory=dict)
    traces: tuple[Mapping[str, Any], ...] = ()        # examples followed from click to served score
    version: int | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    control: int = 0
    pinned: tuple[int, ...] = ()
    back_to: int | None = None

    @property
    def bytes(self) -> int:
        """All chunks together."""
        return sum(chunk.bytes for chunk in self.chunks)


# --- keys ---


def chunk_key(kind: Kind, number: int, place: int) -> bytes:
    """Key of one chunk."""
    return _LETTERS[kind][0] + struct.pack(">QI", number, place)


def manifest_key(kind: Kind, number: int) -> bytes:
    """Key of a manifest. Keys sort by number; `manifest_key(kind, LAST)` is after every manifest of that kind."""
    return _LETTERS[kind][1] + struct.pack(">Q", number)


LAST = 2**64 - 1
MIRROR = b"u"  # the one other key: a store that has it is filled from model-updates (scorer/versions/replica.py), by no trainer


def number_of(kind: Kind, key: bytes) -> int | None:
    """The number in a manifest's key; None where it is no manifest of that kind."""
    if len(key) != 9 or key[:1] != _LETTERS[kind][1]:
        return None
    return int.from_bytes(key[1:], "big")


def chunk_place(kind: Kind, key: bytes) -> tuple[int, int] | None:
    """Number and place in a chunk's key; None where it is no chunk's of that kind."""
    if len(key) != 13 or key[:1] != _LETTERS[kind][0]:
        return None
    number, place = struct.unpack(">QI", key[1:])
    return number, place


# --- chunks ---


def encode_rows(rows: NDArray[np.integer], floats: Floats, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
    """Chunks of rows. rows: (n,) ascending, each below 2^32. floats: (n, W)."""
    count, width = floats.shape
    if rows.shape != (count,) or width < 1:
        raise SnapshotError(f"{rows.shape} row numbers for floats of shape {floats.shape}")
    if count and (int(rows[0]) < 0 or int(rows[-1]) >= 2**32 or bool((rows[1:] <= rows[:-1]).any())):
        raise SnapshotError("row numbers must ascend, each once, within 32 bits")
    per_chunk = max(1, (chunk_bytes - _ROWS_HEAD.size) // (4 + 4 * width))
    for start in range(0, count, per_chunk):
        numbers = rows[start : start + per_chunk].astype("<u4")
        head = _ROWS_HEAD.pack(b"fS", FORMAT, _CONTENTS.index("rows"), len(numbers), width, 0)
        yield b"".join((head, numbers.tobytes(), floats[start : start + per_chunk].astype("<f4", copy=False).tobytes()))


def decode_rows(data: bytes) -> tuple[Rows, Floats]:
    """Row numbers (n,) and floats (n, W), read-only views of the bytes. Raises SnapshotError."""
    _head(data, "rows")
    if len(data) < _ROWS_HEAD.size:
        raise SnapshotError(f"a chunk of rows cut to {len(data)} bytes")
    _, _, _, count, width, _ = _ROWS_HEAD.unpack_from(data)
    if width < 1 or count < 1 or len(data) != _ROWS_HEAD.size + 4 * count * (1 + width):
        raise SnapshotError(f"{len(data)} bytes do not hold {count} rows of {width} floats")
    rows = np.frombuffer(data, "<u4", count, _ROWS_HEAD.size)
    floats = np.frombuffer(data, "<f4", count * width, _ROWS_HEAD.size + 4 * count).reshape(count, width)
    if bool((rows[1:] <= rows[:-1]).any()):
        raise SnapshotError("row numbers do not ascend")
    return rows, floats


def encode_tensors(named: Arrays, content: Content = "dense", chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
    """Chunks of named arrays of any shape and number type."""
    data = tensors_to_bytes({name: np.ascontiguousarray(array) for name, array in sorted(named.items())})
    head = _CHUNK_HEAD.pack(b"fS", FORMAT, _CONTENTS.index(content))
    step = chunk_bytes - len(head)
    for start in range(0, len(data), step):
        yield head + data[start : start + step]


def decode_tensors(pieces: Sequence[bytes], content: Content = "dense") -> dict[str, NDArray[Any]]:
    """The arrays, from all chunks of that content in order. Raises SnapshotError."""
    for piece in pieces:
        _head(piece, content)
    data = b"".join(memoryview(piece)[_CHUNK_HEAD.size :] for piece in pieces)
    try:
        return tensors_from_bytes(data)
    except (SafetensorError, KeyError, ValueError, TypeError) as broken:
        raise SnapshotError(f"{content} tensors cannot be read: {broken}") from broken


def _head(data: bytes, wanted: Content) -> None:
    if len(data) < _CHUNK_HEAD.size:
        raise SnapshotError(f"a chunk of {len(data)} bytes")
    magic, version, content = _CHUNK_HEAD.unpack_from(data)
    if magic != b"fS":
        raise SnapshotError(f"not a chunk of a snapshot: begins with {data[:4]!r}")
    if version != FORMAT:
        raise SnapshotError(f"a chunk of format {version}; this program reads format {FORMAT}")
    if content >= len(_CONTENTS) or _CONTENTS[content] != wanted:
        raise SnapshotError(f"a chunk of content {content} where {wanted} was expected")


def described(data: bytes) -> Chunk:
    """What the manifest is to keep of a chunk. Raises SnapshotError where it is none."""
    if len(data) < _CHUNK_HEAD.size or data[3] >= len(_CONTENTS):
        raise SnapshotError(f"not a chunk of a snapshot: {len(data)} bytes, begins with {data[:4]!r}")
    return Chunk(_CONTENTS[data[3]], len(data), xxhash.xxh3_64_intdigest(data))


def verify(chunk: Chunk, data: bytes) -> None:
    """Refuse a chunk that is not, to the last bit, what its manifest lists. Raises SnapshotError."""
    if len(data) != chunk.bytes:
        raise SnapshotError(f"a chunk has {len(data)} bytes, its manifest lists {chunk.bytes}")
    found = xxhash.xxh3_64_intdigest(data)
    if found != chunk.checksum:
        raise SnapshotError(f"a chunk has checksum {found:016x}, its manifest lists {chunk.checksum:016x}")
    _head(data, chunk.content)


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A whole snapshot in memory: rows in chunks as they came (ascending over all of them), dense and state arrays."""

    rows: tuple[tuple[Rows, Floats], ...]
    dense: dict[str, NDArray[Any]]
    state: dict[str, NDArray[Any]]


def places(manifest: Manifest, only: Content | None = None) -> list[int]:
    """Which of its chunks hold that content; None = all."""
    return [place for place, chunk in enumerate(manifest.chunks) if only in (None, chunk.content)]


def unpack(manifest: Manifest, chunks: Iterable[bytes | None], only: Content | None = None) -> Unpacked:
    """Check every chunk against the manifest and decode it: all of the snapshot, or SnapshotError naming what is wrong.

    chunks: those at `places(manifest, only)`, in that order; None stands for one that is not there.
    """
    pieces: dict[Content, list[bytes]] = {content: [] for content in _CONTENTS}
    listed, came = places(manifest, only), list(chunks)
    if len(came) != len(listed):
        raise SnapshotError(f"{_name(manifest)}: {len(came)} chunks of the {len(listed)} listed")
    for place, data in zip(listed, came, strict=True):
        pieces[manifest.chunks[place].content].append(_checked(manifest, place, data))
    return Unpacked(
        tuple(_decoded(manifest, pieces["rows"])) if only in (None, "rows") else (),
        decode_tensors(pieces["dense"], "dense") if pieces["dense"] else {},
        decode_tensors(pieces["state"], "state") if pieces["state"] else {},
    )


def each_rows(manifest: Manifest, chunks: Iterable[bytes | None]) -> Iterator[tuple[Rows, Floats]]:
    """The rows alone, checked as `unpack` checks them, one chunk in memory at a time: where it ends in a SnapshotError,
    a part of them was given before.

    chunks: those at `places(manifest, "rows")`, in that order.
    """
    listed = places(manifest, "rows")
    return _decoded(manifest, (_checked(manifest, place, data) for place, data in zip(listed, chunks, strict=True)))


def _checked(manifest: Manifest, place: int, data: bytes | None) -> bytes:
    if data is None:
        raise SnapshotError(f"{_name(manifest)}, chunk {place}: not there")
    try:
        verify(manifest.chunks[place], data)
    except SnapshotError as broken:
        raise SnapshotError(f"{_name(manifest)}, chunk {place}: {broken}") from broken
    return data


def _decoded(manifest: Manifest, pieces: Iterable[bytes]) -> Iterator[tuple[Rows, Floats]]:
    """Chunks of rows → what they hold, all of it ascending, and as much as is listed."""
    last, end, count = -1, 1 << int(manifest.model.get("bits", 32)), 0
    for data in pieces:
        numbers, floats = decode_rows(data)
        if floats.shape[1] != manifest.width:
            raise SnapshotError(f"{_name(manifest)}: rows of {floats.shape[1]} floats, {manifest.width} listed")
        if int(numbers[0]) <= last or int(numbers[-1]) >= end:
            raise SnapshotError(f"{_name(manifest)}: row {int(numbers[-1])} out of order or beyond {end} rows")
        last, count = int(numbers[-1]), count + len(numbers)
        yield numbers, floats
    if count != manifest.rows:
        raise SnapshotError(f"{_name(manifest)}: its chunks do not hold the {manifest.rows} rows listed")


def _name(manifest: Manifest) -> str:
    return f"{manifest.kind} {manifest.number} of lineage {manifest.lineage[:8]}"


# --- manifests ---


def encode_manifest(manifest: Manifest) -> bytes:
    """JSON under a checksum of its own."""
    body = manifest_json(manifest)
    return _MANIFEST_HEAD.pack(b"fM", FORMAT, 0, xxhash.xxh3_64_intdigest(body)) + body


def manifest_json(manifest: Manifest) -> bytes:
    """All of it as JSON."""
    return orjson.dumps({
        **{f.name: getattr(manifest, f.name) for f in fields(manifest)},
        "model": dict(manifest.model),
        "fields": [[number, f"{digest:016x}"] for number, digest in manifest.fields],
        "chunks": [[chunk.content, chunk.bytes, f"{chunk.checksum:016x}"] for chunk in manifest.chunks],
        "cursors": {str(partition): list(cursor) for partition, cursor in sorted(manifest.cursors.items())},
        "offsets": {str(partition): offset for partition, offset in sorted(manifest.offsets.items())},
        "tallies": dict(sorted(manifest.tallies.items())),
        "traces": [dict(trace) for trace in manifest.traces],
        "training": dict(manifest.training),
    })


def decode_manifest(data: bytes, key: bytes | None = None) -> Manifest:
    """The manifest. key: what it was found under, which must agree with it. Raises SnapshotError."""
    if len(data) < _MANIFEST_HEAD.size:
        raise SnapshotError(f"a manifest cut to {len(data)} bytes")
    magic, version, unused, checksum = _MANIFEST_HEAD.unpack_from(data)
    if magic != b"fM" or unused != 0:
        raise SnapshotError(f"not a manifest: begins with {data[:4]!r}")
    if version != FORMAT:
        raise SnapshotError(f"a manifest of format {version}; this program reads format {FORMAT}")
    body = data[_MANIFEST_HEAD.size :]
    found = xxhash.xxh3_64_intdigest(body)
    if found != checksum:
        raise SnapshotError(f"a manifest has checksum {found:016x}, it names {checksum:016x}")
    manifest = manifest_from_json(body)
    if key is not None and key != manifest_key(manifest.kind, manifest.number):
        raise SnapshotError(f"{_name(manifest)} stands under the key {key.hex()}")
    return manifest


def manifest_from_json(body: bytes | str) -> Manifest:
    """Raises SnapshotError."""
    try:
        plain = orjson.loads(body)
        manifest = Manifest(
            **{
                **plain,
                "fields": tuple((number, int(digest, 16)) for number, digest in plain["fields"]),
                "chunks": tuple(Chunk(content, size, int(mark, 16)) for content, size, mark in plain["chunks"]),
                "cursors": {int(partition): tuple(cursor) for partition, cursor in plain["cursors"].items()},
                "offsets": {int(partition): offset for partition, offset in plain["offsets"].items()},
                "traces": tuple(plain["traces"]),
                "pinned": tuple(plain.get("pinned", ())),
            }
        )
        wrong = _unsound(manifest)
    except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError, ValueError) as broken:
        raise SnapshotError(f"a manifest cannot be read: {broken}") from broken
    if wrong:
        raise SnapshotError(f"a manifest cannot be read: {', '.join(wrong)}")
    return manifest


def _unsound(manifest: Manifest) -> list[str]:
    """Names of what is not of its type, or beyond what a program can work with."""
    counts = ("number", "share", "rows", "created_us", "examples_learnt", "batches_learnt", "control")
    numbers = {name: [getattr(manifest, name)] for name in (*counts, "rotation", "width")}
    numbers |= {name: [given] for name in ("parent", "version", "back_to") if (given := getattr(manifest, name)) is not None}
    numbers |= {
        "chunks": [size for chunk in manifest.chunks for size in (chunk.bytes, chunk.checksum)],
        "fields": [one for column in manifest.fields for one in column],
        "pinned": list(manifest.pinned), "offsets": list(manifest.offsets.values()), "tallies": list(manifest.tallies.values()),
    }
    wrong = [name for name, each in numbers.items() if not all(type(one) is int and 0 <= one < 2**64 for one in each)]
    bits = manifest.model.get("bits", 8)
    return wrong or [
        name for name, right in {
            "kind": manifest.kind in _LETTERS, "lineage": isinstance(manifest.lineage, str),
            "rotation": manifest.rotation >= 1, "width": manifest.width >= 1,
            "model.bits": type(bits) is int and 0 <= bits <= 32,
            "chunks": all(chunk.content in _CONTENTS for chunk in manifest.chunks),
            "cursors": all(tuple(map(type, at)) == (int, int, int) for at in manifest.cursors.values()),
            "traces": all(isinstance(trace, dict) for trace in manifest.traces),
            "training": isinstance(manifest.training, dict),
        }.items() if not right
    ]


def chain(manifests: Mapping[int, Manifest], wanted: int) -> list[int]:
    """Which snapshots, oldest first, make the whole table as it is at `wanted`.

    manifests: those there are, of one kind, by number. Walks from parent to parent until every share of one rotation
    has been met, or the first of the lineage. Raises SnapshotError naming the gap.
    """
    walked: list[int] = []
    met: dict[int, set[int]] = {}
    at: int | None = wanted
    while at is not None:
        manifest = manifests.get(at)
        if manifest is None:
            child = f", parent of {walked[-1]}," if walked else ""
            raise SnapshotError(f"snapshot {at}{child} is not there: {wanted} cannot be loaded whole")
        if walked and manifest.lineage != manifests[wanted].lineage:
            raise SnapshotError(f"snapshot {at}, parent of {walked[-1]}, is of another lineage than {wanted}")
        if walked and at >= walked[-1]:
            raise SnapshotError(f"snapshot {walked[-1]} names {at} as its parent, which is not older")
        walked.append(at)
        shares = met.setdefault(manifest.rotation, set())
        shares.add(manifest.share)
        if len(shares) == manifest.rotation:
            break
        at = manifest.parent
    return walked[::-1]


def closed(manifests: Mapping[int, Manifest], wanted: Collection[int]) -> set[int]:
    """Those, and all that they need to be loaded whole."""
    kept, whole = set(wanted), set[int | None]()
    for number in sorted(wanted):
        try:
            if manifests[number].parent not in whole:  # what such a parent needs holds all that this one needs
                kept.update(chain(manifests, number))
        except SnapshotError:
            continue  # cannot be loaded whole any more; kept for what it is
        whole.add(number)
    return kept


def checkpoint_before(checkpoints: Iterable[Manifest], version: Manifest) -> Manifest | None:
    """What going back to a version begins from: the newest checkpoint of its lineage that holds no more than it does."""
    found = [one for one in checkpoints if one.lineage == version.lineage and one.examples_learnt <= version.examples_learnt]
    return max(found, key=lambda one: (one.examples_learnt, one.number), default=None)


# --- what two sides must agree on ---


def model_identity(config: ModelConfig, row_width: int) -> dict[str, Any]:
    """All of the model's configuration that gives its numbers their meaning: everything but its name and its schema's
    file (the schema's fields stand beside it by digest)."""
    identity = {**asdict(config), "hidden": list(config.hidden), "row_width": row_width}
    del identity["name"], identity["schema"]
    return identity


def _without_a_key() -> dict[str, Any]:
    """What a snapshot means that was written before a setting existed: the default, under which nothing changed."""
    defaults = {key: value for key, value in model_identity(ModelConfig(), 0).items() if key != "row_width"}
    return {**defaults, "statistics": False}


def model_config(manifest: Manifest, name: str, schema: str) -> ModelConfig:
    """The configuration that a snapshot was made with. Raises SnapshotError for one this program does not know."""
    known = {key: value for key, value in manifest.model.items() if key != "row_width"}
    defaults = {**model_identity(ModelConfig(), 0)}
    wrong = [key for key, value in known.items() if key in defaults and not _alike(value, defaults[key])]
    if wrong:
        raise SnapshotError(f"{_name(manifest)} has a model this program cannot build: {', '.join(wrong)}")
    try:
        return ModelConfig(**{**known, "hidden": tuple(known["hidden"]), "name": name, "schema": schema})
    except (ConfigError, TypeError, KeyError) as strange:
        raise SnapshotError(f"{_name(manifest)} has a model this program cannot build: {strange}") from strange


def _alike(value: object, default: object) -> bool:
    """Whether a setting has the type of its default."""
    if isinstance(default, list):
        return isinstance(value, list) and all(type(one) is int for one in value)
    return type(value) is type(default) or (type(default) is float and type(value) is int)


def refuse_other_model(
    manifest: Manifest, model: Mapping[str, Any], wanted: Sequence[tuple[int, int]], what: str
) -> None:
    """Raise SnapshotError naming each difference with both sides, if this process cannot use that snapshot.

    model: `model_identity` here. wanted: (number, digest) of each field here. what: what happens now and what to do.
    """
    theirs = {**_without_a_key(), **manifest.model}
    differences = [
        f"model.{key} is {theirs.get(key)} there and {model.get(key)} here"
        for key in sorted({*theirs, *model})
        if theirs.get(key) != model.get(key)
    ]
    there, here = dict(manifest.fields), dict(wanted)
    for number in sorted({*there, *here}):
        if there.get(number) != here.get(number):
            sides = [f"{side[number]:016x}" if number in side else "absent" for side in (there, here)]
            differences.append(f"field {number} is {sides[0]} there and {sides[1]} here")
    if differences:
        raise SnapshotError(f"{_name(manifest)} does not fit: {'; '.join(differences)}. {what}")


def weights_digest(rows: NDArray[np.integer], weights: Floats, dense: Arrays) -> str:
    """Same weights → same text, however they came to be: 128 bits over all touched rows by number and the dense weights
    by name.

    rows: (n,) ascending. weights: (n, W), without optimiser state.
    """
    if bool((rows[1:] <= rows[:-1]).any()):
        raise SnapshotError("row numbers must ascend, each once")
    state = xxhash.xxh3_128()
    state.update(struct.pack("<QQ", *weights.shape))
    state.update(rows.astype("<u8").tobytes())
    state.update(np.ascontiguousarray(weights, "<f4").tobytes())
    for name, array in sorted(dense.items()):
        state.update(orjson.dumps([name, list(array.shape), str(array.dtype)]))
        state.update(np.ascontiguousarray(array).tobytes())
    return state.hexdigest()
