"""The join against a brute force that never forgets, and against itself killed at every step."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.config import JoinConfig
from schemas.examples import End, Examples, after_all_of, decode, encode
from stream_trainer.join import JoinCore, Low
from tests.kit.brute_join import brute_join
from tests.kit.logs import FAR, Row, at, click, core, ends_of, impression, join_all, learnt, rows_of, tick

EAGER = JoinConfig(window_s=10, record_rows=3)
WAIT = JoinConfig(window_s=10, record_rows=3, mode="wait")


@st.composite
def histories(draw: st.DrawFn) -> list[bytes]:
    """A log of few ids over a minute: out of order, duplicated, early, late, unusable."""
    events = draw(st.lists(
        st.tuples(
            st.sampled_from(["show", "show", "click", "click", "click", "install", "garbage", "tick", "stranger"]),
            st.sampled_from("pqrs"), st.sampled_from("abc"), st.integers(0, 12), st.integers(-25, 8),
        ),
        max_size=40,
    ))
    log, now = [], 0.0
    for kind, name, item, step, skew in events:
        now += step
        when = max(now + skew, 0) if skew < 0 else now
        if kind == "show":
            log.append(impression(name, when, ("a", "b")))
        elif kind == "click" or kind == "install":
            log.append(click(name, when, item, kind))
        elif kind == "garbage":
            log.append(b"\xff\xfe nonsense")
        elif kind == "tick":
            log.append(tick(now))
        else:
            log.append(impression(f"{name}{step}", when, ("c",)))
    return log


@pytest.mark.parametrize("config", [EAGER, WAIT, replace(EAGER, lateness_s=3.0)], ids=["eager", "wait", "lateness"])
@settings(max_examples=300, deadline=None)
@given(log=histories())
def test_join_equals_a_join_that_never_forgets(config: JoinConfig, log: list[bytes]) -> None:
    """Examples and counted ends, content and order, are those of a pass with the whole log in memory."""
    records = join_all(log, config)
    rows, ends = brute_join(log, config)
    assert rows_of(records) == rows
    assert ends_of(records) == ends


class CrashingJoiner:
    """A joiner that commits and dies at given steps. `topic` is all that it wrote and that lasted."""

    def __init__(self, config: JoinConfig, log: list[bytes]) -> None:
        self.config, self.log = config, log
        self.topic: list[Examples] = []
        self.committed = core(config).low()
        self.core: JoinCore = core(config)

    def step(self) -> None:
        """Read one record; what became complete is written."""
        offset = self.core.next_offset
        if offset < len(self.log):
            self.core.feed(offset, FAR, self.log[offset])
            self.topic += self.core.records(0)

    def flush(self) -> None:
        self.topic += self.core.records(0, flush=True)

    def commit(self) -> None:
        low = self.core.low()
        self.flush()
        self.committed = low

    def die(self, lost: int) -> None:
        """The last `lost` records since the commit never reached the broker; a new core starts where the commit says."""
        written = self._written_since_commit()
        keep = len(self.topic) - min(lost, written)
        self.topic = self.topic[:keep]
        self.core = core(self.config, self.committed)

    def _written_since_commit(self) -> int:
        return len(self.topic) - self._durable

    _durable = 0

    def note_durable(self) -> None:
        self._durable = len(self.topic)


steps = st.lists(st.sampled_from(["step", "step", "step", "step", "flush", "commit", "die", "die losing one"]), max_size=120)


@pytest.mark.parametrize("config", [EAGER, WAIT], ids=["eager", "wait"])
@settings(max_examples=300, deadline=None)
@given(log=histories(), plan=steps)
def test_a_joiner_killed_anywhere_leads_to_the_same_learning(config: JoinConfig, log: list[bytes], plan: list[str]) -> None:
    """Whatever a joiner commits, loses and writes again, the trainer learns what an undisturbed one would have given it."""
    joiner = CrashingJoiner(config, log)
    for step in plan:
        if step == "step":
            joiner.step()
        elif step == "flush":
            joiner.flush()
        elif step == "commit":
            joiner.commit()
            joiner.note_durable()
        else:
            joiner.die(lost=1 if step.endswith("one") else 0)
            joiner.note_durable()
    while joiner.core.next_offset < len(log):
        joiner.step()
    joiner.flush()

    expected_rows, expected = learnt(join_all(log, config))
    rows, intake = learnt(joiner.topic)
    assert rows == expected_rows
    assert intake.tallies == expected.tallies
    assert intake.gaps == 0


@settings(max_examples=200, deadline=None)
@given(log=histories(), cut=st.integers(0, 40), lag=st.integers(0, 12), data=st.data())
def test_a_zombie_that_goes_on_writing_changes_nothing(log: list[bytes], cut: int, lag: int, data: st.DataObject) -> None:
    """A stalled joiner wakes up beside the new owner: their records mix in any order, each in its own."""
    old = CrashingJoiner(EAGER, log)
    for _ in range(cut):
        old.step()
        if data.draw(st.booleans()):
            old.commit()
    before = list(old.topic)
    new = CrashingJoiner(EAGER, log)
    new.core = core(EAGER, old.committed)
    while new.core.next_offset < len(log):
        new.step()
    new.flush()
    for _ in range(lag):
        old.step()
    old.flush()
    late, fresh = old.topic[len(before):], list(new.topic)
    topic = before
    while late or fresh:
        source = late if not fresh or (late and data.draw(st.booleans())) else fresh
        topic.append(source.pop(0))

    expected_rows, expected = learnt(join_all(log, EAGER))
    rows, intake = learnt(topic)
    assert rows == expected_rows
    assert intake.tallies == expected.tallies


def test_a_lost_record_is_a_gap_until_it_is_written_again() -> None:
    """A record behind a lost one is refused, not learnt: else the lost rows would lie behind the cursor for ever."""
    log = [impression(f"i{n}", n) for n in range(8)] + [tick(60)]
    records = join_all(log, EAGER)
    assert len(records) > 3
    lossy = [records[0], *records[2:]]
    rows, intake = learnt(lossy + records)
    assert rows == learnt(records)[0]
    assert intake.gaps == len(records) - 2


FLOW = [impression(f"flow{n}", 5 * n - 30, ("z",)) for n in range(6)]
FLOWN = len(FLOW)   # records after which impressions have come for over a window, so that clicks count at once


def after_flow(*log: bytes) -> list[Row]:
    """Examples of what comes once traffic flows."""
    return [row for row in rows_of(join_all([*FLOW, *log], EAGER)) if row.impression >= FLOWN]


def test_click_within_the_window_is_a_positive_at_once() -> None:
    """Mode eager: the label is final when the click comes; the other items when the window is over."""
    found = after_flow(impression("x", 0), click("x", 3, "b"), tick(10))
    assert found == [Row(FLOWN + 1, FLOWN, 1, 1), Row(FLOWN + 2, FLOWN, 0, 0)]


def test_the_first_window_waits_and_so_does_the_first_after_a_pause() -> None:
    """Mode eager: else a model would see a window full of clicks before the first impression without one."""
    visit = [impression("x", 0), click("x", 3, "b"), tick(10)]
    assert rows_of(join_all(visit, EAGER)) == [Row(2, 0, 0, 0), Row(2, 0, 1, 1)]
    later = [impression("y", 30), click("y", 31, "b"), tick(41)]
    found = after_flow(*visit, *later)
    assert found[:2] == [Row(FLOWN + 1, FLOWN, 1, 1), Row(FLOWN + 2, FLOWN, 0, 0)]
    assert found[2:] == [Row(FLOWN + 5, FLOWN + 3, 0, 0), Row(FLOWN + 5, FLOWN + 3, 1, 1)]


def test_click_at_the_very_end_of_the_window_is_late() -> None:
    """The window is half open, so that a group can close at the record that reaches its end."""
    log = [impression("x", 0), click("x", 3, "a"), click("x", 10, "b")]
    assert after_flow(*log) == [Row(FLOWN + 1, FLOWN, 0, 1), Row(FLOWN + 2, FLOWN, 1, 0)]
    assert ends_of(join_all([*FLOW, *log], EAGER)) == [(FLOWN + 2, FLOWN + 2, End.LATE_ACTION)]


def test_a_time_far_ahead_of_its_record_is_clamped() -> None:
    """One producer's clock an hour ahead does not close everybody's windows."""
    joiner = core(WAIT)
    joiner.feed(0, at(0), impression("x", 0))
    joiner.feed(1, at(1), impression("y", 3600))
    assert joiner.counts["clamped"] == 1
    assert joiner.watermark_us == at(1)
    assert rows_of(joiner.records(0, flush=True)) == []


def test_an_impression_whose_window_was_over_on_arrival_is_late() -> None:
    """It cannot be joined fairly: its clicks may have come and gone."""
    records = join_all([impression("x", 100), impression("y", 80)], EAGER)
    assert ends_of(records) == [(1, 1, End.LATE_IMPRESSION)]


def test_low_is_the_oldest_record_that_something_held_depends_on() -> None:
    """An early click is held with its impression: without it the positive would come back as a negative."""
    joiner = core(EAGER)
    joiner.feed(0, FAR, impression("w", 0))
    joiner.feed(1, FAR, click("x", 5))
    joiner.feed(2, FAR, impression("x", 5))
    assert joiner.low().offset == 0
    joiner.feed(3, FAR, tick(10))
    assert joiner.low() == Low(1, at(0), False, at(0), at(0))
    joiner.feed(4, FAR, tick(15))
    assert joiner.low() == Low(5, at(15), False, at(0), at(5))


def test_a_tick_ends_a_replay_and_its_last_record() -> None:
    """The end of a replay is a mark in the log: behind all that it closes, at the end of a record."""
    records = join_all([tick(0, hold=True), impression("x", 0), tick(10, end=True), impression("y", 50)], EAGER)
    assert ends_of(records) == [(2, 2, End.FLUSH)]
    flushed = next(record for record in records if len(record.ends))
    assert flushed.through == after_all_of(2)


def test_records_survive_the_wire() -> None:
    """encode and decode are inverse on what the join writes."""
    for record in join_all([impression("x", 0), click("x", 3, "b"), b"junk", tick(10)], EAGER):
        back = decode(encode(record))
        assert rows_of([back]) == rows_of([record])
        assert ends_of([back]) == ends_of([record])
        assert (back.after, back.through, back.field_numbers) == (record.after, record.through, record.field_numbers)
        assert back.bags.ids.tolist() == record.bags.ids.tolist()
