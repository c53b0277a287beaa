"""Modes of the label beside an oracle that has every label at once: what the model says of an impression when it is shown.

A log is joined and learnt in event time by the stream's own join, intake and learner, without Kafka. Each impression is scored
by the model as it stands when the impression comes, at the places it was shown in, and judged in the end by its true label: an
action on it at any time. So a mode pays for labels that come late, and for labels that are wrong.
"""

from __future__ import annotations

import csv
import gzip
import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from ops.simulator.options import StoreOptions
from ops.simulator.slates import Simulator
from ops.simulator.store import AppStore, VirtualClock
from schemas import fields
from schemas.bags import Bags, concat
from schemas.config import JoinConfig, JoinMode, Settings
from schemas.errors import BadEvent, ConfigError
from schemas.events import Action, Impression, encoded, parse, time_text
from schemas.fields import FieldSchema
from stream_trainer.joining.corrections import SecondPass
from stream_trainer.joining.join import BEGINNING, JoinCore
from stream_trainer.learning.intake import Intake
from stream_trainer.learning.learner import Learner
from stream_trainer.watching.windows import figures

Floats = NDArray[np.float32]

START_US = 1_767_225_600_000_000
STORE = StoreOptions(late_share=0.25, delay_median_s=2.0, delay_most_s=9.0, late_after_s=10.0, delay_spread=0.7, day_s=3600.0)
STORE_RATE = 20.0          # slates of 20 a second
STORE_WINDOWS = 10.0, 60.0   # a quarter of its clicks comes after the first, one in a thousand after the second
INSTALL_WINDOWS = 300.0, 3600.0
INSTALL_CORRECTED_S = 86_400.0
WARM_UP = 0.25             # of the impressions, learnt and not judged


@dataclass(frozen=True, slots=True)
class Log:
    """events: (time in µs, value), in order of time. true: (impression id, item id) of every action there is."""

    events: list[tuple[int, bytes]]
    true: frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Way:
    """One line of the table: a mode with its window; corrected: whether the learner is told how labels came about."""

    name: str
    join: JoinConfig | None   # None: the oracle
    told: bool = True

    @property
    def last_s(self) -> float:
        """How long after its impression an action still counts, in the end."""
        assert self.join is not None
        return self.join.correct_after_s if self.join.mode == "corrected" else self.join.window_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """calibration: Σ said / actions, 1 = right; its error: one standard error of that count of actions. missed: share of the
    actions that come after the way's last look."""

    way: str
    rows: int
    actions: int
    auc: float | None
    log_loss: float
    calibration: float | None
    calibration_error: float | None
    log_loss_over_oracle: float
    missed: float


def ways(join: JoinConfig, short_s: float, long_s: float, corrected_s: float) -> list[Way]:
    """Each mode with a short and a long window, where the window is its choice."""
    def of(mode: JoinMode, window_s: float, **more: Any) -> JoinConfig:
        return replace(join, mode=mode, window_s=window_s, **more)

    return [
        Way("oracle", None),
        *(Way(f"{mode}, {_span(window)}", of(mode, window)) for window in (short_s, long_s) for mode in ("eager", "wait")),
        Way(f"immediate, {_span(long_s)}", of("immediate", long_s)),
        Way(f"immediate, {_span(long_s)}, uncorrected", of("immediate", long_s), told=False),
        Way(f"corrected, {_span(short_s)} then {_span(corrected_s)}", of("corrected", short_s, correct_after_s=corrected_s)),
    ]


def _span(seconds: float) -> str:
    return f"{seconds / 3600:g} h" if seconds >= 3600 else f"{seconds / 60:g} min" if seconds >= 120 else f"{seconds:g} s"


# --- logs ---


def store_log(options: StoreOptions, seconds: float) -> Log:
    """A simulated store's log, slates in random order."""
    found: list[tuple[int, bytes]] = []

    class Kept:
        def send(self, key: str, event: bytes) -> None:
            found.append((parse(event).time_us, event))

        def close(self) -> None:
            """Nothing is open."""

    store = AppStore(Simulator(options, START_US), VirtualClock(START_US), Kept(), rate=STORE_RATE, seconds=seconds,
                     stop=threading.Event())
    store.run()
    return _log(found)


def install_log(path: Path, action: str) -> Log:
    """TalkingData's rows: an ad that was clicked, and the install that followed at its own time, if any. Raises ConfigError."""
    found: list[tuple[int, bytes]] = []
    try:
        with (gzip.open(path, "rt") if path.suffix == ".gz" else path.open()) as file:
            for number, row in enumerate(csv.DictReader(file)):
                shown_us = _time_us(row["click_time"])
                found.append((shown_us, orjson.dumps({
                    "impression_id": f"row{number}", "time": time_text(shown_us),
                    "context": {name: row[name] for name in ("ip", "device", "os")},
                    "items": [{"id": "ad", "features": {name: row[name] for name in ("app", "channel")}}],
                })))
                if row["attributed_time"]:
                    installed_us = _time_us(row["attributed_time"])
                    found.append((installed_us, orjson.dumps({
                        "impression_id": f"row{number}", "action": action, "item": "ad", "time": time_text(installed_us),
                    })))
    except (OSError, KeyError, ValueError) as wrong:
        raise ConfigError(f"--talkingdata {path}: not TalkingData's train.csv ({type(wrong).__name__}: {wrong})") from wrong
    return _log(found)


def _time_us(text: str) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1e6)


def _log(events: Iterable[tuple[int, bytes]]) -> Log:
    ordered = sorted(events, key=lambda event: event[0])
    actions = [event for event in (parse(value) for _, value in ordered) if isinstance(event, Action)]
    return Log(ordered, frozenset((event.impression_id, event.item_id) for event in actions))


def delays_s(log: Log) -> NDArray[np.float64]:
    """From an impression to its action, (n,)."""
    shown: dict[str, int] = {}
    found = []
    for _, value in log.events:
        event = parse(value)
        if isinstance(event, Impression):
            shown[event.impression_id] = event.time_us
        elif isinstance(event, Action) and event.impression_id in shown:
            found.append((event.time_us - shown[event.impression_id]) / 1e6)
    return np.array(found)


def delay_quantiles_s(log: Log) -> dict[str, float]:
    """Of the delays."""
    found = delays_s(log)
    return {name: float(np.quantile(found, q)) for name, q in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("most", 1.0))}


# --- one way ---


class Run:
    """One pass over a log in one way."""

    def __init__(self, settings: Settings, schema: FieldSchema, log: Log, way: Way) -> None:
        self._log, self._way = log, way
        self._learner = Learner(settings.model, settings.learn, schema)
        encoder = fields.Encoder(schema, training=True)
        self._encode: Callable[[Impression], Bags] = lambda shown: encoder.encode(shown.slate)[0]

        def encode(shown: Sequence[Impression]) -> list[Bags | BadEvent]:
            return encoded(shown, encoder.encode_all)

        self._intake = Intake(schema, settings.learn.batch_rows)
        self._batch_rows = settings.learn.batch_rows
        self._join: JoinCore | None = None
        self._second: SecondPass | None = None
        if way.join is not None:
            make = (0, way.join, BEGINNING, encode, schema.numbers, schema.digests)
            self._join = JoinCore(*make)
            self._second = SecondPass(*make) if way.join.mode == "corrected" else None
        self._behind: deque[tuple[int, int, bytes]] = deque()
        self._records = 0
        self._at_once: list[tuple[Bags, Floats]] = []     # the oracle's examples that no batch holds
        self._unscored: list[Bags] = []
        self._said: list[Floats] = []

    def go(self, progress: Callable[[int], None]) -> Floats:
        """What is said of each item of each impression, in their order."""
        for offset, (time_us, value) in enumerate(self._log.events):
            event = parse(value)
            if isinstance(event, Impression):
                self._unscored.append(self._encode(event))
                if self._join is None:
                    self._at_once.append((self._unscored[-1], self._true(event)))
            if self._join is not None:
                self._feed(offset, time_us, value)
            self._learn()
            if offset % 1000 == 999:
                progress(1000)
        self._score()
        return np.concatenate(self._said)

    def _true(self, shown: Impression) -> Floats:
        return np.array([(shown.impression_id, item) in self._log.true for item in shown.slate.item_ids], np.float32)

    def _feed(self, offset: int, time_us: int, value: bytes) -> None:
        assert self._join is not None
        self._join.feed(offset, time_us, value)
        made = self._join.records(0)
        if self._second is not None:
            self._second.ahead((offset, time_us, value))
            self._behind.append((offset, time_us, value))
            while self._behind and self._second.may_follow(*self._behind[0]):
                self._second.behind(self._behind.popleft())
            made += self._second.records(0)
        for record in made:
            self._intake.offer(0, self._records, record)
            self._records += 1

    def _learn(self) -> None:
        """Full batches; what was shown before is scored first."""
        if sum(len(labels) for _, labels in self._at_once) >= self._batch_rows:
            self._score()
            bags, labels = concat([bags for bags, _ in self._at_once]), np.concatenate([labels for _, labels in self._at_once])
            self._learner.learn(bags, labels)
            self._at_once = []
        while (batch := self._intake.take()) is not None:
            self._score()
            self._learner.learn(batch.bags, batch.labels, batch.weights, batch.seen if self._way.told else None)

    def _score(self) -> None:
        if self._unscored:
            self._said.append(self._learner.score(concat(self._unscored)))
            self._unscored = []


def compare(settings: Settings, log: Log, tried: Sequence[Way], progress: Callable[[int], None]) -> list[Figures]:
    """Every way over the same log. The first must be the oracle."""
    schema = fields.load(settings.model.schema)
    shown = [event for event in (parse(value) for _, value in log.events) if isinstance(event, Impression)]
    labels = np.array([(event.impression_id, item) in log.true for event in shown for item in event.slate.item_ids], np.float32)
    start, delays = round(WARM_UP * len(labels)), delays_s(log)
    found: list[Figures] = []
    for way in tried:
        said = Run(settings, schema, log, way).go(progress)
        one = figures(start, said[start:], labels[start:])
        found.append(Figures(
            way=way.name, rows=one.rows, actions=one.clicks, auc=one.auc, log_loss=one.log_loss, calibration=one.calibration,
            calibration_error=None if one.calibration is None else one.calibration / math.sqrt(one.clicks),
            log_loss_over_oracle=one.log_loss - (found[0].log_loss if found else one.log_loss),
            missed=0.0 if way.join is None else float(np.mean(delays >= way.last_s)),
        ))
    return found


def table(title: str, found: Sequence[Figures]) -> str:
    """A line per way."""
    head = f"{title:<36}{'calibration':>16}{'log loss':>10}{'over oracle':>13}{'AUC':>9}{'labels missed':>15}"
    lines = [
        f"{one.way:<36}{_cell(one.calibration):>8} ± {_cell(one.calibration_error)[:5]}{one.log_loss:>10.5f}"
        f"{one.log_loss_over_oracle:>+13.5f}{_cell(one.auc):>9}{one.missed:>15.1%}"
        for one in found
    ]
    return "\n".join([head, *lines])


def _cell(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
