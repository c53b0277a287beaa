"""Rows that come in parts, each a NamedTuple of columns: arrays as long as one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T", bound=tuple[Any, ...])


def joined(parts: Sequence[T]) -> T:
    """One after the other, at least one; a single one as it is."""
    if len(parts) == 1:
        return parts[0]
    return type(parts[0])(*(np.concatenate(column) for column in zip(*parts, strict=True)))
