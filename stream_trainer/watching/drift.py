"""Whether the stream is another than it was: one value per window, slice and signal, and river's detectors over them. Pure.

A value is measured in standard errors: of its own window, by the counts that it is taken from, and of what the series does
anyway, by its own past. So a slice of thirty clicks and the whole stream are held to the same standard, and night and day are
no drift where they were seen before. Page-Hinkley says when such values have moved (docs/decisions/0011: why not the others).

Windows are counted, clocks are not looked at: one that jumps changes the times that an alarm names, and nothing else. All that
is known comes from the tables of windows, in order; who has them again has the same state.
"""

from __future__ import annotations

import itertools
import math
import operator
import statistics
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from stream_trainer.watching.alarms import Alarm

Table = Mapping[str, Any]      # column → one value per line, as watch.py makes them or as a file of them gives back

REMEMBERED = 200        # windows read back at a start: what came before them weighs next to nothing
HALF_LIFE = 50.0        # values after which one counts half in what is usual
LEAST = 10              # values until it is known what is usual: the median of the newer half, and how far neighbours are apart
LEAST_CLICKS = 30.0     # expected in one value; a slice that has fewer in a window gives one value of several
ALLOWED = 1.0           # standard errors that a series may be off for ever: Page-Hinkley's δ
THRESHOLD = 12.0        # its λ,
SURE = 8.0              # and that of what a right model has at a known value at any hour
MOST = 16.0             # standard errors that one value counts for: one window alone fires only beyond λ + δ
TAMED = 3.0             # standard errors that one value adds to what is usual,
LATER = 4               # and how many values later: what is not usual must not be its own excuse
ALIKE = 0.9             # correlation of neighbours, at most
KEPT = 64               # values looked at for when it began
BACK = 3                # values in a row that are near what they were: it is over
STAYS = 30              # values after which the new level is the usual one: it is over too
TOGETHER = 3            # windows within which what begins has one cause
NAMED = 5               # slices, and fields, that an alarm names
NAMES_FROM = 3.0        # standard errors from which one is named
NEWS = 1.5              # times as far as it ever went: from there on a habit is none


class Kind(NamedTuple):
    """A signal. least: smaller differences are nobody's business, in the unit of its values. ways: +1 = only up is bad. habit:
    it moves with the clock (an hour, a weekday), so that what a series has done before is no alarm when it does it again.
    threshold: Page-Hinkley's λ."""

    what: str
    name: str
    least: float
    ways: int
    habit: bool = False
    threshold: float = THRESHOLD


# In the order of causes: what comes in moves what the model says, and that moves how right it is.
MISSING = Kind("drift.missing", "missing share", 0.01, 0)
UNSEEN = Kind("drift.unseen", "unseen share", 0.01, 1)
INPUTS = Kind("drift.inputs", "population stability index", 0.25, 1, habit=True)    # what is called a large shift
CALIBRATION = Kind("drift.calibration", "calibration", math.log(1.05), 0)
SLOPE = Kind("drift.slope", "calibration slope", 0.05, 0, threshold=SURE)
LOSS = Kind("drift.loss", "normalised entropy", math.log(1.02), 1)      # of the whole: a slice's moves with who is in it
KINDS = (MISSING, UNSEEN, INPUTS, CALIBRATION, SLOPE, LOSS)
ONE_CLASS = "drift.one_class"


class Place(NamedTuple):
    """Which series. field, value: the slice, both empty = the whole; of an input, its field alone."""

    kind: Kind
    field: str
    value: str


class Value(NamedTuple):
    """One value of a series. error: its standard error by the counts it comes from."""

    value: float
    error: float


class Sums(NamedTuple):
    """Of the examples of a slice, as the log of windows names them."""

    rows: float
    clicks: float
    weight: float
    click_weight: float
    loss_sum: float
    loss_square_sum: float
    probability_sum: float
    slope_score: float = 0.0         # 0: a log from before there was such a column
    slope_information: float = 0.0


class Window(NamedTuple):
    """When and where a window was. began_us: wall clock when the one before it closed, 0 = not known."""

    time_us: int
    began_us: int
    first_row: int
    last_row: int


@dataclass(slots=True)
class Moved:
    """A series that is not what it was. was: before. since: the window in which it began. now: mean of so many `values` since.
    near: how many of the newest, in a row, are near what it was."""

    was: float
    since: Window
    now: float
    values: int
    near: int = 0


class Series:
    """What is usual, and whether it still is."""

    def __init__(self, kind: Kind) -> None:
        self.moved: Moved | None = None
        self._least = kind.least
        self.recent: deque[tuple[Window, float, Value]] = deque(maxlen=KEPT)   # with standard errors off what was usual
        self._kind = kind
        self._begin()

    def _begin(self) -> None:
        self._first: list[Value] = []
        self._mean = self._weight = self._spread = self._count = self._along = self._apart = 0.0
        self._detector = _page_hinkley(self._kind)

    def add(self, window: Window, value: Value) -> bool:
        """One more. Whether it has moved now, as far as somebody would want to know."""
        if self.moved is not None:
            self._follow(value)
            return False
        if len(self._first) < LEAST:
            self._start(value)
            return False
        error = self._error(value)
        z = (value.value - self._mean) / math.hypot(error, error / math.sqrt(self._count))
        self.recent.append((window, z, value))
        self._detector.update(max(-MOST, min(MOST, z)))
        if self._detector.drift_detected and self._moved():
            return True
        if len(self.recent) > LATER:
            self._learn(self.recent[-1 - LATER][2])
        return False

    def _error(self, value: Value) -> float:
        """Standard error of a value: by its counts, or by what the series does anyway. Where neighbours are alike (ρ), as a day
        makes them, a stretch of them says less: σ²(1 + ρ)/(1 − ρ) is what an AR(1) has in the long run."""
        alike = max(0.0, min(ALIKE, self._along / self._spread)) if self._spread else 0.0
        return max(value.error, math.sqrt(self._spread / self._count * (1 + alike) / (1 - alike)))

    def score(self, since_row: int) -> float:
        """Standard errors that its values since that row are off, taken together."""
        zs = [z for window, z, _ in self.recent if window.last_row >= since_row]
        return sum(zs) / math.sqrt(len(zs)) if zs else 0.0

    def _moved(self) -> bool:
        """Whether what the detector saw is worth an alarm. It began where the values since fit a shift best, that is where
        Σ (z − μ/2) over them is largest, of a shift μ as the newest show it."""
        zs = [max(-MOST, min(MOST, z)) for _, z, _ in self.recent]
        side = 1.0 if zs[-1] > 0 else -1.0
        half = max(ALLOWED, max(side * z for z in zs[-BACK:]) / 2)
        best, total, first = -math.inf, 0.0, len(zs) - 1
        for at in range(len(zs) - 1, -1, -1):
            total += side * zs[at] - half
            if total > best:
                best, first = total, at
        found = list(self.recent)[first:]
        moved = Moved(self._mean, found[0][0], sum(value.value for _, _, value in found) / len(found), len(found))
        off = moved.now - moved.was
        if abs(off) < self._least or off * self._kind.ways < 0:
            return False
        self.moved = moved
        return True

    def _follow(self, value: Value) -> None:
        """While it is not what it was: that stays as it is."""
        moved = self.moved
        assert moved is not None
        half = abs(moved.now - moved.was) / 2
        error = self._error(value)
        moved.near = moved.near + 1 if abs(value.value - moved.was) < max(half, 2 * error) else 0
        moved.values += 1
        if not moved.near:
            moved.now += (value.value - moved.now) / moved.values

    def end(self) -> None:
        """It is over: back, or the new level is the usual one from here on."""
        moved, self.moved = self.moved, None
        assert moved is not None
        if self._kind.habit:
            self._least = max(self._least, NEWS * abs(moved.now - moved.was))
        self.recent.clear()
        if moved.near >= BACK:
            self._detector = _page_hinkley(self._kind)
        else:
            self._begin()

    def _start(self, value: Value) -> None:
        """One of the first. A model that begins gets better from window to window: what it was first is not what is usual, and
        how far neighbours are apart says more of chance than how far all are. (The median of |difference| is .954 standard
        deviations of normal noise.)"""
        self._first.append(value)
        if len(self._first) == LEAST:
            newer = self._first[LEAST // 2 :]
            values = [one.value for one in self._first]
            self._mean = statistics.median(one.value for one in newer)
            self._weight, self._count = sum(1 / one.error**2 for one in newer), float(len(newer))
            apart = statistics.median(abs(one - other) for one, other in itertools.pairwise(values)) / 0.954
            self._spread = self._count * apart**2

    def _learn(self, value: Value) -> None:
        """What is usual. A value far off adds no more than one that is TAMED standard errors off."""
        error = self._error(value)
        fade, weight = 2.0 ** (-1 / HALF_LIFE), 1 / value.error**2
        apart = max(-TAMED * error, min(TAMED * error, value.value - self._mean))
        self._weight = fade * self._weight + weight
        self._mean += apart * weight / self._weight
        self._count = fade * self._count + 1
        self._spread = fade * self._spread + apart**2
        self._along = fade * self._along + apart * self._apart
        self._apart = apart


def load() -> None:
    """The detectors' library: a second of CPU, which whoever makes the first of them needs else."""
    import river.drift  # noqa: F401


def _page_hinkley(kind: Kind) -> Any:
    from river.drift import PageHinkley

    return PageHinkley(
        min_instances=1, delta=ALLOWED, threshold=kind.threshold, alpha=1.0, mode="up" if kind.ways > 0 else "both"
    )


@dataclass(slots=True)
class Episode:
    """One cause: an alarm that is raised, and what moved with it."""

    alarm: Alarm
    members: dict[Place, Series] = field(default_factory=dict)

    @property
    def one_class(self) -> bool:
        return self.alarm.what == ONE_CLASS


class Drift:
    """Takes the tables of windows in order; says what has moved."""

    def __init__(self) -> None:
        self._series: dict[Place, Series] = {}
        self._sums: dict[Place, Sums] = {}      # of slices that have not seen enough clicks for a value
        self._open: list[Episode] = []
        self._before_us = 0
        self._windows = 0
        self._last: dict[Place, int] = {}                   # of each series, the window that it last had a value in

    @classmethod
    def rebuilt(cls, windows: Iterable[tuple[Table, Table, int]], open_: Sequence[Alarm] = ()) -> tuple[Drift, list[Alarm]]:
        """From the newest windows, as `closed` takes them, oldest first, whose alarms were raised at their time.
        open_: what stands open of those. Returns also which of them are over, as nothing in the windows says that they are not.
        """
        made = cls()
        row, time_us = 0, 0
        for lines, fields, time_us in windows:
            made.closed(lines, fields, time_us)
            row = int(lines["last_row"][0]) + 1
        standing = {alarm.what for alarm in made.open}
        over = [
            Alarm(what=one.what, state="over", time_us=time_us, row=row, since_row=one.since_row, since_us=one.since_us,
                  was=one.was, now=None, text=f"{one.what}: not to be seen in the newest windows")
            for one in open_ if one.what.startswith("drift.") and one.what not in standing
        ] if time_us else []
        return made, over

    @property
    def open(self) -> list[Alarm]:
        """What is raised and not over."""
        return [episode.alarm for episode in self._open]

    def closed(self, windows: Table, fields: Table, time_us: int) -> list[Alarm]:
        """A window is complete. time_us: wall clock, for people alone. windows: its lines (watching.COLUMNS), the whole first.
        fields: a line per field (inputs.FIELD_COLUMNS); may be empty. Returns what is to be raised."""
        window = Window(time_us, self._before_us, int(windows["first_row"][0]), int(windows["last_row"][0]))
        self._before_us = time_us
        self._windows += 1
        if self._windows % KEPT == 0:
            self._forget()
        moved = []
        for place, value in (*self._of_slices(windows), *_of_fields(fields)):
            if not (math.isfinite(value.value) and math.isfinite(value.error)):
                continue                                    # the guard and the gate have to do with weights that explode
            series = self._series.get(place)
            if series is None:
                series = self._series[place] = Series(place.kind)
            self._last[place] = self._windows
            if series.add(window, value):
                moved.append((place, series))
        classes = int(windows["rows"][0]), int(windows["clicks"][0])
        return [*self._one_class(window, *classes), *self._over(window, *classes), *self._raised(window, moved)]

    def _forget(self) -> None:
        """Series that have had no value for REMEMBERED windows: values of a field come and go."""
        for place, last in list(self._last.items()):
            if last < self._windows - REMEMBERED and self._series[place].moved is None:
                del self._series[place], self._last[place]
                self._sums.pop(place, None)

    def _of_slices(self, table: Table) -> Iterator[tuple[Place, Value]]:
        """Figures of each line that has seen clicks enough, else of several windows' lines together."""
        names = [name for name in Sums._fields if name in table]
        lines = zip(*(np.asarray(table[name], np.float64).tolist() for name in names), strict=True)
        for of, value, line in zip(table["field"], table["value"], lines, strict=True):
            key = Place(CALIBRATION, of, value)
            sums = Sums(*line)
            if key in self._sums:
                sums = Sums(*map(operator.add, self._sums.pop(key), sums))
            if max(sums.probability_sum, sums.clicks) < LEAST_CLICKS:
                self._sums[key] = sums
                continue
            yield key, calibration(sums)
            if sums.slope_information > 0:
                yield Place(SLOPE, of, value), slope(sums)
            if not of and (loss := entropy(sums)) is not None:
                yield Place(LOSS, of, value), loss

    def _one_class(self, window: Window, rows: int, clicks: int) -> list[Alarm]:
        """A window of one class has no AUC, nor has its loss a measure."""
        if clicks not in (0, rows) or any(one.one_class or _near(window, window, one.alarm) for one in self._open):
            return []
        none = "no click" if not clicks else "nothing but clicks"
        alarm = Alarm(
            what=ONE_CLASS, state="raised", time_us=window.time_us, since_us=window.began_us, since_row=window.first_row,
            row=window.last_row + 1, now=clicks / rows,
            text=f"{none} among {rows:,} examples: there is no AUC, and the model learns that there is but one answer",
        )
        self._open.append(Episode(alarm))
        return [alarm]

    def _over(self, window: Window, rows: int, clicks: int) -> list[Alarm]:
        """Alarms of which all that moved is back, or stays where it is."""
        over = []
        for episode in list(self._open):
            moved = [series.moved for series in episode.members.values() if series.moved is not None]
            back = all(one.near >= BACK for one in moved)
            stays = not back and max(one.values for one in moved) >= STAYS
            if not (back or stays) or (episode.one_class and clicks in (0, rows)):
                continue
            self._open.remove(episode)
            for one in episode.members.values():
                one.end()
            if episode.one_class:
                over.append(_over(episode.alarm, window, clicks / rows, f"{clicks:,} clicks among {rows:,} examples"))
                continue
            place = next(iter(episode.members))
            now = episode.alarm.was if back else _shown(place.kind, moved[0].now)
            says = "is back where it was" if back else "stays where it is: that is what is usual from here on"
            over.append(_over(episode.alarm, window, now, f"{place.kind.name} of {_named(place)} {says}"))
        return over

    def _raised(self, window: Window, moved: Sequence[tuple[Place, Series]]) -> list[Alarm]:
        """Those of one moment are one; what belongs to an open one joins it."""
        left: list[tuple[Place, Series]] = []
        for place, series in moved:
            since = series.moved.since if series.moved else window
            for episode in self._open:
                if place.kind in {other.kind for other in episode.members} or _near(since, window, episode.alarm):
                    episode.members[place] = series
                    break
            else:
                left.append((place, series))
        if not left:
            return []
        place, alarm = self._alarm(window, left)
        self._open.append(Episode(alarm, {place: self._series[place]} | dict(left)))
        return [alarm]

    def _alarm(self, window: Window, moved: Sequence[tuple[Place, Series]]) -> tuple[Place, Alarm]:
        order = {kind: at for at, kind in enumerate(KINDS)}
        first = sorted(moved, key=lambda one: (order[one[0].kind], bool(one[0].value), -abs(one[1].score(window.first_row))))
        place, series = first[0]
        assert series.moved is not None
        since = series.moved.since
        was, now = _shown(place.kind, series.moved.was), _shown(place.kind, series.moved.now)
        scores = sorted(
            ((key, own.score(since.first_row)) for key, own in self._series.items() if key.field), key=lambda one: -abs(one[1])
        )
        slices, fields = _ranked(scores, (CALIBRATION, SLOPE)), _ranked(scores, (MISSING, UNSEEN, INPUTS))
        others = {kind.name: None for kind in KINDS if kind is not place.kind and any(one.kind is kind for one, _ in moved)}
        text = (
            f"{place.kind.name} of {_named(place)} {_number(was)} → {_number(now)} since row {since.first_row:,} "
            f"({window.last_row + 1 - since.first_row:,} examples)"
            + (f"; also moved: {', '.join(others)}" if others else "")
            + (f"; slices: {', '.join(f'{of}={value} {z:+.0f}σ' for of, value, z in slices[:3])}" if slices else "")
            + (f"; fields: {', '.join(f'{of} {z:+.0f}σ' for of, z in fields[:3])}" if fields else "")
        )
        return place, Alarm(
            what=place.kind.what, state="raised", time_us=window.time_us, since_us=since.began_us, since_row=since.first_row,
            row=window.last_row + 1, text=text, was=was, now=now, slices=slices, fields=fields,
        )


def calibration(sums: Sums) -> Value:
    """ln (Σ p / clicks), and its standard error. Half a click on either side, so that it exists without one."""
    said, clicked = sums.probability_sum + 0.5, sums.click_weight + 0.5
    expected = said * (sums.clicks + 0.5) / clicked if sums.clicks else said     # in clicks, where they weigh otherwise
    return Value(math.log(said / clicked), 1 / math.sqrt(max(expected, sums.clicks, 1.0)))


def slope(sums: Sums) -> Value:
    """By how much log-odds of these examples go up where the model's go up by one, and its standard error: 1 = it is right,
    less = it overdoes what it tells apart. One Newton step from 1 (slices.slope_terms). A model that is right has it at 1
    whatever examples come, unlike its loss."""
    return Value(1 + sums.slope_score / sums.slope_information, 1 / math.sqrt(sums.slope_information))


def entropy(sums: Sums) -> Value | None:
    """ln of the normalised entropy, and its standard error; None with one class, for which it does not exist.

    To first order an example adds loss/L − (y − r)·ln((1 − r)/r)/H(r): a click more raises the loss and what it is divided by,
    so that most of the chance in the number of clicks falls out. The mean loss of non-clicks is taken as the mean probability.
    """
    weight = sums.weight or 1.0
    rate, loss = sums.click_weight / weight, sums.loss_sum / weight
    if not 0 < rate < 1 or loss <= 0:
        return None
    own = -(rate * math.log(rate) + (1 - rate) * math.log1p(-rate))
    slope = math.log((1 - rate) / rate) / own
    spread = max(sums.loss_square_sum / weight - loss**2, 0.0)
    of_rest = min(sums.probability_sum / weight, loss)
    together = (1 - rate) * (loss - of_rest)              # covariance of loss and label, r (1 − r) (l₁ − l₀)
    variance = spread / loss**2 - 2 * slope * together / loss + slope**2 * rate * (1 - rate)
    return Value(math.log(loss / own), math.sqrt(max(variance, 0.05 * spread / loss**2, 1e-12) / sums.rows))


def _of_fields(table: Table) -> Iterator[tuple[Place, Value]]:
    """Of each field that the window has a sample of."""
    if not table:
        return
    columns = ("field", "rows", "values", "bins", "missing_share", "unseen_share", "psi", "psi_chance")
    for of, rows, values, bins, missing, unseen, psi, chance in zip(*(table[name] for name in columns), strict=True):
        for kind, share, count in ((MISSING, missing, rows), (UNSEEN, unseen, values)):
            if count and _known(share):
                yield Place(kind, of, ""), Value(float(share), math.sqrt(max(float(share), 1 / count) / count))
        if _known(psi) and bins > 1:
            yield Place(INPUTS, of, ""), Value(float(psi), max(float(chance) * math.sqrt(2 / (bins - 1)), 1e-6))


def _known(figure: float | None) -> bool:
    return figure is not None and math.isfinite(figure)


def _near(since: Window, window: Window, alarm: Alarm) -> bool:
    """Whether what began in `since` is of an alarm's cause."""
    rows = window.last_row + 1 - window.first_row
    return abs(since.first_row - alarm.since_row) <= TOGETHER * rows


def _ranked(scores: Sequence[tuple[Place, float]], kinds: Sequence[Kind]) -> Any:
    """(field, value, score) of slices or (field, score) of fields, each once."""
    found: dict[tuple[str, ...], float] = {}
    for place, score in scores:
        if place.kind in kinds and abs(score) >= NAMES_FROM:
            found.setdefault((place.field, place.value) if place.value else (place.field,), score)
    return tuple((*key, round(score, 1)) for key, score in list(found.items())[:NAMED])


def _over(alarm: Alarm, window: Window, now: float | None, text: str) -> Alarm:
    return Alarm(
        what=alarm.what, state="over", time_us=window.time_us, since_us=alarm.since_us, since_row=alarm.since_row,
        row=window.last_row + 1, was=alarm.now, now=now, text=text,
    )


def _named(place: Place) -> str:
    return f"{place.field}={place.value}" if place.value else place.field or "the whole stream"


def _shown(kind: Kind, value: float) -> float:
    return math.exp(value) if kind in (CALIBRATION, LOSS) else value


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 0.995 else f"{value:.2f}"
