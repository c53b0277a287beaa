"""What a joiner holds in memory until labels are final, and the limit at which it stops and says why. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.bags import Bags
from schemas.config import JoinConfig
from schemas.errors import FreshetError

# Measured with tracemalloc on slates of 1 to 100 items (docs/bench-join.md): what an open impression costs beside its ids.
IMPRESSION_BYTES = 1500
ITEM_BYTES = 70
RECENT = 10_000         # impressions that the mean follows
ROOM = 1.25             # for what a process needs beside: the limit that an error asks for lies above the need


class MemoryLimit(FreshetError):
    """A joiner would need more memory than it may have. The operator gives more, or shortens the window; trying again as it
    is does not help."""


class Holding:
    """Bytes per open impression, as those that came lately were."""

    def __init__(self, config: JoinConfig) -> None:
        self._config = config
        self._seen = 0
        self.bytes_per_impression = float(IMPRESSION_BYTES)

    def add(self, found: Sequence[Bags]) -> None:
        """More impressions, as their bags."""
        if found:
            self._seen = min(self._seen + len(found), RECENT)
            mean = sum(map(bytes_of, found)) / len(found)
            self.bytes_per_impression += (mean - self.bytes_per_impression) * min(len(found) / self._seen, 1.0)

    def check(self, held: int, span_us: int) -> None:
        """held: impressions whose labels are not final. span_us: event time from the oldest of them on.

        Raises MemoryLimit where they take more than join.memory_mb.
        """
        used_mb = held * self.bytes_per_impression / 1e6
        if used_mb <= self._config.memory_mb:
            return
        window_s = self._config.window_s + self._config.lateness_s
        rate = held / min(max(span_us / 1e6, 1e-3), window_s)
        needed_mb = max(rate * window_s * self.bytes_per_impression / 1e6, used_mb)
        raise MemoryLimit(
            f"join.memory_mb={self._config.memory_mb} is reached: {held:,} impressions wait for their labels, "
            f"{self.bytes_per_impression / 1e3:.1f} kB each. window × rate needs {needed_mb:,.0f} MB ({window_s:g} s × "
            f"{rate:,.0f} impressions/s). Nothing is lost, the joiner goes on from its last commit: set "
            f"join.memory_mb={needed_mb * ROOM:.0f}, or a shorter join.window_s, or share the partitions with another joiner"
        )


def bytes_of(bags: Bags) -> int:
    """Of memory that an impression with these bags takes until its window is over."""
    values = 0 if bags.values is None else bags.values.nbytes
    lengths = 0 if bags.lengths is None else bags.lengths.nbytes
    return IMPRESSION_BYTES + len(bags) * ITEM_BYTES + bags.ids.nbytes + values + lengths
