"""What `Score` used for one item, as bytes that come back in the impression event: training sees what was scored.

Little-endian: format u8 = 1 · flags u8 (1 = lengths, 2 = values) · schema digest u64 · fields F u16 · lengths F x u16 ·
ids n x u64 · values n x f32 · checksum u32 (low half of xxh3_64 of all before it). Training-only fields stand in it at
their served value: `TrainingFields` puts the true ones in their place.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import xxhash
from numpy.typing import NDArray

from schemas.bags import Bags, made
from schemas.errors import BadEvent
from schemas.fields import Encoder, FieldSchema, Slates

FORMAT = 1
_LENGTHS, _VALUES = 1, 2
_HEAD = struct.Struct("<BBQH")  # format, flags, schema digest, fields
_SUM = struct.Struct("<I")
_NONE = Bags(1, np.empty(0, np.uint64))


def encode(bags: Bags, schema_digest: int) -> list[bytes]:
    """One echo per row of `bags`. schema_digest: FieldSchema.digest of the schema that made them."""
    flags = (_LENGTHS if bags.lengths is not None else 0) | (_VALUES if bags.values is not None else 0)
    head = _HEAD.pack(FORMAT, flags, schema_digest, bags.fields)
    ids = bags.ids.astype("<u8", copy=False).tobytes()
    values = b"" if bags.values is None else bags.values.astype("<f4", copy=False).tobytes()
    lengths = b"" if bags.lengths is None else bags.lengths.astype("<u2", copy=False).tobytes()
    f = bags.fields
    ends = bags.all_lengths().reshape(-1, f).sum(axis=1, dtype=np.int64).cumsum().tolist()  # (B,)
    echoes = []
    start = 0
    for row, end in enumerate(ends):
        body = head + lengths[2 * f * row : 2 * f * (row + 1)] + ids[8 * start : 8 * end] + values[4 * start : 4 * end]
        echoes.append(body + _SUM.pack(_checksum(body)))
        start = end
    return echoes


def schema_digest(echo: bytes) -> int:
    """The digest of the schema that made an echo. Raises BadEvent."""
    return _head(echo)[1]


def decode(echo: bytes) -> tuple[int, Bags]:
    """One echo as its schema's digest and a single row. Raises BadEvent("bad_echo") for anything that is not whole."""
    flags, digest, fields = _head(echo)
    return digest, _rows([echo], flags, fields)


def to_bags(echoes: Sequence[bytes], schema: FieldSchema) -> Bags | None:
    """The rows of a slate that were scored by `schema`.

    None if another schema made any of them or an item has none: the caller encodes the features instead. Raises
    BadEvent("bad_echo") for bytes that `Score` cannot have returned.
    """
    if not echoes or not all(echoes):
        return None
    alike = len({echo[: _HEAD.size] for echo in echoes}) == 1
    heads = {_head(echoes[0])} if alike and all(map(_whole, echoes)) else {_head(echo) for echo in echoes}
    if {digest for _, digest, _ in heads} != {_digest(schema)}:
        return None
    if len(heads) != 1:
        raise BadEvent("bad_echo", "echo: the items of one slate differ in their form")
    ((flags, _, fields),) = heads
    if fields != len(schema.fields):
        raise BadEvent("bad_echo", f"echo: {fields} fields, but its schema has {len(schema.fields)}")
    return _rows(echoes, flags, fields)


class TrainingFields:
    """The fields of a schema that are known only after showing: an echo holds what they were served with."""

    def __init__(self, schema: FieldSchema) -> None:
        own = tuple(spec for spec in schema.fields if spec.training_only)
        self._where = [place for place, spec in enumerate(schema.fields) if spec.training_only]
        self._names = frozenset(spec.name for spec in own)
        self._encoder = Encoder(FieldSchema(schema.name, own), training=True) if own else None

    def of(self, slates: Slates) -> list[Bags | BadEvent]:
        """Their true values in each slate, as bags of these fields alone; or what is wrong with them. No other is read."""
        if self._encoder is None:
            return [_NONE] * len(slates.counts)
        return self._encoder.encode_all(slates._replace(
            context={name: given for name, given in slates.context.items() if name in self._names},
            columns={name: given for name, given in slates.columns.items() if name in self._names},
        ))

    def put(self, true: Bags, bags: Bags) -> Bags:
        """`bags` of all fields with the true values instead of the served ones, row by row."""
        if self._encoder is None:
            return bags
        rows, f, t = len(bags), bags.fields, true.fields
        where = self._where
        own = bags.all_lengths()                                                            # (B·F,)
        if (own.reshape(rows, f)[:, where] == 1).all() and len(true.ids) == rows * t:       # one for one, as nearly always
            at = (own.cumsum(dtype=np.intp) - own).reshape(rows, f)[:, where].reshape(-1)   # (B·T,)
            ids, values = bags.ids.copy(), None
            ids[at] = true.ids
            if bags.values is not None or true.values is not None:
                values = bags.all_values().copy()
                values[at] = true.all_values()
            return made(f, ids, values, bags.lengths)
        places = np.arange(rows * f).reshape(rows, f)                                       # (B, F) bags of both, in a row
        places[:, where] = rows * f + np.arange(rows * t).reshape(rows, t)
        chosen = places.reshape(-1)                                                         # (B·F,)
        lengths = np.concatenate((own, true.all_lengths()))                                 # (B·F + B·T,)
        count = lengths[chosen].astype(np.int64)
        starts = lengths.cumsum(dtype=np.int64) - lengths
        inside = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        source = np.repeat(starts[chosen], count) + inside                                  # (n',)
        ids = np.concatenate((bags.ids, true.ids))[source]
        values = None
        if bags.values is not None or true.values is not None:
            values = np.concatenate((bags.all_values(), true.all_values()))[source]
        one_each = bags.lengths is None and true.lengths is None
        return Bags(f, ids, values, None if one_each else lengths[chosen])


@lru_cache(maxsize=8)
def _digest(schema: FieldSchema) -> int:
    """Its digest, which takes a hash for each field to compute."""
    return schema.digest


def _checksum(body: bytes) -> int:
    return xxhash.xxh3_64_intdigest(body) & 0xFFFFFFFF


def _whole(echo: bytes) -> bool:
    """Whether its checksum is right, which xxhash gives as big-endian bytes."""
    return xxhash.xxh3_64_digest(echo[: -_SUM.size])[: -_SUM.size - 1 : -1] == echo[-_SUM.size :]


def _head(echo: bytes) -> tuple[int, int, int]:
    """(flags, schema digest, fields) of a whole echo."""
    if len(echo) < _HEAD.size + _SUM.size:
        raise BadEvent("bad_echo", f"echo: {len(echo)} bytes is too short; send it back as Score returned it")
    form, flags, digest, fields = _HEAD.unpack_from(echo)
    if form != FORMAT or flags > (_LENGTHS | _VALUES) or not fields:
        raise BadEvent("bad_echo", f"echo: format {form} with flags {flags} is not known; send it back untouched")
    if not _whole(echo):
        raise BadEvent("bad_echo", "echo: its checksum is wrong; send it back as Score returned it")
    return flags, digest, fields


def _rows(echoes: Sequence[bytes], flags: int, fields: int) -> Bags:
    """Echoes with these flags and fields, their checksums right → one row each."""
    first = _HEAD.size + (2 * fields if flags & _LENGTHS else 0)
    width = 12 if flags & _VALUES else 8
    sizes = [divmod(len(echo) - first - _SUM.size, width) for echo in echoes]
    if any(rest or n < fields for n, rest in sizes):
        raise BadEvent("bad_echo", "echo: its length does not fit its fields")
    counts = [n for n, _ in sizes]
    ids = b"".join(echo[first : first + 8 * n] for echo, n in zip(echoes, counts, strict=True))
    values: NDArray[np.float32] | None = None
    if flags & _VALUES:
        packed = b"".join(echo[first + 8 * n : -_SUM.size] for echo, n in zip(echoes, counts, strict=True))
        values = np.frombuffer(packed, "<f4").astype(np.float32)
        if not np.isfinite(values).all():
            raise BadEvent("bad_echo", "echo: a value that is no finite number")
    lengths: NDArray[np.uint16] | None = None
    if flags & _LENGTHS:
        lengths = np.frombuffer(b"".join(echo[_HEAD.size : first] for echo in echoes), "<u2").astype(np.uint16)
        per_row = lengths.reshape(-1, fields)
        if int(lengths.min()) < 1 or per_row.sum(axis=1, dtype=np.int64).tolist() != counts:
            raise BadEvent("bad_echo", "echo: its lengths do not add up to its ids")
    elif any(n != fields for n in counts):
        raise BadEvent("bad_echo", "echo: its length does not fit its fields")
    return Bags(fields, np.frombuffer(ids, "<u8").astype(np.uint64), values, lengths)
