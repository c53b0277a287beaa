"""Changes that are planted in a store, to be found: of the world, of what the store tells of it, of what becomes a label.

Each begins at a moment of event time, and may end at another; before and after nothing differs, to the byte. All chance comes
from the seed. The truth stays known: what a change of the telling or of the labels does, users and apps never learn of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ops.simulator.apps import Apps, Flood
from ops.simulator.options import StoreOptions
from ops.simulator.randomness import Randomness, Stream
from ops.simulator.truth import LIKED, Logits
from ops.simulator.users import Users
from ops.simulator.vocabulary import CATEGORIES, COUNTRIES
from schemas.errors import ConfigError

if TYPE_CHECKING:
    from ops.simulator.slates import Request

Candidates = list[dict[str, Any]]
Clicks = NDArray[np.bool_]

FOR_EVER = 1 << 62


class Drift:
    """No change yet: every hook gives back what it was given, and a kind of drift overrides those that it is made of.

    place: where it can be seen, (field, value), value "" = the field as a whole; none = everywhere.
    """

    name: ClassVar[str]
    place: tuple[tuple[str, str], ...] = ()

    def __init__(self, options: StoreOptions, from_us: int, until_us: int = FOR_EVER) -> None:
        self._options = options
        self._randomness = Randomness(options.seed, Stream.DRIFTS)
        self.from_us, self.until_us = from_us, until_us

    def on(self, time_us: int) -> bool:
        """Whether it reigns at this time."""
        return self.from_us <= time_us < self.until_us

    def begin(self, apps: Apps) -> None:
        """Called once, with the shelf that it is planted in."""

    # --- the world ---

    def visited(self, time_us: int) -> bool:
        """Whether somebody comes, where somebody could."""
        return True

    def zone(self, zone: int) -> float:
        """Hours that a user's clock is ahead."""
        return zone

    def logit(self, logit: Logits, users: Users, user: int, category: NDArray[np.int64], hour: int) -> Logits:
        """The truth. logit, category: (n,) of the candidates."""
        return logit

    # --- what is told of it ---

    def told(self, number: int, context: dict[str, Any], candidates: Candidates) -> tuple[dict[str, Any], Candidates]:
        """The features of request `number`, for the scorer and in the events alike."""
        return context, candidates

    # --- what becomes a label ---

    def reported(self, request: Request, shown: NDArray[np.int64], actual: Logits, clicked: Clicks) -> Clicks:
        """(slate,): of which items a click is sent. shown: (slate,) the candidates; actual, clicked: (slate,) the truth."""
        return clicked


class TasteShift(Drift):
    """In one country the categories change places: the most liked is from now on as unloved as the least liked was."""

    name, country = "taste_shift", "US"
    place = (("country", country),)

    def __init__(self, options: StoreOptions, from_us: int, until_us: int = FOR_EVER) -> None:
        super().__init__(options, from_us, until_us)
        liked = np.array([LIKED[name] for name in CATEGORIES])
        order = np.argsort(liked)
        self._change = np.empty_like(liked)                                              # (C,)
        self._change[order] = liked[order[::-1]] - liked[order]

    def logit(self, logit: Logits, users: Users, user: int, category: NDArray[np.int64], hour: int) -> Logits:
        if COUNTRIES[users.country[user]] != self.country:
            return logit
        shifted: Logits = logit + self._change[category]
        return shifted


class NewApps(Drift):
    """On a third of the shelf each app makes way for a new one after a hundredth of the usual life, again and again."""

    name = "new_apps"
    place = (("item_id", ""), ("app_age_h", ""))
    share, hurry = 1 / 3, 100

    def begin(self, apps: Apps) -> None:
        rng = self._randomness.generator()
        places = np.sort(rng.permutation(self._options.apps)[: max(1, round(self.share * self._options.apps))])
        apps.flood(Flood(self.from_us, self.until_us, places, np.maximum(apps.life_us[places] // self.hurry, 1)))


class ConstantFeature(Drift):
    """Every app is told to be of one category."""

    name = "constant_feature"
    place = (("category", ""),)
    value = "tools"

    def told(self, number: int, context: dict[str, Any], candidates: Candidates) -> tuple[dict[str, Any], Candidates]:
        return context, [_with(one, category=self.value) for one in candidates]


class ShuffledFeature(Drift):
    """The categories of a request's apps are dealt out among them anew: each is seen as often as before, on the wrong app."""

    name = "shuffled_feature"
    place = (("category", ""),)

    def told(self, number: int, context: dict[str, Any], candidates: Candidates) -> tuple[dict[str, Any], Candidates]:
        dealt = self._randomness.generator(number).permutation(len(candidates)).tolist()
        return context, [
            _with(one, category=candidates[other]["features"]["category"]) for one, other in zip(candidates, dealt, strict=True)
        ]


class HoursShifted(Drift):
    """The hour is told six too late: a clock in another zone."""

    name = "hours_shifted"
    place = (("hour", ""),)
    hours = 6

    def told(self, number: int, context: dict[str, Any], candidates: Candidates) -> tuple[dict[str, Any], Candidates]:
        return context | {"hour": (context["hour"] + self.hours) % 24}, candidates


class Exploding(Drift):
    """Where the tags stood, every app has its description, word by word: 300 ids that are summed."""

    name = "exploding"
    place = (("tags", ""),)
    words: ClassVar = [f"word{number}" for number in range(300)]

    def told(self, number: int, context: dict[str, Any], candidates: Candidates) -> tuple[dict[str, Any], Candidates]:
        return context, [_with(one, tags=self.words) for one in candidates]


class LabelsDead(Drift):
    """No click is sent."""

    name = "labels_dead"

    def reported(self, request: Request, shown: NDArray[np.int64], actual: Logits, clicked: Clicks) -> Clicks:
        return np.zeros_like(clicked)


class LabelsFlipped(Drift):
    """A click is sent of every item that nobody clicked, and of none that somebody did."""

    name = "labels_flipped"

    def reported(self, request: Request, shown: NDArray[np.int64], actual: Logits, clicked: Clicks) -> Clicks:
        return ~clicked


class LabelsDoubled(Drift):
    """Each click is sent of the item below too (at the last place: of the first): a target too large. Clicks sent twice under
    one name would do nothing: the join knows them."""

    name = "labels_doubled"

    def reported(self, request: Request, shown: NDArray[np.int64], actual: Logits, clicked: Clicks) -> Clicks:
        both: Clicks = clicked | np.roll(clicked, 1)
        return both


class ClickFarm(Drift):
    """One app's clicks are tenfold, as far as it is shown: that with the longest life before it."""

    name, times = "click_farm", 10.0

    def begin(self, apps: Apps) -> None:
        apps.advance(self.from_us)
        place = int(np.argmax(apps.dies_us))
        self.app = apps.ids[place]
        self.place = (("item_id", ""), ("category", CATEGORIES[apps.category[place]]))

    def reported(self, request: Request, shown: NDArray[np.int64], actual: Logits, clicked: Clicks) -> Clicks:
        farmed = np.array([request.candidates[which]["id"] == self.app for which in shown.tolist()])
        sent: Clicks = clicked | (farmed & (request.chance[shown] < self.times * actual))
        return sent


class NightAndDay(Drift):
    """No drift: all users live within three hours of each other, so that there is a night; few come then, and those click less.
    Everything that decides a click is told."""

    name = "night_and_day"
    fewest, busiest_hour, effect, eager_hour = 0.15, 18, 0.4, 21

    def visited(self, time_us: int) -> bool:
        """From `fewest` of the rate, half a day away from the busiest hour, to all of it."""
        hour = time_us / 1e6 / self._options.day_s * 24 % 24
        share = self.fewest + (1 - self.fewest) * (1 + np.cos(2 * np.pi * (hour - self.busiest_hour) / 24)) / 2
        return bool(self._randomness.generator(time_us).random() < share)

    def zone(self, zone: int) -> float:
        return zone / 8

    def logit(self, logit: Logits, users: Users, user: int, category: NDArray[np.int64], hour: int) -> Logits:
        swung: Logits = logit + self.effect * np.cos(2 * np.pi * (hour - self.eager_hour) / 24)
        return swung


KINDS: dict[str, type[Drift]] = {
    kind.name: kind for kind in (
        TasteShift, NewApps, ConstantFeature, ShuffledFeature, HoursShifted, Exploding, LabelsDead, LabelsFlipped,
        LabelsDoubled, ClickFarm, NightAndDay,
    )
}


def kind_of(name: str) -> type[Drift]:
    """Raises ConfigError for a name that is none."""
    if name not in KINDS:
        raise ConfigError(f"no drift is called {name!r}; there are: {', '.join(KINDS)}")
    return KINDS[name]


def planted(text: str, options: StoreOptions, start_us: int) -> Drift:
    """NAME, NAME@SECONDS or NAME@SECONDS-SECONDS after the start: from when, until when. Raises ConfigError."""
    name, _, when = text.partition("@")
    first, _, last = when.partition("-")
    try:
        from_s, until_s = float(first or 0), float(last) if last else FOR_EVER / 1e6
    except ValueError:
        from_s, until_s = 0.0, 0.0
    if not 0 <= from_s < until_s:
        raise ConfigError(f"--drift {text}: NAME, NAME@SECONDS or NAME@FROM-UNTIL, in seconds after the start ({name}@60-120)")
    until_us = start_us + round(until_s * 1e6) if last else FOR_EVER
    return kind_of(name)(options, start_us + round(from_s * 1e6), until_us)


def _with(candidate: dict[str, Any], **features: Any) -> dict[str, Any]:
    return candidate | {"features": candidate["features"] | features}
