"""MovieLens in RecBole's atomic files: NAME.inter named, NAME.user and NAME.item beside it; tabs, a header of name:type.

Each rating becomes an impression of the film to its user, clicked where the rating is at least 4. Joined here because a
table cannot say that a film's year stands in another file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ops.formats.common import BadRow, EventRecord, Options, open_binary, place_of
from ops.formats.tabular import Table, in_time_order
from schemas.errors import ConfigError

LIKED = 4.0              # "label: rating >= 4", as papers on CTR take this set
GENRES = "class"         # text with spaces between its values


def read(path: Path, options: Options) -> Iterator[EventRecord | BadRow]:
    """In the order of time. Raises ConfigError for a file or column that is missing."""
    options.refuse("movielens", "label", "time")
    return in_time_order(_rows(path, options))


def _rows(path: Path, options: Options) -> Iterator[EventRecord | BadRow]:
    user_names, users = _by_id(path.with_suffix(".user"), "user_id")
    item_names, items = _by_id(path.with_suffix(".item"), "item_id")
    chosen = Options(
        row_interval_us=options.row_interval_us, action=options.action, fields=options.fields, label="label",
        time="timestamp", group=options.group,
    )
    lines = _lines(path)
    _, names = next(lines)
    table = Table(chosen, [*names, "label", *user_names, *item_names])
    user, item, rating = (place_of(name, names, f"{path}, column") for name in ("user_id", "item_id", "rating"))
    for line, cells in lines:
        if len(cells) != len(names):
            yield BadRow(line, f"{len(cells)} cells, the header has {len(names)}")
        elif cells[user] not in users or cells[item] not in items:
            yield BadRow(line, f"user {cells[user]} or item {cells[item]} is not in the file beside")
        else:
            try:
                label = "1" if float(cells[rating]) >= LIKED else "0"
            except ValueError:
                yield BadRow(line, f"rating {cells[rating][:20]!r} is no number")
                continue
            yield from table.events(line, [*cells, label, *users[cells[user]], *items[cells[item]]])


def _by_id(path: Path, key: str) -> tuple[list[str], dict[str, list[Any]]]:
    """Names of the other columns, and id → their cells."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; it stands beside the .inter file")
    lines = _lines(path)
    _, names = next(lines)
    place = place_of(key, names, f"{path}, column")
    found: dict[str, list[Any]] = {}
    for line, cells in lines:
        if len(cells) != len(names):
            raise BadRow(line, f"of {path.name}: {len(cells)} cells, the header has {len(names)}")
        values: list[Any] = [cell.split(" ") if name == GENRES else cell for name, cell in zip(names, cells, strict=True)]
        found[cells[place]] = values[:place] + values[place + 1 :]
    return names[:place] + names[place + 1 :], found


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line, cells); the first are the column names without their types."""
    with open_binary(path) as file:
        for line, raw in enumerate(file, start=1):
            cells = raw.decode(errors="replace").rstrip("\r\n").split("\t")
            yield line, [cell.partition(":")[0] for cell in cells] if line == 1 else cells
