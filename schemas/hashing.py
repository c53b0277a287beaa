"""(field, value) → 64-bit id: the one hash that producers, joiner and scorer share.

id = xxh3_64(field number as 2 bytes, little-endian, then the canonical value as UTF-8). The field's number, not its name, is
hashed, so a field can be renamed. It is hashed with the value, and is not the seed: XXH3 does no more with a seed than XOR
short inputs with it, so that small seeds gave short values of different fields one id. Pinned by golden vectors in
tests/schemas/test_hashing.py: a change there makes every learnt row worthless.
Source of the function: xxHash specification 0.8, XXH3_64bits; measured here at about 100 ns a value.
"""

from __future__ import annotations

import math
import unicodedata

import numpy as np
import xxhash

from schemas.errors import BadEvent

HASH = "xxh3_64(number, value)"  # its name, part of each field's digest: ids of another hash are refused
MISSING = b"\x00missing"  # no canonical text holds U+0000 first, so no real value meets it


def canonical(value: object) -> bytes | None:
    """The bytes that stand for a value wherever it comes from; None where nothing was given ("" and null too).

    7, "7", 7.0 and numpy's 7 are one value; so are true, "true"; text is Unicode NFC with outer white space removed.
    A number is its shortest decimal that reads back the same: 0.1 as float64 and "0.1" agree, and float32 0.1 is the
    shortest decimal *of float32*. Raises BadEvent for NaN, infinities, and what is neither text, number nor bool.
    """
    if isinstance(value, str):
        if value.isascii():
            text = value.strip()
        else:
            text = unicodedata.normalize("NFC", value).strip()
        text = text.lstrip("\x00")
        return text.encode("utf-8", "surrogatepass") if text else None
    if value is None:
        return None
    if isinstance(value, bool):
        return b"true" if value else b"false"
    if isinstance(value, int):
        return b"%d" % value
    if isinstance(value, np.generic) and not isinstance(value, np.floating):
        return canonical(value.item())
    if isinstance(value, float | np.floating):
        number = float(value)
        if not math.isfinite(number):
            raise BadEvent("not_finite", f"{number} is not a number that can be hashed")
        whole = abs(number) < 2**63 and number.is_integer()
        return (str(int(number)) if whole else str(value)).encode()  # numpy's str: shortest decimal of its own width
    raise BadEvent("wrong_type", f"a feature is text, a number or true/false, not {type(value).__name__}")


def hash_value(field_number: int, value: bytes) -> int:
    """64-bit id of a canonical value in a field."""
    return xxhash.xxh3_64_intdigest(field_number.to_bytes(2, "little") + value)


def hash_missing(field_number: int) -> int:
    """64-bit id that stands for "nothing was given" in a field."""
    return hash_value(field_number, MISSING)


def is_kept(impression_id: str, item_id: str, rate: float, seed: int) -> bool:
    """Whether a sample that keeps a share `rate` of all (impression, item) keeps this one: always the same answer."""
    return xxhash.xxh3_64_intdigest(f"{impression_id}\0{item_id}".encode(), seed) < rate * 2**64
