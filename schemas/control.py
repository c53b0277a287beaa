"""Orders to a model that runs: what operators write to the topic `model-control` and its trainer obeys.

An order is named by its offset there. The topic is compacted by key, so of the orders about one version's pin, and of all
rollbacks, and of all to the gate, the newest counts: an order may go unseen only if a later one undoes what it asked for.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import orjson

from schemas.errors import FreshetError

What = Literal["pin", "unpin", "rollback", "hold", "release"]
Then = Literal["replay", "skip"]


class ControlError(FreshetError):
    """A record of model-control is no order, or an order cannot be obeyed. All goes on as it was."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """version, lineage: which version of whose weights is meant; 0 and "" of orders to the gate (hold, release), which mean
    what comes next. then: after a rollback, learn again what came since (replay) or go on from here (skip); None for the
    others. ordered_us: wall clock of who ordered it."""

    what: What
    model: str
    lineage: str = ""
    version: int = 0
    then: Then | None = None
    ordered_us: int = 0

    def __post_init__(self) -> None:
        if self.what not in get_args(What) or (self.then in get_args(Then)) != (self.what == "rollback"):
            raise ControlError(f"no order: {self.what!r} of version {self.version}, then {self.then!r}")

    @property
    def to_gate(self) -> bool:
        """Whether it is about what goes live, not about a version."""
        return self.what in ("hold", "release")

    @property
    def key(self) -> bytes:
        """What a later order with the same key makes obsolete."""
        if self.to_gate:
            return f"{self.model}/gate".encode()
        return f"{self.model}/rollback".encode() if self.what == "rollback" else f"{self.model}/pin/{self.version}".encode()


def encode(order: Order) -> bytes:
    """JSON."""
    return orjson.dumps(asdict(order))


def decode(value: bytes | None) -> Order:
    """Raises ControlError."""
    try:
        plain: Any = orjson.loads(value or b"")
        return Order(**{**plain, "version": int(plain["version"])})
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as wrong:
        raise ControlError(f"a record of model-control is no order: {wrong}") from wrong
