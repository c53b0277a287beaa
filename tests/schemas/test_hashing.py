"""Hashing is a contract between processes, machines and years: pinned values, and one id for one meaning."""

from __future__ import annotations

import itertools
import math
import struct
import unicodedata

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import BadEvent
from schemas.hashing import canonical, hash_missing, hash_value

# Computed with python-xxhash 4.1 of the field's number as 2 bytes and the value. Never change a line: add.
GOLDEN = [
    (1, b"", 0xAB94AC0ACE7276C0),
    (1, b"7", 0x8D77A2BE9E808290),
    (2, b"7", 0x336AE261EC45A2DE),
    (1, b"games", 0x94AB82533A83401F),
    (65535, "日本".encode(), 0x9CEE899BAB250258),
    (3, b"0.1", 0x70484095E78F38C8),
]


@pytest.mark.parametrize("alike", [
    (7, "7", 7.0, np.int64(7), np.float32(7), " 7 "),
    (True, "true"), (False, "false"),
    ("", None, "  "),
    (0.1, "0.1", np.float32(0.1)),
    (-0.0, 0, "0"),
    (1e22, "1e+22"),
    ("é", unicodedata.normalize("NFD", "é")),
])
def test_one_meaning_has_one_canonical_form(alike: tuple[object, ...]) -> None:
    """Whatever type a producer's language gives a value, it is the same value."""
    assert len({canonical(value) for value in alike}) == 1


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, np.float32("nan"), b"x", {}, []])
def test_what_is_no_value_is_refused(wrong: object) -> None:
    """NaN is equal to nothing, so it cannot have an id."""
    with pytest.raises(BadEvent):
        canonical(wrong)


@given(st.text())
def test_canonical_text_is_stable(text: str) -> None:
    """The canonical form of a canonical form is itself, so passing a value on cannot change its id."""
    once = canonical(text)
    assert once is None or canonical(once.decode("utf-8", "surrogatepass")) == once


@given(st.text(min_size=1), st.integers(1, 65535))
def test_no_text_meets_the_missing_id(text: str, number: int) -> None:
    """"Nothing was given" is a value of its own."""
    found = canonical(text)
    assert found is None or hash_value(number, found) != hash_missing(number)


@given(st.integers(1, 65535), st.binary(max_size=40))
def test_the_hash_is_xxh3_of_the_field_number_and_the_value(number: int, value: bytes) -> None:
    """The definition in one line, for whoever writes a producer in another language."""
    assert hash_value(number, value) == xxhash.xxh3_64(struct.pack("<H", number) + value).intdigest()


def test_short_values_of_different_fields_have_ids_of_their_own() -> None:
    """All values of up to three signs and digits, as log bins are, in each of 64 fields: no two share an id."""
    values = ["".join(signs).encode() for length in range(4) for signs in itertools.product("+-0123456789", repeat=length)]
    ids = {hash_value(number, value) for number in range(1, 65) for value in values}
    assert len(ids) == 64 * len(values)


@pytest.mark.parametrize(("number", "value", "expected"), GOLDEN)
def test_hashes_are_pinned(number: int, value: bytes, expected: int) -> None:
    """A learnt row is worth nothing once its id moves."""
    assert hash_value(number, value) == expected
