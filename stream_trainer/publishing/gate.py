"""The gate before a version goes live: holds versions back while the stream, or what was learnt from it, is not plausible.

Learning goes on meanwhile, and checkpoints do; the next version holds everything. A hold ends when all has been plausible for a
while, when its patience is over (then it *gives way*, and says so), or when an operator says so. What it let pass then it
takes for the usual from there on, and does not hold for the same reason again for as long. Pure: steps, scores and wall time
come in, alarms and a yes or no go out. Nothing here touches the weights. What it looks at and why: docs/gate.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import orjson
from numpy.typing import NDArray

from schemas.bags import Bags, Ids, concat
from schemas.config import GateConfig
from schemas.examples import Stage
from schemas.fields import FieldSchema
from stream_trainer.learning.losses import clipped
from stream_trainer.publishing.plausible import Count, Ripening, Rows, Ties, Usual, Values
from stream_trainer.training import Step
from stream_trainer.watching.alarms import Alarm

Reason = Literal["labels", "calibration", "loss", "clicks", "feature", "jump", "not finite", "by hand"]
Arrays = dict[str, NDArray[Any]]

HALF_LIFE_ROWS = 20_000  # of what is usual
LABELS_HALF_LIFE_ROWS = 3_000   # of the usual label rate: what the hour does to it, the model knows, but a rate does not
LOSS = 2.0               # times as much loss as the scores themselves expect: weights far off may be right on average
RUSH = 8.0               # times as many labels as usual, as they come: with a window of labels under way, traffic may do a part
EVER = 0.5               # share of rows that must say what was served, for it to count
SLOW_US, SLOW_SHARE = 1_000_000, 32  # where a block fills slowly, a part of one is judged after a second
CALM = 0.25              # share of the evidence below which a signal is plausible again
TIED_BATCHES, TIED_ROWS = 3, 16      # of a block, whose ties are looked at, and rows of each
SAMPLE = 64              # rows of the reference taken at once
SAMPLES = 4              # of those that are scored again
HELD, RELEASED = "gate.held", "gate.released"


@dataclass(frozen=True, kw_only=True, slots=True)
class Hold:
    """Why nothing goes live. since_us, until_us: wall; until 0 = until somebody ends it. row: examples seen by then.

    was, now: the figure that speaks for it, before and now. slices: (field, value, times its usual); fields: (field, score).
    """

    reason: Reason
    text: str
    since_us: int
    until_us: int
    row: int
    was: float | None = None
    now: float | None = None
    slices: tuple[tuple[str, str, float], ...] = ()
    fields: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class _Sample:
    """Some rows as they were learnt, and what was said of them then, in log-odds."""

    time_us: int
    bags: Bags
    logits: NDArray[np.float32]


class Gate:
    """Asked before every version. For one thread."""

    def __init__(self, config: GateConfig, schema: FieldSchema, score: Callable[[Bags], NDArray[np.float32]]) -> None:
        """score: (B,) probabilities by the weights as they are now."""
        self.config = config
        self.held: Hold | None = None
        self.held_versions = 0               # that would have been written since this hold began
        self.changes = 0                     # holds that began or ended, orders that were obeyed: what a checkpoint must know
        self._score = score
        half_life = HALF_LIFE_ROWS
        factor = config.rate_factor
        self._ripening = Ripening()
        self._values = Values(schema, config.value_factor)
        self._ties = Ties(schema)
        self._rate = Usual((factor, 1 / factor), LABELS_HALF_LIFE_ROWS)   # clicks for each 0, of windows that are over
        self._rush = Usual((RUSH,), half_life)                            # as they come
        self._said = Usual((factor, 1 / factor), half_life)               # clicks for each one that was said
        self._served = Usual((factor, 1 / factor), half_life)
        self._lost = Usual((LOSS,), half_life)                            # nats for each one expected
        self._usuals = {
            "rate": self._rate, "rush": self._rush, "said": self._said, "served": self._served, "lost": self._lost,
        }
        self._rows = 0                       # examples seen
        self._waiting: list[tuple[Any, ...]] = []            # columns of batches, in the order of _of
        self._waiting_rows = 0
        self._other_bags: list[Bags] = []    # of rows that are not judged yet
        self._last: Step | None = None
        self._now_us = self._looked_us = self._looked_rows = 0
        self._samples: list[_Sample] = []
        self._moved = 0.0                    # share of the reference that jumped, when it was scored last
        self._finite = True
        self._recent: dict[str, tuple[float, Count]] = {}    # of the last block, and the usual before it
        self._forgiven: dict[str, int] = {}  # reason → until when
        self._calm_since_us: int | None = None
        self._alarms: list[Alarm] = []

    # --- what is called from outside ---

    def learnt(self, step: Step, now_us: int) -> None:
        """Take what was learnt. now_us: wall clock."""
        if not self.config.on:
            return
        self._now_us = now_us
        if step.batch is not None:
            self._last = step
        slow = not 0 <= now_us - self._looked_us < SLOW_US
        if self._of(step) and self._waiting_rows >= (self.config.rows // SLOW_SHARE if slow else self.config.rows):
            self._look(now_us)

    def values(self, bags: Bags) -> Ids:
        """(B, I): what it follows of each example. For batches to have it already (Intake): of a whole record it costs a
        quarter."""
        return bags.firsts(self._values.columns)

    def holds(self, now_us: int) -> bool:
        """Whether a version that is due must wait. Call it only for one that would be written."""
        if self.config.on:
            self._compare(now_us)
            self._decide(now_us)
        self.passed(now_us)
        self.held_versions += self.held is not None
        return self.held is not None

    def passed(self, now_us: int) -> None:
        """Time has passed: a hold that has lasted long enough gives way."""
        if self.held is not None and self.held.until_us and now_us >= self.held.until_us:
            self._forgive(now_us)
            self._release(now_us, f"gave way after {self.config.longest_s:g} s: what comes now is taken for the usual")

    def obey(self, what: str, now_us: int) -> None:
        """An operator's order: hold, until there is another; or release, whatever the reason is."""
        self.changes += 1
        if what == "hold":
            if self.held is None or self.held.reason != "by hand":
                self._hold(Hold(reason="by hand", text="an operator holds", since_us=now_us, until_us=0, row=self._rows))
            return
        self._forgive(now_us)
        if self.held is not None:
            self._release(now_us, "an operator's order")

    def take(self) -> list[Alarm]:
        """What must be said since this was asked last."""
        taken, self._alarms = self._alarms, []
        return taken

    def forgotten(self, standing: Iterable[Alarm], now_us: int) -> list[Alarm]:
        """For the start: what ends alarms that stand for a hold that is no more, since somebody went back before it."""
        why = "versions go live again: the trainer went on from before the hold"
        return [
            Alarm(what=what, state="over", time_us=now_us, since_us=alarm.since_us, text=why)
            for alarm in standing if alarm.what == HELD and self.held is None for what in (HELD, RELEASED)
        ]

    def status(self) -> dict[str, Any]:
        """For the journal. since_us, until_us: wall; until 0 = no end."""
        hold = self.held
        return {
            "on": self.config.on, "held": hold is not None, "held_versions": self.held_versions if hold else 0,
            "since_us": hold.since_us if hold else 0, "until_us": hold.until_us if hold else 0,
            "reason": hold.reason if hold else None, "text": hold.text if hold else None,
            "slices": [list(one) for one in hold.slices] if hold else [],
            "fields": [list(one) for one in hold.fields] if hold else [],
            "forgiven": dict(self._forgiven), "moved": round(self._moved, 4),
        }

    # --- looking ---

    def _of(self, step: Step) -> bool:
        """Take the rows whose labels are final, once each; whether there are any."""
        batch, judged = step.batch, step.judged
        if batch is not None and (batch.seen is None or not _provisional(batch.seen.stage)):
            own = None if batch.seen is None else np.flatnonzero(batch.seen.stage < Stage.TRUE)
            weight, said = batch.weights, step.probabilities
            if batch.seen is not None:
                weight = np.where(batch.labels > 0.5, 1, (1 if weight is None else weight) / batch.seen.rate).astype(np.float32)
                said = np.where(batch.seen.stage == Stage.OBSERVED, said * (1 - batch.seen.late), said)
            values = self.values(batch.bags) if batch.values is None else batch.values
            self._waiting.append((
                batch.labels, said, batch.served_probability, weight, batch.source, batch.impression, batch.bags, own, values
            ))
            self._waiting_rows += len(batch) if own is None else len(own)
            return True
        if len(judged):
            self._waiting.append((
                judged.labels, judged.probabilities, judged.served, judged.weights, judged.source, judged.impression,
                None, None, None,
            ))
            self._waiting_rows += len(judged)
        if batch is not None:
            self._other_bags.append(batch.bags)
        return len(judged) > 0

    def _look(self, now_us: int) -> None:
        """Judge what has come, and what it makes ripe."""
        config = self.config
        come, clicked, bags = self._taken()
        self._looked_us, self._looked_rows = now_us, come.n
        self._rows += come.n
        young, learn = self._rows < config.history_rows, self.held is None
        ripe = self._ripening.ripe(come, clicked)
        zero = np.where(clicked, 0, come.weight)                                          # (n,)
        zeros = float(zero.sum())
        counts = {
            "rush": Count(float(np.count_nonzero(clicked)), zeros), "rate": Count(ripe.n, zeros),
            "said": _said(ripe.weight, ripe.said, zero, come.said), "lost": _lost(ripe.weight, ripe.said, zero, come.said),
        }
        told = np.isfinite(come.served)
        if np.count_nonzero(told) >= EVER * come.n:
            was_told = np.isfinite(ripe.served)
            counts["served"] = _said(
                ripe.weight[was_told], ripe.served[was_told], zero[told], come.served[told]
            )
        weighed = {name: self._usuals[name].weigh(count) for name, count in counts.items()}
        if "served" in weighed:      # a version that is merely old is no reason to hold back a newer one: both must say so
            weighed["said"] = weighed["served"] = np.minimum(weighed["said"], weighed["served"])
        enough = 0.0 if young else config.evidence
        self._recent = {name: (self._usuals[name].ratio, count) for name, count in counts.items()}
        for name, count in counts.items():
            self._usuals[name].judge(weighed[name], enough)
            if learn:
                self._usuals[name].learn(count, come.n)
        self._values.judge(ripe, come, clicked, enough, learn, self._rate.ratio)
        if bags:
            some = [bags[place] for place in np.unique(np.linspace(0, len(bags) - 1, TIED_BATCHES).astype(int)).tolist()]
            few = [part.take(np.arange(0, len(part), max(len(part) // TIED_ROWS, 1))[:TIED_ROWS]) for part in some]
            self._ties.judge(concat(few), enough, learn)
        if learn and not young:
            self._keep(now_us)
        self._decide(now_us)

    def _taken(self) -> tuple[Rows, NDArray[np.bool_], list[Bags]]:
        """What has come: rows, which are clicks, and the bags of these or others."""
        columns = list(zip(*self._waiting, strict=True))
        others, self._waiting, self._waiting_rows, self._other_bags = self._other_bags, [], 0, []
        label, said, served, source, impression = (np.concatenate(columns[place]) for place in (0, 1, 2, 4, 5))
        if all(part is None for part in columns[3]):
            weight = np.ones(len(label), np.float32)
        else:
            weight = np.concatenate([
                np.ones(len(labels), np.float32) if part is None else part
                for labels, part in zip(columns[0], columns[3], strict=True)
            ])
        self._finite = bool(np.isfinite(said).all())
        if not self._finite:
            said = np.nan_to_num(said, nan=1.0)
        parts = [part for part in columns[6] if part is not None]
        values = np.zeros((len(label), len(self._values.columns)), np.uint64)
        if len(parts) == len(columns[0]):
            values = np.concatenate(columns[8])
        come = Rows(said, served, weight, source, impression, values)
        if any(part is not None for part in columns[7]):       # not those that a second pass brings: they were judged before
            starts = np.cumsum([0, *map(len, columns[0])]).tolist()
            own = np.concatenate([
                start + (np.arange(len(labels)) if rows is None else rows)
                for start, labels, rows in zip(starts, columns[0], columns[7], strict=False)
            ])
            come, label = come.take(own), label[own]
        return come, label > 0.5, parts or others

    def _keep(self, now_us: int) -> None:
        """A sample of what was just learnt, now and then."""
        every_us, step = self.config.reference_s * 1e6 / SAMPLES, self._last
        if step is None or step.batch is None or (self._samples and 0 <= now_us - self._samples[-1].time_us < every_us):
            return
        rows = np.arange(0, len(step.batch), max(len(step.batch) // SAMPLE, 1))[:SAMPLE]
        self._samples.append(_Sample(now_us, step.batch.bags.take(rows), _logits(step.probabilities[rows])))
        old = [sample for sample in self._samples if self._is_old(sample, now_us)]
        self._samples = self._samples[max(len(old) - SAMPLES, 0) :]

    def _is_old(self, sample: _Sample, now_us: int) -> bool:
        """Or from a clock that was set back."""
        return not 0 <= now_us - sample.time_us < self.config.reference_s * 1e6

    def _compare(self, now_us: int) -> None:
        """Score the reference again: what moved since?"""
        old = [sample for sample in self._samples if self._is_old(sample, now_us)][-SAMPLES:]
        self._moved = 0.0
        if not old:
            return
        now = self._score(concat([sample.bags for sample in old]))
        self._finite = self._finite and bool(np.isfinite(now).all())
        moves = np.abs(_logits(now) - np.concatenate([sample.logits for sample in old]))
        self._moved = float(np.mean(~(moves <= self.config.jump)))

    # --- deciding ---

    def _found(self) -> dict[Reason, float]:
        """What is not plausible: reason → its evidence, as a share of what is enough."""
        enough = self.config.evidence
        found: dict[Reason, float] = {
            "not finite": float(not self._finite),
            "labels": max(float(self._rate.evidence.max()), float(self._rush.evidence.max())) / enough,
            "calibration": float(self._said.evidence.max()) / enough,
            "loss": float(self._lost.evidence.max()) / enough,
            "clicks": self._clicks_found() / enough,
            "feature": self._ties.most / enough,
            "jump": self._moved / self.config.jump_share,
        }
        return found

    def _clicks_found(self) -> float:
        """The most evidence about one value, where that is the reason or would be. Of so many values some have a little at any
        time, after labels that were wrong more than a little: no hold for another reason lasts for that."""
        most, enough = self._values.most, self.config.evidence
        held = self.held is not None and self.held.reason == "clicks"
        alone = held or (most >= enough and self._values.standing(enough))
        return most if alone else min(most, CALM * enough)

    def _decide(self, now_us: int) -> None:
        self._forgiven = {reason: until for reason, until in self._forgiven.items() if now_us < until}
        found = {reason: share for reason, share in self._found().items() if reason not in self._forgiven}
        if self.held is None:
            enough: list[Reason] = [reason for reason, share in found.items() if share >= 1]
            if enough:
                self._hold(self._why(enough[0], now_us))
            return
        if self.held.reason == "by hand":
            return
        if any(share > (CALM if reason != "jump" else 0.999) for reason, share in found.items()):
            self._calm_since_us = None
            return
        if self._calm_since_us is None or now_us < self._calm_since_us:
            self._calm_since_us = now_us
        if now_us - self._calm_since_us >= self.config.calm_s * 1e6:
            self._release(now_us, "all is plausible again")

    def _why(self, reason: Reason, now_us: int) -> Hold:
        hold = Hold(
            reason=reason, text="", since_us=now_us, until_us=now_us + round(self.config.longest_s * 1e6), row=self._rows
        )
        if reason == "not finite":
            return replace(hold, text="scores are no numbers any more")
        if reason == "jump":
            return replace(hold, was=0.0, now=self._moved, text=(
                f"{self._moved:.0%} of a sample of scores moved by more than {self.config.jump:g} log-odds in "
                f"{self.config.reference_s:g} s or a little more"
            ))
        if reason == "clicks":
            slices = tuple(self._values.standing(self.config.evidence))
            return replace(hold, slices=slices, fields=((slices[0][0], slices[0][2]),), was=1.0, now=slices[0][2], text=(
                ", ".join(f"{field}={value}" for field, value, _ in slices[:3]) + f": {slices[0][2]:.1f} times its usual clicks"
            ))
        if reason == "feature":
            fields = tuple(self._ties.standing(self.config.evidence))
            return replace(hold, fields=fields, was=0.0, now=fields[0][1], text=(
                f"{fields[0][0]} no longer goes with what it went with: {fields[0][1]:.0%} of its ties are broken"
            ))
        name = {"calibration": "said", "loss": "lost"}.get(reason, "rate")
        if reason == "labels" and self._rush.evidence.max() > self._rate.evidence.max():
            name = "rush"
        was, block = self._recent.get(name, (0.0, Count(0.0, 0.0)))
        now = _ratio(block)
        if reason == "labels":
            was, now = was / (1 + was), now / (1 + now)
            text = f"{now:.4f} clicks an example, usually {was:.4f}"
        elif reason == "loss":
            text = f"{now:.2f} times the loss that the scores themselves expect, usually {was:.2f}"
        else:
            text = f"{now:.3f} clicks for each one that was said, usually {was:.3f}"
        return replace(hold, was=was, now=now, text=text + f", in the last {self._looked_rows:,} examples")

    def _hold(self, hold: Hold) -> None:
        self.changes += 1
        if self.held is None:
            self.held_versions = 0
            for usual in self._usuals.values() if hold.reason != "by hand" else ():
                usual.go_back()
        self.held, self._calm_since_us = hold, None
        self._alarms.append(Alarm(
            what=HELD, state="raised", time_us=hold.since_us, since_us=hold.since_us, since_row=hold.row,
            text=f"no version goes live ({hold.reason}): {hold.text}", was=hold.was, now=hold.now, slices=hold.slices,
            fields=hold.fields,
        ))

    def _release(self, now_us: int, why: str) -> None:
        assert self.held is not None
        hold, self.held, self._calm_since_us = self.held, None, None
        self.changes += 1
        after = f"versions go live again after {max(now_us - hold.since_us, 0) / 1e6:.0f} s ({hold.reason}): {why}"
        self._alarms += [
            Alarm(what=HELD, state="over", time_us=now_us, since_us=hold.since_us, since_row=hold.row, text=after),
            Alarm(what=RELEASED, state="over", time_us=now_us, since_us=hold.since_us, since_row=hold.row, text=after),
        ]

    def _forgive(self, now_us: int) -> None:
        """Let pass what is found now, and what it is held for, for a time; and take it for the usual."""
        found = [reason for reason, share in self._found().items() if share > CALM]
        until = now_us + round(self.config.longest_s * 1e6)
        if self.held is not None:
            found.append(self.held.reason)
        self._forgiven |= {reason: until for reason in found if reason not in ("by hand", "not finite")}
        for usual in self._usuals.values():
            usual.forget()
        self._values.forget()
        self._ties.forget()
        self._samples = []

    # --- what a checkpoint holds ---

    def state(self) -> Arrays:
        """All of it, as arrays; what has come is judged first. `hold` is what a rollback leaves behind."""
        if self._waiting:
            self._look(self._now_us)
        found: Arrays = {"hold": _bytes({
            "held": None if self.held is None else asdict(self.held), "held_versions": self.held_versions,
            "forgiven": self._forgiven, "calm_since_us": self._calm_since_us,
            "moved": self._moved, "finite": self._finite,
        })}
        if not self.config.on:
            return found
        return {
            **found, **self._ripening.state(), **self._values.state(), **self._ties.state(),
            "rows": np.array([self._rows, self._looked_us], np.int64),
            **{f"usual/{name}": usual.state() for name, usual in self._usuals.items()},
            **_of_bags("samples", [sample.bags for sample in self._samples]),
            "sample_times": np.array([sample.time_us for sample in self._samples], np.int64),
            "sample_logits": np.concatenate([np.empty(0, np.float32), *(sample.logits for sample in self._samples)]),
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on where `state` was taken; one from before there was a gate begins anew."""
        if "hold" in state:
            hold = orjson.loads(np.asarray(state["hold"], np.uint8).tobytes())
            if hold["held"] is not None:
                held = hold["held"]
                self.held = Hold(**held | {name: tuple(tuple(one) for one in held[name]) for name in ("slices", "fields")})
            self.held_versions, self._forgiven = hold["held_versions"], hold["forgiven"]
            self._calm_since_us, self._moved, self._finite = hold["calm_since_us"], hold["moved"], hold["finite"]
        if "rows" not in state:
            return
        self._rows, self._looked_us = state["rows"].tolist()
        for name, usual in self._usuals.items():
            if f"usual/{name}" in state:             # not one that is newer than the checkpoint
                usual.restore(state[f"usual/{name}"])
        self._ripening.restore(state, len(self._values.columns))
        self._values.restore(state)
        self._ties.restore(state)
        times, logits = state["sample_times"].tolist(), state["sample_logits"]
        bags = _to_bags("samples", state)
        ends = np.cumsum([len(one) for one in bags])
        self._samples = [
            _Sample(time_us, one, part)
            for time_us, one, part in zip(times, bags, np.split(logits, ends[:-1]), strict=True)
        ] if bags else []


def _provisional(stage: NDArray[np.uint8]) -> bool:
    """Whether labels are learnt before they are final (mode immediate)."""
    return bool(((stage == Stage.IMMEDIATE) | (stage == Stage.IMMEDIATE_BOTH)).any())


def _said(
    click: NDArray[np.float32], said: NDArray[np.float32], zero: NDArray[np.float32], of_all: NDArray[np.float32]
) -> Count:
    """Clicks, for what was said of clicks and of all others. click, zero: what each counts for, zero 0 of clicks."""
    return Count(float(click.sum()), _total(click, said) + _total(zero, of_all))


def _total(weights: NDArray[np.float32], each: NDArray[Any]) -> float:
    """Σ weights · each. Not by `@`: of more than 10,000 float64 that wakes the threads of BLAS, and they wait for more with a
    core of their own for 70 ms."""
    return float((weights * each).sum(dtype=np.float64))


def _lost(
    click: NDArray[np.float32], said: NDArray[np.float32], zero: NDArray[np.float32], of_all: NDArray[np.float32]
) -> Count:
    """Log loss in nats, of clicks and of all others, and what is expected of it where what was said is right: the entropy of
    each. click, zero: as in _said."""
    (of_click, _, entropy), (_, of_zero, rest) = _nats(said), _nats(of_all)
    return Count(_total(click, of_click) + _total(zero, of_zero), _total(click, entropy) + _total(zero, rest))


def _nats(said: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """(n,) each: the log loss of a click, of none, and what is expected of it where what was said is right."""
    p = clipped(said)
    of_click, of_zero = -np.log(p), -np.log1p(-p)
    return of_click, of_zero, p * of_click + (1 - p) * of_zero


def _ratio(count: Count) -> float:
    return count.seen / count.expected if count.expected > 0 else 0.0


def _logits(probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    p = clipped(probabilities)
    found: NDArray[np.float32] = (np.log(p) - np.log1p(-p)).astype(np.float32)
    return found


def _bytes(plain: Any) -> NDArray[np.uint8]:
    return np.frombuffer(orjson.dumps(plain), np.uint8)


def _of_bags(name: str, parts: list[Bags]) -> Arrays:
    """Bags one after the other, as arrays."""
    if not parts:
        return {}
    whole = concat(parts)
    return {
        f"{name}/fields": np.array([whole.fields], np.int64), f"{name}/rows": np.array([len(part) for part in parts], np.int64),
        f"{name}/ids": whole.ids, f"{name}/values": whole.all_values(), f"{name}/lengths": whole.all_lengths(),
    }


def _to_bags(name: str, state: Mapping[str, NDArray[Any]]) -> list[Bags]:
    if f"{name}/rows" not in state:
        return []
    whole = Bags(
        int(state[f"{name}/fields"][0]), np.array(state[f"{name}/ids"], np.uint64),
        np.array(state[f"{name}/values"], np.float32), np.array(state[f"{name}/lengths"], np.uint16),
    )
    ends = np.cumsum(state[f"{name}/rows"]).tolist()
    return [whole.slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
