"""The shelf: apps are born, age, die, and another takes the place."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ops.simulator.options import StoreOptions
from ops.simulator.randomness import Randomness, Stream
from ops.simulator.vocabulary import CATEGORIES, CATEGORY_SHARES, TAGS

PRICES = (0.0, 0.99, 1.99, 2.99, 4.99, 9.99)
PRICE_SHARES = (0.64, 0.12, 0.08, 0.06, 0.06, 0.04)
MOST_TAGS = 3
_FLOODED = 1 << 40     # numbers of apps that a flood brings begin here
_CATEGORIES_UP_TO = np.cumsum(CATEGORY_SHARES)[:-1]
_PRICES_UP_TO = np.cumsum(PRICE_SHARES)[:-1]


class Flood(NamedTuple):
    """From one time until another, the apps on `places` live only so long. places, life_us: (P,)."""

    from_us: int
    until_us: int
    places: NDArray[np.int64]
    life_us: NDArray[np.int64]


class Apps:
    """Arrays over places on the shelf, as of the time last asked for.

    The app on place s at time t is number g = floor((t + phase_s) / life_s) of that place, all of it drawn from
    (seed, s, g): the shelf is a function of the time alone, so a store that is stopped and started again goes on with
    the same apps. Lives differ by place, from 0.4 to 1.6 of the average, so ages do too.
    category: (A,) places in CATEGORIES; price: (A,); tags: (A, T) bool; quality: (A,) log-odds that no feature tells
    but the app's id; bid: (A,); born_us, dies_us: (A,).
    """

    def __init__(self, options: StoreOptions) -> None:
        self._randomness = Randomness(options.seed, Stream.APPS)
        rng = self._randomness.generator()
        count = options.apps
        self.hour_us = options.day_s * 1e6 / 24
        average_us = options.app_life_days * options.day_s * 1e6
        self.life_us = np.maximum(1, average_us * rng.uniform(0.4, 1.6, count)).astype(np.int64)
        self._phase_us = (rng.random(count) * self.life_us).astype(np.int64)
        self.number = np.full(count, -1, np.int64)
        self.born_us = np.zeros(count, np.int64)
        self.dies_us = np.zeros(count, np.int64)
        self._flood: Flood | None = None
        self.category = np.zeros(count, np.int64)
        self.price = np.zeros(count)
        self.tags = np.zeros((count, len(TAGS)), bool)
        self.quality = np.zeros(count)
        self.bid = np.zeros(count)
        self.ids = [""] * count
        self._features: list[dict[str, Any]] = [{} for _ in range(count)]
        self._from_us, self._until_us = 0, 0
        self.revision = 0
        """Grows whenever an app was born."""

    def flood(self, flood: Flood | None) -> None:
        """There is one, or will be; instead of any that was told before."""
        self._flood = flood
        self._from_us = self._until_us = 0

    def advance(self, time_us: int) -> None:
        """Make the arrays those of this time; costs nothing where nobody was born since the last."""
        if self._from_us <= time_us < self._until_us:
            return
        number = (time_us + self._phase_us) // self.life_us
        self.born_us = number * self.life_us - self._phase_us
        self.dies_us = self.born_us + self.life_us
        edges = [0, 1 << 62]
        if self._flood is not None:
            from_us, until_us, places, life_us = self._flood
            edges += [from_us, until_us]
            if from_us <= time_us < until_us:
                since = (time_us - from_us) // life_us
                number[places] = _FLOODED + since
                self.born_us[places] = from_us + since * life_us
                self.dies_us[places] = self.born_us[places] + life_us
        for place in np.flatnonzero(number != self.number):
            self._bear(int(place), int(number[place]))
        self.number = number
        self._from_us = max(int(self.born_us.max()), *(edge for edge in edges if edge <= time_us))
        self._until_us = min(int(self.dies_us.min()), *(edge for edge in edges if edge > time_us))
        self.revision += 1

    def features(self, place: int, time_us: int) -> dict[str, Any]:
        """What a request says of the app; its id stands beside."""
        age_us = time_us - int(self.born_us[place])
        return self._features[place] | {"app_age_h": int(age_us // self.hour_us)}

    def _bear(self, place: int, number: int) -> None:
        rng = self._randomness.generator(1 + place, number)
        self.ids[place] = f"app{place}-{number}"
        sort, price = rng.random(2)
        self.category[place] = np.searchsorted(_CATEGORIES_UP_TO, sort, side="right")
        self.price[place] = PRICES[np.searchsorted(_PRICES_UP_TO, price, side="right")]
        self.tags[place] = False
        self.tags[place, rng.permutation(len(TAGS))[: rng.integers(1, MOST_TAGS + 1)]] = True
        self.quality[place] = rng.standard_normal()
        self.bid[place] = round(float(rng.lognormal(mean=-0.5, sigma=0.5)), 2)
        self._features[place] = {
            "category": CATEGORIES[self.category[place]],
            "price": float(self.price[place]),
            "tags": [TAGS[tag] for tag in np.flatnonzero(self.tags[place])],
        }
