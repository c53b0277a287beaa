"""The truth: the chance that this user clicks this app here and now. Known, so that a model can be held against it.

Log-odds add up from what follows, each a table or a line; nothing else decides a click. The first two tables plant what
the DeepFM paper saw in a real app market (arXiv 1703.04247, section 1): delivery of food at meal times, and young men
with shooters and role-playing games.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ops.simulator.apps import Apps
from ops.simulator.options import StoreOptions
from ops.simulator.randomness import Randomness, Stream
from ops.simulator.users import Users
from ops.simulator.vocabulary import AGE_BANDS, CATEGORIES, COUNTRIES, GENDERS, TAGS

Logits = NDArray[np.float64]


class AtHours(NamedTuple):
    """A category is wanted more in some hours of the day."""

    category: str
    first: int      # hour, included
    last: int       # hour, included
    effect: float   # log-odds; then centred over the day, so the other hours lose what these gain


class ByPeople(NamedTuple):
    """A category is liked more, or less, by some people."""

    category: str
    genders: tuple[str, ...]   # () = all
    bands: tuple[str, ...]     # () = all ages
    effect: float              # log-odds


HOURS = (
    AtHours("food_delivery", 11, 13, 2.2), AtHours("food_delivery", 17, 20, 2.2),  # planted: meals
    AtHours("news", 6, 9, 1.2), AtHours("video", 19, 23, 1.0), AtHours("music", 7, 9, 0.7),
    AtHours("fitness", 6, 8, 0.8), AtHours("finance", 9, 16, 0.7), AtHours("education", 14, 18, 0.7),
    AtHours("shooter", 20, 23, 0.7), AtHours("strategy", 20, 23, 0.5),
)
PEOPLE = (
    ByPeople("shooter", ("m",), ("13-17", "18-24"), 2.2), ByPeople("role_playing", ("m",), ("13-17", "18-24"), 2.2),
    ByPeople("shooter", ("m",), ("25-34",), 1.2), ByPeople("role_playing", ("m",), ("25-34",), 1.2),  # planted
    ByPeople("shooter", ("f",), (), -0.5), ByPeople("role_playing", (), ("45-54", "55+"), -0.6),
    ByPeople("shopping", ("f",), (), 0.8), ByPeople("social", (), ("13-17", "18-24"), 0.9),
    ByPeople("puzzle", (), ("45-54", "55+"), 1.0), ByPeople("puzzle", (), ("13-17", "18-24"), -0.5),
    ByPeople("finance", (), ("35-44", "45-54"), 0.8), ByPeople("finance", (), ("13-17",), -1.0),
    ByPeople("education", (), ("13-17",), 0.8), ByPeople("news", (), ("45-54", "55+"), 0.8),
    ByPeople("fitness", ("f",), ("25-34", "35-44"), 0.8), ByPeople("travel", (), ("25-34", "35-44"), 0.5),
)
LIKED = {  # categories, everywhere and always
    "food_delivery": 0.0, "shooter": -0.3, "role_playing": -0.3, "puzzle": 0.3, "casual": 0.7, "strategy": -0.4,
    "news": -0.3, "social": 0.8, "video": 0.7, "music": 0.4, "finance": -0.7, "shopping": 0.2, "travel": -0.5,
    "education": -0.5, "fitness": -0.4, "tools": -0.6,
}
TAG_EFFECT = {
    "offline": 0.1, "multiplayer": 0.3, "ads": -0.4, "family": 0.0, "editors_choice": 0.7, "subscription": -0.4,
    "beta": -0.5, "local": 0.2,
}
APP_QUALITY = 0.6       # standard deviation over apps of what only their ids tell
PRICE_SLOPE = -0.5      # per ln(1 + price)
NEW_APP, NEW_APP_H = 0.6, 24.0   # a newborn app's bonus, and the store hours in which it falls to 1/e
INSTALLED = 0.5         # the user has apps of this category already
COUNTRY_TASTE = 0.25    # standard deviation over country × category; turns with time, its size stays
EVENING, EVENING_HOURS = 0.3, range(18, 24)  # people have time
POSITION_SLOPE = -0.15  # per ln(position): the 20th place has 0.64 of the first one's odds


def hour_of(time_us: int, day_s: float, zone: float = 0) -> int:
    """The hour on a user's clock, 0 to 23. Days are counted since 1970, whenever the store was started."""
    return int(time_us / 1e6 / day_s * 24 + zone) % 24


def position_effect(position: NDArray[np.int64]) -> Logits:
    """Log-odds that a place costs against the first. position: 1 = first."""
    effect: Logits = POSITION_SLOPE * np.log(position)
    return effect


def probability(logit: Logits) -> Logits:
    """Natural log-odds → probability."""
    p: Logits = 1 / (1 + np.exp(-logit))
    return p


class Truth:
    """Log-odds of a click at the first place."""

    def __init__(self, options: StoreOptions) -> None:
        self._options = options
        self.hours = _hours()                                                                   # (24, C)
        self.people = _people()                                                                 # (genders, bands, C)
        rng = Randomness(options.seed, Stream.TASTES).generator()
        shape = (2, len(COUNTRIES), len(CATEGORIES))
        self._country = COUNTRY_TASTE * rng.standard_normal(shape)                              # (2, countries, C)
        self._liked = np.array([LIKED[name] for name in CATEGORIES])                            # (C,)
        self._tag_effect = np.array([TAG_EFFECT[name] for name in TAGS])                        # (T,)
        self.base = 0.0

    def country(self, country: int, time_us: int) -> Logits:
        """What a country likes now, per category: two random tables, turned into each other once in drift_days. (C,)"""
        angle = 2 * np.pi * (time_us / 1e6 / (self._options.drift_days * self._options.day_s) % 1)
        turned: Logits = self._country[0, country] * np.cos(angle) + self._country[1, country] * np.sin(angle)
        return turned

    def logit(
        self, users: Users, user: int, apps: Apps, places: NDArray[np.int64], time_us: int, hour: int | None = None
    ) -> Logits:
        """Log-odds for the apps at these places of the shelf, which must have been advanced to this time. (n,)

        hour: on the user's clock; None = that of the time and the zone.
        """
        hour = hour_of(time_us, self._options.day_s, int(users.zone[user])) if hour is None else hour
        by_category = (
            self._liked + self.hours[hour] + self.people[users.gender[user], users.age_band[user]]
            + self.country(int(users.country[user]), time_us) + users.taste[user] + INSTALLED * users.installed[user]
        )                                                                                       # (C,)
        age_h = (time_us - apps.born_us[places]) / apps.hour_us                                 # (n,)
        by_app = (
            APP_QUALITY * apps.quality[places] + apps.tags[places] @ self._tag_effect
            + PRICE_SLOPE * np.log1p(apps.price[places]) + NEW_APP * np.exp(-age_h / NEW_APP_H)
        )                                                                                       # (n,)
        evening = EVENING if hour in EVENING_HOURS else 0.0
        total: Logits = self.base + evening + by_category[apps.category[places]] + by_app       # (n,)
        return total


def truth_of(options: StoreOptions) -> tuple[Truth, Users]:
    """The truth, its base set so that random slates are clicked at the rate asked for; and the users.

    The base is found on random slates of 16 moments far apart, at each of which all hours are somebody's (Newton's
    method on the mean probability; the mean rises with the base, so there is one root).
    """
    truth = Truth(options)
    users = Users(options, truth.people)
    apps = Apps(options)
    places = position_effect(np.arange(1, options.slate + 1))
    rng = Randomness(options.seed, Stream.BASE_RATE).generator()
    sampled = []
    for _ in range(16):
        time_us = int(rng.random() * 1_000 * options.app_life_days * options.day_s * 1e6)  # other apps, other tastes
        apps.advance(time_us)
        for _ in range(40):
            shown = rng.permutation(options.apps)[: options.slate]
            sampled.append(truth.logit(users, users.pick(rng.random()), apps, shown, time_us) + places)
    logits = np.concatenate(sampled)                                                            # (640·slate,)
    base = 0.0
    for _ in range(50):
        p = probability(logits + base)
        step = float((p.mean() - options.click_rate) / (p * (1 - p)).mean())
        base -= max(-1.0, min(1.0, step))
        if abs(step) < 1e-12:
            break
    truth.base = base
    return truth, users


def _hours() -> Logits:
    table = np.zeros((24, len(CATEGORIES)))
    for category, first, last, effect in HOURS:
        table[first : last + 1, CATEGORIES.index(category)] += effect
    centred: Logits = table - table.mean(axis=0)
    return centred


def _people() -> Logits:
    table = np.zeros((len(GENDERS), len(AGE_BANDS), len(CATEGORIES)))
    for category, genders, bands, effect in PEOPLE:
        for gender in _places(genders, GENDERS):
            for band in _places(bands, [known.name for known in AGE_BANDS]):
                table[gender, band, CATEGORIES.index(category)] += effect
    return table


def _places(names: tuple[str, ...], known: Iterable[str]) -> list[int]:
    return [place for place, name in enumerate(known) if not names or name in names]
