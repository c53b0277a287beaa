"""What is known of a window beyond its own figures: by slice and within groups, of the score that was served beside that of the
model just before it learnt; and both over longer times. Pure: rows in, a table out.

Decayed figures are those of all complete windows, one that ended n examples ago at 2^(−n / half-life). Served figures are of
the examples of which it was told what the scorer had said; where the schema has training-only fields (position), that was said
for their served value, so that what was served is right on average only where they have it (`--slice position=1`).

A group counts in each window by itself. In mode eager a slate's clicks are judged up to join.window_s before the rest of it:
its two classes meet in one window only where windows last much longer than that, and `groups` says how many did.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.config import MetricsConfig
from stream_trainer.watching import slices
from stream_trainer.watching.inputs import Inputs
from stream_trainer.watching.marks import Keys, Marker
from stream_trainer.watching.sampling import Sample
from stream_trainer.watching.slices import Array, ByValue, Codes, Scored
from stream_trainer.watching.windows import Rows, Tally, Window

Table = dict[str, Any]         # column → an array or list of one value per line; NaN and None = does not exist

OTHERS = "(others)"            # values of a field that were not among the most frequent of a window
BINS = 1 << 14                 # of longer times' AUC, over the logit: off by about 3e-4 at most where scores spread as usual
SCORES = ("", "served_")       # what a figure's column begins with: the model before it learnt, what was served
BESIDE = ("own_", "reference_")  # of the sample: the model before it learnt, the reference
_TALLIES = ("decayed", "served_decayed", "served_lifetime")

COUNTS = ("rows", "clicks", "weight", "click_weight", "loss_sum", "loss_square_sum", "probability_sum")
FIGURES = ("auc", "click_rate", "log_loss", "normalized_entropy", "calibration")
SLOPE = ("slope_score", "slope_information")   # of the model before it learnt: slices.slope_terms
DECILES = ("decile_weight", "decile_probability_sum", "decile_click_weight")
LONGER = ("auc", "auc_error", "log_loss", "normalized_entropy", "calibration")
COLUMNS = (
    "first_row", "last_row", "field", "value",
    *(score + name for score in SCORES for name in (*COUNTS, *FIGURES, "group_auc", "groups", *DECILES)),
    *SLOPE, *(f"{name}_{figure}" for name in _TALLIES for figure in LONGER),
    *(score + name for score in BESIDE for name in (*COUNTS, *FIGURES)), "reference_version",
)


class Watch:
    """Makes a table of each window: a line for the whole, whose field and value are empty, and one per slice; and one of its
    fields."""

    def __init__(self, marker: Marker, config: MetricsConfig, told: Callable[[Table, Table], None] | None = None) -> None:
        """told: takes the tables of each window and of its fields, on the thread that closes windows; None: those of windows
        wait for `take`."""
        self._marker = marker
        self._config = config
        self._tallies = {name: Tally(BINS) for name in _TALLIES}
        self._inputs = Inputs(marker.schema, config.half_life_rows)
        self._tables: list[Table] = []
        self._told = told or (lambda windows, _fields: self._tables.append(windows))

    def take(self) -> list[Table]:
        """Tables of the windows that were completed since this was asked last."""
        taken, self._tables = self._tables, []
        return taken

    def closed(self, window: Window, rows: Rows, scored: Scored, sample: Sample | None) -> None:
        """A window is complete."""
        width = 1 + len(self._marker.slices)
        noted = rows.keys if rows.keys.shape[1] == width else np.zeros((len(rows.labels), width), np.uint64)
        keys = np.ascontiguousarray(noted.T)
        told = np.isfinite(rows.served)
        all_told = bool(told.all())
        some = rows if all_told else rows.take(told)
        served = Scored.of(some.served, some.labels, some.weights)
        self._count(scored, served)
        both = {"": scored, "served_": served}

        # 1. The whole window is one slice, then each value of each field.
        fields, values, codes = [""], [""], np.zeros(len(told), np.intp)
        parts = [{score: slices.by_value(both[score], codes[told] if score else codes, 1) for score in SCORES}]
        terms = slices.slope_terms(scored)
        slopes = [[np.array([term.sum()]) for term in terms]]
        for place, spec in enumerate(self._marker.slices):
            found, codes, more = slices.most_frequent(keys[1 + place], self._config.slice_values)
            names = [self._marker.name(place, int(key)) for key in found] + ([OTHERS] if more else [])
            fields += [spec.name] * len(names)
            values += names
            own = {"": codes, "served_": codes if all_told else codes[told]}
            parts.append({score: slices.by_value(both[score], own[score], len(names)) for score in SCORES})
            slopes.append([np.bincount(codes, term, len(names)) for term in terms])
        lines = len(fields)
        table: Table = {
            "first_row": np.full(lines, window.first_row), "last_row": np.full(lines, window.last_row),
            "field": fields, "value": values,
        }
        for score in SCORES:
            table |= _columns(score, [part[score] for part in parts])
        table |= {name: np.concatenate(sums) for name, sums in zip(SLOPE, zip(*slopes, strict=True), strict=True)}
        for name in FIGURES:
            figure = getattr(window, name)     # the same, to the last bit
            table[name][0] = np.nan if figure is None else figure

        # 2. What the whole window's line has besides.
        named, codes = slices.grouped(keys[0])
        whole = {
            **_whole("", scored, named, codes), **_whole("served_", served, named, codes if all_told else codes[told]),
            **self._longer(), **self._beside(sample),
        }
        self._told(
            table | {name: [figure] + [None] * (lines - 1) for name, figure in whole.items()},
            self._inputs.table(window.first_row, window.last_row, sample),
        )

    def _beside(self, sample: Sample | None) -> dict[str, Any]:
        """Figures of the sample's rows that were judged when they were learnt: of the model, of the reference."""
        found: dict[str, Any] = dict.fromkeys(score + name for score in BESIDE for name in (*COUNTS, *FIGURES))
        if sample is None or sample.still is None:
            return found | {"reference_version": None}
        judged = sample.judged
        labels, weights, share = sample.labels[judged], sample.weights[judged], sample.share[judged]
        version, still = sample.still
        said = {"own_": sample.said[judged], "reference_": still}
        for score in BESIDE:
            scored = Scored.of(said[score] * share, labels, weights)
            columns = _columns(score, [slices.by_value(scored, np.zeros(len(labels), np.intp), 1)])
            found |= {name: column[0].item() for name, column in columns.items()}
        return found | {"reference_version": version}

    def _count(self, scored: Scored, served: Scored) -> None:
        factor = 2.0 ** (-len(scored.said) / self._config.half_life_rows)
        for name in ("decayed", "served_decayed"):
            self._tallies[name].fade(factor)
        self._tallies["decayed"].add(scored)
        for name in ("served_decayed", "served_lifetime"):
            self._tallies[name].add(served)

    def _longer(self) -> dict[str, float | None]:
        found: dict[str, float | None] = {}
        for name, tally in self._tallies.items():
            figures = tally.figures(0, 0) if tally.sums[3] else None
            found |= {f"{name}_{part}": None if figures is None else getattr(figures, part) for part in LONGER}
        return found

    def state(self) -> dict[str, NDArray[Any]]:
        """The tallies over longer times, and the fields' values. Tables that were not taken are lost."""
        tallies = {
            f"watch_{name}_{part}": array for name, tally in self._tallies.items() for part, array in tally.state().items()
        }
        return tallies | {f"watch_inputs_{name}": array for name, array in self._inputs.state().items()}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on where `state` was taken; one from before there was such a thing begins them here."""
        for name in _TALLIES:
            parts = [f"watch_{name}_{part}" for part in ("sums", "bins", "counts")]
            self._tallies[name] = (
                Tally.restored(BINS, *(state[part] for part in parts)) if parts[0] in state else Tally(BINS)
            )
        part = "watch_inputs_"
        self._inputs.restore({name[len(part) :]: array for name, array in state.items() if name.startswith(part)})
        self._tables = []


def _whole(score: str, scored: Scored, named: Keys, groups: Codes) -> Mapping[str, Any]:
    """What only a whole window has, for one score. named, groups: as group_auc takes them."""
    auc, count = slices.group_auc(scored, named, groups)
    tenths = zip(DECILES, slices.deciles(scored), strict=True)
    return {f"{score}group_auc": auc, f"{score}groups": count, **{score + name: tenth.tolist() for name, tenth in tenths}}


def _columns(score: str, parts: Sequence[ByValue]) -> dict[str, NDArray[Any]]:
    """Counts and figures of all slices for one score; a figure that does not exist is NaN."""
    def column(name: str) -> Array:
        return np.concatenate([getattr(part, name) for part in parts])

    counts = {name: column(name) for name in COUNTS}
    weight, clicks = counts["weight"], counts["click_weight"]
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = clicks / weight
        entropy = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))                   # NaN at rates 0 and 1
        loss = counts["loss_sum"] / weight
        figures = {
            "auc": column("auc"), "click_rate": rate, "log_loss": loss, "normalized_entropy": loss / entropy,
            "calibration": np.where(clicks > 0, counts["probability_sum"] / clicks, np.nan),
        }
    whole = {name: counts[name].astype(np.int64) for name in ("rows", "clicks")}
    return {score + name: numbers for name, numbers in (counts | whole | figures).items()}
