"""What there is in memory, as systems say it; and what is said of a table that does not fit."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from schemas.config import LearnConfig, ModelConfig
from schemas.fields import load
from schemas.memory import BESIDE_BYTES, DoesNotFit, Room, Wanted, check, room
from stream_trainer.learning.memory import check_learner, row_floats, wanted

GIB = 1 << 30
CRITEO = ModelConfig(schema="criteo", factors=10)


def machine(root: Path, cgroup: str, **files: str) -> tuple[Path, Path]:
    """/proc and /sys/fs/cgroup as they would be. files: path with __ for / → content."""
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "self" / "cgroup").write_text(cgroup)
    for name, text in files.items():
        file = root / "cgroup" / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root / "proc", root / "cgroup"


@pytest.mark.parametrize(("cgroup", "files", "left"), [
    ("0::/app/me\n", {"app__memory.max": f"{GIB}\n", "app__memory.current": f"{GIB // 2}\n",
                      "app__memory.stat": f"anon 5\ninactive_file {GIB // 4}\n",
                      "app__me__memory.max": "max\n", "app__me__memory.current": "7\n"}, GIB // 4 * 3),
    ("0::/\n", {"memory.max": f"{GIB}\n", "memory.current": f"{GIB}\n"}, 0),
    ("0::/elsewhere\n", {"memory.max": f"{GIB}\n", "memory.current": "0\n"}, GIB),
    ("5:cpu:/x\n4:memory:/docker/c1\n", {"memory__memory.limit_in_bytes": str(GIB), "memory__memory.usage_in_bytes": "100",
                                         "memory__memory.stat": "total_inactive_file 60\ninactive_file 9\n"}, GIB - 40),
], ids=["v2, a parent's limit, page cache counts as free", "v2, used up", "v2, in a container", "v1, in a container"])
def test_a_cgroup_s_limit_counts(tmp_path: Path, cgroup: str, files: dict[str, str], left: int) -> None:
    """Of the cgroup itself or of one above it, less what is used and cannot go."""
    found = room(*machine(tmp_path, cgroup, **files))
    assert found.bytes == left
    assert "cgroup" in found.where


@pytest.mark.parametrize("files", [
    {}, {"memory.max": "max\n", "memory.current": "5\n"}, {"memory__memory.limit_in_bytes": "9223372036854771712",
                                                          "memory__memory.usage_in_bytes": "5"},
])
def test_without_a_limit_it_is_what_the_system_has(tmp_path: Path, files: dict[str, str]) -> None:
    """MemAvailable, give or take what others take meanwhile."""
    found = room(*machine(tmp_path, "0::/\n4:memory:/\n", **files))
    assert abs(found.bytes - psutil.virtual_memory().available) < GIB
    assert "MemAvailable" in found.where


def test_a_table_that_does_not_fit_is_told_with_what_would() -> None:
    """2^24 rows of 117 bytes beside 1 GiB: rows, bytes, what there is, the largest power that fits, and the other optimiser."""
    there = Room(GIB, "free now (MemAvailable)")
    with pytest.raises(DoesNotFit) as refused:
        check(Wanted("the trainer's table", 24, 117, [("learn.row_optimiser=rowwise_adagrad", 41)]), there)
    told = str(refused.value)
    assert "the trainer's table does not fit: model.bits=24 wants 16,777,216 rows of 117 bytes, 1.8 GiB" in told
    assert "there are 1.0 GiB, free now (MemAvailable)" in told
    assert "Set model.bits=22 (468 MiB) or learn.row_optimiser=rowwise_adagrad (656 MiB)" in told
    check(Wanted("the trainer's table", 22, 117), there)
    check(Wanted("it", 20, (GIB - BESIDE_BYTES) >> 20), there)      # to the last byte
    with pytest.raises(DoesNotFit):
        check(Wanted("it", 20, ((GIB - BESIDE_BYTES) >> 20) + 1), there)


def test_where_no_table_fits_there_is_no_advice_to_set_one() -> None:
    """Less free than the rest of a process takes."""
    with pytest.raises(DoesNotFit, match="Give it more memory: no table fits"):
        check(Wanted("the trainer's table", 20, 100), Room(BESIDE_BYTES, "free now"))


def test_a_row_s_floats_are_those_of_the_model_and_its_optimiser() -> None:
    """DeepFM: a first-order weight, K factors, two counts that no optimiser knows. Adagrad: a sum per weight; row-wise: one;
    Adam: two moments per weight and a count; FTRL for the first-order weight alone: two of its own."""
    schema = load("criteo")
    for learn, state in [
        (LearnConfig(row_optimiser="sgd"), 0), (LearnConfig(row_optimiser="adagrad"), 11),
        (LearnConfig(row_optimiser="rowwise_adagrad"), 1), (LearnConfig(row_optimiser="adam"), 23),
        (LearnConfig(row_optimiser="adagrad", first_order_optimiser="ftrl"), 12),
    ]:
        assert row_floats(CRITEO, learn, schema) == (13, 13 + state)
    assert wanted(CRITEO, LearnConfig(device="cpu"), schema, "it").row_bytes == 4 * 24 + 13
    assert wanted(CRITEO, LearnConfig(device="cpu", guard=False), schema, "it").row_bytes == 4 * 24 + 9


def test_a_learner_is_refused_before_anything_is_made() -> None:
    """The check alone: 2^30 rows are never allocated."""
    huge = ModelConfig(schema="criteo", bits=30, factors=1000)
    with pytest.raises(DoesNotFit, match="1,073,741,824 rows"):
        check_learner(huge, LearnConfig(device="cpu"), load("criteo"))
    check_learner(huge, LearnConfig(device="cpu"), load("criteo"), there=Room(1 << 50, "a very large machine"))
