"""Questions to the logs of windows: which lines, and which slices and fields moved most.

A slice moved when its newest windows differ from those before them by more than chance: the difference over its standard error,
z, of the logarithm of calibration (clicks are counts: 1/clicks on either side), of the log loss (from the squares that the log
keeps), and of the AUC (Hanley, McNeil, Radiology 1982). Among a hundred slices and three figures chance alone makes a z of 3.5
now and then. Of a field the same of its shares of missing and unseen values, as if each came by itself, and of its stability
index, by the spread of the windows before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from schemas import fields
from schemas.config import Settings, the_one
from schemas.errors import ConfigError
from stream_trainer.watching.marks import slice_id

LEAST_CLICKS = 20    # on either side, for a difference to be looked at
_SUMS = ("rows", "clicks", "weight", "click_weight", "loss_sum", "loss_square_sum", "probability_sum")
_SLICE_COLUMNS = ["time", "first_row", "last_row", "field", "value", *(
    score + name for score in ("", "served_") for name in (*_SUMS, "auc", "log_loss", "normalized_entropy", "calibration")
)]
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

Line = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Moved:
    """A slice, and the figure of it that moved most. before, now: that figure. z: standard errors. rows: in the newest
    windows."""

    field: str
    value: str
    figure: str
    before: float
    now: float
    z: float
    rows: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class FieldMoved:
    """A field, and the figure of it that moved most, with its z. before, now: all of them, missing_share, unseen_share and the
    mean stability index psi. rows: looked at in the newest windows."""

    field: str
    moved: str
    z: float
    rows: int
    before: Mapping[str, float | None]
    now: Mapping[str, float | None]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def moment(text: str, now_us: int, flag: str) -> int:
    """Microseconds since 1970 of "90s", "15m", "2h", "7d" ago, or of an ISO 8601 time with its zone. Raises ConfigError."""
    if text[-1:] in _UNITS and text[:-1].replace(".", "", 1).isdecimal():
        return now_us - round(float(text[:-1]) * _UNITS[text[-1]] * 1e6)
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise ConfigError(f"{flag} {text}: so long ago, like 15m, 2h or 7d, or a time with its zone, like 2026-11-20T10:00:00Z")
    return round(found.timestamp() * 1e6)


def asked(settings: Settings, text: str) -> tuple[str, tuple[str, ...]]:
    """ "country" or "country=NO" → the field, and the names under which its value may stand; none = all. Raises ConfigError."""
    schema = fields.load(settings.model.schema)
    slices = {spec.name: spec for spec in schema.fields if spec.slice}
    field, given, value = text.partition("=")
    if not slices:
        raise ConfigError(f"--slice {text}: the schema {schema.name} names no slice: slice = true in a [[field]] does")
    the_one("--slice", field, slices)
    return field, (value, f"#{slice_id(slices[field], value):016x}") if given else ()


def whole_windows(settings: Settings, since_us: int | None = None, until_us: int | None = None, most: int = 0) -> list[Line]:
    """The newest `most` windows (0 = all) that closed within the time, oldest first, with all that is known of them."""
    return _lines(settings.windows_dir, ("field", "==", ""), None, since_us, until_us, most)


def slice_lines(
    settings: Settings, field: str | None, since_us: int | None = None, until_us: int | None = None, most: int = 0
) -> list[Line]:
    """The same of slices: of one field, or of all. Their sums and figures alone."""
    wanted = ("field", "!=", "") if field is None else ("field", "==", field)
    return _lines(settings.windows_dir, wanted, _SLICE_COLUMNS, since_us, until_us, most)


def field_lines(
    settings: Settings, since_us: int | None = None, until_us: int | None = None, most: int = 0
) -> list[Line]:
    """The same of fields: what the model was fed with."""
    return _lines(settings.fields_dir, ("field", "!=", ""), None, since_us, until_us, most)


def _lines(
    folder: Path, wanted: tuple[str, str, str], columns: list[str] | None, since_us: int | None, until_us: int | None, most: int
) -> list[Line]:
    from pyarrow import parquet  # here: it takes 100 ms

    found: list[Line] = []
    for path in sorted(folder.glob("*.parquet"), reverse=True):
        began_us = int(path.name.partition("-")[0])
        if until_us is not None and began_us >= until_us:
            continue
        try:
            with path.open("rb") as file:                  # opened once: the newest may be replaced meanwhile
                own = parquet.read_table(file, columns=columns, filters=[wanted]).to_pylist()
        except FileNotFoundError:
            continue                                       # the oldest has just gone
        for line in own:
            line["time_us"] = _micros(line.pop("time"))
        found = [
            line for line in own
            if (since_us is None or line["time_us"] >= since_us) and (until_us is None or line["time_us"] < until_us)
        ] + found
        if (since_us is not None and began_us < since_us) or (most and len(_windows(found)) >= most):
            break
    kept = _windows(found)[-most:]
    return [line for line in found if (line["time_us"], line["first_row"]) >= kept[0]] if kept else []


def _windows(found: Sequence[Line]) -> list[tuple[int, int]]:
    return sorted({(line["time_us"], line["first_row"]) for line in found})


def by_value(found: Sequence[Line]) -> dict[str, dict[str, Any]]:
    """Value of one field → its lines as one, of what the model said and, as served_, of what was served; most rows first."""
    values: dict[str, list[Line]] = {}
    for line in found:
        values.setdefault(line["value"], []).append(line)
    whole = {
        value: summed(own) | {f"served_{name}": figure for name, figure in summed(own, "served_").items()}
        for value, own in values.items()
    }
    return dict(sorted(whole.items(), key=lambda one: -one[1]["rows"]))


def of_value(found: Sequence[Line], names: Sequence[str]) -> list[Line]:
    """Those whose value has one of these names; all, if none is given."""
    return [line for line in found if not names or line["value"] in names]


def moved(found: Sequence[Line], newest: int) -> list[Moved]:
    """Slices by how far their last so many windows are from those before, farthest first."""
    recent = set(_windows(found)[-newest:])
    sides: dict[tuple[str, str], tuple[list[Line], list[Line]]] = {}
    for line in found:
        if line["field"]:
            side = sides.setdefault((line["field"], line["value"]), ([], []))
            side[(line["time_us"], line["first_row"]) in recent].append(line)
    ranked = []
    for (field, value), (before, now) in sides.items():
        was, is_ = summed(before), summed(now)
        if min(was["clicks"], is_["clicks"]) >= LEAST_CLICKS:
            ranked.append(max(_moves(field, value, was, is_), key=lambda move: abs(move.z)))
    return sorted(ranked, key=lambda move: -abs(move.z))


def fields_moved(found: Sequence[Line], newest: int) -> list[FieldMoved]:
    """Fields by how far their last so many windows are from those before, farthest first."""
    recent = set(_windows(found)[-newest:])
    sides: dict[str, tuple[list[Line], list[Line]]] = {}
    for line in found:
        side = sides.setdefault(line["field"], ([], []))
        side[(line["time_us"], line["first_row"]) in recent].append(line)
    return sorted((_field(field, *side) for field, side in sides.items()), key=lambda one: -abs(one.z))


def _field(field: str, before: Sequence[Line], now: Sequence[Line]) -> FieldMoved:
    figures: dict[str, tuple[float | None, float | None, float]] = {}
    for figure in ("missing_share", "unseen_share"):
        (was, count), (is_, count_now) = _share(before, figure), _share(now, figure)
        both = (was * count + is_ * count_now) / max(count + count_now, 1)
        error = math.sqrt(both * (1 - both) * (1 / count + 1 / count_now)) if count and count_now else 0.0
        figures[figure] = (was if count else None, is_ if count_now else None, (is_ - was) / error if error else 0.0)
    was_psi, is_psi = ([line["psi"] for line in side if line["psi"] is not None] for side in (before, now))
    z = 0.0
    if len(was_psi) > 1 and is_psi and (spread := stdev(was_psi)):
        z = (fmean(is_psi) - fmean(was_psi)) / (spread * math.sqrt(1 / len(was_psi) + 1 / len(is_psi)))
    figures["psi"] = (fmean(was_psi) if was_psi else None, fmean(is_psi) if is_psi else None, z)
    moved = max(figures, key=lambda figure: abs(figures[figure][2]))
    return FieldMoved(
        field=field, moved=moved, z=figures[moved][2], rows=sum(line["rows"] for line in now),
        before={figure: found[0] for figure, found in figures.items()},
        now={figure: found[1] for figure, found in figures.items()},
    )


def _share(lines: Sequence[Line], figure: str) -> tuple[float, int]:
    """Over all these lines, and of how many: examples, or values that are not missing."""
    count = total = 0
    for line in lines:
        if line[figure] is not None:
            missing = round(line["missing_share"] * line["rows"])
            own = line["rows"] if figure == "missing_share" else line["values"] - missing
            count, total = count + own, total + round(line[figure] * own)
    return total / max(count, 1), count


def summed(found: Sequence[Mapping[str, Any]], score: str = "") -> dict[str, Any]:
    """Lines of one slice as one: sums, and the figures of the sums; the AUC is the mean by weight."""
    sums: dict[str, Any] = {name: sum(line[score + name] for line in found) for name in _SUMS}
    known = [line for line in found if line[score + "auc"] is not None]
    weight = sum(line[score + "weight"] for line in known)
    return sums | {
        "auc": sum(line[score + "auc"] * line[score + "weight"] for line in known) / weight if weight else None,
        "log_loss": sums["loss_sum"] / sums["weight"] if sums["weight"] else None,
        "calibration": sums["probability_sum"] / sums["click_weight"] if sums["click_weight"] else None,
    }


def _moves(field: str, value: str, was: Mapping[str, Any], is_: Mapping[str, Any]) -> list[Moved]:
    made = []
    for figure, variance in (("calibration", _of_calibration), ("log_loss", _of_loss), ("auc", _of_auc)):
        before, now = was[figure], is_[figure]
        if before is None or now is None:
            continue
        error = math.sqrt(variance(was) + variance(is_))
        apart = math.log(now / before) if figure == "calibration" else now - before
        made.append(Moved(field, value, figure, before, now, apart / error if error else 0.0, is_["rows"]))
    return made


def _of_calibration(sums: Mapping[str, Any]) -> float:
    """Variance of its logarithm."""
    return float(1 / sums["clicks"])


def _of_loss(sums: Mapping[str, Any]) -> float:
    spread = sums["loss_square_sum"] / sums["weight"] - sums["log_loss"] ** 2
    return float(max(spread, 0.0) / sums["rows"])


def _of_auc(sums: Mapping[str, Any]) -> float:
    auc, clicks, rest = sums["auc"], sums["clicks"], sums["rows"] - sums["clicks"]
    one, other = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    spread = auc * (1 - auc) + (clicks - 1) * (one - auc**2) + (rest - 1) * (other - auc**2)
    return float(spread / (clicks * rest))


def _micros(time: datetime) -> int:
    return round((time - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1e6)
