"""A click stream that dies and comes back, through the pure join."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.config import JoinConfig
from schemas.examples import End, Examples
from stream_trainer.joiner import low_from, metadata_of
from stream_trainer.joining import pulse
from stream_trainer.joining.join import Low
from stream_trainer.joining.pulse import EVERYBODY, Pulse
from tests.kit.logs import FAR, at, click, core, impression, join_all, learnt, rows_of, tick

CONFIG = JoinConfig(window_s=10, record_rows=50, suspect_labels=20.0)
RATE = 0.2          # clicks a slate
DIES, BACK, LAST = 100.0, 200.0, 300.0
STEP_S = 0.1


def stream(seed: int, dies_s: float = DIES, back_s: float = BACK) -> list[bytes]:
    """Ten slates a second for five minutes, a click on every fifth some seconds later; those between the two times are lost."""
    rng = random.Random(seed)
    events: list[tuple[float, bytes]] = []
    for number in range(round(LAST / STEP_S)):
        shown = number * STEP_S
        events.append((shown, impression(f"i{number}", shown)))
        clicked = shown + rng.uniform(0.5, 9)
        if rng.random() < RATE and not dies_s <= clicked < back_s:
            events.append((clicked, click(f"i{number}", clicked)))
    return [event for _, event in sorted(events)] + [tick(LAST + 30, end=True)]


def positives(records: list[Examples], between: tuple[float, float]) -> float:
    """Share of positives among the learnt rows of slates shown between two times, per slate of two items."""
    rows = [
        label for record in records
        for label, time_us in zip(record.label.tolist(), record.event_time_us.tolist(), strict=True)
        if at(between[0]) <= time_us < at(between[1])
    ]
    return 2 * float(sum(rows)) / max(len(rows), 1)


@pytest.mark.parametrize("mode", ["eager", "wait"])
def test_a_dead_click_stream_is_not_learnt(mode: Literal["eager", "wait"]) -> None:
    """Without the guard a hundred seconds of slates become negatives; with it, only those of the time it takes to notice."""
    log = stream(1)
    careless = join_all(log, replace(CONFIG, mode=mode, suspect_labels=0.0))
    careful = join_all(log, replace(CONFIG, mode=mode))
    assert positives(careless, (0, LAST)) < 0.75 * RATE
    assert positives(careful, (0, LAST)) == pytest.approx(RATE, rel=0.15)
    assert positives(careful, (BACK, LAST)) == pytest.approx(RATE, rel=0.2)
    learnt_while_dead = sum(
        int(((record.event_time_us >= at(DIES)) & (record.event_time_us < at(BACK))).sum()) for record in careful
    )
    most = (20 / RATE + 0.125 * 10 / STEP_S + 1) * 2 * 1.2        # expected labels missing, a slot, of two items each
    assert learnt_while_dead < most + 2 * 10 / STEP_S             # and the window before, whose labels came in part


def test_the_counts_add_up() -> None:
    """Each item of each slate is learnt or suspect, each click a positive or an end."""
    records = join_all(stream(2), CONFIG)
    rows, intake = learnt(records)
    tallies = intake.tallies
    slates, clicks = round(LAST / STEP_S), len(stream(2)) - round(LAST / STEP_S) - 1
    assert tallies["impressions"] == slates
    assert tallies["examples"] + tallies["suspect"] == 2 * slates
    assert len(rows) == tallies["examples"]
    assert tallies["positives"] + tallies["suspect_action"] + tallies["late_action"] == clicks
    assert tallies["suspect"] > 1000
    assert tallies["suspect_action"] > 0


@pytest.mark.parametrize("seed", range(8))
def test_a_healthy_stream_is_never_suspect(seed: int) -> None:
    """Not when traffic stops for a while, nor when a file is read whose last impressions no label follows."""
    log = stream(seed, dies_s=LAST + 100, back_s=LAST + 200)
    assert "SUSPECT" not in {End(reason).name for record in join_all(log, CONFIG) for reason in record.ends.reason.tolist()}
    quiet = [
        *log[:-1], tick(LAST + 3600), *(impression(f"later{n}", LAST + 3600 + n * STEP_S) for n in range(50)), tick(LAST + 3700)
    ]
    assert not Counter(reason for record in join_all(quiet, CONFIG) for reason in record.ends.reason.tolist())[End.SUSPECT]


def test_a_rare_action_is_not_missed_by_mistake() -> None:
    """Few labels say little of their rate: after one click, thousands of slates without one are still negatives."""
    log = [impression("first", 0), click("first", 1), *(impression(f"i{n}", 2 + n * 0.1) for n in range(3000)), tick(400)]
    assert len(rows_of(join_all(log, CONFIG))) == 2 * 3001


LOG = stream(3)


@settings(max_examples=10)
@given(kills=st.lists(st.integers(1, len(LOG) - 1), min_size=1, max_size=6), lag=st.integers(0, 400))
def test_a_joiner_killed_anywhere_suspects_the_same(kills: list[int], lag: int) -> None:
    """Commit, go on, die, start from the commit's offset and metadata: learning and ends are those of an undisturbed run."""
    topic: list[Examples] = []
    joiner = core(CONFIG)
    for place in sorted(set(kills)):
        while joiner.next_offset < place:
            joiner.feed(joiner.next_offset, FAR, LOG[joiner.next_offset])
        low = joiner.low()
        topic += joiner.records(0, flush=True)
        for offset in range(joiner.next_offset, min(place + lag, len(LOG))):
            joiner.feed(offset, FAR, LOG[offset])
        topic += joiner.records(0)
        joiner = core(CONFIG, low_from(low.offset, metadata_of(low)))
    while joiner.next_offset < len(LOG):
        joiner.feed(joiner.next_offset, FAR, LOG[joiner.next_offset])
    topic += joiner.records(0, flush=True)
    rows, intake = learnt(topic)
    expected_rows, expected = learnt(join_all(LOG, CONFIG))
    assert rows == expected_rows
    assert intake.tallies == expected.tallies


def test_immediate_negatives_stop_when_labels_do() -> None:
    """Mode immediate: an impression shown while labels are away brings no example at all."""
    records = join_all(stream(4), replace(CONFIG, mode="immediate"))
    shown = [time_us for record in records for time_us in record.event_time_us.tolist()]
    assert not [time_us for time_us in shown if at(DIES + 35) <= time_us < at(BACK - 1)]
    assert [time_us for time_us in shown if time_us >= at(BACK + 10)]


def test_what_a_commit_stores_comes_back() -> None:
    """The pulse survives the text of a commit's metadata to the last bit."""
    beat = Pulse(0.1 + 0.2, 1 / 3, 7e-30, ((1 << 40, 3), ((1 << 40) + 1, 2000)), EVERYBODY)
    assert pulse.from_text(pulse.to_text(beat)) == beat
    low = Low(7, at(1), True, at(2), at(3), beat)
    assert low_from(7, metadata_of(low)) == low
    assert len(metadata_of(low)) < 4096                          # a broker's default for offset.metadata.max.bytes
