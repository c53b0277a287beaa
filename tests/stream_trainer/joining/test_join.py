"""The join against a brute force that never forgets, and against itself killed at every step."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from schemas.config import JoinConfig
from schemas.errors import BadEvent
from schemas.events import Event, Tick, parse
from schemas.examples import End, Examples, Stage, after_all_of, decode, encode
from stream_trainer.joining.corrections import SecondPass
from stream_trainer.joining.join import BEGINNING, Low
from tests.kit.brute_join import brute_join, brute_second
from tests.kit.logs import FAR, SCHEMA, Row, at, click, core, ends_of, impression, join_all, learnt, rows_of, tick
from tests.kit.logs import encode as encode_ids

EAGER = JoinConfig(window_s=10, record_rows=3)
WAIT = JoinConfig(window_s=10, record_rows=3, mode="wait")
IMMEDIATE = JoinConfig(window_s=10, record_rows=3, mode="immediate")
CORRECTED = JoinConfig(window_s=10, record_rows=3, mode="corrected", correct_after_s=25)
EVERY = {
    "eager": EAGER, "wait": WAIT, "immediate": IMMEDIATE, "corrected": CORRECTED,
    "lateness": replace(EAGER, lateness_s=3.0), "immediate_lateness": replace(IMMEDIATE, lateness_s=3.0),
    "sampled_weighted": replace(EAGER, negative_rate=0.5),
    "sampled_served": replace(WAIT, negative_rate=0.5, negative_correction="serving"),
    "sampled_immediate": replace(IMMEDIATE, negative_rate=0.5), "values": replace(EAGER, value_as_weight=True),
    "values_wait_sampled": replace(WAIT, value_as_weight=True, negative_rate=0.5),
    "corrected_sampled": replace(CORRECTED, negative_rate=0.5, lateness_s=3.0),
}
every = pytest.mark.parametrize("config", EVERY.values(), ids=EVERY.keys())


def _event(value: bytes) -> Event | None:
    try:
        return parse(value)
    except BadEvent:
        return None


@st.composite
def histories(draw: st.DrawFn) -> list[bytes]:
    """A log of few ids over a minute: out of order, duplicated, early, late, unusable."""
    events = draw(st.lists(
        st.tuples(
            st.sampled_from(["show", "show", "click", "click", "click", "install", "garbage", "tick", "stranger", "stranger"]),
            st.sampled_from("pqrs"), st.sampled_from("aabbc"), st.sampled_from([0, 1, 1, 2, 3, 4, 12]),
            st.sampled_from([0, 0, 0, 0, -1, -4, -8, -15, -25]),
        ),
        max_size=40,
    ))
    if draw(st.booleans()):                   # traffic that has flowed for over a window, so that examples come at once
        events = [("stranger", "f", "a", 4, 0)] * 4 + events
    log, now = [], 0.0
    for kind, name, item, step, skew in events:
        now += step
        when = max(now + skew, 0)
        if kind == "show":
            log.append(impression(name, when, ("a", "b")))
        elif kind == "click" or kind == "install":
            log.append(click(name, when, item, kind, value=step - 0.5))
        elif kind == "garbage":
            log.append(b"\xff\xfe nonsense")
        elif kind == "tick":
            log.append(tick(now, end=skew == -15))
        else:
            log.append(impression(f"{name}{len(log)}", when, ("c",)))
    return log


@st.composite
def late_histories(draw: st.DrawFn) -> list[bytes]:
    """Few impressions and many clicks, most of them past the window: some in time to correct, some out of order or cut off by
    a replay's end."""
    log, now = [], 30.0
    for name in draw(st.lists(st.sampled_from("pqrs"), min_size=1, max_size=4, unique=True)):
        shown = now
        log.append(impression(name, shown))
        for kind, step, skew in draw(st.lists(
            st.tuples(
                st.sampled_from(["a", "b", "tick", "tick", "end"]), st.sampled_from([2, 7, 12]),
                st.sampled_from([0, 0, -5, -14]),
            ),
            min_size=2, max_size=6,
        )):
            now += step
            if kind == "tick" or kind == "end":
                log.append(tick(now, end=kind == "end"))
            else:
                log.append(click(name, now + skew, kind))
    return log


@every
@settings(max_examples=100)
@given(log=histories())
def test_join_equals_a_join_that_never_forgets(config: JoinConfig, log: list[bytes]) -> None:
    """Examples and counted ends, content and order, are those of a pass with the whole log in memory."""
    records = join_all(log, config)
    rows, ends = brute_join(log, config)
    assert rows_of(records) == rows
    assert ends_of(records) == ends


@every
@settings(max_examples=25)
@given(log=histories(), cuts=st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_pieces_are_joined_as_their_records_one_by_one(config: JoinConfig, log: list[bytes], cuts: list[int]) -> None:
    """However the log is cut: the same records to the byte, the same dead letters and counts."""
    whole, pieces = core(config), core(config)
    for offset, value in enumerate(log):
        whole.feed(offset, FAR, value)
    sizes, start = itertools.cycle(cuts), 0
    while start < len(log):
        stop = start + next(sizes)
        pieces.feed_all([(start + place, FAR, value) for place, value in enumerate(log[start:stop])])
        start = stop
    assert [encode(record) for record in pieces.records(0, flush=True)] == [encode(one) for one in whole.records(0, flush=True)]
    assert (pieces.dead_letters, pieces.counts, pieces.low()) == (whole.dead_letters, whole.counts, whole.low())


@pytest.mark.parametrize("config", [CORRECTED, EVERY["corrected_sampled"]], ids=["all", "sampled"])
@settings(max_examples=200)
@example(log=[impression("p", 30), tick(42), tick(56), click("p", 44, "a"), tick(900)], strides=[3])   # in time, out of order
@example(                                                                                             # before, and forgotten
    log=[impression("q", 0), click("p", 0), click("q", 8), tick(12), impression("p", 13), tick(25), tick(900)], strides=[3]
)
@given(
    log=st.one_of(histories(), late_histories()).map(lambda log: [*log, tick(900)]),
    strides=st.lists(st.integers(1, 9), min_size=1, max_size=6),
)
def test_the_second_pass_equals_a_pass_that_knows_all(config: JoinConfig, log: list[bytes], strides: list[int]) -> None:
    """The second examples are those of mode wait, labelled by all that came until later, however far ahead it is read."""
    second = SecondReader(config, log, BEGINNING, strides)
    while second.next_offset < len(log) and second.step():
        pass
    assert rows_of(second.records(flush=True)) == brute_second(log, config)
    assert second.second.held == 0 or second.low().offset < len(log)


def test_time_goes_on_in_a_quiet_stream_until_all_is_corrected_and_no_longer() -> None:
    """The joiner writes ticks while an impression or an action waits behind; its own ticks are nothing to wait for."""
    log = [impression("p", 0), click("p", 20), *(tick(seconds) for seconds in range(1, 90, 4))]
    second = SecondReader(CORRECTED, log, BEGINNING, [1])
    waited = []
    while second.step():
        waited.append(second.second.waits)
    assert waited[0]
    assert not second.second.waits


class FirstReader:
    """The join, a record a step."""

    def __init__(self, config: JoinConfig, log: list[bytes], start: Low) -> None:
        self.log, self.core = log, core(config, start)
        self.low, self.records = self.core.low, lambda flush=False: self.core.records(0, flush)

    @property
    def next_offset(self) -> int:
        return self.core.next_offset

    def step(self) -> bool:
        """Whether there was a record."""
        if self.next_offset >= len(self.log):
            return False
        self.core.feed(self.next_offset, FAR, self.log[self.next_offset])
        return True


class SecondReader:
    """The second pass, which reads ahead in the given strides, over and over, and joins a record a step."""

    def __init__(self, config: JoinConfig, log: list[bytes], start: Low, strides: Sequence[int] = (3,)) -> None:
        self.log, self.strides = log, itertools.cycle(strides)
        self.second = SecondPass(0, config, start, encode_ids, SCHEMA.numbers, SCHEMA.digests)
        self.low, self.records = self.second.low, lambda flush=False: self.second.records(0, flush)

    @property
    def next_offset(self) -> int:
        return self.second.core.next_offset

    def step(self) -> bool:
        """Whether there was a record to join."""
        at = self.next_offset
        while at < len(self.log) and not self.second.may_follow(at, FAR, self.log[at]):
            if self.second.ahead_offset >= len(self.log):
                return False
            for offset in range(self.second.ahead_offset, min(self.second.ahead_offset + next(self.strides), len(self.log))):
                self.second.ahead((offset, FAR, self.log[offset]))
        if at >= len(self.log):
            return False
        self.second.behind((at, FAR, self.log[at]))
        return True


class CrashingJoiner:
    """A joiner that commits and dies at given steps. `topic` is all that it wrote and that lasted."""

    def __init__(
        self, config: JoinConfig, log: list[bytes], kind: type[FirstReader] | type[SecondReader] = FirstReader
    ) -> None:
        self.config, self.log, self.kind = config, log, kind
        self.topic: list[Examples] = []
        self.committed = BEGINNING
        self.core: FirstReader | SecondReader = kind(config, log, BEGINNING)

    def step(self) -> bool:
        """Read one record; what became complete is written."""
        read = self.core.step()
        self.topic += self.core.records()
        return read

    def flush(self) -> None:
        self.topic += self.core.records(flush=True)

    def commit(self) -> None:
        low = self.core.low()
        self.flush()
        self.committed = low

    def die(self, lost: int) -> None:
        """The last `lost` records since the commit never reached the broker; a new core starts where the commit says."""
        written = self._written_since_commit()
        keep = len(self.topic) - min(lost, written)
        self.topic = self.topic[:keep]
        self.core = self.kind(self.config, self.log, self.committed)

    def _written_since_commit(self) -> int:
        return len(self.topic) - self._durable

    _durable = 0

    def note_durable(self) -> None:
        self._durable = len(self.topic)


steps = st.lists(st.sampled_from(["step", "step", "step", "step", "flush", "commit", "die", "die losing one"]), max_size=120)


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        *((config, FirstReader) for config in EVERY.values()),
        (CORRECTED, SecondReader), (EVERY["corrected_sampled"], SecondReader),
    ],
    ids=[*EVERY, "second_pass", "second_pass_sampled"],
)
@settings(max_examples=70)
@given(log=histories(), plan=steps)
def test_a_joiner_killed_anywhere_leads_to_the_same_learning(
    config: JoinConfig, kind: type[FirstReader] | type[SecondReader], log: list[bytes], plan: list[str]
) -> None:
    """Whatever a joiner commits, loses and writes again, the trainer learns what an undisturbed one would have given it."""
    joiner = CrashingJoiner(config, log, kind)
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
    while joiner.step():
        pass
    joiner.flush()

    undisturbed = CrashingJoiner(config, log, kind)
    while undisturbed.step():
        pass
    undisturbed.flush()
    expected_rows, expected = learnt(undisturbed.topic)
    rows, intake = learnt(joiner.topic)
    assert rows == expected_rows
    assert intake.tallies == expected.tallies
    assert intake.gaps == 0


@pytest.mark.parametrize("config", [EAGER, IMMEDIATE, EVERY["sampled_weighted"]], ids=["eager", "immediate", "sampled"])
@settings(max_examples=100)
@given(log=histories(), cut=st.integers(0, 40), lag=st.integers(0, 12), data=st.data())
def test_a_zombie_that_goes_on_writing_changes_nothing(
    config: JoinConfig, log: list[bytes], cut: int, lag: int, data: st.DataObject
) -> None:
    """A stalled joiner wakes up beside the new owner: their records mix in any order, each in its own."""
    old = CrashingJoiner(config, log)
    for _ in range(cut):
        old.step()
        if data.draw(st.booleans()):
            old.commit()
    before = list(old.topic)
    new = CrashingJoiner(config, log)
    new.core = FirstReader(config, log, old.committed)
    while new.step():
        pass
    new.flush()
    for _ in range(lag):
        old.step()
    old.flush()
    late, fresh = old.topic[len(before):], list(new.topic)
    topic = before
    while late or fresh:
        source = late if not fresh or (late and data.draw(st.booleans())) else fresh
        topic.append(source.pop(0))

    expected_rows, expected = learnt(join_all(log, config))
    rows, intake = learnt(topic)
    assert rows == expected_rows
    assert intake.tallies == expected.tallies


@every
@settings(max_examples=50)
@given(log=histories())
def test_every_event_has_one_counted_end(config: JoinConfig, log: list[bytes]) -> None:
    """Once all windows are over: events in = impressions joined + actions learnt + all other ends; and every item of a joined
    impression is an example or sampled out, in mode immediate its click is one more."""
    log = [value for value in log if not isinstance(_event(value), Tick)]
    _, intake = learnt(join_all([*log, tick(1000)], config))
    tallies = intake.tallies
    ends = ("late_impression", "duplicate_impression", "late_action", "duplicate_action", "unmatched_action", "other_action",
            "dead_letter", "impressions", "positives")
    assert sum(tallies[end] for end in ends) == len(log)
    rows, _ = brute_join([*log, tick(1000)], replace(config, mode="wait", negative_rate=1.0))
    again = sum(row.stage == Stage.IMMEDIATE and row.label for row in rows_of(join_all([*log, tick(1000)], config)))
    assert tallies["examples"] + tallies["sampled_out"] == len(rows) + again


@st.composite
def days(draw: st.DrawFn) -> tuple[list[tuple[float, bytes]], list[float]]:
    """Events in order of time, and moments at which a live joiner would have written ticks between them."""
    now, events, ticks, number = 0.0, [], [], 0
    for step, kind, item, back in draw(st.lists(
        st.tuples(st.sampled_from([0.5, 1, 3, 7, 25]), st.sampled_from(["show", "click", "click"]), st.sampled_from("ab"),
                  st.integers(1, 3)),
        max_size=40,
    )):
        ticks += [now + step / 3, now + step / 2] if step >= 3 else []
        now += step
        number += kind == "show"
        name = f"i{number if kind == 'show' else max(number - back + 1, 0)}"
        events.append((now, impression(name, now) if kind == "show" else click(name, now, item)))
    return events, ticks


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=50)
@given(found=days())
def test_backfill_gives_the_examples_of_the_live_join(name: str, found: tuple[list[tuple[float, bytes]], list[float]]) -> None:
    """The same events joined live, with ticks wherever it was quiet, and replayed at full speed with a tick at the end alone:
    the same examples, each named by its impression and item, in the first and the second pass."""
    config = replace(EVERY[name], value_as_weight=False)
    events, ticks = found
    live = sorted([*events, *((at_s, tick(at_s)) for at_s in ticks)], key=lambda one: one[0])

    def examples(log: list[bytes]) -> list[tuple[str, int, int, int, float]]:
        log = [*log, tick(3000), tick(6000)]
        records = join_all(log, config)
        if config.mode == "corrected":
            second = SecondReader(config, log, BEGINNING)
            while second.step():
                pass
            records += second.records(flush=True)
        return sorted(
            (_event(log[row.impression]).impression_id, row.item, row.label, row.stage, row.weight)  # type: ignore[union-attr]
            for row in rows_of(records)
        )

    assert examples([value for _, value in live]) == examples([value for _, value in events])


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


@pytest.mark.parametrize("items", [1, 2, 20, 100])
def test_an_example_has_its_own_items_ids_and_served_probability(items: int) -> None:
    """Whatever part of a slate becomes final together, of narrow slates and wide ones: as if each item had been shown alone."""
    names, place = [f"item{n}" for n in range(items)], items * 2 // 3
    shown = orjson.loads(impression("x", 0, names))
    for number, item in enumerate(shown["items"]):
        item["served_probability"] = number / 1024
    log = [*FLOW, orjson.dumps(shown), click("x", 3, names[place]), tick(10)]
    examples = [
        (int(record.trigger[row]), int(record.item[row]), record.bags.ids.reshape(-1, 2)[row].tolist(),
         None if record.served_probability is None else float(record.served_probability[row]))
        for record in join_all(log, replace(EAGER, record_rows=1000)) for row in range(len(record))
        if record.impression[row] == FLOWN
    ]

    def alone(number: int) -> tuple[int, list[int], float]:
        (bags,) = encode_ids([parse(impression("x", 0, [names[number]]))])  # type: ignore[list-item]
        return number, bags.ids.tolist(), number / 1024  # type: ignore[union-attr]

    first, *others = [(trigger, *alone(n)) for trigger, n in [(FLOWN + 1, place)] + [(FLOWN + 2, n) for n in range(items)]]
    assert examples == [first, *(one for one in others if one[1] != place)]


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
    assert joiner.low()[:5] == Low(1, at(0), False, at(0), at(0))[:5]
    joiner.feed(4, FAR, tick(15))
    assert joiner.low()[:5] == Low(5, at(15), False, at(0), at(5))[:5]


def test_a_tick_ends_a_replay_and_its_last_record() -> None:
    """The end of a replay is a mark in the log: behind all that it closes, at the end of a record."""
    records = join_all([tick(0, hold=True), impression("x", 0), tick(10, end=True), impression("y", 50)], EAGER)
    assert ends_of(records) == [(2, 2, End.FLUSH)]
    flushed = next(record for record in records if len(record.ends))
    assert flushed.through == after_all_of(2)


@every
def test_records_survive_the_wire(config: JoinConfig) -> None:
    """encode and decode are inverse on what the join writes."""
    log = [impression("x", 0), click("x", 3, "b", value=2.5), b"junk", tick(10)]
    for record in join_all([*FLOW, *log, *(impression(f"y{n}", 11 + n) for n in range(9)), tick(40)], config):
        back = decode(encode(record))
        assert back.negative_rate == record.negative_rate
        assert (back.ends.item is None) == (record.ends.item is None)
        assert record.ends.item is None or back.ends.item.tolist() == record.ends.item.tolist()  # type: ignore[union-attr]
        assert rows_of([back]) == rows_of([record])
        assert ends_of([back]) == ends_of([record])
        assert (back.after, back.through, back.field_numbers) == (record.after, record.through, record.field_numbers)
        assert back.bags.ids.tolist() == record.bags.ids.tolist()
