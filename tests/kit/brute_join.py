"""The join said another way: one pass that never forgets, straight from the definitions. The oracle of the real one."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.config import JoinConfig
from schemas.errors import BadEvent
from schemas.events import Action, Impression, Tick, parse
from schemas.examples import End
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
    eager = config.mode == "eager" and shown.time_us >= flowing[shown_at] + window
    closes = reached(shown.time_us + reach, shown_at)
    labelled: dict[int, int] = {}
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
            labelled[place] = meets
    for place in range(len(shown.slate.item_ids)):
        if eager and place in labelled:
            rows.append(Row(labelled[place], shown_at, place, 1))
        elif closes is not None:
            rows.append(Row(closes, shown_at, place, int(place in labelled)))
