"""What the formats share: what a reader is told, what it gives, and how a row that does not fit is dealt with."""

from __future__ import annotations

import difflib
import gzip
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

from schemas.errors import ConfigError
from schemas.fields import FieldSchema

START_US = 1_400_000_000_000_000  # 2014-05-13: where the time of a file without a clock begins
NAMED = 5                         # broken rows whose text is kept; all are counted


class BadRow(ConfigError):
    """A line that is not in the format. line: from 1. unit: what is counted, line or row."""

    def __init__(self, line: int, text: str, unit: str = "line") -> None:
        super().__init__(f"{unit} {line}: {text}")
        self.line = line


@dataclass(slots=True)
class Broken:
    """Rows that could not be used: counted, the first ones named. strict: the first one ends the work."""

    strict: bool = False
    rows: int = 0
    first: list[BadRow] = field(default_factory=list)

    def add(self, bad: BadRow) -> None:
        """One more. Raises it if strict."""
        if self.strict:
            raise bad
        self.rows += 1
        if len(self.first) < NAMED:
            self.first.append(bad)


@dataclass(frozen=True, slots=True)
class EventRecord:
    """One record for the topic `events`. row: the line of the file it comes from, from 1. group: what its AUC is taken
    apart by, for evaluation alone; None where the row names none."""

    key: bytes
    value: bytes
    time_us: int
    row: int
    group: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What a reader is told.

    row_interval_us: event time between two rows of a file without a clock. action: what a label of 1 is called.
    label, time, group: columns of the file; None = no such column is asked for (label: the one named label).
    """

    row_interval_us: int
    action: str
    fields: FieldSchema | None = None
    label: str | None = None
    time: str | None = None
    group: str | None = None

    @property
    def schema(self) -> FieldSchema:
        """For formats whose columns are the schema's fields."""
        if self.fields is None:
            raise ConfigError("this format is read by a field schema (model.schema), and none was given")
        return self.fields

    def refuse(self, format: str, *names: str) -> None:
        """Raise ConfigError for an option that the format cannot follow."""
        for name in names:
            if getattr(self, name) is not None:
                raise ConfigError(f"--{name} {getattr(self, name)}: format {format} has no such column to choose")


def open_binary(path: Path) -> BinaryIO:
    """The file's bytes, unpacked if it is .gz."""
    return cast(BinaryIO, gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def place_of(name: str, header: Sequence[str], what: str) -> int:
    """Where a column stands. Raises ConfigError naming the nearest: nothing is ever filled in for a missing column."""
    times = list(header).count(name)
    if times > 1:
        raise ConfigError(f"{what} {name}: {times} columns have that name")
    if times:
        return header.index(name)
    raise ConfigError(f"{what} {name}: no such column{nearest(name, header)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """What to say of a name that is not there."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f" (did you mean {near[0]}?)"
    return f" (there are {', '.join(known[:12])}{', …' if len(known) > 12 else ''})"
