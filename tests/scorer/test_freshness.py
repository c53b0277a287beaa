from __future__ import annotations

import time

from schemas.journal import read
from scorer.engine import Version
from scorer.freshness import Freshness, Matcher

TRACE = {"click_us": 1, "joined_us": 2, "learnt_us": 3, "published_us": 4}


def version(number: int, lineage: str = "a") -> Version:
    return Version(lineage, number, created_us=10 * number, applied_us=10 * number + 5)


def test_the_first_answer_from_that_version_or_a_later_one_completes_an_example():
    """Answers from older versions do not; each example is complete once."""
    matcher = Matcher()
    assert matcher.served(version(1), 16) == []
    assert matcher.applied(version(2), [TRACE]) == []
    assert matcher.applied(version(3), [TRACE | {"click_us": 7}]) == []
    lines = matcher.served(version(3), 40)
    assert [(line["click_us"], line["applied_us"], line["served_us"]) for line in lines] == [(1, 25, 40), (7, 35, 40)]
    assert lines[0] == TRACE | {"applied_us": 25, "served_us": 40, "version": 2, "lineage": "a"}
    assert matcher.served(version(4), 50) == []


def test_an_answer_may_come_before_its_examples():
    """A request answered right after the swap counts, with the earliest such answer's time."""
    matcher = Matcher()
    assert matcher.served(version(2), 26) == []
    assert matcher.served(version(3), 36) == []
    assert [line["served_us"] for line in matcher.applied(version(2), [TRACE])] == [26]


def test_examples_of_a_lineage_that_was_replaced_are_dropped():
    """They were never served; the new lineage's are not mistaken for them."""
    matcher = Matcher()
    matcher.applied(version(2), [TRACE])
    matcher.applied(version(3, "b"), [TRACE])
    assert [line["lineage"] for line in matcher.served(version(3, "b"), 40)] == ["b"]
    assert matcher.served(version(4), 50) == []


def test_lines_are_written_off_the_request_path(tmp_path):
    """What was complete before `close` is in the file; served versions are counted once each."""
    path = tmp_path / "metrics" / "freshness.jsonl"
    freshness = Freshness(path, lambda: 99)
    second = version(2)
    freshness.served(version(1))
    freshness.applied(second, [TRACE, TRACE])
    for _ in range(5):
        freshness.served(second)
    freshness.close()
    lines = list(read(path))
    assert [{key: line[key] for key in (*TRACE, "served_us", "version")} for line in lines] == 2 * [
        TRACE | {"served_us": 99, "version": 2}
    ]
    assert freshness.versions_served == 2


def test_a_known_version_costs_a_request_next_to_nothing(tmp_path):
    """100,000 answers from one version take far less than a second in all."""
    freshness = Freshness(tmp_path / "freshness.jsonl", lambda: 99)
    same = version(1)
    started = time.perf_counter()
    for _ in range(100_000):
        freshness.served(same)
    assert time.perf_counter() - started < 1
    freshness.close()
