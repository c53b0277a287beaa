"""Planted drifts: was each noticed, how soon, blamed on the right place, and did the gate hold back what was learnt from it?

A store that stands still is learnt for a while; then the stream branches. One branch goes on as it is, and every alarm on it is
a false one; on each of the others a drift is planted (ops/simulator/drifts.py) and followed. Night and day has a stream of its
own, on which it reigned from the start.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from ops.bench.learning.loop import START_US, Heard, Loop
from ops.simulator.drifts import KINDS, Drift, kind_of
from ops.simulator.options import StoreOptions
from schemas import fields
from schemas.config import Settings
from schemas.errors import ConfigError
from schemas.fields import FieldSchema
from stream_trainer.watching.alarms import Alarm
from stream_trainer.watching.marks import slice_id

# An app store that stands still but for its apps, which are born and die: slates of four make many events of few examples.
STORE = StoreOptions(slate=4, candidates=4, drift_days=1e6)
RATE = 250.0                     # slates a second: 1,000 examples and about 350 events
BEFORE_S = 120.0                 # the AUC before is that of the last so many seconds
FALSE_ALARMS_PER_MILLION = 1.0   # events, at most

Must = Literal["hold", "pass", "either"]


@dataclass(frozen=True, slots=True)
class Case:
    """What was said beforehand. noticed: by some alarm; False: by none. blame: its place must stand first in an alarm."""

    name: str
    gate: Must
    noticed: bool = True
    blame: bool = False


CASES = (
    Case("taste_shift", "pass", blame=True), Case("new_apps", "pass", blame=True),
    Case("constant_feature", "either", blame=True), Case("shuffled_feature", "hold", blame=True),
    Case("hours_shifted", "either"), Case("exploding", "hold", blame=True),
    Case("labels_dead", "hold"), Case("labels_flipped", "hold"), Case("labels_doubled", "hold"),
    Case("click_farm", "hold", blame=True), Case("night_and_day", "pass", noticed=False),
)
OWN_STREAM = "night_and_day"
STATIONARY = "stationary"        # what to name to have that stream alone


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How long is learnt, how long each drift is followed, events of the stationary stream, a day of night and day."""

    warm_s: float = 900.0
    after_s: float = 400.0
    stationary_events: int = 5_000_000
    day_s: float = 1800.0
    rate: float = RATE

    @property
    def quick(self) -> Plan:
        """To see that all works, in a few minutes."""
        return replace(self, warm_s=360.0, after_s=120.0, day_s=600.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Auc:
    """Over one stretch, on true clicks: of the scores served, of those that would have been served had nothing been held back,
    and of the truth itself."""

    served: float | None
    ungated: float | None
    oracle: float | None

    @classmethod
    def of(cls, loop: Loop) -> Auc:
        return cls(**{
            name: None if math.isnan(value) else round(value, 4)
            for name, value in zip(("served", "ungated", "oracle"), loop.aucs(), strict=True)
        })

    @property
    def behind(self) -> float | None:
        """What the served scores lack."""
        return None if self.served is None or self.oracle is None else round(self.oracle - self.served, 4)


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What came of one drift. detected: by an alarm raised after it began; by: which; after how many events and seconds of
    event time. blamed: what stands first in the first alarm that names slices or fields; blamed_right: whether that is where
    it was planted (None: nowhere in particular). held_back: by the gate, held_after_s, because of held_for; slipped_*: versions
    that went live before that, and examples learnt. alarms: all, in order. auc_lost: what served scores lack of the oracle,
    after less before. wrong: what does not hold of what was said beforehand."""

    name: str
    gate_must: Must
    detected: bool
    by: str | None
    events: int | None
    seconds: float | None
    blamed: list[str]
    blamed_right: bool | None
    held_back: bool
    held_after_s: float | None
    held_for: str | None
    slipped_versions: int | None
    slipped_examples: int | None
    alarms: list[str]
    auc_before: Auc
    auc_after: Auc
    auc_lost: float | None
    wrong: list[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stationary:
    """A stream on which nothing happens. raised: the alarms."""

    events: int
    seconds: float
    windows: int
    raised: list[str]
    versions_held: int

    @property
    def false_alarms_per_million(self) -> float:
        return len(self.raised) / self.events * 1e6


@dataclass(slots=True)
class _Mark:
    """Where a loop was when something began."""

    time_us: int
    events: int
    examples: int
    versions: int

    @classmethod
    def of(cls, loop: Loop) -> _Mark:
        return cls(loop.now_us, loop.events, loop.examples, loop.served.version)


def chosen(only: str) -> tuple[Case, ...]:
    """All, or those named, which may be none but STATIONARY. Raises ConfigError."""
    names = [name.strip() for name in only.split(",") if name.strip()]
    for name in names:
        if name != STATIONARY:
            kind_of(name)
    return tuple(case for case in CASES if not names or case.name in names)


class Bench:
    """Runs a plan. progress: is told of each version's time that passed."""

    def __init__(self, settings: Settings, plan: Plan, seed: int, progress: Callable[[int], None]) -> None:
        if settings.model.schema != "appstore":
            raise ConfigError(f"bench drift is of the simulated app store, and model.schema={settings.model.schema}")
        self._settings = settings
        self._plan = plan
        window_s = settings.join.window_s
        self._options = replace(
            STORE, seed=seed, late_after_s=window_s, delay_most_s=0.9 * window_s, delay_median_s=min(1.5, 0.15 * window_s)
        )
        self._schema = fields.load(settings.model.schema)
        self._progress = progress
        self._warm: Loop | None = None
        self._before: Auc | None = None

    @staticmethod
    def steps(settings: Settings, plan: Plan, cases: Sequence[Case]) -> int:
        """How many versions' times it takes, about."""
        own = [case for case in cases if case.name == OWN_STREAM]
        stationary_s = plan.stationary_events / (plan.rate * (1 + STORE.slate * STORE.click_rate))
        warm_s = plan.warm_s if stationary_s or len(own) < len(cases) else 0.0
        total_s = warm_s + plan.after_s * (len(cases) - len(own)) + 2 * plan.day_s * len(own) + stationary_s
        return round(total_s / settings.snapshot.version_every_s)

    def follow(self, case: Case) -> Found:
        """One drift."""
        if case.name == OWN_STREAM:
            options = replace(self._options, day_s=self._plan.day_s)
            loop = Loop(self._settings, options, self._plan.rate)
            drift = kind_of(case.name)(options, START_US)
            loop.simulator.plant(drift)
            self._run(loop, self._plan.day_s - BEFORE_S)
            loop.forget()
            self._run(loop, BEFORE_S)
            before, after_s = Auc.of(loop), self._plan.day_s
        else:
            loop, before = self._branch()
            drift = kind_of(case.name)(self._options, loop.now_us)
            loop.simulator.plant(drift)
            after_s = self._plan.after_s
        loop.forget()
        loop.heard = []
        began = _Mark.of(loop)
        held: tuple[_Mark, str] | None = None
        for _ in range(self._steps(after_s)):
            self._run(loop, 0.0)
            hold = loop.gate.held
            if held is None and hold is not None:
                held = _Mark.of(loop), hold.reason
        return _found(case, drift, self._schema, began, held, loop.heard, before, Auc.of(loop))

    def stationary(self) -> Stationary:
        """Nothing happens, for so many events."""
        loop, _ = self._branch()
        loop.heard = []
        began, row, held = _Mark.of(loop), loop.training.progressive.whole_rows, 0
        while loop.events - began.events < self._plan.stationary_events:
            self._run(loop, 0.0)
            held += loop.gate.held is not None
            loop.forget()
        windows = (loop.training.progressive.whole_rows - row) // self._settings.metrics.window_rows
        return Stationary(
            events=loop.events - began.events, seconds=(loop.now_us - began.time_us) / 1e6, windows=windows,
            raised=[
                f"{one.alarm.what} after {one.events - began.events:,} events: {one.alarm.text}" for one in _raised(loop.heard)
            ],
            versions_held=held,
        )

    def _branch(self) -> tuple[Loop, Auc]:
        """A stream that has been learnt for a while."""
        if self._warm is None:
            self._warm = Loop(self._settings, self._options, self._plan.rate)
            self._run(self._warm, self._plan.warm_s - BEFORE_S)
            self._warm.forget()
            self._run(self._warm, BEFORE_S)
            self._before = Auc.of(self._warm)
            self._warm.forget()
        assert self._before is not None
        return copy.deepcopy(self._warm), self._before

    def _run(self, loop: Loop, seconds: float) -> None:
        """One version's time at least."""
        for _ in range(max(self._steps(seconds), 1)):
            loop.step()
            self._progress(1)

    def _steps(self, seconds: float) -> int:
        return round(seconds / self._settings.snapshot.version_every_s)


def _raised(heard: Sequence[Heard]) -> list[Heard]:
    return [one for one in heard if one.alarm.state == "raised"]


def _found(
    case: Case, drift: Drift, schema: FieldSchema, began: _Mark, held: tuple[_Mark, str] | None, heard: Sequence[Heard],
    before: Auc, after: Auc,
) -> Found:
    raised = _raised(heard)
    first = raised[0] if raised else None
    tops = next((found for one in raised if (found := _tops(one.alarm))), [])
    right = any(_same(place, top, schema) for place in drift.place for top in tops) if drift.place else None
    wrong = []
    if case.noticed and not raised:
        wrong.append("not noticed")
    if not case.noticed:
        wrong += [f"an alarm: {one.alarm.what}" for one in raised]
    if case.gate == "hold" and held is None:
        wrong.append("the gate let it pass")
    if case.gate == "pass" and held is not None:
        wrong.append(f"the gate held it back ({held[1]})")
    if case.blame and raised and not right:
        wrong.append("blamed on another place")
    return Found(
        name=case.name, gate_must=case.gate, detected=first is not None, by=first.alarm.what if first else None,
        events=first.events - began.events if first else None, seconds=(first.time_us - began.time_us) / 1e6 if first else None,
        blamed=[f"{field}={value}" if value else field for field, value in tops], blamed_right=right,
        held_back=held is not None, held_after_s=(held[0].time_us - began.time_us) / 1e6 if held else None,
        held_for=held[1] if held else None, slipped_versions=held[0].versions - began.versions if held else None,
        slipped_examples=held[0].examples - began.examples if held else None,
        alarms=[
            f"{(one.time_us - began.time_us) / 1e6:.1f} s {one.alarm.what} {one.alarm.state}: {one.alarm.text}" for one in heard
        ],
        auc_before=before, auc_after=after,
        auc_lost=None if before.behind is None or after.behind is None else round(after.behind - before.behind, 4),
        wrong=wrong,
    )


def _tops(alarm: Alarm) -> list[tuple[str, str]]:
    """The slice and the field that an alarm names first, as (field, value)."""
    return [(field, value) for field, value, _ in alarm.slices[:1]] + [(field, "") for field, _ in alarm.fields[:1]]


def _same(place: tuple[str, str], top: tuple[str, str], schema: FieldSchema) -> bool:
    """Whether that is the place, whose value may be known by its id alone."""
    spec = next(spec for spec in schema.fields if spec.name == place[0])
    names = (place[1], f"#{slice_id(spec, place[1]):016x}") if place[1] else ("", top[1])
    return top[0] == place[0] and top[1] in names


def as_json(found: Sequence[Found], still: Stationary | None, plan: Plan) -> dict[str, Any]:
    """For --json."""
    return {
        "drifts": [asdict(one) for one in found],
        "false_alarms_per_million": None if still is None else round(still.false_alarms_per_million, 3),
        "stationary": None if still is None else asdict(still), "plan": asdict(plan),
    }


def table(found: Sequence[Found], still: Stationary | None) -> str:
    """A line per drift."""
    lines = [
        f"{'drift':<17}{'noticed by':<19}{'events':>8}{'s':>7}  {'blamed':<34}{'gate':<6}{'held after s':>13}{'slipped':>9}"
        f"  {'AUC served before → after':<27}{'ungated':>8}{'oracle':>8}"
    ]
    for one in found:
        told = one.events is not None and one.seconds is not None
        blamed = " ".join(one.blamed) + {True: "", False: " (wrong)", None: ""}[one.blamed_right]
        held = f"{one.held_after_s:.1f} {one.held_for}" if one.held_back else "no"
        lines.append(
            f"{one.name:<17}{one.by or 'nothing':<19}{one.events if told else '–':>8}{one.seconds if told else '–':>7}  "
            f"{blamed or '–':<34}{one.gate_must:<6}{held:>13}{one.slipped_examples if one.held_back else '–':>9}  "
            f"{_cell(one.auc_before.served)} → {_cell(one.auc_after.served)} ({_cell(one.auc_lost, '+')} lost)  "
            f"{_cell(one.auc_after.ungated):>8}{_cell(one.auc_after.oracle):>8}"
        )
    if still is not None:
        lines.append(
            f"stationary: {len(still.raised)} alarms in {still.events:,} events ({still.windows} windows), "
            f"{still.false_alarms_per_million:.2f} per million events; {still.versions_held} versions held back"
        )
        lines += [f"  {one}" for one in still.raised]
    return "\n".join(lines)


def _cell(value: float | None, sign: str = "") -> str:
    return "–" if value is None else f"{value:{sign}.3f}"


def missed(found: Sequence[Found], still: Stationary | None) -> list[str]:
    """What does not hold of what was said beforehand."""
    wrong = [f"{one.name}: {', '.join(one.wrong)}" for one in found if one.wrong]
    if still is not None and still.false_alarms_per_million > FALSE_ALARMS_PER_MILLION:
        wrong.append(f"{still.false_alarms_per_million:.2f} false alarms per million events; bar: {FALSE_ALARMS_PER_MILLION:g}")
    return wrong


assert {case.name for case in CASES} == set(KINDS)
