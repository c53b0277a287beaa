"""The people of the store: who they are, what they like by themselves, what they have installed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ops.simulator.options import StoreOptions
from ops.simulator.randomness import Randomness, Stream
from ops.simulator.vocabulary import AGE_BANDS, CATEGORIES, COUNTRIES, GENDERS

AGE_SHARES = (0.08, 0.22, 0.26, 0.20, 0.14, 0.10)                    # of AGE_BANDS
COUNTRY_SHARES = (0.06, 0.07, 0.18, 0.14, 0.15, 0.22, 0.10, 0.08)    # of COUNTRIES
GENDER_SHARES = (0.48, 0.48, 0.04)                                   # of GENDERS; the last gave none
OWN_TASTE = 0.15    # standard deviation of what nobody else shares: only the installed apps hint at it
INSTALLED = (2, 6)  # fewest and most categories that a user has apps of


class Users:
    """Arrays over users. age_band, gender, country: (U,) places in the vocabularies; age: (U,) years; zone: (U,) hours
    ahead; taste: (U, C) own log-odds per category; installed: (U, C) bool; share: (U,) of the requests."""

    def __init__(self, options: StoreOptions, group_taste: NDArray[np.float64]) -> None:
        """group_taste: (genders, age bands, C) log-odds; with the own taste it decides what people install."""
        rng = Randomness(options.seed, Stream.USERS).generator()
        count, categories = options.users, len(CATEGORIES)
        self.age_band = rng.choice(len(AGE_BANDS), count, p=AGE_SHARES)
        self.gender = rng.choice(len(GENDERS), count, p=GENDER_SHARES)
        self.country = rng.choice(len(COUNTRIES), count, p=COUNTRY_SHARES)
        first = np.array([band.first for band in AGE_BANDS])[self.age_band]
        width = np.array([band.last - band.first + 1 for band in AGE_BANDS])[self.age_band]
        self.age = first + np.floor(rng.random(count) * width).astype(np.int64)
        # All zones alike, whatever the country: were the hour a function of time, clicks (here at once) and negatives (a
        # window later) would come from different hours, and a model of eager labels would read the label off the hour.
        self.zone = rng.integers(24, size=count)
        self.taste = OWN_TASTE * rng.standard_normal((count, categories))

        # The k categories of highest taste + Gumbel noise: k draws without replacement, chance ∝ exp(2·taste).
        liking = 2 * (self.taste + group_taste[self.gender, self.age_band])                    # (U, C)
        order = np.argsort(-(liking + rng.gumbel(size=(count, categories))), axis=1)           # (U, C)
        several = rng.integers(INSTALLED[0], INSTALLED[1] + 1, count)
        self.installed = np.zeros((count, categories), bool)
        np.put_along_axis(self.installed, order, np.arange(categories) < several[:, None], axis=1)

        activity = rng.lognormal(sigma=0.8, size=count)  # few come often, most seldom
        self.share = activity / activity.sum()
        self._cumulated = np.cumsum(self.share)
        self._features: list[dict[str, Any]] = [self._describe(user) for user in range(count)]

    def pick(self, uniform: float) -> int:
        """The user at this place of the cumulated shares."""
        return min(int(np.searchsorted(self._cumulated, uniform, side="right")), len(self.share) - 1)

    def features(self, user: int) -> dict[str, Any]:
        """What a request says of the user; a gender not given is absent."""
        return self._features[user]

    def _describe(self, user: int) -> dict[str, Any]:
        told = {
            "user": f"u{user}",
            "country": COUNTRIES[self.country[user]],
            "age_band": AGE_BANDS[self.age_band[user]].name,
            "installed": [CATEGORIES[place] for place in np.flatnonzero(self.installed[user])],
        }
        gender = GENDERS[self.gender[user]]
        return told | {"gender": gender} if gender else told
