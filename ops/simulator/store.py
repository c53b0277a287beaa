"""A store at work: visitors at a rate, slates ranked by a scorer, events into a log when they happen.

Clock, ranker and log are handed in. With the wall clock, gRPC and Kafka (live.py) it is an app store; with the virtual
clock and a file it is a generator of logs, as fast as the machine allows.
"""

from __future__ import annotations

import heapq
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import orjson

from ops.simulator.slates import Event, Scored, Simulator
from schemas.errors import ConfigError

CATCH_UP_S = 0.5        # further behind its pace than this, a store lets visitors go instead of serving them in a burst
STOP_GRACE_S = 2.0      # told to stop, it still sends what is due within
LATENCIES = 100_000     # newest waits for scores that are kept
VERSIONS = 100_000      # newest versions whose first answer is kept: half a day at two a second


class Ranker(Protocol):
    """Somebody who scores slates."""

    def score(
        self, context: Mapping[str, Any], candidates: Sequence[Mapping[str, Any]], request_id: str
    ) -> Scored | None:
        """Scores in the order of the candidates; None if there are none at the moment."""
        ...


class EventLog(Protocol):
    """Where events go, in order."""

    def send(self, key: str, event: bytes) -> None:
        """Hand over one event. Raises BrokerError if an earlier one was not taken."""
        ...

    def close(self) -> None:
        """Return when all are safe. Raises BrokerError if they are not."""
        ...


class Clock(Protocol):
    """Event time."""

    def now_us(self) -> int: ...

    def sleep_until(self, time_us: int) -> None:
        """Return at that time, at once if it has passed; may return earlier if the store was told to stop."""
        ...


class WallClock:
    """Time as it passes. Once `stop` is set nobody sleeps long."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop

    def now_us(self) -> int:
        return time.time_ns() // 1000

    def sleep_until(self, time_us: int) -> None:
        left_s = (time_us - self.now_us()) / 1e6
        if left_s <= 0:
            return
        if self._stop.is_set():
            time.sleep(min(left_s, 0.1))
        else:
            self._stop.wait(left_s)


class VirtualClock:
    """Time that jumps to where it is wanted."""

    def __init__(self, start_us: int) -> None:
        self._now_us = start_us

    def now_us(self) -> int:
        return self._now_us

    def sleep_until(self, time_us: int) -> None:
        self._now_us = max(self._now_us, time_us)


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreReport:
    """What a store did. Rates and AUCs are None where there was nothing to take them of.

    clicks_unsent: fell due after the end. visitors_missed: the store was too far behind to serve them. auc_…_thirds: by
    third of the run, on slates in random order that were scored; the oracle ranks by the true probabilities at the
    first place, which is the most that a ranker can know. first_served_us: (lineage, version) → event time of its first
    answer.
    """

    seconds: float
    impressions: int
    items: int
    clicks: int
    clicks_sent: int
    clicks_unsent: int
    visitors_missed: int
    scored_slates: int
    random_slates: int
    click_rate_ranked: float | None
    click_rate_random: float | None
    score_wait_ms: dict[str, float | None]
    versions_served: int
    newest_version: int | None
    auc_served_thirds: list[float | None]
    auc_oracle_thirds: list[float | None]
    auc_oracle_with_position_thirds: list[float | None]
    random_rows_thirds: list[int]
    random_clicks_thirds: list[int]
    first_served_us: dict[tuple[str, int], int]

    def as_dict(self) -> dict[str, Any]:
        """For JSON; the versions' times are left to those who ask for them by name."""
        found = asdict(self)
        del found["first_served_us"]
        return found


class AppStore:
    """One run of a store. Call `run` once; `stop` may be set from anywhere, and ends it cleanly."""

    def __init__(
        self, simulator: Simulator, clock: Clock, log: EventLog, ranker: Ranker | None = None, *,
        rate: float = 50.0, seconds: float = 0.0, grace_s: float = math.inf, stop: threading.Event | None = None,
        progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        """rate: slates a second. seconds: of event time, 0 = until stopped. grace_s: clicks go out so long after."""
        if not rate > 0 or seconds < 0 or grace_s < 0:
            raise ConfigError(f"simulate --rate {rate} --seconds {seconds}: a rate above 0, and 0 or more seconds")
        self.simulator = simulator
        self.stop = stop or threading.Event()
        self.clicks_sent = 0
        self.visitors_missed = 0
        self.first_served_us: dict[tuple[str, int], int] = {}
        self._clock, self._log, self._ranker = clock, log, ranker
        self._period_us = 1e6 / rate
        self._seconds, self._grace_s = seconds, grace_s
        self._progress = progress
        self._due: list[tuple[int, int, Event]] = []
        self._queued = 0
        self._versions = 0
        self._newest: int | None = None
        self._waits_ms: deque[float] = deque(maxlen=LATENCIES)

    def run(self) -> StoreReport:
        """Serve until the end, then send the clicks still due. The log is closed in any case. Raises BrokerError."""
        start_us = self.simulator.start_us
        end_us = start_us + self._seconds * 1e6 if self._seconds else math.inf
        turn, number = float(start_us), 0
        try:
            while turn < end_us:
                # 1. What happens before the next visitor comes.
                self._send_due(max(round(turn), self._clock.now_us()))
                self._clock.sleep_until(round(turn))
                if self.stop.is_set():
                    break

                # 2. The visitor.
                now_us = self._clock.now_us()
                if self.simulator.visited(now_us):
                    self._serve(now_us)
                number += 1
                turn = start_us + (number + self.visitors_missed) * self._period_us

                # 3. Open loop: visitors do not wait for a slow store. A little is caught up, the rest went away.
                behind_us = self._clock.now_us() - turn
                if behind_us > CATCH_UP_S * 1e6:
                    self.visitors_missed += int(behind_us / self._period_us)
                    turn = start_us + (number + self.visitors_missed) * self._period_us
            stopped = self.stop.is_set()
            now_us = self._clock.now_us()
            grace_s = min(self._grace_s, STOP_GRACE_S) if stopped else self._grace_s
            ended_us = now_us if stopped or math.isinf(end_us) else max(now_us, round(end_us))
            self._send_due(ended_us + grace_s * 1e6)
        finally:
            self._log.close()
        return self._report((ended_us - start_us) / 1e6)

    def _send_due(self, until_us: float) -> None:
        """Clicks in the order of their time, each when it is due."""
        while self._due and self._due[0][0] <= until_us:
            due_us = self._due[0][0]
            while self._clock.now_us() < due_us:
                self._clock.sleep_until(due_us)
            _, _, click = heapq.heappop(self._due)
            self._log.send(click["impression_id"], orjson.dumps(click))
            self.clicks_sent += 1

    def _serve(self, now_us: int) -> None:
        request = self.simulator.next_request(now_us)
        scored = None
        if self._ranker is not None:
            began_us = self._clock.now_us()
            scored = self._ranker.score(request.context, request.candidates, request.impression_id)
            if scored is not None:
                self._note(scored, began_us)
        impression, clicks = self.simulator.show(request, scored)
        self._log.send(request.impression_id, orjson.dumps(impression))
        for due_us, click in clicks:
            self._queued += 1
            heapq.heappush(self._due, (due_us, self._queued, click))
        self._progress(1)

    def _note(self, scored: Scored, began_us: int) -> None:
        now_us = self._clock.now_us()
        self._waits_ms.append((now_us - began_us) / 1000)
        self._newest = scored.version
        if (scored.lineage, scored.version) not in self.first_served_us:
            self.first_served_us[scored.lineage, scored.version] = now_us
            self._versions += 1
            if len(self.first_served_us) > VERSIONS:
                del self.first_served_us[next(iter(self.first_served_us))]

    def _report(self, seconds: float) -> StoreReport:
        tally, thirds = self.simulator.tally, self.simulator.auc_thirds()
        ranked, random = tally.click_rates
        p50, p99 = np.percentile(self._waits_ms, (50, 99)).tolist() if self._waits_ms else (math.nan, math.nan)
        return StoreReport(
            seconds=seconds, impressions=tally.impressions, items=tally.items, clicks=tally.clicks,
            clicks_sent=self.clicks_sent, clicks_unsent=len(self._due), visitors_missed=self.visitors_missed,
            scored_slates=tally.scored_slates, random_slates=tally.random_slates,
            click_rate_ranked=_known(ranked), click_rate_random=_known(random),
            score_wait_ms={"p50": _known(p50), "p99": _known(p99)},
            versions_served=self._versions, newest_version=self._newest,
            auc_served_thirds=[_known(value) for value in thirds.served],
            auc_oracle_thirds=[_known(value) for value in thirds.oracle],
            auc_oracle_with_position_thirds=[_known(value) for value in thirds.oracle_with_position],
            random_rows_thirds=list(thirds.rows), random_clicks_thirds=list(thirds.clicks),
            first_served_us=dict(self.first_served_us),
        )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
