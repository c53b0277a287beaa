"""What open impressions cost, and the limit that stops a joiner rather than let it drop them."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Sequence

import pytest

from schemas import fields
from schemas.bags import Bags
from schemas.config import JoinConfig
from schemas.errors import BadEvent
from schemas.events import Impression, encoded
from schemas.fields import Slate
from stream_trainer.joining.holding import Holding, MemoryLimit, bytes_of
from stream_trainer.joining.join import BEGINNING, JoinCore
from tests.kit.logs import FAR, SCHEMA, impression

COUNT = 1000


def _bags(items: int) -> Bags:
    slate = Slate([f"i{n}" for n in range(items)], {"user": "u"}, {})
    return fields.Encoder(SCHEMA, training=True).encode(slate)[0]


@pytest.mark.parametrize("items", [1, 20])
def test_the_estimate_is_what_the_memory_says(items: int) -> None:
    """Within a quarter of what Python's own allocator counts for impressions that a join holds."""
    names = [f"item-number-{n}" for n in range(items)]
    log = [impression(f"impression-{n:08d}", n / 1000, names) for n in range(2 * COUNT)]
    encoder, sizes = fields.Encoder(SCHEMA, training=True), list[int]()

    def encode(shown: Sequence[Impression]) -> list[Bags | BadEvent]:
        found = encoded(shown, encoder.encode_all)
        sizes.extend(bytes_of(bags) for bags in found if isinstance(bags, Bags))
        return found

    core = JoinCore(0, JoinConfig(window_s=60), BEGINNING, encode, SCHEMA.numbers, SCHEMA.digests)
    for offset in range(COUNT):                    # what grows once (tables, caches) has grown
        core.feed(offset, FAR, log[offset])
    sizes.clear()
    gc.collect()
    tracemalloc.start()
    try:
        for offset in range(COUNT, 2 * COUNT):
            core.feed(offset, FAR, log[offset])
        gc.collect()
        measured = tracemalloc.get_traced_memory()[0] / COUNT
    finally:
        tracemalloc.stop()
    assert core.open == 2 * COUNT
    assert sum(sizes) / COUNT == pytest.approx(measured, rel=0.25)


def test_a_limit_says_what_window_times_rate_needs() -> None:
    """100 impressions/s for 60 s of a window of 600 s: a tenth of the need is held when the limit is met."""
    holding = Holding(JoinConfig(window_s=600, memory_mb=1))
    bags = _bags(10)
    holding.add([bags])
    each = bytes_of(bags)
    held = 1_000_000 // each
    holding.check(held, 60_000_000)
    with pytest.raises(MemoryLimit) as caught:
        holding.check(held + 1, 60_000_000)
    rate = (held + 1) / 60
    assert f"window × rate needs {rate * 600 * each / 1e6:,.0f} MB (600 s × {rate:,.0f} impressions/s)" in str(caught.value)
    assert "join.memory_mb=1 is reached" in str(caught.value)


def test_the_estimate_follows_the_traffic() -> None:
    """Slates that became larger are counted as such."""
    holding = Holding(JoinConfig())
    for _ in range(100):
        holding.add([_bags(1)])
    assert holding.bytes_per_impression == pytest.approx(bytes_of(_bags(1)))
    for _ in range(100):
        holding.add([_bags(101)])
    assert holding.bytes_per_impression == pytest.approx((bytes_of(_bags(1)) + bytes_of(_bags(101))) / 2)
