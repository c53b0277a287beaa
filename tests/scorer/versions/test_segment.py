from __future__ import annotations

import os

import numpy as np
import pytest

from schemas.fields import load
from schemas.snapshot import unpack
from scorer.versions import segment
from tests.scorer.lineage import Lineage, small

SCHEMA = load("appstore")


@pytest.mark.parametrize("rows", [0, 1, 300])
def test_a_version_comes_out_as_it_went_in(rows):
    """Manifest, rows in one piece and in order, dense weights; and when the arrays go, the file goes."""
    lineage = Lineage(small(), SCHEMA)
    pairs = lineage.publish(rows)
    manifest = lineage.manifests[1]
    content = unpack(manifest, [value for _, value in pairs[:-1]])
    descriptors = os.listdir("/proc/self/fd")
    file = segment.of_version(manifest, content)
    found = segment.opened(file)
    os.close(file)
    assert (found.manifest, found.table) == (manifest, None)
    assert len(found.content.rows) == min(rows, 1)
    for numbers, floats in found.content.rows:
        np.testing.assert_array_equal(numbers, np.concatenate([n for n, _ in content.rows]))
        np.testing.assert_array_equal(floats, lineage.tables[1][numbers])
        del numbers, floats
    assert found.content.dense.keys() == content.dense.keys()
    for name, array in content.dense.items():
        np.testing.assert_array_equal(found.content.dense[name], array)
    del found
    assert os.listdir("/proc/self/fd") == descriptors


def test_nobody_changes_what_another_one_maps():
    """A worker may write to what it mapped; the next one to map the file finds what the follower wrote; the file is sealed."""
    lineage = Lineage(small(), SCHEMA)
    lineage.publish(100)
    table = lineage.tables[1]
    file = segment.of_table(lineage.manifests[1], table, {"bias": np.zeros(1, np.float32)})
    first, second = segment.opened(file), segment.opened(file)
    assert first.table is not None
    assert second.table is not None
    first.table[:] = 0
    np.testing.assert_array_equal(second.table, table)
    with pytest.raises(PermissionError):
        os.pwrite(file, b"x", 0)
    os.close(file)
