"""From records to batches: cut by count alone, each row once, resumable at every batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.bags import Bags
from schemas.config import JoinConfig
from schemas.errors import SchemaError
from schemas.examples import Cursor, Examples
from stream_trainer.learning.intake import Intake
from tests.kit.logs import SCHEMA, click, impression, join_all, tick


def topic_of(slates: int, record_rows: int, ends: bool = False) -> list[Examples]:
    """Slates of three items, a click on every third slate, some replays' ends between."""
    log = []
    for n in range(slates):
        log.append(impression(f"i{n}", n, ("a", "b", "c")))
        if n % 3 == 0:
            log.append(click(f"i{n}", n + 0.5, "b"))
        if ends and n % 7 == 6:
            log.append(tick(n + 0.9, end=True))
    return join_all([*log, tick(slates + 60, end=True)], JoinConfig(window_s=5, record_rows=record_rows))


def run(intake: Intake, topic: list[Examples], start: int = 0) -> list[tuple[list[int], list[float]]]:
    """Every batch as its ids and labels."""
    batches = []
    for offset in range(start, len(topic)):
        intake.offer(0, offset, topic[offset])
        while (batch := intake.take()) is not None:
            batches.append((batch.bags.ids.tolist(), batch.labels.tolist()))
    return batches


@given(slates=st.integers(1, 40), batch_rows=st.integers(1, 20), ends=st.booleans())
def test_batches_do_not_depend_on_how_records_were_cut(slates: int, batch_rows: int, ends: bool) -> None:
    """The same examples in records of 1, 4 or 1,000 rows make the same batches: what is learnt hangs on the log alone."""
    found = [run(Intake(SCHEMA, batch_rows), topic_of(slates, rows, ends)) for rows in (1, 4, 1000)]
    assert found[0] == found[1] == found[2]
    assert sum(len(labels) for _, labels in found[0]) == 3 * slates
    assert all(len(labels) <= batch_rows for _, labels in found[0])


@given(slates=st.integers(1, 30), batch_rows=st.integers(1, 20), record_rows=st.integers(1, 10), stop=st.integers(0, 60))
def test_a_trainer_that_resumes_makes_the_batches_that_were_left(
    slates: int, batch_rows: int, record_rows: int, stop: int
) -> None:
    """Cursors, tallies and offsets as they were after any batch lead to the same batches and counts as no stop at all."""
    topic = topic_of(slates, record_rows, ends=True)
    whole = Intake(SCHEMA, batch_rows)
    expected = run(whole, topic)

    first = Intake(SCHEMA, batch_rows)
    done: list[tuple[list[int], list[float]]] = []
    for offset, record in enumerate(topic):
        first.offer(0, offset, record)
        while len(done) < stop and (batch := first.take()) is not None:
            done.append((batch.bags.ids.tolist(), batch.labels.tolist()))
        if len(done) >= stop:
            break
    resumed = Intake(SCHEMA, batch_rows, first.cursors, first.tallies, first.resume)
    done += run(resumed, topic, start=resumed.resume.get(0, 0))
    assert done == expected
    assert resumed.tallies == whole.tallies
    assert resumed.cursors == whole.cursors


@given(slates=st.integers(1, 20), batch_rows=st.integers(1, 20), record_rows=st.integers(1, 10))
def test_columns_made_for_a_record_are_those_of_the_batch(slates: int, batch_rows: int, record_rows: int) -> None:
    """Whatever batches were cut from whatever records: what is made of a batch's own rows stands beside them."""
    def keys(bags: Bags, source: np.ndarray, impression: np.ndarray) -> np.ndarray:
        return np.stack([bags.ids[bags.starts()[:, 0]], (source + impression).astype(np.uint64)], axis=1)

    def values(bags: Bags) -> np.ndarray:
        return bags.ids[bags.starts()[:, 1:]]

    intake, rows = Intake(SCHEMA, batch_rows, keys=keys, values=values), 0
    for offset, record in enumerate(topic_of(slates, record_rows)):
        intake.offer(0, offset, intake.ready(record) if offset % 2 else record)
        while (batch := intake.take()) is not None:
            np.testing.assert_array_equal(batch.keys, keys(batch.bags, batch.source, batch.impression))
            np.testing.assert_array_equal(batch.values, values(batch.bags))
            rows += len(batch)
    assert rows == 3 * slates


def test_a_field_that_changed_its_meaning_is_said_when_it_is_learnt() -> None:
    """Not of a record without rows, nor of one whose rows are all learnt; its ends count."""
    (record,) = topic_of(4, 1000)
    changed = replace(record, field_digests=tuple(one ^ 1 for one in record.field_digests))
    intake = Intake(SCHEMA, 4)
    intake.offer(0, 0, record)
    while intake.take(force=True) is not None:
        pass
    intake.offer(0, 0, changed)
    assert intake.take(force=True) is None
    assert intake.dropped == 12
    fresh = Intake(SCHEMA, 4)
    fresh.offer(0, 0, changed)
    with pytest.raises(SchemaError, match="changed its meaning"):
        fresh.take()


def test_rows_written_twice_are_learnt_once() -> None:
    """Every record again, then all of them again: only the cursor decides."""
    topic = topic_of(10, 4)
    once, twice = Intake(SCHEMA, 5), Intake(SCHEMA, 5)
    doubled = [record for record in topic for _ in range(2)] + topic
    assert run(twice, doubled) == run(once, topic)
    assert twice.dropped == 2 * 30
    assert twice.tallies == once.tallies


def test_a_batch_waits_until_it_is_full_or_told_otherwise() -> None:
    """Unfilled batches are cut only on request."""
    intake = Intake(SCHEMA, 1000)
    log = [impression("x", 0), tick(30)]
    for offset, record in enumerate(join_all(log, JoinConfig(window_s=5))):
        intake.offer(0, offset, record)
    assert intake.take() is None
    assert intake.rows == 2
    batch = intake.take(force=True)
    assert batch is not None
    assert len(batch) == 2
    assert intake.rows == 0


def test_the_cursor_is_the_name_of_the_last_row_taken() -> None:
    """A batch that ends inside a slate leaves the cursor inside it."""
    intake = Intake(SCHEMA, 2)
    for offset, record in enumerate(join_all([impression("x", 0, ("a", "b", "c")), tick(30)], JoinConfig(window_s=5))):
        intake.offer(0, offset, record)
    intake.take()
    assert intake.cursors == {0: Cursor(1, 0, 1)}
    assert intake.resume == {0: 0}
