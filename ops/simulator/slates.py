"""The app store itself, without a network: who asks, what is shown, what is clicked."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ops.simulator.apps import Apps
from ops.simulator.clicks import delays_us
from ops.simulator.drifts import Drift
from ops.simulator.options import StoreOptions
from ops.simulator.oracle import Ledger, Thirds
from ops.simulator.randomness import Randomness, Stream
from ops.simulator.truth import hour_of, position_effect, probability, truth_of
from schemas.events import time_text

Event = dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """Somebody opens the store. What a scorer may see is `context` and `candidates`; the rest decides what happens.

    candidates: [{"id": …, "features": {…}}]. random_order: this slate is shown in random order whatever the scores.
    """

    number: int
    impression_id: str
    time_us: int
    context: dict[str, Any]
    candidates: list[dict[str, Any]]
    random_order: bool
    bids: NDArray[np.float64]          # (n,)
    logit: NDArray[np.float64]         # (n,) the truth, at the first place
    chance: NDArray[np.float64]        # (n,) uniform: a candidate shown is clicked where this is below its probability
    delay_us: NDArray[np.int64]        # (n,) when, if clicked
    shuffled: NDArray[np.int64]        # (n,) a random order of the candidates


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """What one version of a model said of a request's candidates, in their order."""

    probabilities: Sequence[float]
    model: str
    lineage: str
    version: int
    echoes: Sequence[bytes] | None = None


@dataclass(slots=True)
class Tally:
    """What has been shown and clicked so far."""

    impressions: int = 0
    items: int = 0
    clicks: int = 0
    random_slates: int = 0
    random_items: int = 0
    random_clicks: int = 0
    scored_slates: int = 0

    @property
    def click_rates(self) -> tuple[float, float]:
        """On ranked and on random slates: what ranking is worth. NaN where there was none."""
        ranked = self.items - self.random_items
        return (
            (self.clicks - self.random_clicks) / ranked if ranked else float("nan"),
            self.random_clicks / self.random_items if self.random_items else float("nan"),
        )


class Simulator:
    """A store that opens at start_us.

    Same options, same start, same slates shown: same events, to the byte. Request n draws from (seed, start, n) alone,
    one number for each candidate, so that an item shown is clicked or not whatever stands beside it: two models that
    rank the same requests meet the same luck.
    """

    def __init__(self, options: StoreOptions, start_us: int) -> None:
        self.options = options
        self.start_us = start_us
        self.truth, self.users = truth_of(options)
        self.apps = Apps(options)
        self.ledger = Ledger()
        self.tally = Tally()
        self._randomness = Randomness(options.seed, Stream.REQUESTS, start_us)
        self._requests = 0
        self._last_us = start_us
        self._drift: Drift | None = None
        self._places = np.arange(1, options.slate + 1)
        self._position_effect = position_effect(self._places)

    def plant(self, drift: Drift | None) -> None:
        """Let this change happen, instead of any that was planted before."""
        self.apps.flood(None)
        self._drift = drift
        if drift is not None:
            drift.begin(self.apps)

    def visited(self, now_us: int) -> bool:
        """Whether somebody comes at this moment, which the store's rate has a visitor at."""
        drift = self._reigning(now_us)
        return drift is None or drift.visited(now_us)

    def next_request(self, now_us: int) -> Request:
        """The next visitor, at this moment of event time."""
        number, self._requests = self._requests, self._requests + 1
        self._last_us = max(self._last_us, now_us)
        count = self.options.candidates
        rng = self._randomness.generator(number)
        random_order, who = rng.random(2)
        places = rng.permutation(self.options.apps)[:count]
        shuffled = rng.permutation(count)
        chance = rng.random(count)
        delay_us = delays_us(rng, count, self.options)

        self.apps.advance(now_us)
        user = self.users.pick(float(who))
        zone: float = int(self.users.zone[user])
        drift = self._reigning(now_us)
        hour = hour_of(now_us, self.options.day_s, zone if drift is None else drift.zone(int(zone)))
        logit = self.truth.logit(self.users, user, self.apps, places, now_us, hour)
        context = self.users.features(user) | {"hour": hour}
        candidates = [
            {"id": self.apps.ids[place], "features": self.apps.features(place, now_us)} for place in places.tolist()
        ]
        if drift is not None:
            logit = drift.logit(logit, self.users, user, self.apps.category[places], hour)
            context, candidates = drift.told(number, context, candidates)
        return Request(
            number=number,
            impression_id=f"{self._randomness.tag & 0xFFFFFFFFFFFF:012x}{number:08x}",
            time_us=now_us,
            context=context,
            candidates=candidates,
            random_order=bool(random_order < self.options.random_share),
            bids=self.apps.bid[places],
            logit=logit,
            chance=chance,
            delay_us=delay_us,
            shuffled=shuffled,
        )

    def show(self, request: Request, scored: Scored | None) -> tuple[Event, list[tuple[int, Event]]]:
        """Show the slate; returns the impression, and the clicks it will lead to with when each is due, soonest first.

        Without scores the order is random. A random order's propensity is 1/candidates at each place (any candidate may
        stand there); a ranked one's is 1, since nothing was left to chance.
        """
        slate = self.options.slate
        random_order = request.random_order or scored is None
        if random_order:
            shown = request.shuffled[:slate]
        else:
            assert scored is not None
            shown = self._ranked(request, scored)[:slate]                                # (slate,)
        actual = probability(request.logit[shown] + self._position_effect)               # (slate,)
        clicked = request.chance[shown] < actual                                         # (slate,)
        drift = self._reigning(request.time_us)
        sent = shown[clicked if drift is None else drift.reported(request, shown, actual, clicked)]
        clicks = [self._click(request, int(which)) for which in sent[np.argsort(request.delay_us[sent])]]
        self._count(request, scored, shown, actual, clicked, random_order)
        propensity = 1 / self.options.candidates if random_order else 1.0
        return self._impression(request, scored, shown.tolist(), propensity), clicks

    def auc_thirds(self) -> Thirds:
        """By third of the time from the start to the last request; the oracle alone if nobody ever scored."""
        return self.ledger.auc_thirds(self.start_us, self._last_us, served_only=self.tally.scored_slates > 0)

    def _reigning(self, time_us: int) -> Drift | None:
        return self._drift if self._drift is not None and self._drift.on(time_us) else None

    def _ranked(self, request: Request, scored: Scored) -> NDArray[np.int64]:
        """Best first; ties in the order of the candidates, which is random."""
        worth = np.asarray(scored.probabilities, np.float64)                             # (n,)
        if worth.shape != request.logit.shape:
            raise ValueError(f"{len(worth)} scores for {len(request.logit)} candidates")
        if self.options.objective == "value":
            worth = worth * request.bids
        return np.argsort(-worth, kind="stable")

    def _impression(self, request: Request, scored: Scored | None, shown: list[int], propensity: float) -> Event:
        items = []
        for position, which in enumerate(shown, start=1):
            candidate = request.candidates[which]
            item = {
                "id": candidate["id"], "features": candidate["features"], "position": position,
                "bid": float(request.bids[which]), "propensity": propensity,
            }
            if scored is not None:
                item["served_probability"] = float(scored.probabilities[which])
                if scored.echoes is not None and scored.echoes[which]:
                    item["echo"] = base64.b64encode(scored.echoes[which]).decode()
            items.append(item)
        event = {
            "impression_id": request.impression_id, "time": time_text(request.time_us),
            "context": request.context, "items": items,
        }
        if scored is not None:
            event["model"] = {"name": scored.model, "lineage": scored.lineage, "version": scored.version}
        return event

    def _click(self, request: Request, which: int) -> tuple[int, Event]:
        due_us = request.time_us + int(request.delay_us[which])
        return due_us, {
            "impression_id": request.impression_id, "action": "click", "item": request.candidates[which]["id"],
            "time": time_text(due_us), "value": 1.0,
        }

    def _count(
        self, request: Request, scored: Scored | None, shown: NDArray[np.int64], actual: NDArray[np.float64],
        clicked: NDArray[np.bool_], random_order: bool,
    ) -> None:
        tally, clicks = self.tally, int(clicked.sum())
        tally.impressions += 1
        tally.items += len(shown)
        tally.clicks += clicks
        tally.scored_slates += scored is not None
        if random_order:
            tally.random_slates += 1
            tally.random_items += len(shown)
            tally.random_clicks += clicks
            served = np.full(len(shown), np.nan)
            if scored is not None:
                served = np.asarray(scored.probabilities, np.float64)[shown]
            self.ledger.add(request.time_us, served, probability(request.logit[shown]), actual, clicked)
