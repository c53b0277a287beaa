"""What lies between Faust's consumer and a handler: pieces of what was fetched, in order, none from before a rebalance."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from aiokafka.errors import NoOffsetForPartitionError
from hypothesis import given
from hypothesis import strategies as st

from schemas.config import KafkaConfig
from stream_trainer.faust_driver import PIECE_BYTES, PIECE_RECORDS, Record, _app, pieces


@dataclass(frozen=True)
class Fetched:
    """A record as aiokafka has it, as far as it is looked at."""

    partition: int
    offset: int
    timestamp: int = 7
    key: bytes | None = None
    value: bytes | None = b"v"


def fetched(*counts: int, value: bytes = b"v") -> dict[Any, Sequence[Fetched]]:
    """So many records of each partition."""
    return {place: [Fetched(place, offset, value=value) for offset in range(count)] for place, count in enumerate(counts)}


@given(counts=st.lists(st.integers(0, 3 * PIECE_RECORDS), max_size=4))
def test_every_record_comes_once_and_in_its_partitions_order(counts: list[int]) -> None:
    """Whatever was fetched of how many partitions; a piece is of one partition and never empty."""
    found: dict[int, list[int]] = {place: [] for place in range(len(counts))}
    for piece in pieces(fetched(*counts)):
        assert 1 <= len(piece) <= PIECE_RECORDS
        assert len({record.partition for record in piece}) == 1
        found[piece[0].partition] += [record.offset for record in piece]
    assert found == {place: list(range(count)) for place, count in enumerate(counts)}


def test_a_partition_with_much_waits_for_one_with_little() -> None:
    """In turns: the second partition's only record comes after one piece of the first, not after all of it."""
    order = [piece[0].partition for piece in pieces(fetched(4 * PIECE_RECORDS, 1))]
    assert order == [0, 1, 0, 0, 0]


def test_large_records_make_small_pieces() -> None:
    """The event loop has its turn after a bounded amount of work, be it few records."""
    sizes = [len(piece) for piece in pieces(fetched(6, value=bytes(PIECE_BYTES // 2)))]
    assert sizes == [2, 2, 2]


@dataclass
class Rebalanced:
    """A handler whose partitions are given anew while it has a piece in hand."""

    consumer: Any = None
    seen: int = 0

    async def records(self, records: Sequence[Record]) -> None:
        self.seen += len(records)
        await asyncio.sleep(0)
        self.consumer.turn += 1


@dataclass
class Fetching:
    """The consumer's thread, as far as fetching goes: aiokafka has records, or no place to begin at."""

    answer: dict[Any, Sequence[Fetched]] | Exception

    def _ensure_consumer(self) -> None:
        """There is one."""

    async def _fetch_records(self, *_: Any, **__: Any) -> dict[Any, Sequence[Fetched]]:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_what_comes_before_the_handler_has_said_where_to_start_is_dropped() -> None:
    """Between two assignments aiokafka goes on from the stored offsets by itself, or cannot: the handler hears of neither.
    A woken joiner once fed such records to what it held from before, and the events between were lost."""
    consumer: Any = object.__new__(_app(KafkaConfig(), "events", "group", "member", Rebalanced()).transport.Consumer)  # type: ignore[arg-type]
    for answer in (fetched(3), NoOffsetForPartitionError("none")):
        consumer._thread = Fetching(answer)
        consumer.placed = False
        assert asyncio.run(consumer._fetch(set())) == (consumer.turn, {})
        consumer.placed = True
        if isinstance(answer, Exception):
            with pytest.raises(NoOffsetForPartitionError):
                asyncio.run(consumer._fetch(set()))
        else:
            assert asyncio.run(consumer._fetch(set())) == (consumer.turn, answer)


@pytest.mark.parametrize("stale", [False, True], ids=["in hand", "before it began"])
def test_what_was_fetched_before_a_rebalance_is_not_handed_on_after_it(stale: bool) -> None:
    """The rest of a fetch is dropped when the assignment changes under it, and all of it when that happened before."""
    handler: Any = Rebalanced()
    app = _app(KafkaConfig(), "events", "group", "member", handler)
    consumer: Any = object.__new__(app.transport.Consumer)   # its loop over fetches, without a broker to fetch from
    handler.consumer = consumer
    asyncio.run(consumer._hand_on(consumer.turn - stale, fetched(3 * PIECE_RECORDS)))
    assert handler.seen == (0 if stale else PIECE_RECORDS)
