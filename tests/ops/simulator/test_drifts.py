from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache

import numpy as np
import orjson
import pytest

from ops.simulator.drifts import KINDS, ClickFarm, HoursShifted, NightAndDay, TasteShift, kind_of, planted
from ops.simulator.options import StoreOptions
from ops.simulator.slates import Simulator
from ops.simulator.store import AppStore, VirtualClock
from schemas.errors import ConfigError

START_US = int(datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()) * 1_000_000
SMALL = StoreOptions(users=300, apps=60, slate=4, candidates=4, click_rate=0.3, day_s=60)
STEP_US = 20_000
FROM, UNTIL, END = 60, 260, 300      # requests


@cache
def requests(name=None):
    """300 requests, 20 ms apart; the drift reigns for those from 60 to 260. Each with its impression and its clicks' items."""
    store, found = Simulator(SMALL, START_US), []
    if name is not None:
        store.plant(kind_of(name)(SMALL, START_US + FROM * STEP_US, START_US + UNTIL * STEP_US))
    for number in range(END):
        request = store.next_request(START_US + number * STEP_US)
        impression, clicks = store.show(request, None)
        found.append((request, impression, {click["item"] for _, click in clicks}))
    return found, store


PLAIN, _ = requests()


def labels(shown):
    """(n, 4): of each slate which items were clicked, as it was told."""
    return np.array([[item["id"] in clicked for item in impression["items"]] for _, impression, clicked in shown])


def differing(name, of):
    """Of requests before, within and after, those of which something is another than without the drift."""
    found, _ = requests(name)
    apart = [of(one) != of(other) for one, other in zip(found, PLAIN, strict=True)]
    return sum(apart[:FROM]), sum(apart[FROM:UNTIL]), sum(apart[UNTIL:])


@pytest.mark.parametrize("name", KINDS)
def test_nothing_differs_before_and_after(name):
    """To the byte: the same visitors, apps and clicks as if nothing had been planted."""
    found, _ = requests(name)
    for part in (slice(0, FROM), slice(UNTIL, END)):
        assert [orjson.dumps(one[1]) for one in found[part]] == [orjson.dumps(one[1]) for one in PLAIN[part]]
        assert [one[2] for one in found[part]] == [one[2] for one in PLAIN[part]]


@pytest.mark.parametrize("name", ["constant_feature", "shuffled_feature", "hours_shifted", "exploding"])
def test_what_is_only_told_otherwise_leaves_the_truth_and_the_clicks(name):
    """Visitors, apps, chances and clicks are the same; the one feature that the drift is of is told otherwise, and no other."""
    field = kind_of(name).place[0][0]

    def rest(one):
        request, impression, clicked = one
        features = [(item["id"], {**item["features"], field: None}) for item in impression["items"]]
        return request.logit.tolist(), {**impression["context"], field: None}, features, clicked

    def told(one):
        _, impression, _ = one
        return impression["context"].get(field), [item["features"].get(field) for item in impression["items"]]

    assert differing(name, rest) == (0, 0, 0)
    before, within, after = differing(name, told)
    assert (before, after) == (0, 0)
    assert within > 0.8 * (UNTIL - FROM)


def test_a_shuffled_feature_keeps_what_a_slate_holds_and_a_constant_one_has_one_value():
    """Counted per slate."""
    def categories(one):
        return sorted(item["features"]["category"] for item in one[1]["items"])

    assert differing("shuffled_feature", categories) == (0, 0, 0)
    found, _ = requests("constant_feature")
    assert {tuple(categories(one)) for one in found[FROM:UNTIL]} == {("tools",) * 4}


def test_hours_are_told_six_too_late():
    """Round the clock."""
    found, _ = requests("hours_shifted")
    off = {(one[1]["context"]["hour"] - other[1]["context"]["hour"]) % 24
           for one, other in zip(found[FROM:UNTIL], PLAIN[FROM:UNTIL], strict=True)}
    assert off == {HoursShifted.hours} == {6}


def test_dead_flipped_and_doubled_labels_are_counted():
    """The truth is that of the store without a drift; what is sent is none of it, all else, and it with the place below."""
    truth = labels(PLAIN)[FROM:UNTIL]
    sent = {name: labels(requests(name)[0])[FROM:UNTIL] for name in ("labels_dead", "labels_flipped", "labels_doubled")}
    assert not sent["labels_dead"].any()
    np.testing.assert_array_equal(sent["labels_flipped"], ~truth)
    below = np.stack([truth[:, place - 1] for place in range(4)], axis=1)
    np.testing.assert_array_equal(sent["labels_doubled"], truth | below)
    assert requests("labels_flipped")[1].tally.clicks == labels(PLAIN).sum()


def test_a_farm_lifts_one_app_and_no_other():
    """At a click rate of 30 % ten times it is every time; all other items keep their label."""
    found, store = requests("click_farm")
    farmed = store._drift.app
    counted: Counter[tuple[bool, bool, bool]] = Counter()
    for one, other in zip(found[FROM:UNTIL], PLAIN[FROM:UNTIL], strict=True):
        for item in one[1]["items"]:
            counted[item["id"] == farmed, item["id"] in one[2], item["id"] in other[2]] += 1
    assert counted[False, True, False] == counted[False, False, True] == 0
    shown = sum(count for (own, _, _), count in counted.items() if own)
    assert shown > 5
    assert counted[True, True, True] + counted[True, True, False] > 0.8 * shown


def test_a_farm_multiplies_clicks_by_ten_where_they_are_rare():
    """At a rate of 2 %: the app's clicks are tenfold within three standard errors of their number."""
    options = replace(SMALL, apps=4, click_rate=0.02, app_life_days=1e3)
    store = Simulator(options, START_US)
    drift = ClickFarm(options, START_US)
    store.plant(drift)
    expected, sent = 0.0, 0
    for number in range(2500):
        request = store.next_request(START_US + number * STEP_US)
        impression, clicks = store.show(request, None)
        place = [item["id"] for item in impression["items"]].index(drift.app)
        at_first = request.logit[[one["id"] for one in request.candidates].index(drift.app)]
        expected += 1 / (1 + np.exp(-(at_first - 0.15 * np.log(place + 1))))
        sent += sum(click["item"] == drift.app for _, click in clicks)
    assert sent == pytest.approx(10 * expected, abs=3 * np.sqrt(10 * expected))


def test_tastes_turn_over_in_one_country_alone():
    """The truth of the others is untouched; there it changes with the category alone, and the average taste stays."""
    found, _ = requests("taste_shift")
    changes: dict[str, set[float]] = {}
    for one, other in zip(found[FROM:UNTIL], PLAIN[FROM:UNTIL], strict=True):
        change = one[0].logit - other[0].logit
        if one[1]["context"]["country"] != TasteShift.country:
            assert not change.any()
            continue
        for candidate, by in zip(one[0].candidates, change, strict=True):
            changes.setdefault(candidate["features"]["category"], set()).add(round(float(by), 9))
    assert all(len(by) == 1 for by in changes.values())
    assert np.mean([by for (by,) in changes.values()]) == pytest.approx(0, abs=0.3)
    assert np.std([by for (by,) in changes.values()]) > 0.5


def test_a_flood_brings_new_apps_to_a_third_of_the_shelf():
    """Twenty places of sixty, and each has another app after a hundredth of the life of the one before."""
    store = Simulator(SMALL, START_US)
    store.plant(kind_of("new_apps")(SMALL, START_US, START_US + 60_000_000))
    names, ages = [], []
    for second in range(60):
        store.apps.advance(START_US + second * 1_000_000)
        names.append(list(store.apps.ids))
        ages.append(START_US + second * 1_000_000 - store.apps.born_us)
    flooded = [place for place in range(60) if len({row[place] for row in names}) > 10]
    assert len(flooded) == 20
    lives_s = store.apps.life_us / 1e6
    for place in flooded:
        assert len({row[place] for row in names}) == pytest.approx(60 / (lives_s[place] / 100), rel=0.1)
        assert max(row[place] for row in ages) <= lives_s[place] / 100 * 1e6
    others = [len({row[place] for row in names}) for place in range(60) if place not in flooded]
    assert np.mean(others) < 1.5


def test_at_night_few_come_and_click_less():
    """Of 100 possible visitors each hour, over a day: the quietest hour has a fifth of the busiest, and a lower true rate."""
    options = replace(SMALL, day_s=48)
    store = AppStore(Simulator(options, START_US), VirtualClock(START_US), (log := Kept()), rate=50, seconds=48,
                     stop=threading.Event())
    store.simulator.plant(NightAndDay(options, START_US))
    store.run()
    shown = [event for event in log.events if "items" in event]
    hours = Counter(int((datetime.fromisoformat(event["time"]).timestamp() - START_US / 1e6) / 2) for event in shown)
    per_hour = [hours[hour] for hour in range(24)]
    assert max(per_hour) > 85
    assert min(per_hour) < 30
    assert len({event["context"]["hour"] for event in shown if 0 <= hour_in(event) < 1}) <= 5
    clicked = Counter(event["impression_id"] for event in log.events if "action" in event)
    rate = {late: np.mean([clicked[event["impression_id"]] / 4 for event in shown if event["context"]["hour"] in late])
            for late in (range(19, 24), range(7, 12))}
    assert rate[range(19, 24)] > 1.2 * rate[range(7, 12)]


class Kept:
    """A log in memory."""

    def __init__(self):
        self.events = []

    def send(self, key, event):
        self.events.append(orjson.loads(event))

    def close(self):
        """Nothing is open."""


def hour_in(event):
    return (datetime.fromisoformat(event["time"]).timestamp() - START_US / 1e6) / 2


def test_a_drift_is_named_with_its_times():
    """Seconds after the start; without any, from the start and for ever."""
    one = planted("labels_flipped@60-90.5", SMALL, START_US)
    assert (one.name, one.from_us, one.until_us) == ("labels_flipped", START_US + 60_000_000, START_US + 90_500_000)
    assert planted("new_apps", SMALL, START_US).on(START_US)
    assert not planted("new_apps@5", SMALL, START_US).on(START_US)
    assert planted("new_apps@5", SMALL, START_US).on(START_US + 10**15)


@pytest.mark.parametrize("wrong", ["labels_flopped", "labels_dead@x", "labels_dead@9-3"])
def test_what_is_no_drift_is_refused(wrong):
    """With what there is instead."""
    with pytest.raises(ConfigError, match="labels_dead"):
        planted(wrong, SMALL, START_US)
