"""Whether a table fits into this machine: what it takes once every row is touched, beside what there is at the start.

Memory is taken from the system only as rows are touched, so a table that is too large begins like any other, and the system
kills its process when enough ids have come, after seconds or days. Hence the worst case is compared before anything is made,
and a start that cannot end well is refused with what to set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from schemas.errors import FreshetError

# What a process takes besides its table, later than the start: Kafka's buffers, batches, a snapshot in the making.
BESIDE_BYTES = 256 << 20
LEAST_BITS = 8   # of model.bits
_ENDLESS = 1 << 60  # cgroups say "no limit" as a number near 2^63


class DoesNotFit(FreshetError):
    """A table would need more memory than there is. The operator chooses a smaller one or gives more; trying again helps only
    if something else lets memory go."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A table in the worst case. who: whose it is. row_bytes: all that a touched row takes. bits: of its 2^bits rows.
    narrower: other settings with the row_bytes that they lead to."""

    who: str
    bits: int
    row_bytes: int
    narrower: Sequence[tuple[str, int]] = ()

    @property
    def rows(self) -> int:
        return 1 << self.bits

    @property
    def bytes(self) -> int:
        return self.rows * self.row_bytes


@dataclass(frozen=True, slots=True)
class Room:
    """What there is. where: who says so. beside: what has to stay free of it."""

    bytes: int
    where: str
    beside: int = BESIDE_BYTES

    def holds(self, size: int) -> bool:
        """Whether so many bytes fit."""
        return size <= self.bytes - self.beside


def room(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> Room:
    """The least of what the system can give without swapping and what each cgroup above this process has left."""
    free = Room(psutil.virtual_memory().available, "free now (MemAvailable)")
    return min([free, *_cgroups(proc, cgroups)], key=lambda one: one.bytes)


def check(wanted: Wanted, there: Room) -> None:
    """Raises DoesNotFit, saying how many rows and bytes were wanted, what there is and what to set."""
    if not there.holds(wanted.bytes):
        raise DoesNotFit(does_not_fit(wanted, there))


def does_not_fit(wanted: Wanted, there: Room) -> str:
    """What to say of a table too large."""
    bits = wanted.bits
    while bits > LEAST_BITS and not there.holds(wanted.row_bytes << bits):
        bits -= 1
    ways = []
    if there.holds(wanted.row_bytes << bits):
        ways.append(f"model.bits={bits} ({gib(wanted.row_bytes << bits)})")
    ways += [
        f"{setting} ({gib(wanted.rows * row_bytes)})" for setting, row_bytes in wanted.narrower
        if there.holds(wanted.rows * row_bytes)
    ]
    return (
        f"{wanted.who} does not fit: model.bits={wanted.bits} wants {wanted.rows:,} rows of {wanted.row_bytes:,} bytes, "
        f"{gib(wanted.bytes)} once all are touched; there are {gib(there.bytes)}, {there.where}, of which "
        f"{gib(there.beside)} stay for the rest of the process. It would begin, and be killed when enough ids have come. "
        + (f"Set {' or '.join(ways)}, or give it more memory" if ways else "Give it more memory: no table fits")
    )


def gib(size: int) -> str:
    """In the unit that a person wants."""
    return f"{size / 2**30:,.1f} GiB" if size >= 1 << 30 else f"{size / 2**20:,.0f} MiB"


def _cgroups(proc: Path, mounted: Path) -> Iterator[Room]:
    """Of each cgroup with a limit, from this process's up: what is left, counting the page cache that can go. Version 1 and 2;
    in a container the own cgroup is what is mounted."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, limit_file, used_file, cache = mounted, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            root, limit_file, used_file = mounted / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache = "total_inactive_file"
        else:
            continue
        own = root / path.lstrip("/")
        for place in [*(one for one in (own, *own.parents) if one != root and root in one.parents), root]:
            limit, used = _number(place / limit_file), _number(place / used_file)
            if limit is not None and used is not None and limit < _ENDLESS:
                yield Room(max(limit - used + _stat(place, cache), 0), f"left of the limit of cgroup {place} ({gib(limit)})")


def _number(file: Path) -> int | None:
    """None: not there, or no limit ("max")."""
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _stat(place: Path, key: str) -> int:
    try:
        pairs = dict(line.split() for line in (place / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return int(pairs.get(key, 0))
