"""Whether labels still come: a click stream that has died, while impressions go on, must not be learnt as negatives.

A function of the records read and nothing else, not of what was joined: a joiner that starts again at an older offset has
not seen how the groups before it ended, but it reads the same records. See docs/decisions/0008-a-dead-click-stream.md.
"""

from __future__ import annotations

from typing import NamedTuple

MEMORY = 500                   # the usual rate is that of the last 500 to 1,000 labels
SLOTS = 8                      # items wait for their labels in slots of an eighth of a window
NOBODY, EVERYBODY = -(1 << 62), 1 << 62


class Pulse(NamedTuple):
    """What is known at one place of the log.

    labels, items: actions that make a label, and items shown, in the stretch that the usual rate is taken from. silent: how
    many labels the items would have brought by that rate that were shown since the last label and whose window is over.
    waiting: (slot of event time, items shown in it) since the last label, not ripe yet, oldest first. doubt_us: groups shown
    before it are suspect unless they have a label: NOBODY, EVERYBODY (labels have stopped), or when they came back.
    """

    labels: float = 0.0
    items: float = 0.0
    silent: float = 0.0
    waiting: tuple[tuple[int, int], ...] = ()
    doubt_us: int = NOBODY

    @property
    def stopped(self) -> bool:
        """Labels have stopped."""
        return self.doubt_us == EVERYBODY

    def shown(self, watermark_us: int, items: int, reach_us: int) -> Pulse:
        """A slate was shown. reach_us: how long an impression waits for its labels."""
        if watermark_us < self.doubt_us + reach_us:
            return self
        slot = watermark_us * SLOTS // reach_us
        waiting = self.waiting
        if waiting and waiting[-1][0] == slot:
            waiting = (*waiting[:-1], (slot, waiting[-1][1] + items))
        else:
            waiting = (*waiting, (slot, items))
        return Pulse(self.labels, self.items + items, self.silent, waiting, self.doubt_us)

    def label(self, watermark_us: int, reach_us: int) -> Pulse:
        """An action that makes a label came, whatever became of it. Those that come within a window of the return may have
        been held up, and say nothing of the usual rate."""
        if self.stopped:
            return Pulse(self.labels, self.items, doubt_us=watermark_us)
        if watermark_us < self.doubt_us + reach_us:
            return self
        labels, items = self.labels + 1, self.items
        if labels >= 2 * MEMORY:
            labels, items = labels / 2, items / 2
        return Pulse(labels, items, doubt_us=self.doubt_us)

    def at(self, watermark_us: int, reach_us: int, most_silent: float) -> Pulse:
        """Time has come to watermark_us. most_silent: so many labels missing in a row mean that they have stopped."""
        ripe = watermark_us * SLOTS // reach_us - SLOTS
        if not self.waiting or self.waiting[0][0] >= ripe:
            return self
        items = sum(count for slot, count in self.waiting if slot < ripe)
        silent = self.silent + items * min(self.labels / self.items, 1.0)
        waiting = tuple(one for one in self.waiting if one[0] >= ripe)
        doubt_us = EVERYBODY if silent >= most_silent else self.doubt_us
        return Pulse(self.labels, self.items, silent, waiting, doubt_us)


def to_text(pulse: Pulse) -> str:
    """For a commit's metadata: without spaces, exact."""
    waiting = ",".join(f"{slot}:{count}" for slot, count in pulse.waiting)
    return f"{pulse.labels!r};{pulse.items!r};{pulse.silent!r};{pulse.doubt_us};{waiting}"


def from_text(text: str) -> Pulse:
    """What to_text wrote."""
    labels, items, silent, doubt_us, waiting = text.split(";")
    slots = (one.split(":") for one in waiting.split(",") if one)
    return Pulse(float(labels), float(items), float(silent), tuple((int(slot), int(n)) for slot, n in slots), int(doubt_us))
