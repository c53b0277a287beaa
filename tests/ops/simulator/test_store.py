from __future__ import annotations

import gzip
import json
import subprocess
import sys
import threading
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
import pytest

from ops import formats
from ops.simulator.live import Record
from ops.simulator.options import StoreOptions
from ops.simulator.report import text
from ops.simulator.slates import Scored, Simulator
from ops.simulator.store import CATCH_UP_S, AppStore, VirtualClock, WallClock
from schemas.errors import ConfigError

START_US = 1_772_366_400_000_000
SMALL = StoreOptions(users=200, apps=40, slate=8, candidates=12)
ROOT = Path(__file__).resolve().parents[3]


class Kept:
    """A log in memory."""

    def __init__(self):
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.closed = False

    def send(self, key, event):
        self.events.append((key, orjson.loads(event)))

    def close(self):
        self.closed = True


class Scores:
    """A scorer that is away for the first `away` slates, then publishes a version every ten. takes_us: of virtual time."""

    def __init__(self, clock, away=0, takes_us=0, then=lambda asked: None):
        self.clock, self.away, self.takes_us, self.then = clock, away, takes_us, then
        self.asked = 0

    def score(self, context, candidates, request_id):
        self.asked += 1
        self.clock.sleep_until(self.clock.now_us() + self.takes_us)
        self.then(self.asked)
        if self.asked <= self.away:
            return None
        version = (self.asked - self.away - 1) // 10 + 1
        return Scored([0.1] * len(candidates), "appstore", "a1", version, [b"e"] * len(candidates))


def run(ranker=None, clock=None, options=SMALL, stop=None, **changes):
    clock, log = clock or VirtualClock(START_US), Kept()
    settings = {"rate": 50.0, "seconds": 4.0} | changes
    store = AppStore(Simulator(options, START_US), clock, log, ranker, stop=stop, **settings)
    return store.run(), log


def time_us(event):
    return round(datetime.fromisoformat(event["time"]).timestamp() * 1e6)


def test_events_leave_in_the_order_of_their_time():
    """Clicks between the slates, each under its impression's key; the last ones after the last slate."""
    report, log = run()
    times = [time_us(event) for _, event in log.events]
    assert times == sorted(times)
    assert all(key == event["impression_id"] for key, event in log.events)
    slates = [event for _, event in log.events if "items" in event]
    assert [time_us(event) - START_US for event in slates] == [number * 20_000 for number in range(200)]
    seen = set()
    for _, event in log.events:
        if "items" in event:
            seen |= {(event["impression_id"], item["id"]) for item in event["items"]}
        else:
            assert (event["impression_id"], event["item"]) in seen
    assert report.impressions == 200
    assert report.items == 1600
    assert report.clicks == report.clicks_sent == len(log.events) - 200
    assert report.clicks_unsent == 0
    assert log.closed
    assert "an oracle" in text(report)


def test_grace_ends_the_wait_for_clicks_and_counts_those_not_sent():
    """sent + unsent = clicks."""
    report, log = run(grace_s=1.0)
    assert time_us(log.events[-1][1]) <= START_US + 5_000_000
    assert 0 < report.clicks_unsent == report.clicks - report.clicks_sent
    assert f"{report.clicks_unsent} fell due after the end" in text(report)


def test_while_the_scorer_is_away_slates_are_random():
    """Then its versions are counted, each with the time of its first answer; AUCs are of scored slates alone."""
    clock = VirtualClock(START_US)
    report, log = run(Scores(clock, away=100), clock, options=StoreOptions(users=200, random_share=0.5))
    slates = [event for _, event in log.events if "items" in event]
    assert all("model" not in event for event in slates[:100])
    assert all("model" in event for event in slates[100:])
    assert report.scored_slates == 100
    assert report.versions_served == 10
    assert report.newest_version == 10
    assert report.first_served_us["a1", 3] == START_US + (100 + 20) * 20_000
    assert report.auc_served_thirds[0] is None
    assert report.auc_oracle_thirds[0] is None
    assert report.auc_served_thirds[2] == 0.5  # all scores are equal
    assert report.auc_oracle_thirds[2] > 0.6
    assert report.random_rows_thirds[0] == 0
    assert 0 < sum(report.random_rows_thirds) < 2_000
    assert json.loads(json.dumps(report.as_dict()))["impressions"] == 200
    assert "served – 0.500 0.500" in text(report)


def test_a_slow_scorer_costs_visitors_not_the_pace():
    """Open loop: 50 visitors a second come, of whom a scorer of 100 ms serves 10; time ends when it should."""
    clock = VirtualClock(START_US)
    report, log = run(Scores(clock, takes_us=100_000), clock)
    slates = [event for _, event in log.events if "items" in event]
    assert abs(len(slates) - 40) <= 2
    assert abs(report.visitors_missed - 160) <= 50 * CATCH_UP_S + 2
    assert time_us(slates[-1]) <= START_US + 4_000_000 + CATCH_UP_S * 1e6
    assert report.score_wait_ms == {"p50": 100.0, "p99": 100.0}
    assert "visitors missed" in text(report)


def test_a_short_hiccup_is_caught_up():
    """0.4 s without an answer: nobody is lost."""
    clock = VirtualClock(START_US)
    scores = Scores(clock, then=lambda asked: clock.sleep_until(clock.now_us() + 400_000) if asked == 20 else None)
    report, _ = run(scores, clock)
    assert report.impressions == 200
    assert report.visitors_missed == 0


def test_told_to_stop_it_sends_what_is_due_soon_and_ends():
    """A store without an end, stopped at its hundredth slate, on the wall clock: clicks due within 2 s still go out."""
    stop = threading.Event()
    clock = WallClock(stop)
    log = Kept()
    scores = Scores(clock, then=lambda asked: stop.set() if asked == 100 else None)
    store = AppStore(Simulator(SMALL, clock.now_us()), clock, log, scores, rate=400, stop=stop)
    report = store.run()
    assert report.impressions == 100
    assert 0 < report.clicks_unsent < report.clicks
    assert 1.0 < report.seconds + 2.0 < 10.0
    assert log.closed


def test_a_log_that_fails_ends_the_run_and_is_closed():
    """The error is the log's own."""

    class Full(Kept):
        def send(self, key, event):
            raise OSError("disk full")

    log = Full()
    with pytest.raises(OSError, match="disk full"):
        AppStore(Simulator(SMALL, START_US), VirtualClock(START_US), log, rate=50, seconds=1).run()
    assert log.closed


@pytest.mark.parametrize("wrong", [{"rate": 0.0}, {"seconds": -1.0}])
def test_a_rate_of_nothing_is_refused(wrong):
    """Before the first visitor."""
    with pytest.raises(ConfigError, match="rate"):
        run(**wrong)


def test_a_record_replays(tmp_path):
    """Line by line what was sent; `freshet replay` reads it, packed or not; the same run packs to the same bytes."""
    logs = []
    for name in ("one.jsonl", "two.jsonl.gz", "three.jsonl.gz"):
        logs.append(Kept())
        log = Record(tmp_path / name, then=logs[-1])
        AppStore(Simulator(SMALL, START_US), VirtualClock(START_US), log, rate=50, seconds=2).run()
    plain, packed = (tmp_path / "one.jsonl").read_bytes(), (tmp_path / "two.jsonl.gz").read_bytes()
    assert gzip.decompress(packed) == plain
    assert (tmp_path / "three.jsonl.gz").read_bytes() == packed
    read = list(formats.read(tmp_path / "two.jsonl.gz", "jsonl", 0, "click"))
    assert [(event.key.decode(), event.time_us) for event in read] == [
        (key, time_us(event)) for key, event in logs[0].events
    ]


def freshet(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "ops.cli", "simulate", *arguments], capture_output=True, cwd=ROOT, check=False
    )


def test_the_verb_makes_the_same_file_twice(tmp_path):
    """--offline needs no scorer and no Kafka; --json gives one object."""
    for name in ("one", "two"):
        done = freshet("--offline", "--seconds", "3", "--seed", "5", "--record", str(tmp_path / name), "--json")
        assert done.returncode == 0, done.stderr.decode()
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    report = json.loads(done.stdout)
    lines = [orjson.loads(line) for line in (tmp_path / "one").read_bytes().splitlines()]
    assert report["impressions"] == 150 == sum("items" in line for line in lines)
    assert report["clicks_sent"] == sum("action" in line for line in lines) > 0
    assert report["auc_served_thirds"] == [None, None, None]


def test_offline_without_an_end_is_wrong_use():
    """Exit code 2, and the option's name."""
    done = freshet("--offline")
    assert done.returncode == 2
    assert b"--seconds" in done.stderr
