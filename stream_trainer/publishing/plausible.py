"""Is what the stream says plausible? Four tests on blocks of examples, each against the stream's own usual. Pure, numpy alone.

Each is a CUSUM: the log-likelihood ratio of "it has changed by so much" over "it is as usual" is added up block by block, and
never falls below 0. A ratio has a smallest effect built in: what has changed by less than about its square root pulls the sum
down, however many examples say so. Counts of real traffic scatter wider than chance alone lets them; how much wider is
measured, and the evidence divided by it.
Source: Page, Continuous Inspection Schemes, Biometrika 1954; overdispersion: McCullagh and Nelder, Generalized Linear Models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.bags import Bags, Ids
from schemas.fields import FieldSchema
from stream_trainer.parts import joined
from stream_trainer.watching.marks import names_of

Floats = NDArray[np.float64]
Counts = NDArray[np.float32]
Places = NDArray[np.intp]
Arrays = dict[str, NDArray[Any]]

MOST_WAITING = 1 << 16   # clicks that wait for their impression's window to end; beyond that they are taken as they come


class Rows(NamedTuple):
    """n examples. said, served, weight: (n,) f32, served NaN = not told; source, impression: (n,) i64, whose they are; values:
    (n, I) u64, their value of each field that is watched for clicks, 0 = not known."""

    said: NDArray[np.float32]
    served: NDArray[np.float32]
    weight: NDArray[np.float32]
    source: NDArray[np.int64]
    impression: NDArray[np.int64]
    values: Ids

    @property
    def n(self) -> int:
        """How many."""
        return len(self.said)

    def take(self, which: NDArray[np.bool_] | NDArray[np.intp] | slice) -> Rows:
        """Some of them."""
        return Rows(*(column[which] for column in self))  # type: ignore[arg-type]


class Ripening:
    """Where clicks come before the rest of their slate (mode eager), they wait for it: else more traffic looks like clicks.

    An impression's window is over when one that was shown no earlier gives a 0.
    """

    def __init__(self) -> None:
        self._waiting: Rows | None = None

    def ripe(self, come: Rows, clicked: NDArray[np.bool_]) -> Rows:
        """The clicks that can be judged now that these rows have come too. clicked: (n,), which of them are clicks."""
        clicks = come.take(np.flatnonzero(clicked))
        whole = clicks if self._waiting is None else joined([self._waiting, clicks])
        ripe = np.zeros(whole.n, bool)                                                    # (n,)
        zero = np.where(clicked, -1, come.impression)                                     # (m,)
        for source in _each(come.source):
            ripe |= (whole.impression <= int(zero[come.source == source].max())) & (whole.source == source)
        if whole.n - np.count_nonzero(ripe) > MOST_WAITING:
            ripe[np.flatnonzero(~ripe)[:-MOST_WAITING]] = True
        self._waiting = None if ripe.all() else whole.take(~ripe)
        return whole.take(ripe)

    def state(self) -> Arrays:
        """All of it."""
        return {} if self._waiting is None else {f"waiting/{name}": column for name, column in self._waiting._asdict().items()}

    def restore(self, state: Mapping[str, NDArray[Any]], values: int) -> None:
        """values: fields that are watched now."""
        found = {name: np.array(state[f"waiting/{name}"]) for name in Rows._fields if f"waiting/{name}" in state}
        if found and found["values"].shape[1] == values:
            self._waiting = Rows(**found)


def _each(numbers: NDArray[np.int64]) -> list[int]:
    """Those that occur; mostly it is one."""
    if not len(numbers):
        return []
    first = int(numbers[0])
    return [first] if (numbers == first).all() else np.unique(numbers).tolist()


class Count(NamedTuple):
    """How often something was, and how often it was expected to be, as far as what was expected is right on average."""

    seen: float
    expected: float


class Usual:
    """How often something is, for what is expected of it; and evidence that it has become `factor` times as often.

    sums: Σ seen, Σ expected, decayed. scatter: mean square of what blocks differ from the usual, in units of chance.
    """

    PAST = 6      # blocks that may have been wrong already when enough evidence has come

    def __init__(self, factors: Sequence[float], half_life_rows: float) -> None:
        self._factors = np.array(factors)
        self._half_life = half_life_rows
        self.evidence = np.zeros(len(factors))
        self.sums = np.zeros(2)
        self._scatter = np.array([1.0, 1.0])      # Σ of squares, Σ 1
        self._past: list[Floats] = []             # sums as they were before each of the last blocks

    @property
    def ratio(self) -> float:
        """Seen for each one expected, usually; 0 = not known."""
        seen, expected = self.sums.tolist()
        return seen / expected if expected > 0 else 0.0

    @property
    def scatter(self) -> float:
        """1 = chance alone."""
        return max(1.0, float(self._scatter[0] / self._scatter[1]))

    def weigh(self, count: Count) -> Floats:
        """Log-likelihood ratio of each factor, (f,): Poisson, divided by the scatter."""
        expected = count.expected * self.ratio
        if expected <= 0:
            return np.zeros(len(self._factors))
        found: Floats = (count.seen * np.log(self._factors) - (self._factors - 1) * expected) / self.scatter
        return found

    def judge(self, weighed: Floats, most: float) -> None:
        """Add up evidence, to `most` at most, so that it is gone soon once things are as usual."""
        self.evidence = np.clip(self.evidence + weighed, 0, most)

    def learn(self, count: Count, rows: int) -> None:
        """This block was as usual, or nearly."""
        expected = count.expected * self.ratio
        if expected > 0:
            square = (count.seen - expected) ** 2 / (expected * (1 + min(self.ratio, 1.0)))
            self._scatter = 0.98 * self._scatter + (min(square, 16.0), 1.0)
        self._past = [*self._past[1 - self.PAST :], self.sums]
        self.sums = self.sums * 0.5 ** (rows / self._half_life) + (count.seen, count.expected)

    def go_back(self) -> None:
        """The last blocks were not as usual."""
        if self._past:
            self.sums, self._past = self._past[0], []

    def forget(self) -> None:
        """From here on what comes is the usual."""
        self.evidence[:] = 0
        self.sums, self._past = 0.02 * self.sums, []

    def state(self) -> NDArray[np.float64]:
        """All of it."""
        return np.concatenate((self.evidence, self._scatter, self.sums, *self._past))

    def restore(self, state: NDArray[Any]) -> None:
        """As it was."""
        factors = len(self._factors)
        self.evidence, rest = np.array(state[:factors], np.float64), np.array(state[factors:], np.float64).reshape(-1, 2)
        self._scatter, self.sums, *self._past = rest


class Kin:
    """What the kin of a suspicious value have done meanwhile: an app's kin are the other apps of its category.

    An hour that a category is made for lifts all of its apps, a farm lifts one. So each suspicious value (there are few) is
    followed together with the values of other fields that it goes with, as long as there is evidence against it. Of m values
    under suspicion, in I columns: places: (m,) theirs. kin: (m, I) the places of those that they go with, -1 = of none or of
    several. usual: (m, I) clicks for each time that kin was shown before. sums: (2, m, I) how often it was shown since, and
    clicked.
    """

    LEAST = 5.0            # clicks' worth that kin must have before it says much

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self.places = np.zeros(0, np.intp)
        self._kin = np.zeros((0, columns), np.intp)
        self._usual = np.zeros((0, columns))
        self._sums = np.zeros((2, 0, columns))

    def rise(self, shown: Floats, clicks: Places) -> Floats:
        """How many times its usual odds of a click the kin of each suspicious value has, where it rose most: (m,), 1 = none.
        shown, clicks: (places,) of this block."""
        own = self.places[:, None]
        self._sums[0] += np.maximum(shown[self._kin] - shown[own], 0)
        self._sums[1] += np.maximum(clicks[self._kin] - clicks[own], 0)
        rate = (self._sums[1] + self.LEAST) / (self._sums[0] + self.LEAST / self._usual)
        rise = _odds(rate) / _odds(self._usual)
        found: Floats = np.where(self._kin < 0, 1.0, rise).max(axis=1, initial=1.0)
        return found

    def follow(self, suspicious: Places, evidence: Counts, clicked: Places, shown: Counts, clicks: Counts, rate: float) -> None:
        """From now on these too, and no longer those against whom there is nothing. suspicious: places. clicked: (k, I), those
        of this block's clicks, -1 = another one's; who is newly suspicious is among them. evidence, shown, clicks: (places,)
        so far; rate: of all."""
        stays = evidence[self.places] > 0                                                 # (m,)
        known = set(self.places.tolist())
        new = np.array([place for place in suspicious.tolist() if place not in known], np.intp)
        if not len(new) and stays.all():
            return
        number = np.full(len(shown), -1)                                                  # (places,)
        number[new] = np.arange(len(new))
        which = np.where(clicked < 0, -1, number[clicked])                                # (k, I)
        kin = np.full((len(new), self._columns), -1)
        for mine in which.T:
            rows = np.flatnonzero(mine >= 0)
            kin[mine[rows]] = clicked[rows]
            row, column = np.nonzero(kin[mine[rows]] != clicked[rows])
            kin[mine[rows[row]], column] = -1
        others = np.maximum((shown[kin], clicks[kin]) - np.stack((shown[new], clicks[new]))[:, :, None], 0)   # (2, new, I)
        none = (kin < 0) | (others[0] < shown[new, None])          # or too few others
        kin[none] = -1
        usual = np.where(none, rate, (others[1] + self.LEAST) / (others[0] + self.LEAST / rate))
        self.places = np.concatenate((self.places[stays], new))
        self._kin = np.concatenate((self._kin[stays], kin))
        self._usual = np.concatenate((self._usual[stays], usual))
        self._sums = np.concatenate((self._sums[:, stays], np.zeros((2, len(new), self._columns))), axis=1)

    def lose(self, lost: NDArray[np.bool_]) -> None:
        """lost: (places,), which others have now."""
        self._kin[lost[self._kin] & (self._kin >= 0)] = -1

    def state(self) -> Arrays:
        """All of it."""
        return {"kin/places": self.places, "kin/kin": self._kin, "kin/usual": self._usual, "kin/sums": self._sums}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """As it was; of nobody in a checkpoint from before there was kin."""
        if "kin/places" in state:
            self.places, self._kin = (np.array(state[f"kin/{name}"], np.intp) for name in ("places", "kin"))
            self._usual, self._sums = (np.array(state[f"kin/{name}"], np.float64) for name in ("usual", "sums"))


def _odds(rate: Floats) -> Floats:
    found: Floats = rate / np.maximum(1 - rate, 0.01)
    return found


class Values:
    """One value's clicks against its own history, and what its kin does: of fields of the items, values that are one of many.

    A value is judged when it would have had LEAST clicks at the usual rate by now, and is no more than MOST_SHARE of what is
    shown. Values that rise together are fashion, not a farm: a suspicious one may rise as its kin does, and at most ALONE of a
    field may be on their way. Of values whose ids are equal in their last bits one has the place, as long as it is shown in
    every block; the others are not judged.
    """

    FIELDS, SLOTS, LEAST, MOST_SHARE, ALONE, HALVE_AT = 4, 1 << 14, 5.0, 1 / 32, 3, 1 << 18
    SUSPICIOUS = 4.0       # evidence from which on its clicks no longer make its history

    def __init__(self, schema: FieldSchema, factor: float) -> None:
        self._factor = factor
        self.columns = [place for place, spec in enumerate(schema.fields)
                        if spec.side == "item" and spec.kind == "categorical" and not spec.training_only][: self.FIELDS]
        self._specs = [schema.fields[place] for place in self.columns]
        self._names = [names_of(spec) for spec in self._specs]
        self._starts = np.arange(len(self.columns)) * self.SLOTS
        size = len(self.columns) * self.SLOTS
        self._shown, self._clicks, self.evidence = np.zeros((3, size), np.float32)
        self._new_shown, self._new_clicks = np.zeros((2, size), np.float32)      # since the evidence began
        self._whose = np.zeros(size, np.uint64)                                  # the value that has the place
        self._total = np.zeros(2)                                                # shown, clicks: of all
        self._kin = Kin(len(self.columns))

    def judge(
        self, ripe: Rows, come: Rows, clicked: NDArray[np.bool_], most: float, learn: bool, odds: float
    ) -> None:
        """ripe: clicks; come, clicked: what else was shown is those that are none. most: evidence that is enough. learn: what
        is not suspicious makes history. odds: of a click these days, which all values follow."""
        if not self.columns:
            return
        size = len(self._shown)
        shown, clicks = self._places(come.values), self._places(ripe.values)
        own = self._make_room(shown, come.values.reshape(-1))
        known = self._whose[clicks] == ripe.values.reshape(-1)
        zero = np.where(clicked, 0.0, come.weight).astype(np.float64)                     # (n,)
        all_k = np.bincount(clicks[known], minlength=size)                                # (I·SLOTS,)
        all_n = np.bincount(shown, np.repeat(zero, len(self.columns)) * own, size).astype(np.float64, copy=False) + all_k
        at = np.flatnonzero(all_n > 0)                                                    # (a,) places that are in this block
        k, n = all_k[at].astype(np.float32), all_n[at].astype(np.float32)
        if most and self._total[1]:
            rate = float(self._total[1] / self._total[0])
            was_shown, evidence = self._shown[at], self.evidence[at]
            usual = (self._clicks[at] + self.LEAST) / (was_shown + self.LEAST / rate)
            expected = usual * max(odds / (1 + odds) / rate, 1.0)                          # (a,) clicks each time
            if len(self._kin.places):
                rise = np.ones(size, np.float32)
                rise[self._kin.places] = self._kin.rise(all_n, all_k)
                expected = np.maximum(expected, usual * rise[at] / (1 + usual * (rise[at] - 1)))
            judged = (was_shown >= self.LEAST / rate) & (was_shown <= self.MOST_SHARE * self._total[0])
            llr = (np.log(self._factor) * k - (self._factor - 1) * expected * n) * judged
            goes_on = evidence > 0
            self._new_shown[at] = self._new_shown[at] * goes_on + n
            self._new_clicks[at] = self._new_clicks[at] * goes_on + k
            self.evidence[at] = evidence = np.clip(evidence + llr, 0, most)
            self._kin.follow(
                at[evidence >= self.SUSPICIOUS], self.evidence, np.where(known, clicks, -1).reshape(-1, len(self.columns)),
                self._shown, self._clicks, rate,
            )
        if learn:
            calm = self.evidence[at] < self.SUSPICIOUS
            self._shown[at] += n * calm
            self._clicks[at] += k * calm
            self._total += (float(zero.sum()) + ripe.n, ripe.n)
            if self._total[0] > self.HALVE_AT:
                for sums in (self._total, self._shown, self._clicks):
                    sums *= 0.5

    def _make_room(self, places: NDArray[np.intp], values: Ids) -> NDArray[np.bool_]:
        """Whether each value has its place: (m,). One whose holder was not shown meanwhile takes it, and begins anew: an app
        that is born does not inherit a dead one's clicks. places, values: (m,)."""
        own: NDArray[np.bool_] = self._whose[places] == values
        if own.all():
            return own
        held, lost = np.zeros((2, len(self._whose)), bool)
        held[places[own]] = True
        taken = ~own & ~held[places]
        free = places[taken]
        self._whose[free] = values[taken]
        for sums in (self._shown, self._clicks, self.evidence, self._new_shown, self._new_clicks):
            sums[free] = 0
        lost[free] = True
        self._kin.lose(lost)
        now: NDArray[np.bool_] = self._whose[places] == values
        return now

    def _places(self, values: Ids) -> NDArray[np.intp]:
        """(n·I,)."""
        found = (values & np.uint64(self.SLOTS - 1)).view(np.int64)
        for column, start in enumerate(self._starts):        # ten times as fast as one sum with so short an axis
            found[:, column] += start
        return found.reshape(-1)

    def standing(self, most: float) -> list[tuple[str, str, float]]:
        """(field, value, times its usual clicks) of those that are enough evidence, where they stand alone; most first."""
        found = []
        rate = float(self._total[1] / max(self._total[0], 1.0))
        for column, (spec, names) in enumerate(zip(self._specs, self._names, strict=True)):
            place = slice(column * self.SLOTS, (column + 1) * self.SLOTS)
            evidence = self.evidence[place]
            rising = np.flatnonzero(evidence > most / 3)
            if len(rising) > self.ALONE:
                continue
            for slot in rising[evidence[rising] >= most].tolist():
                shown, newly = self._shown[place][slot] + self.LEAST / rate, self._new_shown[place][slot]
                times = self._new_clicks[place][slot] / max(newly * (self._clicks[place][slot] + self.LEAST) / shown, 1e-9)
                value = int(self._whose[place][slot])
                found.append((spec.name, names.get(value) or f"#{value:016x}", float(times)))
        return sorted(found, key=lambda one: -one[2])

    @property
    def most(self) -> float:
        """Most evidence about any value."""
        return float(self.evidence.max(initial=0.0))

    def forget(self) -> None:
        """What was suspicious is new."""
        gone = self.evidence >= self.SUSPICIOUS
        for sums in (self._shown, self._clicks, self.evidence):
            sums[gone] = 0

    def state(self) -> Arrays:
        """All of it, of places that are in use."""
        place = np.flatnonzero(self._shown + self.evidence)
        sums = [self._shown, self._clicks, self.evidence, self._new_shown, self._new_clicks]
        return {
            "values/place": place.astype(np.int32), "values/sums": np.stack([one[place] for one in sums]),
            "values/whose": self._whose[place],
            "values/total": self._total, "values/fields": np.array([spec.number for spec in self._specs], np.int64),
            **self._kin.state(),
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Nothing, if other fields were watched then."""
        if not np.array_equal(state.get("values/fields", ()), [spec.number for spec in self._specs]):
            return
        sums = [self._shown, self._clicks, self.evidence, self._new_shown, self._new_clicks]
        for one, was in zip(sums, state["values/sums"], strict=True):
            one[state["values/place"]] = was
        self._whose[state["values/place"]] = state["values/whose"]
        self._total = np.array(state["values/total"], np.float64)
        self._kin.restore(state)


class Ties:
    """Which value of one field goes with a value of another: an app has its category, a user a country. A field whose values
    are dealt out anew is seen as often as ever, but nothing keeps what it had.

    Of each value a of a field A, its last two partners in every other field B are remembered. It is *restless* where this
    partner is not the last one, and that was not the one before. A property that changes (a price, the hour at a full hour)
    makes nobody restless: each has its new one, and keeps it. A tie from A to B is judged while it holds, that is while a's
    partner seldom changes. New values say nothing: one must have been seen three times.
    Numbers move by nature, and are not looked at.
    """

    FIELDS, SLOTS = 16, 1 << 12
    LEAST = 200.0          # rows with a known value of A before a tie is judged
    HOLDS = 0.1            # share of changed partners of a tie that holds, at most
    RARE, BROKEN = 0.005, 0.2   # restlessness: least that is believed of the usual; what a broken tie has
    FADES = 0.005          # what a block of rows takes from those before it
    SUSPICIOUS = 4.0

    def __init__(self, schema: FieldSchema) -> None:
        named = [place for place, spec in enumerate(schema.fields) if spec.kind != "numeric" and not spec.training_only]
        self._columns = named[: self.FIELDS]
        self._specs = [schema.fields[place] for place in self._columns]
        self._width = len(schema.fields)
        fields = len(self._columns)
        self._owner = np.zeros(fields * self.SLOTS, np.uint32)            # 16 bits of whose place it is; times seen, above them
        self._partners = np.zeros((fields * self.SLOTS, 2 * fields), np.uint8)   # the last ones, and those before
        self._restless, self._changed, self._known = np.zeros((3, fields, fields))        # (A, B) each: rows, faded
        self.evidence = np.zeros((fields, fields))                        # (A, B)
        self._starts = np.arange(fields) * self.SLOTS
        self._pairs = ~np.eye(fields, dtype=bool)

    def judge(self, bags: Bags, most: float, learn: bool) -> None:
        """bags: some rows, of different slates if it can be. learn: how restless they are is usual."""
        value, fields = self._values(bags), len(self._columns)                            # (R, A)
        place = (value & np.uint64(self.SLOTS - 1)).astype(np.intp) + self._starts        # (R, A)
        owner = (value >> np.uint64(12)).astype(np.uint16)                                # (R, A)
        partner = (value >> np.uint64(28)).astype(np.uint8)[:, None, :]                   # (R, 1, B)
        whose = self._owner[place]                                                        # (R, A)
        times = (whose >> np.uint32(16)) * (whose.astype(np.uint16) == owner)             # (R, A)
        known = times >= 2
        were = self._partners[place]                                                      # (R, A, 2·B)
        last, before = were[:, :, :fields], were[:, :, fields:]
        changed = (partner != last) & known[:, :, None]                                   # (R, A, B)
        c, x = np.count_nonzero(changed, axis=0), np.count_nonzero(changed & (last != before), axis=0)   # (A, B) each
        n = np.count_nonzero(known, axis=0)[:, None]                                      # (A, 1)
        if most:
            usual = self._usual()
            llr = x * np.log(self.BROKEN / usual) - n * (self.BROKEN - usual)
            np.clip(self.evidence + llr * self._holding(), 0, most, out=self.evidence)
        if learn:
            calm = self.evidence < self.SUSPICIOUS
            for sums, new in ((self._restless, x), (self._changed, c), (self._known, n)):
                sums += (new - sums * self.FADES) * calm
        self._owner[place] = owner + (np.minimum(times + 1, 3) << np.uint32(16))
        self._partners[place, :fields] = partner
        self._partners[place, fields:] = np.where((times > 0)[:, :, None], last, partner)

    def _usual(self) -> Floats:
        found: Floats = np.maximum((self._restless + 0.5) / (self._known + 0.5 / self.RARE), self.RARE)
        return found

    def _holding(self) -> NDArray[np.bool_]:
        seldom = (self._changed <= self.HOLDS * self._known) & (self._usual() < self.BROKEN)
        return seldom & (self._known >= self.LEAST) & self._pairs

    def _values(self, bags: Bags) -> Ids:
        """(R, A): a number for what each field has in each row, of a set one for the whole set."""
        if bags.lengths is None:
            whole = bags.ids.reshape(-1, self._width)
        else:
            starts = np.cumsum(bags.lengths, dtype=np.intp) - bags.lengths
            whole = np.add.reduceat(bags.ids, starts).reshape(-1, self._width)
        found: Ids = whole[:, self._columns]
        return found

    def standing(self, most: float) -> list[tuple[str, float]]:
        """(field, share of its ties that are broken) where any is, most first: what was dealt out anew has lost all of them."""
        broken = self.evidence >= most
        if not broken.any():
            return []
        doubtful = self.evidence >= most / 3
        ties = self._holding() | doubtful
        ties &= (2 * ties.sum(axis=0) < len(ties)) | doubtful      # what most are tied to is the same for all, just now
        either, all_ties = doubtful | doubtful.T, ties | ties.T
        lost, had = either.sum(axis=1), all_ties.sum(axis=1)
        ranked = sorted(np.flatnonzero(lost).tolist(), key=lambda place: (-lost[place] / had[place], -lost[place]))
        return [(self._specs[place].name, float(lost[place] / had[place])) for place in ranked]

    @property
    def most(self) -> float:
        """Most evidence about any tie."""
        return float(self.evidence.max(initial=0.0))

    def forget(self) -> None:
        """What was suspicious has to show anew that it holds."""
        gone = self.evidence >= self.SUSPICIOUS
        for sums in (self.evidence, self._restless, self._changed, self._known):
            sums[gone] = 0

    def state(self) -> Arrays:
        """All of it, of slots that are in use."""
        place = np.flatnonzero(self._owner)
        return {
            "ties/place": place.astype(np.int32), "ties/owner": self._owner[place], "ties/partners": self._partners[place],
            "ties/sums": np.stack((self._restless, self._changed, self._known, self.evidence)),
            "ties/fields": np.array([spec.number for spec in self._specs], np.int64),
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Nothing, if other fields were watched then."""
        if not np.array_equal(state.get("ties/fields", ()), [spec.number for spec in self._specs]):
            return
        self._owner[state["ties/place"]], self._partners[state["ties/place"]] = state["ties/owner"], state["ties/partners"]
        self._restless, self._changed, self._known, self.evidence = np.array(state["ties/sums"], np.float64)
