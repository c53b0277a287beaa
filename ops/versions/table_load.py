"""How full a model's table is, and how many ids share a row: from the numbers of the rows that its store names.

n ids thrown into m rows touch m·(1 − (1 − 1/m)^n) ≈ m·(1 − e^(−n/m)) of them, and an id is alone in its row with chance
e^(−(n−1)/m). So n ≈ −m·ln(1 − touched/m), and the share of ids that share their row is about touched/m, the load itself.
Source: Mitzenmacher, Upfal, Probability and Computing, 2nd ed., section 5.4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scorer.versions.reader import SnapshotReader

ENOUGH_ROWS = 20_000   # counted rows after which the load is known to under a percent of itself
SHARE_ADVISED = 0.2    # of ids that share a row: above it, more rows gained AUC (docs/memory.md)
SHARE_TOO_LARGE = 0.5  # half of all ids: the table does not do what it is for
MOST_BITS = 30         # of model.bits


@dataclass(frozen=True, slots=True)
class Load:
    """touched: rows of the table's 2^bits that were ever touched, as far as the newest version tells."""

    bits: int
    touched: int

    @property
    def rows(self) -> int:
        return 1 << self.bits

    @property
    def share(self) -> float:
        """Of ids that share their row with another one."""
        return self.touched / self.rows

    @property
    def ids(self) -> float:
        """Distinct ones that touched so many rows; inf where all are touched."""
        return -self.rows * math.log1p(-self.share) if self.touched < self.rows else math.inf

    @property
    def advised_bits(self) -> int:
        """The smallest table, none smaller than this one, in which few of these ids share a row."""
        wanted = min(max(self.ids / -math.log1p(-SHARE_ADVISED), 1.0), 2.0**MOST_BITS)
        return max(self.bits, math.ceil(math.log2(wanted)))

    def share_at(self, bits: int) -> float:
        """Of these ids in another table."""
        return -math.expm1(-self.ids / (1 << bits))


def load_of(reader: SnapshotReader) -> Load | None:
    """From the newest version back, until enough rows are counted; None where there is no version. Raises SnapshotError.

    A version holds every row ever touched whose number is its share modulo the rotation, and the first of a lineage all.
    """
    newest = reader.poll()
    if newest is None:
        return None
    manifests = reader.manifests()
    first = manifests[newest]
    bits = int(first.model["bits"])
    if first.parent is None:
        return Load(bits, first.rows)
    counted, classes, at = 0, 0, manifests.get(newest)
    while at is not None and at.parent is not None and at.rotation == first.rotation and classes < first.rotation:
        counted += sum(int((rows % at.rotation == at.share).sum()) for rows, _ in reader.read(at).rows)
        classes += 1
        if counted >= ENOUGH_ROWS:
            break
        at = manifests.get(at.parent)
    return Load(bits, min(round(counted * first.rotation / classes), 1 << bits))
