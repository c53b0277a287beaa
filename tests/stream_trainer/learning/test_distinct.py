"""Row numbers of several lists, ascending and once each."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stream_trainer.learning.distinct import distinct

NUMBERS = st.lists(st.integers(0, (1 << 31) - 1) | st.integers(0, 9), max_size=60)


@given(parts=st.lists(NUMBERS, min_size=1, max_size=3))
def test_as_a_set_sorted(parts: list[list[int]]) -> None:
    """Python's set says the same."""
    found = distinct(*(np.array(part, np.int64) for part in parts))
    assert found.tolist() == sorted(set().union(*parts))
    assert found.dtype == np.int64
