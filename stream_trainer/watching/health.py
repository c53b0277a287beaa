"""Whether the stream itself is well: what the processes say of themselves once a second, as conditions that are raised as
alarms when they last, and are over when they have been gone for a while. Pure: figures and the time in, alarms out.

Durations are of the clock that only goes forward; the wall clock stands in the alarms and in ages that are compared with times
of other processes, where one that jumps is off by as much as it jumped, until it is set right.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from schemas.config import AlarmsConfig
from stream_trainer.watching.alarms import Alarm

LASTS_S = 10.0       # a condition must last so long, unless it says otherwise
CALM_S = 10.0        # and be gone for as long
SPAN_S = 60.0        # shares are of what was counted in the last minute
LEAST_EVENTS = 100   # a share of fewer is nobody's business
SILENT_S = 30.0      # a learner that has said nothing for so long is stuck

ACTIONS_LOST = ("late_action", "unmatched_action")


class Condition(NamedTuple):
    """wrong: now. text: one line, of what is wrong or of how it ended. was, now: usual and present figure. lasts_s: before it
    is raised."""

    what: str
    wrong: bool
    text: str
    now: float | None = None
    was: float | None = None
    lasts_s: float = LASTS_S


class Health:
    """Which conditions last."""

    def __init__(self, open_: Iterable[Alarm] = ()) -> None:
        """open_: what stands open since before."""
        self._open = {alarm.what: alarm for alarm in open_}
        self._since: dict[str, tuple[float, int]] = {}   # of those that are not as they stand: monotonic s, wall µs

    def look(self, conditions: Iterable[Condition], now_s: float, now_us: int) -> list[Alarm]:
        """What is to be raised. now_s: any clock that goes forward; now_us: wall clock."""
        raised = []
        for one in conditions:
            was = self._open.get(one.what)
            if one.wrong == (was is not None):
                self._since.pop(one.what, None)
                continue
            since_s, since_us = self._since.setdefault(one.what, (now_s, now_us))
            if now_s - since_s < (one.lasts_s if one.wrong else CALM_S):
                continue
            del self._since[one.what]
            alarm = Alarm(
                what=one.what, state="raised" if one.wrong else "over", time_us=now_us,
                since_us=since_us if was is None else was.since_us, text=one.text, was=one.was, now=one.now,
            )
            if one.wrong:
                self._open[one.what] = alarm
            else:
                del self._open[one.what]
            raised.append(alarm)
        return raised


class Minute:
    """What was counted in the last SPAN_S, of counts that only grow."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, dict[str, int]]] = deque()

    def of(self, counts: Mapping[str, int], now_s: float) -> dict[str, int]:
        """Each count, less what it was a minute ago; where counting began anew, of what there is."""
        self._seen.append((now_s, dict(counts)))
        while len(self._seen) > 2 and self._seen[1][0] <= now_s - SPAN_S:
            self._seen.popleft()
        first = self._seen[0][1]
        return {name: max(count - first.get(name, 0), 0) for name, count in counts.items()}


def joiner_rates(minute: Mapping[str, int]) -> dict[str, float | None]:
    """Shares of the last minute's counts: None of too few. dead: of all events; lost: of actions that make a label, too late or
    without an impression; joined: of those, labels of an example; click_rate: labels of all examples."""
    actions = minute.get("actions", 0) - minute.get("other_action", 0)
    events = minute.get("impressions", 0) + minute.get("actions", 0) + minute.get("dead_letter", 0)
    lost = sum(minute.get(name, 0) for name in ACTIONS_LOST)
    joined = actions - lost - minute.get("duplicate_action", 0) - minute.get("suspect_action", 0)
    shares = {
        "dead_letter_share": (minute.get("dead_letter", 0), events), "late_share": (lost, actions),
        "join_rate": (joined, actions), "label_rate": (joined, minute.get("examples", 0)),
    }
    return {name: max(part, 0) / whole if whole >= LEAST_EVENTS else None for name, (part, whole) in shares.items()}


def of_joiner(figures: Mapping[str, Any], config: AlarmsConfig) -> Iterator[Condition]:
    """What joiner.status says."""
    labels, rates, counts = figures["labels"], figures["rates"], figures["counts"]
    stopped = labels["stopped"]
    yield Condition(
        "labels.stopped", bool(stopped),
        f"labels have stopped on {_partitions(stopped)}: {labels['missing']:.0f} are missing in a row, where "
        f"{labels['usual']:.4f} an item are usual; what is shown is marked suspect and not learnt" if stopped else
        f"labels come in every partition of this joiner; {counts.get('suspect', 0):,} items were marked suspect since it "
        "started: freshet rejoin joins them again, once their labels are there",
        now=0.0 if stopped else None, was=labels["usual"], lasts_s=0.0,
    )
    yield _lag(figures, config)
    dead, late = rates["dead_letter_share"], rates["late_share"]
    yield Condition(
        "dead_letters", dead is not None and dead > config.dead_letter_share,
        f"{dead or 0:.1%} of the events of a minute are dead letters (alarms.dead_letter_share={config.dead_letter_share}): "
        "freshet dead-letters shows them", now=dead,
    )
    yield Condition(
        "actions.lost", late is not None and late > config.late_share,
        f"{late or 0:.1%} of the actions of a minute came too late or without an impression (alarms.late_share="
        f"{config.late_share}): is join.window_s long enough, do producers put both under one key?", now=late,
    )
    yield _disk(figures)


def of_trainer(figures: Mapping[str, Any], config: AlarmsConfig, now_us: int, silent_s: float) -> Iterator[Condition]:
    """What trainer.status says. silent_s: since it last did."""
    yield Condition(
        "trainer.stuck", silent_s > SILENT_S, f"the learner has said nothing for {silent_s:.0f} s", now=silent_s, lasts_s=0.0
    )
    yield _lag(figures, config)
    age_s = max(now_us - figures["newest_version_us"], 0) / 1e6 if figures["newest_version_us"] else 0.0
    held = (figures.get("gate") or {}).get("held")
    yield Condition(
        "version.old", age_s > config.version_age_s and figures["unpublished"] > 0 and not held,
        f"the newest version is {age_s:.0f} s old, {figures['unpublished']:,} examples were learnt since "
        f"(alarms.version_age_s={config.version_age_s:g})", now=age_s,
    )
    factor = figures["rate_factor"]
    yield Condition(
        "learner.diverged", factor < 1,
        f"learning diverged: it went back to the last good state, and goes on with {factor:g} of its rates" if factor < 1 else
        "learning rates are the set ones again", now=factor, was=1.0, lasts_s=0.0,
    )
    yield Condition(
        "examples.gap", figures["gaps"] > 0,
        f"{figures['gaps']:,} records of examples were refused, since others before them are missing: a joiner that is started "
        "again writes them again" if figures["gaps"] else "no record was refused since the trainer started",
        now=float(figures["gaps"]), lasts_s=0.0,
    )
    yield _disk(figures)


def _lag(figures: Mapping[str, Any], config: AlarmsConfig) -> Condition:
    lag = {partition: records for partition, records in figures["lag"].items() if records}
    age_s = figures["read_age_s"] or 0.0
    worst = max(lag, key=lambda partition: lag[partition], default="")
    return Condition(
        "lag", bool(lag) and age_s > config.lag_s,
        f"{sum(lag.values()):,} records wait, most in {_partitions([worst])}; the newest that was read is {age_s:.0f} s old "
        f"(alarms.lag_s={config.lag_s:g})" if lag else "nothing waits", now=age_s,
    )


def _disk(figures: Mapping[str, Any]) -> Condition:
    why = figures["unwritten"]
    return Condition(
        "metrics.disk", bool(why),
        f"figures cannot be written: {why}; the stream goes on" if why else "figures are written again", lasts_s=0.0,
    )


def _partitions(numbers: Iterable[Any]) -> str:
    found = [str(number) for number in numbers]
    return f"partition{'' if len(found) == 1 else 's'} {', '.join(found[:8])}{' …' if len(found) > 8 else ''}"
