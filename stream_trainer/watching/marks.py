"""By what an example is watched: its group, and its value of each field that the schema calls a slice. Pure: ids in, keys out.

The trainer sees no text, so a slice's value is an id here. Names are found the other way round, by hashing what may have been
meant: the field's `values` in the schema, whole numbers, orders of magnitude. Any other shows as # and its id.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from schemas.bags import Bags, Ids
from schemas.config import MetricsConfig, the_one
from schemas.fields import Field, FieldSchema
from schemas.hashing import canonical, hash_missing, hash_value

Keys = NDArray[np.uint64]

NOTHING = 0            # a key that says nothing: no group, or a value that was not noted
SLATE = "slate"
NEW, KNOWN = 1 << 48, 2 << 48   # of a field whose values are watched by whether they are new
_SLATE_BITS = 48       # of an offset; a source partition stands above
_NUMBERS = 1000        # whole numbers that are known by name: hours, places, days
_HALVES = range(-40, 140)  # exponents of log_bins that are: a millionth to 1e21


def slice_id(spec: Field, text: str) -> int:
    """The id of a value that somebody wrote down: of its order of magnitude, of a number that is known by that."""
    value = canonical(text)
    return hash_missing(spec.number) if value is None else hash_value(spec.number, value)


class Marker:
    """What a schema and the settings want to be watched. slices: those fields."""

    def __init__(self, schema: FieldSchema, config: MetricsConfig) -> None:
        """Raises ConfigError for a metrics.group that is no single-valued field of the schema."""
        self.schema = schema
        place = {spec.name: column for column, spec in enumerate(schema.fields) if spec.kind == "categorical"}
        the_one("metrics.group", config.group, {SLATE: None, **place})
        self._group = place.get(config.group)
        self._no_group = 0 if self._group is None else hash_missing(schema.fields[self._group].number)
        self.slices = tuple(spec for spec in schema.fields if spec.slice)
        columns = [column for column, spec in enumerate(schema.fields) if spec.slice]
        self._columns = np.array(columns if self._group is None else [self._group, *columns], np.intp)
        self._new = [1 + place for place, spec in enumerate(self.slices) if spec.slice == "new"]
        self._new_below = config.new_below
        self._names = [names_of(spec) for spec in self.slices]

    def keys(
        self, bags: Bags, source: NDArray[np.int64], impression: NDArray[np.int64],
        places: Callable[[Ids], NDArray[np.int64]] | None = None,
    ) -> Keys:
        """(B, 1 + S): the group, then each slice's value. bags: B rows. source, impression: (B,), the slate of each. places: of
        ids, where is counted how often they were learnt; in the place of a value that is watched by whether it is new, until
        `note_new`. None: what is new is not noted."""
        keys = np.empty((len(source), 1 + len(self.slices)), np.uint64)
        found = keys if self._group is not None else keys[:, 1:]                                    # (B, S) or (B, 1 + S)
        found[:] = bags.firsts(self._columns)
        if self._group is None:
            slate = source << _SLATE_BITS
            slate += impression
            slate += 1
            keys[:, 0] = slate.view(np.uint64)
        else:
            keys[keys[:, 0] == np.uint64(self._no_group), 0] = NOTHING
        for place in self._new:
            keys[:, place] = NOTHING if places is None else places(keys[:, place])
        return keys

    def note_new(self, keys: Keys, counts: Callable[[NDArray[np.int64]], NDArray[np.float32]]) -> None:
        """Whether values are new, for fields that are watched by that. keys: (B, 1 + S), of examples that are about to be
        learnt. counts: in how many the row at each place was, before these."""
        for place in self._new:
            keys[:, place] = np.where(counts(keys[:, place].view(np.int64)) < self._new_below, NEW, KNOWN)

    def name(self, place: int, key: int) -> str:
        """What a value of slice `place` is called."""
        return self._names[place].get(key) or f"#{key:016x}"


def names_of(spec: Field) -> dict[int, str]:
    """Id → name of the values of a field that can be named."""
    if spec.slice == "new":
        return {NOTHING: "(not noted)", NEW: "new", KNOWN: "known"}
    named = {NOTHING: "(not noted)", hash_missing(spec.number): "(missing)"}
    if spec.binned:
        named[hash_value(spec.number, b"0")] = "0"
        for half in _HALVES:
            low, high = 2 ** (half / 2), 2 ** ((half + 1) / 2)
            named[hash_value(spec.number, b"+%d" % half)] = f"{low:.3g} to {high:.3g}"
            named[hash_value(spec.number, b"-%d" % half)] = f"-{high:.3g} to -{low:.3g}"
        return named
    texts = [str(number) for number in range(_NUMBERS)] + ["true", "false", *spec.values]
    return named | {slice_id(spec, text): text for text in texts}
