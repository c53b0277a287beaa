from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pytest

from ops.simulator.apps import Apps
from ops.simulator.clicks import delays_us
from ops.simulator.options import StoreOptions
from ops.simulator.oracle import auc
from ops.simulator.slates import Simulator
from ops.simulator.truth import hour_of, truth_of
from ops.simulator.vocabulary import AGE_BANDS, CATEGORIES, COUNTRIES, GENDERS

START_US = int(datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()) * 1_000_000
SLATES = 8_000
SIGMAS = 4.0  # every comparison below is within so many standard errors: one in 16,000 fails by bad luck, the seed is fixed
FOOD, SHOOTER, ROLE_PLAYING = (CATEGORIES.index(name) for name in ("food_delivery", "shooter", "role_playing"))
MEALS = {11, 12, 13, 17, 18, 19, 20}


@dataclass
class Shown:
    """Rows of random slates: what was shown to whom, the truth's probability, and whether it was clicked."""

    hour: np.ndarray
    category: np.ndarray
    gender: np.ndarray
    age_band: np.ndarray
    position: np.ndarray
    p: np.ndarray
    at_first: np.ndarray
    clicked: np.ndarray

    def rate(self, rows):
        return self.clicked[rows].mean()

    def odds(self, rows):
        return self.rate(rows) / (1 - self.rate(rows))

    def agrees(self, rows):
        """The clicks of these rows are as many as the truth says."""
        p = self.p[rows]
        return abs(self.clicked[rows].sum() - p.sum()) < SIGMAS * np.sqrt((p * (1 - p)).sum())


@pytest.fixture(scope="module")
def shown():
    """8,000 slates of 20 over two days of the store."""
    store = Simulator(StoreOptions(), START_US)
    bands = [band.name for band in AGE_BANDS]
    rows = []
    for number in range(SLATES):
        impression, _ = store.show(store.next_request(START_US + number * 60_000), None)
        who = impression["context"]
        context = (who["hour"], GENDERS.index(who.get("gender", "")), bands.index(who["age_band"]))
        rows += [(*context, CATEGORIES.index(i["features"]["category"]), i["position"]) for i in impression["items"]]
    hour, gender, age_band, category, position = np.array(rows).T
    _, _, at_first, p, clicked = store.ledger.columns()
    return Shown(hour, category, gender, age_band, position, p, at_first, clicked)


def test_clicks_come_as_often_as_the_truth_says(shown):
    """All in all, in each tenth of the probabilities, at each place, in each hour and each category."""
    every = np.ones(len(shown.p), bool)
    assert shown.agrees(every)
    tenth = np.searchsorted(np.quantile(shown.p, np.arange(0.1, 1, 0.1)), shown.p)
    for column in (tenth, shown.position, shown.hour, shown.category):
        for value in np.unique(column):
            assert shown.agrees(column == value)


def test_the_click_rate_is_the_one_asked_for(shown):
    """0.10 over many days; two days of one shelf of 200 apps differ from it by the luck of their apps."""
    assert 0.08 < shown.clicked.mean() < 0.12


@pytest.mark.parametrize("rate", [0.03, 0.3])
def test_the_base_is_set_for_the_click_rate(rate):
    """Independent days, so independent apps: their mean is within its own standard error of the rate."""
    store = Simulator(StoreOptions(click_rate=rate, users=1000), START_US)
    for day in range(12):
        for number in range(60):
            store.show(store.next_request(START_US + day * 10_000_000_000 + number), None)
    days = store.ledger.columns()[3].reshape(12, -1).mean(axis=1)
    assert abs(np.mean(days) - rate) < SIGMAS * np.std(days) / np.sqrt(len(days)) + 0.02 * rate


def test_food_is_wanted_at_meal_times(shown):
    """Planted: category × hour. Neither food at other times nor others at meal times gain as much."""
    meal, food = np.isin(shown.hour, list(MEALS)), shown.category == FOOD
    assert shown.agrees(meal & food)
    assert shown.agrees(~meal & food)
    assert shown.odds(meal & food) > 4 * shown.odds(~meal & food)
    assert shown.odds(meal & ~food) < 1.5 * shown.odds(~meal & ~food)


def test_young_men_like_shooters_and_role_playing_games(shown):
    """Planted: category × gender × age. It takes all three."""
    games = np.isin(shown.category, [SHOOTER, ROLE_PLAYING])
    young = shown.age_band <= 1
    men, women = shown.gender == GENDERS.index("m"), shown.gender == GENDERS.index("f")
    old = shown.age_band >= 4
    assert shown.agrees(games & young & men)
    assert shown.odds(games & young & men) > 4 * shown.odds(games & young & women)
    assert shown.odds(games & young & men) > 4 * shown.odds(games & old & men)
    assert shown.odds(~games & young & men) < 1.5 * shown.odds(~games & young & women)


def test_lower_places_are_clicked_less(shown):
    """Position bias: moderate, so that a score that knows no position still ranks well."""
    top, low = shown.position <= 5, shown.position > 15
    assert 1.2 < shown.odds(top) / shown.odds(low) < 2
    np.testing.assert_array_equal(shown.p[shown.position == 1], shown.at_first[shown.position == 1])
    assert np.all(shown.p[shown.position > 1] < shown.at_first[shown.position > 1])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_oracle_has_an_auc_about_eight_tenths(seed):
    """The lead that a model can win. Knowing the place too would add less than .01."""
    store = Simulator(StoreOptions(seed=seed), START_US)
    for number in range(3_000):
        store.show(store.next_request(START_US + number * 60_000), None)
    _, _, at_first, p, clicked = store.ledger.columns()
    assert 0.76 < auc(at_first, clicked) < 0.83
    assert -0.002 < auc(p, clicked) - auc(at_first, clicked) < 0.01


def test_every_hour_of_the_day_is_somebodys_at_any_moment():
    """Users live in all time zones. Otherwise the hour would be a clock: clicks come before the negatives of their own
    impressions, and a model would read the label off the hour."""
    store = Simulator(StoreOptions(), START_US)
    for now_us in (START_US, START_US + 100_000_000):
        hours = [store.next_request(now_us + number).context["hour"] for number in range(2_400)]
        counts = np.bincount(hours, minlength=24)
        assert abs(counts - 100).max() < 5 * 10


def test_a_day_has_24_hours_of_its_own_length():
    """day_s seconds of event time; the zone is added."""
    assert [hour_of(START_US + second * 1_000_000, 24.0, 0) for second in range(48)] == [*range(24), *range(24)]
    assert hour_of(START_US, 240.0, 23) == (hour_of(START_US, 240.0) + 23) % 24
    noon_us = int(datetime(2026, 5, 5, 12, 30, tzinfo=UTC).timestamp()) * 1_000_000
    assert hour_of(noon_us, 86_400.0) == 12


def test_tastes_drift_and_come_back():
    """A country's tastes turn once in drift_days: a little in a minute, the opposite after half, the same after all."""
    options = StoreOptions()
    truth, _ = truth_of(options)
    turn_us = round(options.drift_days * options.day_s * 1e6)
    for country in range(len(COUNTRIES)):
        now = truth.country(country, START_US)
        np.testing.assert_allclose(truth.country(country, START_US + turn_us), now, atol=1e-9)
        np.testing.assert_allclose(truth.country(country, START_US + turn_us // 2), -now, atol=1e-9)
        soon = np.abs(truth.country(country, START_US + 60_000_000) - now)
        assert 0 < soon.max() < 0.4


def test_apps_are_born_and_die():
    """Always as many alive, each with an id of its own; the dead never return; a newborn's age starts at 0."""
    options = StoreOptions()
    apps = Apps(options)
    alive: set[str] = set()
    dead: set[str] = set()
    life_us = options.app_life_days * options.day_s * 1e6
    born = 0
    for minute in range(60):
        now_us = START_US + minute * 60_000_000
        apps.advance(now_us)
        today = set(apps.ids)
        assert len(today) == options.apps
        assert not today & dead
        if alive:
            born += len(today - alive)
            for place, name in enumerate(apps.ids):
                if name not in alive:
                    assert apps.features(place, now_us)["app_age_h"] * apps.hour_us < 60_000_000
        dead |= alive - today
        alive = today
        assert np.all((now_us >= apps.born_us) & (now_us < apps.born_us + apps.life_us))
    expected = options.apps * 59 * 60_000_000 / life_us
    assert 0.8 * expected < born < 1.6 * expected  # lives differ, and the short ones turn over oftener


def test_a_store_started_later_has_the_same_shelf():
    """What is on sale is a function of seed and time: a store that crashed goes on with the same apps."""
    later_us = START_US + 1_234_000_000
    one, other = Apps(StoreOptions()), Apps(StoreOptions())
    for second in range(0, 1_234, 17):
        one.advance(START_US + second * 1_000_000)
    one.advance(later_us)
    other.advance(later_us)
    assert one.ids == other.ids
    np.testing.assert_array_equal(one.quality, other.quality)
    assert [one.features(place, later_us) for place in range(200)] == [
        other.features(place, later_us) for place in range(200)
    ]


def test_another_seed_sells_other_apps_to_other_users():
    """Nothing but the vocabulary is shared."""
    one, other = (truth_of(StoreOptions(seed=seed)) for seed in (1, 2))
    assert not np.array_equal(one[1].age_band, other[1].age_band)
    assert not np.allclose(one[0].country(0, START_US), other[0].country(0, START_US))
    shelves = [Apps(StoreOptions(seed=seed)) for seed in (1, 2)]
    for apps in shelves:
        apps.advance(START_US)
    assert not np.array_equal(shelves[0].category, shelves[1].category)


def test_ages_lie_in_their_bands_and_installed_apps_tell_tastes():
    """Young men have shooters installed more often than old women."""
    _, users = truth_of(StoreOptions())
    for band, (_, first, last) in enumerate(AGE_BANDS):
        ages = users.age[users.age_band == band]
        assert first <= ages.min()
        assert ages.max() <= last
    assert users.installed.sum(axis=1).min() == 2
    assert users.installed.sum(axis=1).max() == 6
    young_men = (users.gender == GENDERS.index("m")) & (users.age_band <= 1)
    old_women = (users.gender == GENDERS.index("f")) & (users.age_band >= 4)
    assert users.installed[young_men, SHOOTER].mean() > 3 * users.installed[old_women, SHOOTER].mean()


def test_click_delays_have_their_median_and_stay_below_the_window():
    """Lognormal: half before the median, about 68 % within one spread of it; none after delay_most_s."""
    options = StoreOptions()
    delay_s = delays_us(np.random.default_rng(1), 100_000, options) / 1e6
    assert abs(np.median(delay_s) - 1.5) < 0.02
    assert abs((np.abs(np.log(delay_s / 1.5)) < 0.7).mean() - 0.6827) < 0.006
    assert delay_s.min() > 0
    assert delay_s.max() <= 9.0 + 1e-6


def test_late_clicks_are_as_many_as_asked_and_come_after_the_window():
    """late_share of them; the others as before."""
    options = StoreOptions(late_share=0.05)
    delay_s = delays_us(np.random.default_rng(1), 100_000, options) / 1e6
    late = delay_s > options.late_after_s
    assert abs(late.mean() - 0.05) < SIGMAS * np.sqrt(0.05 * 0.95 / 100_000)
    assert delay_s[~late].max() <= 9.0 + 1e-6
