"""The picture of latencies: read back as XML, its points against shares counted by hand."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from ops.bench.scoring.picture import BOTTOM, EDGES, HEIGHT, LEFT, RIGHT, TOP, WIDTH, across, counted, down, drawn

SVG = "{http://www.w3.org/2000/svg}"


def test_each_latency_is_counted_once_between_its_edges() -> None:
    """Those beyond the ends, too, so that none is missing from the picture."""
    counts = counted([0.001, EDGES[5] * 1.0001, EDGES[5] * 1.0002, 5000.0])
    assert sum(counts) == 4
    assert {place: count for place, count in enumerate(counts) if count} == {0: 1, 5: 2, len(EDGES) - 2: 1}


def test_scales_are_logarithms_from_end_to_end() -> None:
    """A factor is a distance; all requests are at the top, a share that cannot be seen at the bottom."""
    assert (across(EDGES[0]), across(EDGES[-1])) == (LEFT, WIDTH - RIGHT)
    assert across(10) - across(1) == pytest.approx(across(100) - across(10), abs=0.2)
    assert (down(1.0), down(0.0)) == (TOP, HEIGHT - BOTTOM)
    assert down(0.01) == pytest.approx((TOP + HEIGHT - BOTTOM) / 2, abs=0.1)


def test_a_line_falls_where_requests_are() -> None:
    """One line a load: nine of ten requests at 1 ms and one at 20 leave a tenth between the two, and none beyond."""
    root = ElementTree.fromstring(drawn("a < b", {"calm": counted([1.0] * 9 + [20.0]), "other": counted([2.0])}))
    lines = [one.attrib["points"] for one in root.iter(f"{SVG}polyline")]
    assert len(lines) == 2
    points = [tuple(map(float, point.split(","))) for point in lines[0].split()]
    assert {y for x, y in points if x < across(0.9)} == {TOP}
    assert {y for x, y in points if across(1.2) < x < across(18)} == {down(0.1)}
    assert {y for x, y in points if x > across(22)} == {HEIGHT - BOTTOM}
    texts = [one.text for one in root.iter(f"{SVG}text")]
    assert {"a < b", "calm", "other"} <= {*texts}
