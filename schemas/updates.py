"""model-updates: the versions of trainers' stores in Kafka, key for key and byte for byte.

A record is one key and value of a store (schemas/snapshot.py): a version's chunks in order, then its manifest, so that what a
receiver writes into a store of its own is what the trainer wrote into its. Several models may share the topic; the headers say
whose record it is. `history` names the line of versions that a sender began in the topic, later ones by larger numbers.
A manifest's headers also name the version that was sent before it, so that a receiver knows when it missed one; the offset
from which on the topic holds all that the version is made of; and the versions that are pinned.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from schemas.errors import SnapshotError

CHUNK_RECORD_BYTES = 1 << 20  # a chunk's record, with its key, headers and what Kafka adds, is smaller than this

Headers = Sequence[tuple[str, bytes]]
Place = tuple[str, int]   # lineage and number of a version


@dataclass(frozen=True, slots=True)
class Told:
    """What a manifest's headers say. after: None where its sender sent nothing before; whole: None where the topic does not
    hold all of it."""

    model: str
    history: int
    after: Place | None = None
    whole: int | None = None
    pinned: tuple[int, ...] = ()


def chunk_headers(model: str, history: int) -> list[tuple[str, bytes]]:
    """Of a chunk's record."""
    return [("model", model.encode()), ("history", str(history).encode())]


def manifest_headers(told: Told) -> list[tuple[str, bytes]]:
    """Of a manifest's record."""
    after = "" if told.after is None else f"{told.after[0]} {told.after[1]}"
    whole = "" if told.whole is None else str(told.whole)
    return [
        *chunk_headers(told.model, told.history), ("after", after.encode()), ("whole", whole.encode()),
        ("pinned", " ".join(map(str, told.pinned)).encode()),
    ]


def is_of(model: str, headers: Iterable[tuple[str, bytes]]) -> bool:
    """Whether it is a record of that model."""
    return ("model", model.encode()) in ((name, value) for name, value in headers)


def told(headers: Headers) -> Told:
    """Raises SnapshotError for headers that no sender of ours wrote."""
    found = dict(headers)
    try:
        lineage, _, number = found.get("after", b"").decode().partition(" ")
        return Told(
            model=found["model"].decode(), history=int(found["history"]),
            after=(lineage, int(number)) if lineage else None,
            whole=int(found["whole"]) if found.get("whole") else None,
            pinned=tuple(int(one) for one in found.get("pinned", b"").split()),
        )
    except (KeyError, ValueError) as wrong:
        raise SnapshotError(f"a record of model-updates has headers that are none of ours: {wrong!r}") from wrong
