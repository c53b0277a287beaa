"""Rows kept as they were, against a dictionary."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from stream_trainer.learning.kept import Kept

BITS, WIDE = 5, 3
ROWS = st.lists(st.integers(0, (1 << BITS) - 1), unique=True, max_size=20)


@given(st.lists(st.one_of(ROWS, st.sampled_from(["clear", "elsewhere"])), max_size=12))
def test_each_row_is_kept_as_it_was_first(history: list[list[int] | str]) -> None:
    """Kept again it stays as it was; cleared it may be kept anew; the order is that of coming; and a copy goes on alike."""
    kept, expected, moment = Kept(BITS, WIDE), dict[int, list[float]](), 0.0
    for what in history:
        moment += 1
        if what == "clear":
            kept.clear()
            expected.clear()
        elif what == "elsewhere":
            rows, block = kept.rows.copy(), kept.block.copy()
            kept = Kept(BITS, WIDE)
            kept.restore(rows, block)
        else:
            given = [int(row) for row in what]
            held = torch.tensor([[row, moment, -row] for row in given], dtype=torch.float32).reshape(-1, WIDE)
            kept.keep(torch.tensor(given, dtype=torch.int64), held)
            held.zero_()                                             # what was kept is a copy
            expected |= {row: [row, moment, -row] for row in given if row not in expected}
        assert len(kept) == len(expected)
        assert kept.rows.tolist() == list(expected)
        assert kept.block.tolist() == list(expected.values())
        places = kept.places(np.arange(1 << BITS))
        assert {row: place - 1 for row, place in enumerate(places.tolist()) if place} == {
            row: place for place, row in enumerate(expected)
        }
