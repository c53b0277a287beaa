from __future__ import annotations

from schemas.journal import read
from scorer.answers.version import Version
from scorer.versions.freshness import Freshness, Matcher

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


def test_an_example_is_served_when_every_worker_has_its_version():
    """An answer from the first worker to have it does not count before the last one has it too: `applied_us`."""
    matcher = Matcher()
    assert matcher.served(version(2), 22) == []
    (line,) = matcher.applied(version(2), [TRACE])
    assert (line["applied_us"], line["served_us"]) == (25, 25)


def test_what_is_complete_is_a_line_and_a_version_counts_once(tmp_path):
    """Several workers serve one version; it is counted once, with the earliest answer's time."""
    path = tmp_path / "metrics" / "freshness.jsonl"
    freshness = Freshness(path)
    second = version(2)
    freshness.served(version(1), 98)
    freshness.applied(second, [TRACE, TRACE])
    for at in range(99, 104):
        freshness.served(second, at)
    freshness.close()
    lines = list(read(path))
    assert [{key: line[key] for key in (*TRACE, "served_us", "version")} for line in lines] == 2 * [
        TRACE | {"served_us": 99, "version": 2}
    ]
    assert freshness.versions_served == 2
