"""The join said another way: one pass that never forgets, straight from the definitions. The oracle of the real one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from schemas.config import JoinConfig
from schemas.errors import BadEvent
from schemas.events import Action, Impression, Tick, parse
from schemas.examples import End, Stage
from schemas.hashing import is_kept
from tests.kit.logs import Row


def brute_join(log: Sequence[bytes], config: JoinConfig) -> tuple[list[Row], list[tuple[int, int, int]]]:
    """(examples, ends) of a log whose times are not clamped, each in order of names.

    A *group* is all events of one id from the first one until a moment at which all of them are past their horizon.
    """
    window, reach = round(config.window_s * 1e6), round((config.window_s + config.lateness_s) * 1e6)
    events, ends = [], []
    rows: list[Row] = []
    watermark = -(1 << 62)
    marks = []                                   # watermark once each record is read
    for offset, value in enumerate(log):
        try:
            event = parse(value)
        except BadEvent:
            ends.append((offset, offset, End.DEAD_LETTER))
            marks.append(watermark)
            continue
        watermark = max(watermark, event.time_us)
        marks.append(watermark)
        if isinstance(event, Tick):
            if event.end:
                ends.append((offset, offset, End.FLUSH))
        elif isinstance(event, Action) and event.action != config.action:
            ends.append((offset, offset, End.OTHER_ACTION))
        elif isinstance(event, Action) and config.value_as_weight and not 0 <= event.value <= 1e6:
            ends.append((offset, offset, End.DEAD_LETTER))
        else:
            events.append((offset, event))

    flowing: dict[int, int] = {}               # offset of an impression → since when impressions flow without a pause
    newest = since = -(1 << 62)
    for offset, event in events:
        if isinstance(event, Impression):
            since = event.time_us if event.time_us >= newest + window else since
            newest = max(newest, event.time_us)
            flowing[offset] = since

    def reached(time_us: int, start: int) -> int | None:
        """The first record from `start` on at which the watermark is at `time_us`."""
        return next((o for o in range(start, len(log)) if marks[o] >= time_us), None)

    for name in {event.impression_id for _, event in events}:
        own = [(o, e) for o, e in events if e.impression_id == name]
        while own:
            first_offset, first = own[0]
            if first.time_us + reach <= marks[first_offset]:       # nothing is known of the id, and it is past its time
                ends.append((first_offset, first_offset,
                             End.LATE_IMPRESSION if isinstance(first, Impression) else End.LATE_ACTION))
                own = own[1:]
                continue
            group, horizon = [own[0]], first.time_us + reach       # all that comes before the group is forgotten
            for o, e in own[1:]:
                if marks[o] >= horizon:
                    break
                group.append((o, e))
                late_shown = isinstance(e, Impression) and e.time_us + reach <= marks[o]
                if not late_shown:
                    horizon = max(horizon, e.time_us + reach)
            own = own[len(group):]
            _group(group, horizon, config, flowing, window, reach, marks, reached, rows, ends)
    return sorted(rows), sorted((t, o, int(r)) for t, o, r in ends)


def _group(group, horizon, config, flowing, window, reach, marks, reached, rows, ends):
    shown_at, shown = -1, None
    clicks = []
    for o, e in group:
        if isinstance(e, Action):
            clicks.append((o, e))
        elif shown is not None:
            ends.append((o, o, End.DUPLICATE_IMPRESSION))
        elif e.time_us + reach <= marks[o]:
            ends.append((o, o, End.LATE_IMPRESSION))
        else:
            shown_at, shown = o, e
    if shown is None:
        gone = reached(horizon, group[0][0])
        ends.extend((gone, o, End.UNMATCHED_ACTION) for o, _ in clicks if gone is not None)
        return
    at_once = config.mode != "wait" and shown.time_us >= flowing[shown_at] + window
    closes = reached(shown.time_us + reach, shown_at)
    labelled: dict[int, tuple[int, float]] = {}
    for o, e in clicks:
        meets = max(o, shown_at)
        if e.item_id not in shown.slate.item_ids:
            ends.append((meets, o, End.DEAD_LETTER))
            continue
        place = list(shown.slate.item_ids).index(e.item_id)
        if place in labelled:
            ends.append((meets, o, End.DUPLICATE_ACTION))
        elif e.time_us >= shown.time_us + window or (closes is not None and meets >= closes):
            ends.append((meets, o, End.LATE_ACTION))
        else:
            labelled[place] = meets, e.value if config.value_as_weight else 1.0

    rate = config.negative_rate
    stage = Stage.OBSERVED if config.mode == "corrected" else Stage.FINAL

    def negative(trigger: int, place: int, stage: Stage) -> None:
        if rate < 1 and not is_kept(shown.impression_id, shown.slate.item_ids[place], rate, config.negative_seed):
            ends.append((trigger, shown_at, End.SAMPLED_OUT))
        else:
            rows.append(Row(trigger, shown_at, place, 0, stage, 1 / rate if config.negative_correction == "weight" else 1.0))

    if at_once and config.mode == "immediate":
        for place in range(len(shown.slate.item_ids)):
            meets = labelled[place][0] if place in labelled else None
            if meets == shown_at:
                rows.append(Row(shown_at, shown_at, place, 1, Stage.IMMEDIATE_BOTH))
                continue
            negative(shown_at, place, Stage.IMMEDIATE)
            if meets is not None:
                rows.append(Row(meets, shown_at, place, 1, Stage.IMMEDIATE))
        if closes is not None:
            ends.append((closes, shown_at, End.SETTLED))
        return
    for place in range(len(shown.slate.item_ids)):
        if at_once and place in labelled:
            rows.append(Row(labelled[place][0], shown_at, place, 1, stage, labelled[place][1]))
        elif closes is not None and place in labelled:
            rows.append(Row(closes, shown_at, place, 1, stage, labelled[place][1]))
        elif closes is not None:
            negative(closes, place, stage)


def brute_second(log: Sequence[bytes], config: JoinConfig) -> list[Row]:
    """Examples of the second pass of mode corrected: what mode wait would give, labelled by all that came until later."""
    after, lateness = round(config.correct_after_s * 1e6), round(config.lateness_s * 1e6)
    events: list[Impression | Action | Tick | None] = []
    marks = []
    for value in log:
        try:
            events.append(parse(value))
        except BadEvent:
            events.append(None)
        marks.append(max([event.time_us for event in events if event is not None], default=-(1 << 62)))
    ends = [offset for offset, event in enumerate(events) if isinstance(event, Tick) and event.end]

    found = []
    for row in brute_join(log, replace(config, mode="wait", negative_rate=1.0))[0]:
        if not (marks[-1] >= marks[row.trigger] + after or any(end >= row.trigger for end in ends)):
            continue                                                  # not yet
        shown = events[row.impression]
        assert isinstance(shown, Impression)
        until = min([end for end in ends if end > row.impression], default=len(log))
        late = not row.label and any(
            isinstance(event, Action) and event.action == config.action and event.impression_id == shown.impression_id
            and event.item_id == shown.slate.item_ids[row.item] and event.time_us < shown.time_us + after
            and marks[offset] < shown.time_us + after + lateness
            for offset, event in enumerate(events) if row.impression < offset < until
        )
        if row.label or late:
            found.append(replace(row, label=1, stage=Stage.TRUE_LATE if late else Stage.TRUE))
        elif config.negative_rate == 1 or is_kept(
            shown.impression_id, shown.slate.item_ids[row.item], config.negative_rate, config.negative_seed
        ):
            found.append(replace(row, stage=Stage.TRUE, weight=1 / config.negative_rate))
    return found
