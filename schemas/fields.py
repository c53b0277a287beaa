"""The field schema: which features there are, what each means, and how a slate becomes bags of ids.

A schema is one TOML file. Each field has a stable number and a digest of its own, so that a field may be added or dropped
while both sides run; a field whose meaning changed under the same number is refused with both digests.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray

from schemas.bags import Bags
from schemas.errors import BadEvent, SchemaError
from schemas.hashing import canonical, hash_missing, hash_value

Kind = Literal["categorical", "set", "numeric"]
Transform = Literal["log_bins", "log_bins_and_log", "raw", "log"]
MAX_SET = 1000        # values in one set; more is a producer's mistake, not a preference
RAW_LIMIT = 1e6       # raw numbers are clipped here: one wild value must not blow up a row
MAX_UNKNOWN = 1000    # names of unknown fields that are counted apart; whatever comes after is counted together
CACHE_ENTRIES = 1 << 20  # ids remembered per field: about 100 MB at worst, then forgotten all at once

_KEYS = {"name", "number", "kind", "side", "transform", "pool", "training_only", "served_value", "slice"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    """One feature of the context or of an item.

    kind: categorical (one value), set (several, pooled by `pool` before the model), numeric.
    transform of a number: log_bins = its order of magnitude as a category (floor(2·log2|v|) with the sign, 0 apart);
    log_bins_and_log = the same, and sign(v)·ln(1+|v|) beside it, 0 where missing, for models that read it (schemas/models);
    raw = one learnt row times the number, clipped to ±1e6; log = the same times sign(v)·ln(1+|v|).
    training_only: known only after showing (position); scores are computed with served_value.
    slice: metrics are kept per value.
    """

    name: str
    number: int
    kind: Kind
    side: Literal["context", "item"]
    transform: Transform = "log_bins"
    pool: Literal["mean", "sum"] = "mean"
    training_only: bool = False
    served_value: str | None = None
    slice: bool = False

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
        meaning = [str(self.number), self.kind, self.side]
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


@dataclass(frozen=True, slots=True)
class Slate:
    """A context and items to rank, as plain values: what an impression and a scoring request have in common.

    context: field → value. columns: field → one entry per item. A value is text, a number, a bool, None (missing), a
    list of those (a set), or a `ReadyId`.
    """

    item_ids: Sequence[str]
    context: Mapping[str, Any]
    columns: Mapping[str, Sequence[Any]]
    positions: Sequence[int] | None = None


class ReadyId(int):
    """A value that its producer has hashed already."""


@dataclass(slots=True)
class Encoder:
    """Slates → bags of ids by one schema.

    training: use the true values of training-only fields; otherwise their served value. The fields named `item_id` and
    `position` are filled from the item itself where the features do not name them.
    """

    schema: FieldSchema
    training: bool
    unknown: dict[str, int] = field(default_factory=dict)  # field name → how often it came and was ignored
    _caches: list[dict[Any, int]] = field(init=False)
    _missing: list[int] = field(init=False)
    _has_sets: bool = field(init=False)
    _has_values: bool = field(init=False)
    _known: frozenset[tuple[str, str]] = field(init=False)

    def __post_init__(self) -> None:
        self._caches = [{} for _ in self.schema.fields]
        self._missing = [hash_missing(f.number) for f in self.schema.fields]
        self._has_sets = any(f.kind == "set" for f in self.schema.fields)
        self._has_values = any(f.kind == "numeric" and f.transform != "log_bins" for f in self.schema.fields)
        self._known = frozenset((f.side, f.name) for f in self.schema.fields)

    def encode(self, slate: Slate) -> tuple[Bags, list[str]]:
        """The slate's rows, and the names of fields that the schema does not know (ignored and counted).

        Raises BadEvent for a value that its field cannot take, naming field and item.
        """
        items = len(slate.item_ids)
        strange = [name for name in slate.context if ("context", name) not in self._known]
        strange += [name for name in slate.columns if ("item", name) not in self._known]
        for name in strange:
            known = name if name in self.unknown or len(self.unknown) < MAX_UNKNOWN else "…"
            self.unknown[known] = self.unknown.get(known, 0) + 1

        columns = [self._column(place, spec, slate, items) for place, spec in enumerate(self.schema.fields)]
        if not self._has_sets:
            ids = np.empty((items, len(columns)), np.uint64)
            values = np.ones((items, len(columns)), np.float32) if self._has_values else None
            for place, (bags, weights) in enumerate(columns):
                ids[:, place] = [bag[0] for bag in bags] if len(bags) > 1 else bags[0][0]
                if values is not None and weights is not None:
                    values[:, place] = weights
            return Bags(len(columns), ids.reshape(-1), None if values is None else values.reshape(-1)), strange

        flat_ids: list[int] = []
        flat_values: list[float] = []
        lengths: list[int] = []
        for item in range(items):
            for bags, weights in columns:
                bag = bags[item] if len(bags) > 1 else bags[0]
                flat_ids.extend(bag)
                lengths.append(len(bag))
                if self._has_values:
                    weight = 1.0 if weights is None else weights[item] if len(weights) > 1 else weights[0]
                    flat_values.extend([weight] * len(bag))
        values = np.array(flat_values, np.float32) if self._has_values else None
        return Bags(len(columns), np.array(flat_ids, np.uint64), values, np.array(lengths, np.uint16)), strange

    def _column(
        self, place: int, spec: Field, slate: Slate, items: int
    ) -> tuple[list[list[int]], list[float] | None]:
        """A bag per item, or a single one that all items share; and for real-valued numbers the value of each."""
        given: Sequence[Any]
        if spec.training_only and not self.training:
            given = [spec.served_value]
        elif spec.side == "context":
            given = [slate.context.get(spec.name)]
        elif spec.name in slate.columns:
            given = slate.columns[spec.name]
        elif spec.name == "position" and slate.positions is not None:
            given = [place or None for place in slate.positions]  # 0 = not given
        elif spec.name == "item_id":
            given = slate.item_ids
        else:
            given = [None]
        if len(given) not in (1, items):
            raise BadEvent("ragged_columns", f"field {spec.name}: {len(given)} entries for {items} items")
        try:
            if spec.kind == "numeric" and not spec.binned:
                return self._amounts(place, spec, given)
            bags = [self._bag(place, spec, value) for value in given]
            return bags, [_log(_bare(value)) for value in given] if spec.with_log else None
        except BadEvent as bad:
            raise BadEvent(bad.reason, f"field {spec.name}: {bad}") from bad

    def _bag(self, place: int, spec: Field, value: Any) -> list[int]:
        if spec.kind == "set":
            if not isinstance(value, list | tuple):
                value = [value]
            if len(value) > MAX_SET:
                raise BadEvent("set_too_large", f"{len(value)} values, at most {MAX_SET}")
            ids = dict.fromkeys(self._id(place, spec, one) for one in value if one is not None and one != "")
            return list(ids) or [self._missing[place]]
        if isinstance(value, list | tuple):
            if len(value) > 1:
                raise BadEvent("wrong_type", f"takes one value, got {len(value)}")
            value = value[0] if value else None
        return [self._id(place, spec, value)]

    def _id(self, place: int, spec: Field, value: Any) -> int:
        if value is None:
            return self._missing[place]
        kind = type(value)
        if kind is ReadyId:
            return int(value)
        if not isinstance(value, str | int | float | np.generic):
            raise BadEvent("wrong_type", f"takes text, a number or true/false, got {kind.__name__}")
        cache = self._caches[place]
        key = (kind, value) if kind is not str else value  # 1, 1.0 and True are equal as dict keys, not as values
        known = cache.get(key)
        if known is not None:
            return known
        if spec.kind == "numeric":
            text: bytes | None = log_bin(value)
        else:
            text = canonical(value)
        found = self._missing[place] if text is None else hash_value(spec.number, text)
        if len(cache) >= CACHE_ENTRIES:
            cache.clear()
        cache[key] = found
        return found

    def _amounts(self, place: int, spec: Field, given: Sequence[Any]) -> tuple[list[list[int]], list[float]]:
        present = hash_value(spec.number, b"value")
        bags: list[list[int]] = []
        weights: list[float] = []
        for value in given:
            number = as_number(value)
            if number is None:
                bags.append([self._missing[place]])
                weights.append(1.0)
            else:
                bags.append([present])
                weights.append(_log(number) if spec.transform == "log" else min(max(number, -RAW_LIMIT), RAW_LIMIT))
        return bags, weights


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


def load(name_or_path: str) -> FieldSchema:
    """A bundled schema by name ("appstore", "criteo"), or any TOML file by path.

    Raises SchemaError naming the file, the field and what to change.
    """
    bundled = Path(__file__).parent / "fieldsets"
    path = bundled / f"{name_or_path}.toml"
    if not path.is_file():
        path = Path(name_or_path)
    if not path.is_file():
        names = sorted(p.stem for p in bundled.glob("*.toml"))
        raise SchemaError(f"model.schema={name_or_path}: no such file, and no bundled schema ({', '.join(names)})")
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
    return Field(**{**entry, "served_value": None if served is None else str(served)})


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
