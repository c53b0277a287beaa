"""Events of a file → batches, by the join and the intake of the stream, in one process without Kafka."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from ops.formats import BadRow, Broken, EventRecord, closing_tick, opening_tick
from ops.offline.judging import NO_GROUP
from schemas import fields
from schemas.bags import Bags
from schemas.config import Settings
from schemas.errors import BadEvent, ConfigError
from schemas.events import Impression, encoded
from schemas.fields import FieldSchema, Slate
from stream_trainer.joining.corrections import SecondPass
from stream_trainer.joining.join import BEGINNING, JoinCore
from stream_trainer.learning.intake import Intake

PIECE_EVENTS = 256  # read at once: the join's records are cut by count, so it changes nothing


def for_files(settings: Settings) -> Settings:
    """The same for a file, which has all the labels that it will have: none are missing because they stopped."""
    return replace(settings, join=replace(settings.join, suspect_labels=0.0))


@dataclass(slots=True)
class Groups:
    """Groups by number, in the order in which they came."""

    numbers: dict[str, int] = field(default_factory=dict)

    def number(self, group: str | None) -> int:
        return NO_GROUP if group is None else self.numbers.setdefault(group, len(self.numbers))


class FileEvents:
    """Feed it, offer what is final to its intake, close it. With `names` it also remembers the group of each row."""

    def __init__(self, settings: Settings, schema: FieldSchema, names: Groups | None, broken: Broken | None) -> None:
        encoder = fields.Encoder(schema, training=True)

        def encode(shown: Sequence[Impression]) -> list[Bags | BadEvent]:
            for one in () if self._fits else shown:
                self._look(one.slate)
            return encoded(shown, encoder.encode_all)

        self._known = {spec.name for spec in schema.fields} - {"item_id", "position"}   # these two come of themselves
        self._fits = not self._known                        # a field of the schema has come
        self._foreign: dict[str, None] = {}                 # what came before that, in its order
        self.intake = Intake(schema, settings.learn.batch_rows)
        self.join = JoinCore(0, settings.join, BEGINNING, encode, schema.numbers, schema.digests)
        self._second = SecondPass(
            0, settings.join, BEGINNING, encode, schema.numbers, schema.digests
        ) if settings.join.mode == "corrected" else None
        self._behind: deque[tuple[int, int, bytes]] = deque()   # what the second pass has read ahead and not joined
        self._settings = settings
        self._names = names
        self._broken = broken
        self._last_us = 0
        self._written = 0
        self._piece: list[tuple[int, int, bytes]] = []      # events that wait to be joined
        self._rows = array("q")                             # of the file, by the event's offset
        self._group_of_event: list[int] = []                # by the event's offset

    def feed(self, record: EventRecord) -> bool:
        """The next event of the file. Whether it was joined, with those before it: they are read together."""
        if not self._rows:
            self._add(record.time_us, opening_tick(record.time_us), NO_GROUP, record.row)
        group = NO_GROUP if self._names is None else self._names.number(record.group)
        self._add(record.time_us, record.value, group, record.row)
        self._last_us = max(self._last_us, record.time_us)
        if len(self._piece) < PIECE_EVENTS:
            return False
        self._join()
        return True

    def close(self) -> None:
        """No more will come: every window closes, and so does the last batch."""
        if self._last_us:
            self._add(self._last_us, closing_tick(self._settings, self._last_us), NO_GROUP, self._rows[-1])
        self._join()

    def offer(self, flush: bool = False) -> None:
        """Let the intake have what the join has made final. Raises ConfigError for events of another schema altogether."""
        if self._foreign and not self._fits:
            raise ConfigError(
                f"model.schema={self._settings.model.schema}: none of its fields ({_some(sorted(self._known))}) is in this "
                f"file, which has {_some(self._foreign)}. Set model.schema to one that names them"
            )
        for record in [*self.join.records(0, flush), *(self._second.records(0, flush) if self._second else ())]:
            self.intake.offer(0, self._written, record)
            self._written += 1

    def _look(self, slate: Slate) -> None:
        names = [*slate.context, *slate.columns]
        self._fits = not self._known.isdisjoint(names)
        self._foreign.update(dict.fromkeys(names))

    def groups(self, impressions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of rows, by the offsets of their impressions."""
        return np.array(self._group_of_event, np.int64)[impressions]

    def _add(self, time_us: int, value: bytes, group: int, row: int) -> None:
        self._piece.append((len(self._rows), time_us, value))
        self._rows.append(row)
        if self._names is not None:
            self._group_of_event.append(group)

    def _join(self) -> None:
        """Join what waits."""
        piece, self._piece = self._piece, []
        unusable = len(self.join.dead_letters)
        self.join.feed_all(piece)
        if self._broken is not None:
            for letter in self.join.dead_letters[unusable:]:
                self._broken.add(BadRow(self._rows[letter.offset], letter.text))
        if self._second is not None:
            for record in piece:
                self._second.ahead(record)
                self._behind.append(record)
                while self._behind and self._second.may_follow(*self._behind[0]):
                    self._second.behind(self._behind.popleft())


def _some(names: Iterable[str], most: int = 4) -> str:
    """The first few."""
    few = list(islice(names, most + 1))
    return ", ".join(few[:most]) + (" …" if len(few) > most else "")
