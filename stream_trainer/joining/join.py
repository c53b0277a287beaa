"""The join of one partition: records of the event log in, labelled examples out. Pure: no I/O, no clock of its own.

Everything here is a function of the log from one offset on, given the watermark before that offset. That is what makes a
crash harmless: the shell commits `low()`, the smallest offset still held, and after any assignment builds a new core
there. The new core writes again what was written since, under the same names, and a reader's cursor drops it.

For that to hold, an id is remembered until *every* event that named it is past its own horizon (its time + window +
lateness), not only until its label is final. Otherwise an impression closed before `low()` could leave a click or a
duplicate behind it, which the new core would meet without knowing the impression. See docs/decisions/0001-join.md.
"""

from __future__ import annotations

import heapq
import math
from array import array
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.bags import Bags, concat
from schemas.config import JoinConfig
from schemas.errors import BadEvent
from schemas.events import Action, Event, Impression, Tick, parse, parse_all
from schemas.examples import LAST_ITEM, Cursor, End, Examples, Stage, after_all_of, ends_from
from schemas.hashing import is_kept
from stream_trainer.joining.pulse import Pulse

RECORD_IDS = 1 << 16     # ids in one record at most, beside join.record_rows: 512 KiB, half of Kafka's default limit
NO_TIME = -(1 << 62)     # the watermark of a log in which no event was read
MOST_VALUE = 1e6         # of an action as its example's weight: one of more would be the only one learnt
MOST_UNCHOSEN = 32       # items of a slate that are copied for each that is wanted; of wider ones, those wanted are taken first
ANEW = "anew/"           # of the ids of impressions that were published once more
_NO_PLACES: Mapping[int, int] = {}


class Low(NamedTuple):
    """Where a core must start to go on from here: the smallest offset still held, and what was known before it."""

    offset: int
    watermark_us: int
    holding: bool
    flowing_since_us: int  # event time since which impressions have come without a pause of a window
    shown_us: int          # event time of the newest impression
    pulse: Pulse = Pulse()  # whether labels still come


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that cannot be used. reason: a short word for counting; text: what was wrong, for a person."""

    offset: int
    reason: str
    text: str
    value: bytes


class _Early(NamedTuple):
    """A click that came before its impression."""

    offset: int
    action: Action
    value: bytes


class Group(NamedTuple):
    """The items of an impression: all that is needed of it until their labels are final."""

    offset: int
    impression_id: str
    time_us: int
    item_ids: Sequence[str]
    bags: Bags
    served_probability: array[float] | None
    served_version: int

    def taken(self, places: Sequence[int]) -> Group:
        """Some of its items."""
        served = self.served_probability
        return self._replace(
            item_ids=[self.item_ids[place] for place in places], bags=self.bags.take(np.array(places, np.intp)),
            served_probability=None if served is None else array("f", [served[place] for place in places]),
        )


@dataclass(slots=True)
class _Entry:
    """All that is known under one impression id. Its mappings are replaced, never changed: most stay empty."""

    low: Low                                 # at the first record that named the id
    horizon_us: int                          # forgotten when the watermark reaches this
    clicked: Mapping[int, int]               # place → time of the click, µs
    values: Mapping[int, float]              # place → value of the click, where it is the weight
    offset: int = -1                         # of the impression; -1 = not come yet
    deadline_us: int = 0                     # an action counts before this
    at_once: bool = False                    # examples come before the window's end
    item_ids: Sequence[str] = ()             # by place; kept while the id is remembered
    group: Group | None = None               # None before it comes, and again once all its labels are final
    late: frozenset[int] = frozenset()       # places of clicks that only the second pass knows
    early: list[_Early] | None = None


class _Rows(NamedTuple):
    """Examples of one impression, made final by one record. places: of its items, at least one, ascending."""

    trigger: int
    group: Group
    places: Sequence[int]
    clicked: Mapping[int, int]
    at_once: bool
    weights: NDArray[np.float32] | None = None   # None = 1
    stages: NDArray[np.uint8] | None = None      # None = final

    @property
    def name(self) -> Cursor:
        """Of the last row."""
        return Cursor(self.trigger, self.group.offset, self.places[-1])


class _EndRow(NamedTuple):
    trigger: int
    offset: int
    reason: End
    places: tuple[int, ...] = ()   # of the items that met it; none = the event did

    @property
    def name(self) -> Cursor:
        return Cursor(self.trigger, self.offset, LAST_ITEM)


BEGINNING = Low(0, NO_TIME, False, NO_TIME, NO_TIME)
Encode = Callable[[Sequence[Impression]], Sequence[Bags | BadEvent]]
Outcomes = Callable[[Group], Mapping[str, int]]


class _Agenda:
    """(time, low offset, id), handed out by time. Nearly all come in that order and wait in a queue, the others in a heap."""

    def __init__(self) -> None:
        self._queue: deque[tuple[int, int, str]] = deque()
        self._heap: list[tuple[int, int, str]] = []

    def add(self, due: tuple[int, int, str]) -> None:
        if not self._queue or due >= self._queue[-1]:
            self._queue.append(due)
        else:
            heapq.heappush(self._heap, due)

    def pop(self, time_us: int) -> tuple[int, int, str] | None:
        """The first one, if it is due at this time."""
        queue, heap = self._queue, self._heap
        if heap and (not queue or heap[0] < queue[0]):
            return heapq.heappop(heap) if heap[0][0] <= time_us else None
        return queue.popleft() if queue and queue[0][0] <= time_us else None


class JoinCore:
    """One partition's join, from `start` on.

    encode: impressions → of each its bags of ids, one row per item, or what is wrong with it. field_numbers, field_digests:
    what those bags are made of. outcomes: for the second pass (corrections.py), an impression → items with an action that came
    after the window too, and when; its ends were counted by the first pass. After each `feed`, `records()` hands over what is
    complete and `dead_letters` what was unusable.
    """

    def __init__(
        self, partition: int, config: JoinConfig, start: Low, encode: Encode,
        field_numbers: tuple[int, ...], field_digests: tuple[int, ...], outcomes: Outcomes | None = None,
    ) -> None:
        self.partition = partition
        self.config = config
        self.counts: Counter[str] = Counter()
        self.dead_letters: list[DeadLetter] = []
        self.next_offset = start.offset
        self.watermark_us = start.watermark_us
        self.holding = start.holding
        self.flowing_since_us = start.flowing_since_us
        self.shown_us = start.shown_us
        self.pulse = start.pulse
        self._encode = encode
        self._outcomes = outcomes
        self._field_numbers = field_numbers
        self._field_digests = field_digests
        self._window_us = round(config.window_s * 1e6)
        self._lateness_us = round(config.lateness_s * 1e6)
        self._reach_us = self._window_us + self._lateness_us
        served = config.negative_rate < 1 and config.negative_correction == "serving"
        self._unweighted = config.negative_rate if served else 0.0
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # in the order of their low offsets
        self._due = _Agenda()
        self._now: list[_Rows | _EndRow] = []                    # what the record in hand led to
        self._parts: list[_Rows] = []                            # complete, in order of names
        self._ends: list[_EndRow] = []                           # complete, in order of names
        self._out_rows = 0
        self._out_ids = 0
        self._after = after_all_of(start.offset - 1)
        self._sealed: list[Examples] = []

    # --- what the shell asks ---

    @property
    def open(self) -> int:
        """Ids remembered: while any is, time must go on."""
        return len(self._entries)

    @property
    def pending(self) -> int:
        """Rows and ends that no record holds yet."""
        return len(self._parts) + len(self._ends)

    def low(self) -> Low:
        """Where to start again. Commit it only when all that `records(flush=True)` gave is durable."""
        if self._entries:
            return next(iter(self._entries.values())).low
        return self._here(self.next_offset)

    def records(self, joined_us: int, flush: bool = False) -> list[Examples]:
        """Complete records so far; with flush also the unfinished one, and if need be an empty one that only says how
        far the log was read: without it a reader could take an example that a restarted core derives otherwise."""
        if flush and self._after < after_all_of(self.next_offset - 1):
            self._seal(after_all_of(self.next_offset - 1))
        done, self._sealed = self._sealed, []
        return [replace(record, joined_us=joined_us) for record in done]

    # --- records of the log ---

    def feed(self, offset: int, kafka_time_us: int, value: bytes | None) -> None:
        """The next record. kafka_time_us: its Kafka timestamp, which bounds how far ahead its own time may be."""
        self.feed_all([(offset, kafka_time_us, value)])

    def feed_all(self, records: Sequence[tuple[int, int, bytes | None]]) -> None:
        """The next records, as (offset, kafka_time_us, value): read and encoded at once, joined one by one."""
        events = [
            clamped(event, kafka_time_us, self.config, self.counts)
            for event, (_, kafka_time_us, _) in zip(parse_all([value for _, _, value in records]), records, strict=True)
        ]
        bags = iter(self._encode([event for event in events if isinstance(event, Impression)]))
        for event, (offset, _, value) in zip(events, records, strict=True):
            self._take(offset, event, next(bags) if isinstance(event, Impression) else None, value or b"")

    def _take(self, offset: int, event: Event | BadEvent, bags: Bags | BadEvent | None, value: bytes) -> None:
        before = self._here(offset)
        try:
            if isinstance(event, BadEvent):
                raise event
            self._advance(offset, event.time_us)
            self._apply(offset, event, bags, before, value)
        except BadEvent as bad:
            self._bury(offset, bad, value)
        self.next_offset = offset + 1
        self._settle(offset)

    def _advance(self, trigger: int, time_us: int) -> None:
        """Time has come to `time_us`: close what is due, forget what no coming record can need."""
        if time_us <= self.watermark_us:
            return
        self.watermark_us = time_us
        while (due := self._due.pop(time_us)) is not None:
            _, low_offset, impression_id = due
            entry = self._entries.get(impression_id)
            if entry is None or entry.low.offset != low_offset:
                continue                                   # forgotten, and perhaps begun anew
            if entry.group is not None and entry.deadline_us + self._lateness_us <= time_us:
                self._close(trigger, entry, entry.group)
            if entry.horizon_us <= time_us:
                for early in entry.early or ():
                    self._end(trigger, early.offset, End.UNMATCHED_ACTION)
                del self._entries[impression_id]
            else:
                self._due.add((entry.horizon_us, low_offset, impression_id))
        if self.config.suspect_labels:
            self.pulse = self.pulse.at(time_us, self._reach_us, self.config.suspect_labels)

    def _apply(self, offset: int, event: Event, bags: Bags | BadEvent | None, before: Low, value: bytes) -> None:
        if isinstance(event, Tick):
            self.holding = event.hold if event.hold or event.end else self.holding
            if event.end:
                self._end(offset, offset, End.FLUSH)
        elif isinstance(event, Impression):
            self.counts["impressions"] += 1
            if event.impression_id.startswith(ANEW):
                self.counts["anew"] += 1
            self._flow(event.time_us)
            if self.config.suspect_labels:
                self.pulse = self.pulse.shown(self.watermark_us, len(event.item_ids), self._reach_us)
            self._impression(offset, event, bags, before)
        else:
            self.counts["actions"] += 1
            self._action(offset, event, before, value)

    def _impression(self, offset: int, shown: Impression, bags: Bags | BadEvent | None, before: Low) -> None:
        entry = self._entries.get(shown.impression_id)
        if entry is not None and entry.offset >= 0:
            self._touch(entry, shown.time_us)
            self._end(offset, offset, End.DUPLICATE_IMPRESSION)
            return
        if shown.time_us + self._reach_us <= self.watermark_us:
            self._end(offset, offset, End.LATE_IMPRESSION)
            return
        if not isinstance(bags, Bags):
            raise bags or BadEvent("garbage", "an impression without ids")
        if entry is None:
            entry = self._remember(shown.impression_id, shown.time_us, before)
        else:
            self._touch(entry, shown.time_us)
            self._due.add((shown.time_us + self._reach_us, entry.low.offset, shown.impression_id))
        item_ids, served = shown.item_ids, shown.served_probability
        entry.offset, entry.item_ids = offset, item_ids
        entry.deadline_us = shown.time_us + self._window_us
        entry.group = group = Group(
            offset, shown.impression_id, shown.time_us, item_ids, bags, None if served is None else array("f", served),
            shown.served_version,
        )
        at_once, immediate = self._at_once(shown.time_us), self.config.mode == "immediate"
        entry.at_once = at_once and not immediate
        early, entry.early = entry.early, None
        for click in early or ():
            self._label(offset, click.offset, entry, click.action, click.value)
        if at_once and immediate and not self._in_doubt(entry):
            entry.at_once = True
            self._emit(offset, entry, group, range(len(item_ids)))

    def _action(self, offset: int, action: Action, before: Low, value: bytes) -> None:
        if action.action != self.config.action:
            self._end(offset, offset, End.OTHER_ACTION)
            return
        if self.config.suspect_labels:
            if self.pulse.stopped:
                self.flowing_since_us = self.watermark_us   # as after a pause in the traffic: the next window waits
            self.pulse = self.pulse.label(self.watermark_us, self._reach_us)
        if self.config.value_as_weight and not 0 <= action.value <= MOST_VALUE:
            raise BadEvent("bad_value", f"value: what an example weighs is from 0 to {MOST_VALUE:,.0f}, got {action.value}")
        entry = self._entries.get(action.impression_id)
        if entry is None:
            if action.time_us + self._reach_us <= self.watermark_us:
                self._end(offset, offset, End.LATE_ACTION)
                return
            entry = self._remember(action.impression_id, action.time_us, before)
        self._touch(entry, action.time_us)
        if entry.offset < 0:
            entry.early = entry.early or []
            entry.early.append(_Early(offset, action, value))
        else:
            self._label(offset, offset, entry, action, value)

    def _label(self, trigger: int, offset: int, entry: _Entry, action: Action, value: bytes) -> None:
        """A click meets its impression. trigger: the record that brought them together; offset: the click's own."""
        if action.item_id not in entry.item_ids:
            text = f"item {action.item_id!r} was not shown in impression {action.impression_id!r}"
            self._bury(offset, BadEvent("item_not_shown", text), value, trigger)
            return
        place = entry.item_ids.index(action.item_id)
        if place in entry.clicked:
            self._end(trigger, offset, End.DUPLICATE_ACTION)
        elif entry.group is None or action.time_us >= entry.deadline_us:
            self._end(trigger, offset, End.LATE_ACTION)
        elif self._in_doubt(entry):
            self._end(trigger, offset, End.SUSPECT_ACTION)
        else:
            entry.clicked = {**entry.clicked, place: action.time_us}
            if self.config.value_as_weight:
                entry.values = {**entry.values, place: action.value}
            if entry.at_once:
                self._emit(trigger, entry, entry.group, (place,), at_once=True)

    def _close(self, trigger: int, entry: _Entry, group: Group) -> None:
        """The window is over: what has no label yet gets it, and only the names stay."""
        places = range(len(group.item_ids))
        if self._in_doubt(entry):
            self._end(trigger, group.offset, End.SUSPECT, tuple(places))
            entry.group = None
            return
        if self._outcomes is not None:
            found = self._outcomes(group)
            late = {
                place: found[item] for place, item in enumerate(group.item_ids) if item in found and place not in entry.clicked
            }
            entry.clicked, entry.late = {**entry.clicked, **late}, frozenset(late)
        if entry.at_once and self.config.mode == "immediate":
            self._end(trigger, group.offset, End.SETTLED)
        elif not entry.clicked or not entry.at_once:
            self._emit(trigger, entry, group, places)
        else:
            self._emit(trigger, entry, group, [place for place in places if place not in entry.clicked])
        entry.group = None

    def _in_doubt(self, entry: _Entry) -> bool:
        """Whether the group was shown while labels had stopped, and has none; what was learnt of it stands."""
        if entry.group is None or entry.group.time_us >= self.pulse.doubt_us or entry.clicked:
            return False
        return not (entry.at_once and self.config.mode == "immediate")

    def _flow(self, shown_us: int) -> None:
        """Notice a pause in the traffic. Every impression counts, duplicates and late ones too: what a restarted core
        takes for a duplicate may differ, what it reads does not."""
        if shown_us >= self.shown_us + self._window_us:
            self.flowing_since_us = shown_us
        self.shown_us = max(self.shown_us, shown_us)

    def _at_once(self, shown_us: int) -> bool:
        """Whether examples come before the window's end. Not within the first window of a log or after a pause: in mode eager
        its negatives come a window after its clicks, and a model that sees nothing but clicks until then believes in nothing
        else; in mode immediate it is the other way round."""
        return self.config.mode != "wait" and shown_us >= self.flowing_since_us + self._window_us

    # --- bookkeeping ---

    def _here(self, offset: int) -> Low:
        return Low(offset, self.watermark_us, self.holding, self.flowing_since_us, self.shown_us, self.pulse)

    def _remember(self, impression_id: str, time_us: int, before: Low) -> _Entry:
        entry = self._entries[impression_id] = _Entry(before, time_us + self._reach_us, _NO_PLACES, _NO_PLACES)
        self._due.add((entry.horizon_us, before.offset, impression_id))
        return entry

    def _touch(self, entry: _Entry, time_us: int) -> None:
        entry.horizon_us = max(entry.horizon_us, time_us + self._reach_us)

    def _bury(self, offset: int, bad: BadEvent, value: bytes, trigger: int | None = None) -> None:
        self.dead_letters.append(DeadLetter(offset, bad.reason, str(bad), value))
        self.counts[f"dead_{bad.reason}"] += 1
        self._end(offset if trigger is None else trigger, offset, End.DEAD_LETTER)

    def _end(self, trigger: int, offset: int, reason: End, places: tuple[int, ...] = ()) -> None:
        if self._outcomes is None or reason is End.FLUSH:
            self._now.append(_EndRow(trigger, offset, reason, places))
        self.counts[reason.name.lower()] += len(places) or 1

    def _emit(self, trigger: int, entry: _Entry, group: Group, places: Sequence[int], at_once: bool = False) -> None:
        """Examples of these places, as what is known of them now labels them; negatives that the sample leaves out are ends."""
        if self.config.negative_rate < 1:
            places = self._sampled(trigger, entry, group, places)
        if not places:
            return
        self._now.append(_Rows(
            trigger, group, places, entry.clicked, at_once, self._weights(entry, places), self._stages(entry, places, at_once),
        ))
        self.counts["examples"] += len(places)

    def _sampled(self, trigger: int, entry: _Entry, group: Group, places: Sequence[int]) -> Sequence[int]:
        """Places with a click, and of the others those that a hash of (impression, item, seed) keeps: always the same ones."""
        rate, seed = self.config.negative_rate, self.config.negative_seed
        kept = [
            place for place in places
            if place in entry.clicked or is_kept(group.impression_id, group.item_ids[place], rate, seed)
        ]
        if len(kept) < len(places):
            self._end(trigger, group.offset, End.SAMPLED_OUT, tuple(sorted({*places} - {*kept})))
        return kept

    def _weights(self, entry: _Entry, places: Sequence[int]) -> NDArray[np.float32] | None:
        """What each example counts for; None = 1."""
        config = self.config
        weighted = config.negative_rate < 1 and not self._unweighted
        if not weighted and not config.value_as_weight:
            return None
        negative = 1 / config.negative_rate if weighted else 1.0
        return np.array([entry.values.get(place, 1.0) if place in entry.clicked else negative for place in places], np.float32)

    def _stages(self, entry: _Entry, places: Sequence[int], at_once: bool) -> NDArray[np.uint8] | None:
        """What each label is worth; None = final."""
        if self._outcomes is not None:
            late = [place in entry.late for place in places]
            return np.where(late, Stage.TRUE_LATE, Stage.TRUE).astype(np.uint8)
        if self.config.mode == "corrected":
            return np.full(len(places), Stage.OBSERVED, np.uint8)
        if self.config.mode != "immediate" or not entry.at_once:
            return None
        if at_once:
            return np.full(len(places), Stage.IMMEDIATE, np.uint8)
        both = [place in entry.clicked for place in places]
        return np.where(both, Stage.IMMEDIATE_BOTH, Stage.IMMEDIATE).astype(np.uint8)

    def _settle(self, trigger: int) -> None:
        """What this record led to goes out in the order of names; full records are sealed."""
        if not self._now:
            return
        flush = False
        if len(self._now) > 1:
            self._now.sort(key=lambda one: one.name)
        for one in self._now:
            if isinstance(one, _Rows):
                self._parts.append(one)
                self._out_rows += len(one.places)
                self._out_ids += len(one.places) * len(one.group.bags.ids) // len(one.group.item_ids)
            else:
                self._ends.append(one)
                flush = flush or one.reason is End.FLUSH
            if self._out_rows >= self.config.record_rows or self._out_ids >= RECORD_IDS:
                self._seal(one.name)
        self._now = []
        if flush:
            self._seal(after_all_of(trigger))

    def _seal(self, through: Cursor) -> None:
        ends = [(one.trigger, one.offset, int(one.reason), one.places) for one in self._ends]
        self._sealed.append(_examples(
            self.partition, self._after, through, self._field_numbers, self._field_digests, self._parts, ends, self._unweighted
        ))
        self._after = through
        self._parts, self._ends, self._out_rows, self._out_ids = [], [], 0, 0


def parsed(value: bytes | None, kafka_time_us: int, config: JoinConfig) -> Event:
    """A record's event with the time that counts. Raises BadEvent."""
    event = clamped(parse(value), kafka_time_us, config)
    assert not isinstance(event, BadEvent)
    return event


def clamped(
    event: Event | BadEvent, kafka_time_us: int, config: JoinConfig, counts: Counter[str] | None = None
) -> Event | BadEvent:
    """An event, its time clamped to the record's Kafka timestamp where a producer's clock is far ahead of it; ticks are our own
    and stand as they are. counts: where a clamped one is counted."""
    if isinstance(event, Tick | BadEvent) or event.time_us <= kafka_time_us + round(config.max_ahead_s * 1e6):
        return event
    if counts is not None:
        counts["clamped"] += 1
    return event._replace(time_us=kafka_time_us)


def _examples(
    partition: int, after: Cursor, through: Cursor, numbers: tuple[int, ...], digests: tuple[int, ...],
    parts: list[_Rows], ends: list[tuple[int, int, int, tuple[int, ...]]], negative_rate: float,
) -> Examples:
    """Parts of impressions as columns."""
    counts = np.array([len(part.places) for part in parts], np.int64)
    groups = [                                                   # all their items: choosing once, from all, costs less
        part.group if len(part.group.item_ids) <= MOST_UNCHOSEN * len(part.places) else part.group.taken(part.places)
        for part in parts
    ]
    rows: list[int] = []                                         # chosen from the groups' items
    clicked: list[int] = []
    first = 0
    for part, group in zip(parts, groups, strict=True):
        items = len(group.item_ids)
        rows += range(first, first + items) if items == len(part.places) else [first + place for place in part.places]
        none = not part.clicked or part.clicked.keys().isdisjoint(part.places)
        clicked += [0] * len(part.places) if none else [part.clicked.get(place, 0) for place in part.places]
        first += items
    chosen = None if len(rows) == first else np.array(rows, np.intp)

    probability = version = at_once = weight = stage = None
    if any(part.weights is not None for part in parts):
        weight = np.concatenate([
            np.ones(len(part.places), np.float32) if part.weights is None else part.weights for part in parts
        ])
    if any(part.stages is not None for part in parts):
        stage = np.concatenate([
            np.zeros(len(part.places), np.uint8) if part.stages is None else part.stages for part in parts
        ])
    if any(part.at_once for part in parts):
        at_once = np.repeat(np.array([part.at_once for part in parts], np.uint8), counts)
    if any(group.served_probability is not None for group in groups):
        probability = np.frombuffer(b"".join([
            array("f", [math.nan]) * len(group.item_ids) if group.served_probability is None else group.served_probability
            for group in groups
        ]), np.float32)
        probability = probability if chosen is None else probability[chosen]
    if any(group.served_version for group in groups):
        version = np.repeat(np.array([group.served_version for group in groups], np.uint64), counts)
    bags = concat([group.bags for group in groups]) if groups else Bags(max(len(numbers), 1), np.empty(0, np.uint64))

    def per_part(values: list[int]) -> NDArray[np.int64]:
        return np.repeat(np.array(values, np.int64), counts)

    click_time_us = np.array(clicked, np.int64)
    return Examples(
        source_partition=partition, after=after, through=through, field_numbers=numbers, field_digests=digests,
        trigger=per_part([part.trigger for part in parts]),
        impression=per_part([group.offset for group in groups]),
        item=np.array([place for part in parts for place in part.places], np.uint16),
        label=(click_time_us > 0).astype(np.float32),
        event_time_us=per_part([group.time_us for group in groups]),
        click_time_us=click_time_us,
        bags=bags if chosen is None else bags.take(chosen),
        ends=ends_from(ends), served_probability=probability, served_version=version, at_once=at_once, weight=weight,
        stage=stage, negative_rate=negative_rate,
    )
