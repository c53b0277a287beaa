"""What a row takes is what the system says that it takes."""

from __future__ import annotations

import pytest

from schemas.config import LearnConfig, ModelConfig
from schemas.fields import load
from schemas.memory import DoesNotFit, Room
from stream_trainer.learning.memory import check_learner
from tests.conftest import needs_gpu
from tests.kit.table_memory import in_a_process


def test_the_memory_of_a_touched_row_is_as_stated() -> None:
    """Two processes whose tables were learnt in full, 2^17 and 2^20 rows: their difference in resident memory, per row, is the
    stated bytes, within a tenth."""
    small, large = in_a_process(17), in_a_process(20)
    per_row = (large["rss_bytes"] - small["rss_bytes"]) / (large["rows"] - small["rows"])
    assert per_row == pytest.approx(large["row_bytes"], rel=0.1)


def test_on_a_gpu_the_floats_must_fit_there_and_the_lists_here() -> None:
    """A table of terabytes: what is free on the device is named; with little memory beside it, that is."""
    needs_gpu()
    schema, learn = load("criteo"), LearnConfig(device="cuda")
    with pytest.raises(DoesNotFit, match=r"rows of 8,0\d\d bytes.*free on"):
        check_learner(ModelConfig(schema="criteo", bits=30, factors=1000), learn, schema)
    with pytest.raises(DoesNotFit, match=r"beside the GPU.*rows of 12 bytes"):
        check_learner(ModelConfig(schema="criteo", bits=10, factors=4), learn, schema, there=Room(0, "free now"))
