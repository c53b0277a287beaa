"""From records of `examples` to batches, each row once. Pure: records in, batches out, cursors kept.

A record is taken, dropped (all of it lies behind the cursor of its source partition), or refused (a gap lies before it: the
joiner that lost a record writes it again). Rows wait in the order of arrival. A batch is cut at exactly `batch_rows`, be it
inside a slate, so that what a batch holds depends on the log alone; or earlier at the end of a replay; or when the caller
says that waiting has been long enough.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import structlog
from numpy.typing import NDArray

from schemas.bags import Bags, concat
from schemas.errors import SchemaError
from schemas.examples import Cursor, End, Examples, Stage
from schemas.fields import FieldSchema, aligned
from stream_trainer.learning.losses import Seen, concat_seen

# bags of n rows, source and impression (n,) → keys (n, K).
KeysOf = Callable[[Bags, NDArray[np.int64], NDArray[np.int64]], NDArray[np.uint64]]

_END_NAMES = {int(end): end.name.lower() for end in End}

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """B rows to learn at once.

    bags: B rows of ids. labels: (B,) f32. weights: (B,) f32 or None = 1. click_time_us: (B,) i64, 0 = no click.
    at_once: (B,) u8, 1 = final when its click came.
    joined_us: (B,) i64, wall clock of the joiner. served_probability: (B,) f32, NaN = not given.
    source, impression, item: (B,), the row's impression by source partition and offset, and its place there.
    seen: how labels came about that are not all final, or not of all examples. keys: (B, K) u64, by what each is watched;
    None = by nothing. values: (B, V) u64, first ids of some fields; None = nobody wants them.
    """

    bags: Bags
    labels: NDArray[np.float32]
    weights: NDArray[np.float32] | None
    click_time_us: NDArray[np.int64]
    at_once: NDArray[np.uint8]
    joined_us: NDArray[np.int64]
    served_probability: NDArray[np.float32]
    source: NDArray[np.int64]
    impression: NDArray[np.int64]
    item: NDArray[np.uint16]
    seen: Seen | None = None
    keys: NDArray[np.uint64] | None = None
    values: NDArray[np.uint64] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, start: int, stop: int) -> Batch:
        """Rows start ≤ i < stop, where they stand."""
        columns = {name: getattr(self, name)[start:stop] for name in _COLUMNS}
        some: dict[str, Any] = {name: None if (own := getattr(self, name)) is None else own[start:stop] for name in _OPTIONAL}
        seen = None if self.seen is None else self.seen.slice(start, stop)
        return Batch(bags=self.bags.slice(start, stop), seen=seen, **columns, **some)


_COLUMNS = ("labels", "click_time_us", "at_once", "joined_us", "served_probability", "source", "impression", "item")
_OPTIONAL = ("weights", "keys", "values")


def concat_batches(parts: Sequence[Batch]) -> Batch:
    """One after the other, at least one; a single one as it is."""
    if len(parts) == 1:
        return parts[0]
    columns: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS}
    seen = concat_seen([(len(part), part.seen) for part in parts])
    for name in ("keys", "values"):
        some = [column for part in parts if (column := getattr(part, name)) is not None]
        columns[name] = np.concatenate(some) if len(some) == len(parts) else None
    return Batch(bags=concat([part.bags for part in parts]), weights=concat_weights(parts), seen=seen, **columns)


def concat_weights(parts: Sequence[Batch]) -> NDArray[np.float32] | None:
    """Those of all rows, one after the other; None = 1."""
    if all(part.weights is None for part in parts):
        return None
    return np.concatenate([np.ones(len(part), np.float32) if part.weights is None else part.weights for part in parts])


class Ready(NamedTuple):
    """A record, and all its rows as a batch; None where there are none, or none that can be learnt."""

    examples: Examples
    batch: Batch | None


@dataclass(slots=True)
class _Waiting:
    """A record whose rows are not all learnt."""

    partition: int   # of the topic examples
    offset: int
    examples: Examples
    batch: Batch | None   # all its rows
    row: int         # first row that no batch holds
    end: int         # first end that is not counted

    @property
    def rows(self) -> int:
        return len(self.examples) - self.row

    @property
    def flushes(self) -> bool:
        return bool(np.any(self.examples.ends.reason[self.end :] == End.FLUSH))


class Intake:
    """What has come and is not learnt yet, and how far each partition is learnt.

    cursors: source partition → name of the last row learnt (or place behind it). tallies: how many events met which
    end (End in lower case), and what was learnt: examples, positives, impressions; and of a second pass over the log:
    corrections, true_positives, late_positives (those of them that had been seen as negatives).
    resume: partition of `examples` → first offset that must be read again after a crash. All three are true of the moment
    before the next `take`: save them together with the weights.
    """

    def __init__(
        self, schema: FieldSchema, batch_rows: int, cursors: Mapping[int, Cursor] | None = None,
        tallies: Mapping[str, int] | None = None, resume: Mapping[int, int] | None = None, keys: KeysOf | None = None,
        values: Callable[[Bags], NDArray[np.uint64]] | None = None,
    ) -> None:
        """keys, values: make those columns of a batch, of a whole record at once; None = nobody wants them."""
        self.cursors: dict[int, Cursor] = dict(cursors or {})
        self.tallies: Counter[str] = Counter(tallies or {})
        self.resume: dict[int, int] = dict(resume or {})
        self.dropped = 0   # rows behind the cursor: written twice, learnt once
        self.gaps = 0      # records refused
        self._keys, self._values = keys, values
        self._schema = schema
        self._batch_rows = batch_rows
        self._waiting: deque[_Waiting] = deque()
        self._rows = 0
        self._settled: list[tuple[int, int]] = []
        self._settled_before = 0
        self._heads: dict[int, Cursor] = dict(self.cursors)  # how far each source partition has come in, learnt or not

    @property
    def rows(self) -> int:
        """Rows that wait."""
        return self._rows

    def ready(self, examples: Examples) -> Ready:
        """A record as batches are cut from it, whatever came before: on any thread. That a field changed its meaning is said
        when one of its rows is to be learnt."""
        try:
            return Ready(examples, self._made(examples) if len(examples) else None)
        except SchemaError:
            return Ready(examples, None)

    def _made(self, examples: Examples) -> Batch:
        batch = _whole(self._schema, examples)
        keys = None if self._keys is None else self._keys(batch.bags, batch.source, batch.impression)
        return replace(batch, keys=keys, values=None if self._values is None else self._values(batch.bags))

    def offer(self, partition: int, offset: int, record: Examples | Ready) -> None:
        """The next record of a partition of `examples`."""
        examples, batch = record if isinstance(record, Ready) else self.ready(record)
        source = examples.source_partition
        head = self._heads.get(source)
        if head is not None and examples.after > head:
            self.gaps += 1
            log.error("examples.gap", source_partition=source, offset=offset, learnt_to=tuple(head),
                      record_after=tuple(examples.after))
            return
        row = examples.first_after(head) if head is not None else 0
        end = examples.first_end_after(head) if head is not None else 0
        self.dropped += row
        self._heads[source] = max(head, examples.through) if head is not None else examples.through
        self._waiting.append(_Waiting(partition, offset, examples, batch, row, end))
        self._rows += len(examples) - row
        self._settle()

    def take(self, force: bool = False) -> Batch | None:
        """The next batch if it is full, or ended by a replay's end, or `force`; the cursors then lie behind it. Raises
        SchemaError if a field changed its meaning."""
        rows = self._cut()
        if rows < self._batch_rows and not (rows and (force or self._flush_waits())):
            return None
        parts, late = list[Batch](), self.tallies["late_positives"] / max(self.tallies["true_positives"], 1)
        left = rows
        while left:
            first = self._waiting[0]
            count = min(left, first.rows)
            whole = self._made(first.examples) if first.batch is None else first.batch
            part = whole.rows(first.row, first.row + count)
            parts.append(part if part.seen is None else replace(part, seen=part.seen.with_late(late)))
            first.row += count
            left -= count
            self._learnt_to(first)
            self._settled_before = len(self._settled)
            self._settle()
        self._rows -= rows
        batch = concat_batches(parts)
        self._tally(batch.labels, batch.item, batch.seen)
        return batch

    def settled(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Impressions, by source and offset, whose labels have all come: before the last row taken, and after it. Each is told
        once."""
        before, after = self._settled[: self._settled_before], self._settled[self._settled_before :]
        self._settled, self._settled_before = [], 0
        return before, after

    def _cut(self) -> int:
        """How many rows the next batch may hold: not over batch_rows, not past a replay's end."""
        rows = 0
        for waiting in self._waiting:
            rows += waiting.rows
            if rows >= self._batch_rows:
                return self._batch_rows
            if waiting.flushes:
                break
        return rows

    def _flush_waits(self) -> bool:
        return any(waiting.flushes for waiting in self._waiting)

    def _learnt_to(self, waiting: _Waiting) -> None:
        """Move the cursor to the last row taken, and count the ends that lie before it."""
        examples = waiting.examples
        name = examples.name(waiting.row - 1)
        self._count(waiting, examples.first_end_after(name))
        self._advance(examples.source_partition, name)

    def _settle(self) -> None:
        """Let go of records at the head that hold no more rows: their ends are counted, their stretch is done."""
        while self._waiting and not self._waiting[0].rows:
            done = self._waiting.popleft()
            self._count(done, len(done.examples.ends))
            self._advance(done.examples.source_partition, done.examples.through)
            self.resume[done.partition] = done.offset + 1
        for waiting in self._waiting:
            self.resume.setdefault(waiting.partition, waiting.offset)

    def _advance(self, source: int, place: Cursor) -> None:
        self.cursors[source] = max(self.cursors.get(source, place), place)

    def _count(self, waiting: _Waiting, stop: int) -> None:
        """Ends up to `stop`, if they are not counted yet."""
        if stop <= waiting.end:
            return
        ends, part = waiting.examples.ends, slice(waiting.end, stop)
        waiting.end = stop
        reasons = ends.reason[part]
        for reason, count in enumerate(np.bincount(reasons).tolist()):
            if count:
                self.tallies[_END_NAMES[reason]] += count
        if ends.item is not None:
            unlearnt = (reasons == End.SAMPLED_OUT) | (reasons == End.SUSPECT)
            self.tallies["impressions"] += int(np.count_nonzero(unlearnt & (ends.item[part] == 0)))
        source = waiting.examples.source_partition
        self._settled += [(source, offset) for offset in ends.offset[part][reasons == End.SETTLED].tolist()]

    def _tally(self, label: NDArray[np.float32], item: NDArray[np.uint16], seen: Seen | None) -> None:
        """Count what is learnt. Each impression has one item 0, in some record or sampled out; in mode immediate its click is
        another example, in a second pass all are."""
        heads, positive = item == 0, label > 0.5
        if seen is not None:
            second = seen.stage >= Stage.TRUE
            self.tallies["corrections"] += int(second.sum())
            self.tallies["true_positives"] += int((second & positive).sum())
            self.tallies["late_positives"] += int((seen.stage == Stage.TRUE_LATE).sum())
            heads &= ~second & ~((seen.stage == Stage.IMMEDIATE) & positive)
            positive &= ~second
        self.tallies["examples"] += len(label) if seen is None else int(np.count_nonzero(seen.stage < Stage.TRUE))
        self.tallies["positives"] += int(positive.sum())
        self.tallies["impressions"] += int(heads.sum())


def _whole(schema: FieldSchema, examples: Examples) -> Batch:
    """All rows of a record, as they lie there. Raises SchemaError."""
    count = len(examples)
    served = examples.served_probability
    return Batch(
        bags=aligned(schema, examples.bags, examples.field_numbers, examples.field_digests), labels=examples.label,
        weights=examples.weight, click_time_us=examples.click_time_us,
        at_once=np.zeros(count, np.uint8) if examples.at_once is None else examples.at_once,
        joined_us=np.full(count, examples.joined_us, np.int64),
        served_probability=np.full(count, np.nan, np.float32) if served is None else served,
        source=np.full(count, examples.source_partition, np.int64), impression=examples.impression, item=examples.item,
        seen=_seen(examples),
    )


def _seen(examples: Examples) -> Seen | None:
    """How the labels of a record's rows came about, but for how many are late; None: all are final, and of all examples."""
    if examples.stage is None and not examples.negative_rate:
        return None
    count = len(examples)
    return Seen(
        np.full(count, Stage.FINAL, np.uint8) if examples.stage is None else examples.stage, np.zeros(count, np.float32),
        np.full(count, examples.negative_rate or 1.0, np.float32),
    )
