"""The second pass over the log, for actions that come long after their impression (mode corrected). Pure, like the join.

The same log is read twice more, from one stored place on: *ahead*, where only actions are taken note of, and *behind*, where
a record is joined once the reading ahead has come `join.correct_after_s` further. So every example is made a second time, by
the label that it has then, and neither impressions nor days of anything but actions are held in memory. What is joined behind
is a JoinCore in mode wait: the same impressions, the same names, but of another source (`second`), with a cursor of its own.

An action counts for an impression that stands before it in the log, if its time lies within correct_after_s of the
impression's and the watermark, when it came, had not gone past that (+ lateness); a replay's end between them ends it too. All
of this is in the log, so a pass that is begun again, anywhere, says the same.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from schemas.config import JoinConfig
from schemas.errors import BadEvent
from schemas.events import Action, Tick, parse_all
from schemas.examples import Examples
from stream_trainer.joining.join import Encode, Group, JoinCore, Low, clamped, parsed

SECOND = 1 << 16   # added to the partition of `events`: the source that names the second examples


class _Outcome(NamedTuple):
    """An action seen ahead. mark_us: the watermark when it came."""

    offset: int
    item_id: str
    time_us: int
    mark_us: int


class SecondPass:
    """One partition's second pass, from `start` on. Feed `ahead` every record; `behind` each that `may_follow`."""

    def __init__(
        self, partition: int, config: JoinConfig, start: Low, encode: Encode,
        field_numbers: tuple[int, ...], field_digests: tuple[int, ...],
    ) -> None:
        self.ahead_offset = start.offset
        self.ahead_watermark_us = start.watermark_us
        self._config = config
        self._after_us = round(config.correct_after_s * 1e6)
        self._lateness_us = round(config.lateness_s * 1e6)
        self._outcomes: dict[str, list[_Outcome]] = {}
        self._order: deque[tuple[int, str]] = deque()   # offset and impression of each, oldest first
        self._ends: list[int] = []                      # offsets at which a replay ended
        self._newest = -1                               # offset of the newest event that is no tick
        self.core = JoinCore(
            SECOND + partition, replace(config, mode="wait"), start, encode, field_numbers, field_digests, self._found
        )

    @property
    def held(self) -> int:
        """Actions in memory."""
        return len(self._order)

    @property
    def waits(self) -> bool:
        """Whether anything but ticks was read ahead and not joined, so that time must go on."""
        return self._newest >= self.core.next_offset or self.core.open > 0

    def ahead(self, *records: tuple[int, int, bytes | None]) -> None:
        """The next records of the reading ahead, as (offset, kafka_time_us, value)."""
        for (offset, kafka_time_us, _), read in zip(records, parse_all([value for _, _, value in records]), strict=True):
            self.ahead_offset = offset + 1
            event = clamped(read, kafka_time_us, self._config)
            if isinstance(event, BadEvent):
                continue
            self.ahead_watermark_us = max(self.ahead_watermark_us, event.time_us)
            if isinstance(event, Tick):
                if event.end:
                    self._ends.append(offset)
                continue
            self._newest = offset
            if isinstance(event, Action) and event.action == self._config.action:
                self._order.append((offset, event.impression_id))
                self._outcomes.setdefault(event.impression_id, []).append(
                    _Outcome(offset, event.item_id, event.time_us, self.ahead_watermark_us)
                )

    def may_follow(self, offset: int, kafka_time_us: int, value: bytes | None) -> bool:
        """Whether all has been seen ahead that can still label what this record closes."""
        if offset >= self.ahead_offset:
            return False
        if self._ends and self._ends[-1] >= offset:
            return True
        try:
            time_us = parsed(value, kafka_time_us, self._config).time_us
        except BadEvent:
            return True
        return self.ahead_watermark_us >= max(self.core.watermark_us, time_us) + self._after_us

    def behind(self, *records: tuple[int, int, bytes | None]) -> None:
        """The next records of the reading behind. One that may follow still may after another that might."""
        self.core.feed_all(records)
        self.core.dead_letters.clear()                  # the first pass has written them
        low = self.core.low().offset
        while self._order and self._order[0][0] < low:  # every impression before it is closed
            _, impression_id = self._order.popleft()
            own = self._outcomes[impression_id]
            del own[0]
            if not own:
                del self._outcomes[impression_id]
        while self._ends and self._ends[0] < low:
            del self._ends[0]

    def records(self, joined_us: int, flush: bool = False) -> list[Examples]:
        """As JoinCore.records."""
        return self.core.records(joined_us, flush)

    def low(self) -> Low:
        """Where to start again, both readings."""
        return self.core.low()

    def _found(self, shown: Group) -> Mapping[str, int]:
        """Items of an impression with an action, and when it came."""
        found: dict[str, int] = {}
        ended = bisect_right(self._ends, shown.offset)
        end = self._ends[ended] if ended < len(self._ends) else None
        for outcome in self._outcomes.get(shown.impression_id, ()):
            in_time = outcome.time_us < shown.time_us + self._after_us
            in_order = outcome.mark_us < shown.time_us + self._after_us + self._lateness_us
            if outcome.offset > shown.offset and (end is None or outcome.offset < end) and in_time and in_order:
                found.setdefault(outcome.item_id, outcome.time_us)
        return found
