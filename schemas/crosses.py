"""Crosses: a field made of two, for models that learn a weight for each pair of values.

They are made here, from the ids of two fields, by trainer and scorer alike, after the join and before the table: neither
events nor examples hold them, so a cross may be added or dropped without a new join. Each is one more column with one
id, which the table knows like any other.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from schemas.bags import Bags, Ids
from schemas.fields import FieldSchema

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def crossed(bags: Bags, schema: FieldSchema) -> Bags:
    """The same rows with one more bag for each cross of the schema, after its fields, in the order of their numbers.

    The fields of a cross hold one id each (schemas/fields.py refuses others); a missing value is an id like any other.
    Its value is 1.
    """
    if not schema.crosses:
        return bags
    b, f, c = len(bags), bags.fields, len(schema.crosses)
    begun, left, right = _sides(schema)                                                         # (C,) each
    if bags.lengths is None:
        ids = np.empty((b, f + c), np.uint64)                                                   # (B, F + C)
        ids[:, :f] = bags.ids.reshape(b, f)
        ids[:, f:] = _crossed(begun, ids[:, left], ids[:, right])
        values = None
        if bags.values is not None:
            values = np.ones((b, f + c), np.float32)                                            # (B, F + C)
            values[:, :f] = bags.values.reshape(b, f)
        return Bags(f + c, ids.reshape(-1), None if values is None else values.reshape(-1), None)
    lengths = bags.lengths.reshape(b, f).astype(np.int64)                                       # (B, F)
    starts = (np.cumsum(lengths) - lengths.reshape(-1)).reshape(b, f)                           # (B, F)
    made = _crossed(begun, bags.ids[starts[:, left]], bags.ids[starts[:, right]])             # (B, C)
    ends = np.repeat(np.cumsum(lengths.sum(axis=1)), c)                                         # (B·C,)
    return Bags(
        f + c,
        np.insert(bags.ids, ends, made.reshape(-1)),
        None if bags.values is None else np.insert(bags.values, ends, np.float32(1)),
        np.concatenate([bags.lengths.reshape(b, f), np.ones((b, c), np.uint16)], axis=1).reshape(-1),
    )


def cross_ids(number: int | Ids, left: Ids, right: Ids) -> Ids:
    """m(m(m(number) ⊕ left) ⊕ right), m = splitmix64's output function: (n,) uint64 each, or what broadcasts to one shape;
    another for (right, left).

    Source: Steele, Lea, Flood, Fast Splittable Pseudorandom Number Generators, OOPSLA 2014.
    """
    return _crossed(_mixed(np.atleast_1d(np.asarray(number, np.uint64))), left, right)


def _crossed(begun: Ids, left: Ids, right: Ids) -> Ids:
    """The same from m(number) on."""
    return _mixed(_mixed(begun ^ left) ^ right)


@lru_cache(maxsize=16)
def _sides(schema: FieldSchema) -> tuple[Ids, NDArray[np.intp], NDArray[np.intp]]:
    """m(number) of each cross, and the columns of its two fields: (C,) each."""
    numbers = np.array([cross.number for cross in schema.crosses], np.uint64)
    left, right = np.array(schema.sides, np.intp).T
    return _mixed(numbers), left, right


def _mixed(state: Ids) -> Ids:
    """splitmix64: products and sums wrap round."""
    z = state + _GOLDEN
    z ^= z >> np.uint64(30)
    z *= _MIX_1
    z ^= z >> np.uint64(27)
    z *= _MIX_2
    z ^= z >> np.uint64(31)
    return z
