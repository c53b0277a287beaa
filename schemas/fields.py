"""The field schema: which features there are, what each means, and how a slate becomes bags of ids.

A schema is one TOML file. Each field has a stable number and a digest of its own, so that a field may be added or dropped
while both sides run; a field whose meaning changed under the same number is refused with both digests.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, repeat
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from schemas.bags import Bags, made
from schemas.errors import BadEvent, SchemaError
from schemas.hashing import HASH, canonical, hash_missing, hash_value

Kind = Literal["categorical", "set", "numeric"]
Transform = Literal["log_bins", "log_bins_and_log", "raw", "log"]
MAX_SET = 1000        # values in one set; more is a producer's mistake, not a preference
RAW_LIMIT = 1e6       # raw numbers are clipped here: one wild value must not blow up a row
MAX_UNKNOWN = 1000    # names of unknown fields that are counted apart; whatever comes after is counted together
CACHE_ENTRIES = 1 << 20  # ids remembered per field: about 100 MB at worst, then forgotten all at once
CACHE_SETS = 1 << 16     # sets of texts remembered per field, the same way

_NOTHING = (None,)
_KEYS = {"name", "number", "kind", "side", "transform", "pool", "training_only", "served_value", "slice", "values"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    """One feature of the context or of an item.

    kind: categorical (one value), set (several, pooled by `pool` before the model), numeric.
    transform of a number: log_bins = its order of magnitude as a category (floor(2·log2|v|) with the sign, 0 apart);
    log_bins_and_log = the same, and sign(v)·ln(1+|v|) beside it, 0 where missing, for models that read it (schemas/models);
    raw = one learnt row times the number, clipped to ±1e6; log = the same times sign(v)·ln(1+|v|).
    training_only: known only after showing (position); scores are computed with served_value.
    slice: metrics are kept per value; "new": by whether the value is new (metrics.new_below). values: names
    of values that metrics are to show by; others show as their ids, which is all that the trainer sees of them.
    """

    name: str
    number: int
    kind: Kind
    side: Literal["context", "item"]
    transform: Transform = "log_bins"
    pool: Literal["mean", "sum"] = "mean"
    training_only: bool = False
    served_value: str | None = None
    slice: bool | Literal["new"] = False
    values: tuple[str, ...] = ()

    @property
    def binned(self) -> bool:
        """Whether a number's order of magnitude is a category, so that its row is not multiplied by it."""
        return self.kind == "numeric" and self.transform in ("log_bins", "log_bins_and_log")

    @property
    def with_log(self) -> bool:
        """Whether its value is a number that stands beside its row."""
        return self.kind == "numeric" and self.transform == "log_bins_and_log"

    @property
    def digest(self) -> int:
        """64 bits over all that changes an id or its meaning; the name does not."""
        meaning = [HASH, str(self.number), self.kind, self.side]
        meaning += [self.transform] if self.kind == "numeric" else []
        meaning += [self.pool] if self.kind == "set" else []
        return xxhash.xxh3_64_intdigest("|".join(meaning).encode())


@dataclass(frozen=True, slots=True)
class Cross:
    """A field made of two for the models that take crosses (schemas/crosses.py): each pair of values is a value.

    number: as fields have one, in one numbering with them.
    """

    number: int
    left: Field
    right: Field

    @property
    def field(self) -> Field:
        """What it is to the model: one value."""
        return Field(name=f"{self.left.name}×{self.right.name}", number=self.number, kind="categorical", side="item")

    @property
    def digest(self) -> int:
        """64 bits over all that changes an id."""
        return xxhash.xxh3_64_intdigest(f"{self.number}|cross|{self.left.digest}|{self.right.digest}".encode())


@dataclass(frozen=True, slots=True)
class FieldSchema:
    """Fields in the order of their numbers: the order of a row's bags. Crosses, by number too, are the model's affair: no
    event and no example knows them, so `numbers`, `digests` and `digest` do not."""

    name: str
    fields: tuple[Field, ...]
    crosses: tuple[Cross, ...] = ()

    def __hash__(self) -> int:
        """By its name, which is enough: else each look-up of what is remembered for a schema hashes all its fields."""
        return hash(self.name)

    @property
    def digest(self) -> int:
        """64 bits over the digests of all fields."""
        return xxhash.xxh3_64_intdigest(b"".join(f.digest.to_bytes(8, "little") for f in self.fields))

    @property
    def numbers(self) -> tuple[int, ...]:
        return tuple(f.number for f in self.fields)

    @property
    def digests(self) -> tuple[int, ...]:
        return tuple(f.digest for f in self.fields)

    @property
    def columns(self) -> tuple[Field, ...]:
        """What the model sees: fields, then crosses."""
        return (*self.fields, *(cross.field for cross in self.crosses))

    @property
    def logs(self) -> tuple[int, ...]:
        """Columns whose values stand beside their rows and multiply nothing."""
        return tuple(place for place, spec in enumerate(self.fields) if spec.with_log)

    @property
    def sides(self) -> tuple[tuple[int, int], ...]:
        """The columns of the two fields of each cross."""
        place = {spec.number: column for column, spec in enumerate(self.fields)}
        return tuple((place[cross.left.number], place[cross.right.number]) for cross in self.crosses)

    @property
    def identity(self) -> tuple[tuple[int, int], ...]:
        """Number and digest of each column: what two sides of one model must agree on."""
        crosses = ((cross.number, cross.digest) for cross in self.crosses)
        return (*zip(self.numbers, self.digests, strict=True), *crosses)


class Slate(NamedTuple):
    """A context and items to rank, as plain values: what an impression and a scoring request have in common.

    context: field → value. columns: field → one entry per item. A value is text, a number, a bool, None (missing), a
    list or tuple of those (a set), or a `ReadyId`.
    """

    item_ids: Sequence[str]
    context: Mapping[str, Any]
    columns: Mapping[str, Sequence[Any]]
    positions: Sequence[int] | None = None


class Slates(NamedTuple):
    """Many slates, in columns as a whole.

    counts: items of each slate. item_ids: of all, slate after slate. context: field → one entry per slate. columns: field →
    one entry per item, or a single one that all share. A slate that lacks a field has None there. positions: one per item,
    0 = not given.
    """

    counts: Sequence[int]
    item_ids: Sequence[str]
    context: Mapping[str, Sequence[Any]]
    columns: Mapping[str, Sequence[Any]]
    positions: Sequence[int] | None = None

    def slate(self, place: int) -> Slate:
        """One of them."""
        start = sum(self.counts[:place])
        stop = start + self.counts[place]
        return Slate(
            self.item_ids[start:stop], {name: given[place] for name, given in self.context.items() if given[place] is not None},
            {name: own for name, given in self.columns.items() if (own := given[start:stop]).count(None) < len(own)},
            None if self.positions is None else self.positions[start:stop],
        )

    def part(self, start: int, stop: int) -> Slates:
        """Those from start to stop."""
        first = sum(self.counts[:start])
        rows = slice(first, first + sum(self.counts[start:stop]))
        return Slates(
            self.counts[start:stop], self.item_ids[rows], {name: given[start:stop] for name, given in self.context.items()},
            {name: given if len(given) == 1 else given[rows] for name, given in self.columns.items()},
            None if self.positions is None else self.positions[rows],
        )


def one_slate(slate: Slate) -> Slates:
    """A slate by itself."""
    return Slates(
        (len(slate.item_ids),), slate.item_ids, {name: (value,) for name, value in slate.context.items()}, slate.columns,
        slate.positions,
    )


def together(parts: Sequence[Slates]) -> Slates:
    """One after the other; their columns have an entry for each item."""
    if len(parts) == 1:
        return parts[0]
    positions: list[int] | None = None
    if any(part.positions is not None for part in parts):
        positions = [place for part in parts for place in part.positions or [0] * len(part.item_ids)]
    return Slates(
        [count for part in parts for count in part.counts], [item for part in parts for item in part.item_ids],
        _end_to_end([(part.context, len(part.counts)) for part in parts]),
        _end_to_end([(part.columns, len(part.item_ids)) for part in parts]), positions,
    )


def _end_to_end(parts: Sequence[tuple[Mapping[str, Sequence[Any]], int]]) -> dict[str, list[Any]]:
    """Columns of parts of so many entries → columns of all."""
    names = dict.fromkeys(chain.from_iterable(columns for columns, _ in parts))
    return {
        name: list(chain.from_iterable(own[name] if name in own else repeat(None, entries) for own, entries in parts))
        for name in names
    }


class ReadyId(int):
    """A value that its producer has hashed already."""


class Encoder:
    """Slates → bags of ids by one schema.

    training: use the true values of training-only fields; otherwise their served value. The fields named `item_id` and
    `position` are filled from the item itself where the features do not name them.
    """

    def __init__(self, schema: FieldSchema, training: bool) -> None:
        self.schema = schema
        self.unknown: dict[str, int] = {}  # field name → how often it came and was ignored
        self._columns = [_Column(spec, training) for spec in schema.fields]
        self._sets = [place for place, spec in enumerate(schema.fields) if spec.kind == "set"]
        self._has_values = any(f.kind == "numeric" and f.transform != "log_bins" for f in schema.fields)
        self._context = frozenset(f.name for f in schema.fields if f.side == "context")
        self._items = frozenset(f.name for f in schema.fields if f.side == "item")

    def encode(self, slate: Slate) -> tuple[Bags, list[str]]:
        """The slate's rows, and the names of fields that the schema does not know (ignored and counted).

        Raises BadEvent for a value that its field cannot take, naming field and item.
        """
        slates = one_slate(slate)
        return self._encoded(slates)[0], self._strange(slates)

    def encode_all(self, slates: Slates) -> list[Bags | BadEvent]:
        """The rows of each slate, which share their arrays; or what is wrong with it."""
        try:
            found = self._encoded(slates)
        except BadEvent as bad:
            half = len(slates.counts) // 2
            if not half:
                return [bad]
            return self.encode_all(slates.part(0, half)) + self.encode_all(slates.part(half, len(slates.counts)))
        self._strange(slates)
        return [*found]

    def _encoded(self, slates: Slates) -> list[Bags]:
        counts = slates.counts
        rows = len(slates.item_ids)
        bags: list[_Strand] = []
        weights: dict[int, list[float]] = {}             # place of a field with real values → the value of each entry
        for column in self._columns:
            bag, real = column.bags(slates)
            if real is not None:
                weights[len(bags)] = real
            bags.append(bag)

        # Ids are bytes until here: joining 340 of them costs 4 µs, an array of as many Python numbers 9.
        ids = np.frombuffer(_interleaved(bags, counts, rows), "<u8")               # (n,)
        lengths: NDArray[np.uint16] | None = None
        values: NDArray[np.float32] | None = None
        if self._sets:
            per_bag = np.ones((rows, len(bags)), np.uint16)                        # (N, F)
            for place in self._sets:
                per_bag[:, place] = _by_row([len(bag) >> 3 for bag in bags[place]], np.uint16, counts, rows)
            lengths = per_bag.reshape(-1)                                          # (N·F,)
        if self._has_values:
            given = np.ones((rows, len(bags)), np.float32)                         # (N, F)
            for place, real in weights.items():
                given[:, place] = _by_row(real, np.float32, counts, rows)
            values = given.reshape(-1) if lengths is None else np.repeat(given.reshape(-1), lengths)  # (n,)
        whole = made(len(bags), ids, values, lengths)
        return [whole] if len(counts) == 1 else _cut(whole, counts)

    def _strange(self, slates: Slates) -> list[str]:
        """Names of fields that the schema does not know; counted, once for each slate that has one."""
        if slates.context.keys() <= self._context and slates.columns.keys() <= self._items:
            return []
        found = {name: len(given) - given.count(None) for name, given in slates.context.items() if name not in self._context}
        ends = list(accumulate(slates.counts))
        for name, given in slates.columns.items():
            if name not in self._items:
                own = [given[end - count : end] for count, end in zip(slates.counts, ends, strict=True)]
                found[name] = found.get(name, 0) + sum(any(value is not None for value in values) for values in own)
        for name, times in found.items():
            known = name if name in self.unknown or len(self.unknown) < MAX_UNKNOWN else "…"
            self.unknown[known] = self.unknown.get(known, 0) + times
        return list(found)


_Strand = list[bytes]   # of one field: a piece per item, a piece per slate, or one for all


def _interleaved(strands: Sequence[_Strand], counts: Sequence[int], rows: int) -> bytes:
    """Item by item, the pieces of all strands."""
    runs: list[_Strand] = []
    shared: list[_Strand] = []
    for strand in strands:
        if len(strand) < rows:
            shared.append(strand if len(strand) == len(counts) else strand * len(counts))
            continue
        if shared:
            runs.append(_by_item(shared, counts))
            shared = []
        runs.append(strand)
    if shared:
        runs.append(_by_item(shared, counts))
    pieces = [b""] * (rows * len(runs))
    for place, run in enumerate(runs):
        pieces[place :: len(runs)] = run
    return b"".join(pieces)


def _by_item(strands: Sequence[_Strand], counts: Sequence[int]) -> _Strand:
    """Strands with a piece per slate, as one with a piece per item."""
    joined = strands[0] if len(strands) == 1 else map(b"".join, zip(*strands, strict=True))
    return list(chain.from_iterable(map(repeat, joined, counts)))


def _by_row(given: Sequence[float], kind: type, counts: Sequence[int], rows: int) -> Any:
    """(N,), (S,) or a single one → what fills N rows."""
    if len(given) == 1:
        return given[0]
    found: NDArray[Any] = np.array(given, kind)
    return found if len(found) == rows else np.repeat(found, counts)


def _cut(whole: Bags, counts: Sequence[int]) -> list[Bags]:
    """So many rows each, without copying."""
    f = whole.fields
    bounds = [0, *(rows * f for rows in accumulate(counts))]                       # (S + 1,) of bags
    places = bounds                                                                # (S + 1,) of ids
    if whole.lengths is not None:
        places = [0, *np.add.reduceat(whole.lengths, bounds[:-1], dtype=np.int64).cumsum().tolist()]
    return [
        made(f, whole.ids[start:stop], None if whole.values is None else whole.values[start:stop],
             None if whole.lengths is None else whole.lengths[first:last])
        for start, stop, first, last in zip(places, places[1:], bounds, bounds[1:], strict=False)
    ]


class _Ids(dict[Any, bytes]):
    """Values of one type, and None → their ids, 8 bytes little-endian each; made when first asked for.

    One type, because 1, 1.0 and True are equal as keys and not as values. Raises _OtherType for another.
    """

    __slots__ = ("_kind", "_make")

    def __init__(self, kind: type, make: Callable[[Any], bytes]) -> None:
        self._kind, self._make = kind, make

    def __missing__(self, value: Any) -> bytes:
        if type(value) is not self._kind and value is not None:
            raise _OtherType
        found = self._make(value)
        if len(self) >= CACHE_ENTRIES:
            self.clear()
        self[value] = found
        return found


class _Sets(dict[Any, bytes]):
    """Tuples → the ids of a set; a text or None as a set of one or none. Raises _OtherType for anything else.

    Those of texts alone are remembered: (1,) and (True,) are equal as keys.
    """

    __slots__ = ("_make",)

    def __init__(self, make: Callable[[Sequence[Any]], bytes]) -> None:
        self._make = make

    def __missing__(self, value: Any) -> bytes:
        values = value if type(value) is tuple else (value,)
        texts = all(type(one) is str for one in values)
        if not texts and values is not value and value is not None:
            raise _OtherType
        found = self._make(values)
        if texts or value is None:
            if len(self) >= CACHE_SETS:
                self.clear()
            self[value] = found
        return found


class _Each:
    """Remembers nothing: what is asked for is made anew."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[[Any], bytes]) -> None:
        self._make = make

    def __getitem__(self, value: Any) -> bytes:
        return self._make(value)


class _OtherType(TypeError):
    """A column holds values of several types."""


class _Column(dict[type, _Ids | _Sets | _Each]):
    """One field of a slate → bags, each the bytes of its ids laid end to end. As a mapping: a type → its values' bags."""

    __slots__ = ("_logged", "_missing", "_name", "_present", "_real", "_served", "spec")

    def __init__(self, spec: Field, training: bool) -> None:
        super().__init__()
        self.spec = spec
        self._name = spec.name
        self._real, self._logged = spec.kind == "numeric" and not spec.binned, spec.with_log
        self._served = (spec.served_value,) if spec.training_only and not training else None
        self._missing = _as_bytes(hash_missing(spec.number))
        self._present = _as_bytes(hash_value(spec.number, b"value"))

    def __missing__(self, kind: type) -> _Ids | _Sets | _Each:
        found: _Ids | _Sets | _Each
        if kind is ReadyId:
            found = _Each(_as_bytes)
        elif issubclass(kind, list | tuple):
            found = _Each(self._one) if self.spec.kind != "set" else _Sets(self._set) if kind is tuple else _Each(self._listed)
        elif issubclass(kind, str | int | float | np.generic | type(None)):
            found = _Ids(kind, self._make)
        else:
            found = _Each(self._make)                      # which refuses it
        self[kind] = found
        return found

    def bags(self, slates: Slates) -> tuple[_Strand, list[float] | None]:
        """A bag per item, one per slate, or one for all; and for real-valued numbers the value of each."""
        given = self._given(slates)
        entries = len(slates.counts if self.spec.side == "context" else slates.item_ids)
        if len(given) not in (1, entries):
            raise BadEvent("ragged_columns", f"field {self._name}: {len(given)} entries for {entries} items")
        try:
            if self._real:
                return self._amounts(given)
            return self._bags(given), [_log(_bare(value)) for value in given] if self._logged else None
        except BadEvent as bad:
            raise BadEvent(bad.reason, f"field {self._name}: {bad}") from bad

    def _given(self, slates: Slates) -> Sequence[Any]:
        if self._served is not None:
            return self._served
        if self.spec.side == "context":
            return slates.context.get(self._name, _NOTHING)
        if self._name in slates.columns:
            return slates.columns[self._name]
        if self._name == "item_id":
            return slates.item_ids
        if self._name == "position" and slates.positions is not None:
            places = slates.positions
            return [place or None for place in places] if 0 in places else places  # 0 = not given
        return _NOTHING

    def _bags(self, given: Sequence[Any]) -> _Strand:
        kind = type(given[0])
        if len(given) == 1:
            return [self[kind][given[0]]]
        asked = self[tuple if kind is str and self.spec.kind == "set" else kind]
        if kind is str or isinstance(asked, _Sets) or self._alike(given, kind):
            try:
                return list(map(asked.__getitem__, given))
            except TypeError:                              # of several types, or not hashable
                pass
        return [self[type(value)][value] for value in given]

    def _alike(self, given: Sequence[Any], kind: type) -> bool:
        """Whether all are of one type, None apart. Texts need not be tried: they are equal to nothing of another type."""
        return isinstance(self[kind], _Ids) and set(map(type, given)) <= {kind, type(None)}

    def _one(self, values: Sequence[Any]) -> bytes:
        if len(values) > 1:
            raise BadEvent("wrong_type", f"takes one value, got {len(values)}")
        return self._id(values[0]) if values else self._missing

    def _listed(self, values: list[Any]) -> bytes:
        try:
            return self[tuple][tuple(values)]
        except TypeError:                                  # not hashable, so no value either
            return self._set(values)

    def _set(self, values: Sequence[Any]) -> bytes:
        if len(values) > MAX_SET:
            raise BadEvent("set_too_large", f"{len(values)} values, at most {MAX_SET}")
        return b"".join(dict.fromkeys(self._id(one) for one in values if one is not None and one != "")) or self._missing

    def _id(self, value: Any) -> bytes:
        return self._make(value) if isinstance(value, list | tuple) else self[type(value)][value]

    def _make(self, value: Any) -> bytes:
        if value is not None and not isinstance(value, str | int | float | np.generic):
            raise BadEvent("wrong_type", f"takes text, a number or true/false, got {type(value).__name__}")
        text = log_bin(value) if self.spec.kind == "numeric" else canonical(value)
        return self._missing if text is None else _as_bytes(hash_value(self.spec.number, text))

    def _amounts(self, given: Sequence[Any]) -> tuple[_Strand, list[float]]:
        bags: list[bytes] = []
        weights: list[float] = []
        for value in given:
            number = as_number(value)
            if number is None:
                bags.append(self._missing)
                weights.append(1.0)
            else:
                bags.append(self._present)
                weights.append(_log(number) if self.spec.transform == "log" else min(max(number, -RAW_LIMIT), RAW_LIMIT))
        return bags, weights


def _as_bytes(one: int) -> bytes:
    return one.to_bytes(8, "little")


def as_number(value: Any) -> float | None:
    """A numeric field's value; None = missing. Raises BadEvent for text that is no number, NaN and infinities."""
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float | np.generic):
        raise BadEvent("wrong_type", f"takes a number, got {type(value).__name__}")
    try:
        number = float(value)
    except (ValueError, OverflowError) as wrong:
        raise BadEvent("wrong_type", f"takes a number, got {str(value)[:40]!r}") from wrong
    if not math.isfinite(number):
        raise BadEvent("not_finite", f"takes a finite number, got {number}")
    return number


def _bare(value: Any) -> float:
    """A number that _bag has taken; 0 where it is missing, or hashed already."""
    if isinstance(value, list | tuple):
        value = value[0] if value else None
    return 0.0 if isinstance(value, ReadyId) else as_number(value) or 0.0


def _log(number: float) -> float:
    return math.copysign(math.log1p(abs(number)), number)


def log_bin(value: Any) -> bytes | None:
    """A number's order of magnitude as a category: sign and floor(2·log2|v|), 0 by itself.

    1, 2 and 3 keep bins of their own; above, two bins per doubling. On Criteo's counts this beat floor(ln² v) by .0012
    to .0032 AUC in one pass (docs/lab.md).
    """
    number = as_number(value)
    if number is None:
        return None
    if number == 0:
        return b"0"
    return b"%s%d" % (b"+" if number > 0 else b"-", math.floor(2 * math.log2(abs(number))))


def find(name_or_path: str) -> Path:
    """The TOML file of a schema: a bundled one by name ("appstore", "criteo"), or any by path. Raises SchemaError."""
    bundled = Path(__file__).parent / "fieldsets"
    path = bundled / f"{name_or_path}.toml"
    if not path.is_file():
        path = Path(name_or_path)
    if not path.is_file():
        names = sorted(p.stem for p in bundled.glob("*.toml"))
        raise SchemaError(f"model.schema={name_or_path}: no such file, and no bundled schema ({', '.join(names)})")
    return path


def load(name_or_path: str) -> FieldSchema:
    """A schema by name or path, as `find` takes them.

    Raises SchemaError naming the file, the field and what to change.
    """
    path = find(name_or_path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as wrong:
        raise SchemaError(f"{path}: not TOML: {wrong}") from wrong
    return parse(table, str(path))


def parse(table: Mapping[str, Any], origin: str) -> FieldSchema:
    """A schema from its parsed TOML."""
    raw = table.get("field", [])
    if not raw or not isinstance(raw, list):
        raise SchemaError(f"{origin}: needs at least one [[field]]")
    found = [_field(entry, origin) for entry in raw]
    numbers = [str(f.number) for f in found] + [str(entry.get("number")) for entry in table.get("cross", [])]
    for what, seen in (("number", numbers), ("name", [f"{f.side}.{f.name}" for f in found])):
        twice = sorted({one for one in seen if seen.count(one) > 1})
        if twice:
            raise SchemaError(f"{origin}: {what} used twice: {', '.join(twice)}")
    made = [_cross(entry, found, origin) for entry in table.get("cross", [])]
    return FieldSchema(
        str(table.get("name", Path(origin).stem)),
        tuple(sorted(found, key=lambda f: f.number)),
        tuple(sorted(made, key=lambda cross: cross.number)),
    )


def _cross(entry: Mapping[str, Any], found: Sequence[Field], origin: str) -> Cross:
    """[[cross]] number = 40, fields = ["country", "category"]; "context.name" where both sides have that name."""
    named = entry.get("fields", [])
    where = f"{origin}: cross {entry.get('number', '?')}"
    if set(entry) != {"number", "fields"} or not isinstance(named, list) or len(named) != 2:
        raise SchemaError(f"{where}: takes number and fields, the names of two fields; got {', '.join(sorted(entry))}")
    sides: list[Field] = []
    for name in named:
        fits = [spec for spec in found if name in (spec.name, f"{spec.side}.{spec.name}")]
        if len(fits) != 1:
            near = difflib.get_close_matches(str(name), [spec.name for spec in found], n=1, cutoff=0.0)[0]
            raise SchemaError(
                f"{where}: " + (f"no such field: {name} (nearest: {near})" if not fits else f"context.{name} or item.{name}?")
            )
        if fits[0].kind == "set" or (fits[0].kind == "numeric" and not fits[0].binned):
            raise SchemaError(f"{where}: {name} is a set or a real number; a cross is made of two single values")
        sides.append(fits[0])
    number = entry["number"]
    if not isinstance(number, int) or not 1 <= number <= 65535 or sides[0] == sides[1]:
        raise SchemaError(f"{where}: a whole number from 1 to 65535, and two different fields")
    return Cross(number, sides[0], sides[1])


def _field(entry: Mapping[str, Any], origin: str) -> Field:
    where = f"{origin}: field {entry.get('name', '?')}"
    for key in entry:
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, n=1)
            raise SchemaError(f"{where}: no such key: {key}" + (f" (did you mean {near[0]}?)" if near else ""))
    for key in ("name", "number", "kind", "side"):
        if key not in entry:
            raise SchemaError(f"{where}: needs {key}")
    choices = {
        "kind": ("categorical", "set", "numeric"), "side": ("context", "item"),
        "transform": ("log_bins", "log_bins_and_log", "raw", "log"), "pool": ("mean", "sum"),
    }
    for key, allowed in choices.items():
        if key in entry and entry[key] not in allowed:
            raise SchemaError(f"{where}: {key}={entry[key]!r}: one of {', '.join(allowed)}")
    if not isinstance(entry["number"], int) or not 1 <= entry["number"] <= 65535:
        raise SchemaError(f"{where}: number={entry['number']!r}: a whole number from 1 to 65535, never reused")
    served = entry.get("served_value")
    if entry.get("training_only") and served is None:
        raise SchemaError(f"{where}: training_only needs served_value, the value that scores are computed with")
    if entry.get("slice", False) not in (True, False, "new"):
        raise SchemaError(f'{where}: slice={entry["slice"]!r}: true (by value), or "new" (by whether the value is new)')
    if entry.get("slice") and (entry["kind"] == "set" or entry.get("transform") in ("raw", "log")):
        raise SchemaError(f"{where}: slice = true on a set or a real number; a slice takes one category an example: drop slice")
    values = entry.get("values", [])
    if not isinstance(values, list) or (values and entry.get("slice") is not True):
        raise SchemaError(f"{where}: values={values!r}: a list of names, for a field with slice = true")
    return Field(**{
        **entry, "served_value": None if served is None else str(served), "values": tuple(str(value) for value in values),
    })


def columns_of(schema: FieldSchema, numbers: Sequence[int], digests: Sequence[int]) -> NDArray[np.intp] | None:
    """Where each field of `schema` stands among columns made by somebody else; -1 = missing there; None = the same.

    Raises SchemaError for a field whose meaning changed, with both digests.
    """
    if tuple(numbers) == schema.numbers and tuple(digests) == schema.digests:
        return None
    place = {number: (column, digest) for column, (number, digest) in enumerate(zip(numbers, digests, strict=True))}
    found = np.full(len(schema.fields), -1, np.intp)
    for row, spec in enumerate(schema.fields):
        if spec.number not in place:
            continue
        column, digest = place[spec.number]
        if digest != spec.digest:
            raise SchemaError(
                f"field {spec.name} (number {spec.number}) changed its meaning: digest {digest:016x} came, "
                f"{spec.digest:016x} is expected. Give the changed field a new number, or use one schema on both sides."
            )
        found[row] = column
    return found


def aligned(schema: FieldSchema, bags: Bags, numbers: Sequence[int], digests: Sequence[int]) -> Bags:
    """Bags made by another schema as rows of this one: known fields in place, absent ones as missing, others dropped."""
    where = columns_of(schema, numbers, digests)
    if where is None:
        return bags
    rows, wide = len(bags), bags.fields
    lengths = np.append(bags.all_lengths(), np.uint16(1)).astype(np.int64)
    starts = np.concatenate(([0], np.cumsum(lengths)))[:-1]                       # (B·wide + 1,), the last = absent
    chosen = np.arange(rows)[:, None] * wide + where[None, :]                     # (B, F)
    chosen = np.where(where[None, :] < 0, rows * wide, chosen).reshape(-1)        # (B·F,)
    count = lengths[chosen]
    inside = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    source = np.repeat(starts[chosen], count) + inside                            # (n',)
    ids = np.append(bags.ids, np.uint64(0))[source]
    values = np.append(bags.all_values(), np.float32(1))[source]
    missing = np.array([hash_missing(f.number) for f in schema.fields], np.uint64)
    absent = np.repeat(np.tile(where < 0, rows), count)
    ids[absent] = np.repeat(np.tile(missing, rows), count)[absent]
    if schema.logs:
        values[np.repeat(np.tile((where < 0) & np.isin(np.arange(len(where)), schema.logs), rows), count)] = 0
    return Bags(
        len(schema.fields), ids, None if bags.values is None and not schema.logs else values,
        None if bags.lengths is None else count.astype(np.uint16),
    )
