"""What the orders of model-control have led to so far: pins, and how far the orders are obeyed. Pure.

Both are kept in every checkpoint, so an order is obeyed once wherever the trainer is killed: one that the newest checkpoint
does not know is still to be obeyed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from schemas.control import ControlError, Order
from schemas.snapshot import Manifest


@dataclass(frozen=True, slots=True)
class Given:
    """An order at its offset in model-control. earliest: partition of `examples` → first offset that there was when the
    order was read; of rollbacks alone."""

    offset: int
    order: Order
    earliest: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Control:
    """next_offset: every order before it is obeyed or refused. pinned: versions that stay."""

    next_offset: int = 0
    pinned: frozenset[int] = frozenset()

    @classmethod
    def of(cls, checkpoint: Manifest | None) -> Control:
        """As a checkpoint has it; at the beginning, if there is none."""
        return cls() if checkpoint is None else cls(checkpoint.control, frozenset(checkpoint.pinned))

    def knows(self, given: Given) -> bool:
        """Whether that order is obeyed, or refused, already."""
        return given.offset < self.next_offset

    def past(self, given: Given) -> Control:
        """The order is done with."""
        return replace(self, next_offset=given.offset + 1)

    def after(self, given: Given, versions: Mapping[int, Manifest]) -> Control:
        """With that order obeyed, as far as pins go. versions: what the store holds.

        Raises ControlError where the version is not there, or another one has its number.
        """
        order = given.order
        if order.to_gate:
            return self.past(given)
        if order.what == "unpin":
            return replace(self.past(given), pinned=self.pinned - {order.version})
        version = versions.get(order.version)
        if version is None:
            raise ControlError(f"version {order.version} is not in the store")
        if version.lineage != order.lineage:
            raise ControlError(
                f"version {order.version} is of lineage {version.lineage[:8]}, the order means {order.lineage[:8]}"
            )
        return replace(self.past(given), pinned=self.pinned | ({order.version} if order.what == "pin" else set()))
