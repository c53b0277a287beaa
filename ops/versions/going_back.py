"""Whether a version is pinned, and what going back to it would begin from, until when."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ops.versions.store import opened
from schemas.config import Settings
from schemas.errors import BrokerError, SnapshotError
from schemas.snapshot import Kind, Manifest, checkpoint_before


@contextmanager
def going_back(settings: Settings, kind: Kind) -> Iterator[Callable[[Manifest], dict[str, Any]]]:
    """What can be told of a version besides itself: is it pinned, and what going back to it would begin from, until when.
    Of checkpoints nothing. Without a broker, when it can be replayed is not known (null)."""
    if kind == "checkpoint":
        yield lambda _: {}
        return
    from ops.versions.control import Retention  # kafka-python takes an eighth of a second
    try:
        with opened(settings, "checkpoint") as reader:
            checkpoints = list(reader.manifests().values())
    except SnapshotError:
        checkpoints = []
    retention: Retention | None = None
    with suppress(BrokerError):
        retention = Retention(settings)
    known: dict[int, dict[str, Any]] = {}

    def tell(version: Manifest) -> dict[str, Any]:
        start = checkpoint_before(checkpoints, version)
        found = {"replayable": None if start else False, "replayable_until_us": None}
        if start is not None and retention is not None:
            if start.number not in known:
                known[start.number] = retention.replayable(start.offsets)
            found = known[start.number]
        pinned = checkpoints[-1].pinned if checkpoints else ()
        return {"pinned": version.number in pinned, "back_to": version.back_to,
                "checkpoint": start.number if start else None, **found}

    try:
        yield tell
    finally:
        if retention is not None:
            retention.close()
