"""freshet's learner as a river estimator, so that river's pipelines, metrics and drift detectors work on it as they are.

A river feature set has no schema: a dict of whatever comes. The model wants a fixed number of fields. So there are `slots`
fields; a name seen for the first time takes the next free one and keeps it, and when none is free the name's hash says which
one it shares. Names in one slot are added up before they meet the others, so they lose only what they have to say together.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from river import base

from schemas.bags import Bags
from schemas.config import LearnConfig, ModelConfig
from schemas.errors import BadEvent, FreshetError
from schemas.fields import FieldSchema, log_bin, parse
from schemas.hashing import canonical, hash_missing, hash_value
from stream_trainer.learning.guard import Guard
from stream_trainer.learning.learner import Learner

if TYPE_CHECKING:
    import pandas as pd

_IDS = 1  # the "field" that ids are hashed in; the name is part of what is hashed, so that a slot does not matter
SCORE_ROWS = 4096  # scored at once by predict_proba_many: bounds memory


class FreshetClassifier(base.MiniBatchClassifier):  # type: ignore[misc, unused-ignore]
    """A click model of freshet, one example or one data frame at a time.

    Text and true/false are categories, numbers are binned by their order of magnitude with their sign, a list, tuple or set
    is a set of categories; None, "", NaN and a name that is absent are one: missing. Labels are true/false or 1/0.
    `learn_one` takes one step per example. `learn_many` cuts its rows into batches of `batch_rows`, one step each, and is
    many times faster; with batch_rows=1 it does exactly what `learn_one` does row by row.

    slots: fields of the model. bits: the table has 2^bits rows. guard: notice divergence and go on with smaller steps.
    The other parameters are those of freshet's `model` and `learn` settings. Sets torch's threads to 1, for the process.
    """

    def __init__(
        self,
        architecture: str = "deepfm",
        slots: int = 32,
        bits: int = 18,
        factors: int = 8,
        hidden: tuple[int, ...] = (32, 16),
        row_optimiser: str = "adagrad",
        row_rate: float = 0.015,
        dense_rate: float = 0.001,
        batch_rows: int = 64,
        guard: bool = False,
        seed: int = 1,
    ) -> None:
        """Raises ConfigError for what makes no sense."""
        self.architecture = architecture
        self.slots = slots
        self.bits = bits
        self.factors = factors
        self.hidden = hidden
        self.row_optimiser = row_optimiser
        self.row_rate = row_rate
        self.dense_rate = dense_rate
        self.batch_rows = batch_rows
        self.guard = guard
        self.seed = seed
        self._engine = _Engine(
            ModelConfig(
                name="river", architecture=architecture, bits=bits, factors=factors, hidden=tuple(hidden), seed=seed,
            ),
            LearnConfig(
                device="cpu", batch_rows=batch_rows, row_optimiser=row_optimiser,  # type: ignore[arg-type]  # it is checked
                row_rate=row_rate, dense_rate=dense_rate, guard=guard,
            ),
            slots,
        )

    def learn_one(self, x: Mapping[Hashable, Any], y: Any, w: float = 1.0) -> None:
        """Learn from one example, as if it came w times. Raises BadEvent for a value or label that cannot be."""
        self._engine.learn([x], [y], [w])

    def predict_proba_one(self, x: Mapping[Hashable, Any], **_: Any) -> dict[Any, float]:
        """The probability of each label. Before anything is learnt: a half each."""
        p = float(self._engine.score([x])[0])
        return {False: 1.0 - p, True: p}

    def learn_many(self, X: pd.DataFrame, y: pd.Series, w: pd.Series | None = None) -> None:
        """Learn from the rows of a data frame, in their order."""
        rows, labels = _rows(X), y.tolist()
        weights = [1.0] * len(rows) if w is None else w.tolist()
        for start in range(0, len(rows), self.batch_rows):
            batch = slice(start, start + self.batch_rows)
            self._engine.learn(rows[batch], labels[batch], weights[batch])

    def predict_proba_many(self, X: pd.DataFrame) -> pd.DataFrame:
        """The probability of each label, a row for each row."""
        import pandas as pd

        rows = _rows(X)
        parts = [self._engine.score(rows[start : start + SCORE_ROWS]) for start in range(0, len(rows), SCORE_ROWS)]
        p = np.concatenate(parts).astype(np.float64) if parts else np.empty(0)
        return pd.DataFrame({False: 1.0 - p, True: p}, index=X.index)

    def _unit_test_skips(self) -> set[str]:
        """One step per batch is not one step per row; where it is (batch_rows=1), river may check that."""
        return set() if self.batch_rows == 1 else {"check_learn_many_matches_learn_one"}


class _Engine:
    """What has been learnt. Made when it is first needed; pickled as what was touched, not as the whole table."""

    def __init__(self, model: ModelConfig, learn: LearnConfig, slots: int) -> None:
        self.model, self.learn_config = model, learn
        self.schema = _schema(slots)
        self.places: dict[str, int] = {}          # name → its slot; of the first `slots` names
        self._guard: Guard | None = None

    @property
    def guard(self) -> Guard:
        if self._guard is None:
            self._guard = Guard(Learner(self.model, self.learn_config, self.schema))
        return self._guard

    def learn(self, rows: Sequence[Mapping[Hashable, Any]], labels: Sequence[Any], weights: Sequence[float]) -> None:
        """One step. Nothing is learnt, and no slot taken, if any of it cannot be."""
        wrong = [label for label in labels if not isinstance(label, int | float | np.generic) or label not in (0, 1)]
        if wrong:
            raise BadEvent("wrong_type", f"a label is true or false, 1 or 0, not {wrong[0]!r}: this learner has two classes")
        if any(not (math.isfinite(weight) and weight >= 0) for weight in weights):
            raise BadEvent("wrong_type", f"a weight is a finite number of at least 0, not {list(weights)}")
        named = [_ids(row) for row in rows]
        for row in named:
            for name in sorted(row.keys() - self.places.keys()):
                if len(self.places) < len(self.schema.fields):
                    self.places[name] = len(self.places)
        importance = None if all(weight == 1 for weight in weights) else np.array(weights, np.float32)
        self.guard.learn(self._bags(named), np.array(labels, np.float32), importance)

    def score(self, rows: Sequence[Mapping[Hashable, Any]]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """(B,) probabilities; changes nothing."""
        return self.guard.learner.score(self._bags([_ids(row) for row in rows]))

    def _bags(self, rows: Sequence[Mapping[str, list[int]]]) -> Bags:
        slots = len(self.schema.fields)
        ids: list[int] = []
        lengths: list[int] = []
        for row in rows:
            bags: list[list[int]] = [[] for _ in range(slots)]
            for name in sorted(row):                  # sums of floats depend on the order: that of the names, not the dict's
                place = self.places.get(name)
                bags[hash_value(_IDS, name.encode()) % slots if place is None else place] += row[name]
            for number, bag in enumerate(bags, 1):
                ids += bag or [hash_missing(number)]
                lengths.append(len(bag) or 1)
        return Bags(slots, np.array(ids, np.uint64), None, np.array(lengths, np.uint16))

    def __getstate__(self) -> dict[str, Any]:
        kept: dict[str, Any] = {
            "model": self.model, "learn": self.learn_config, "slots": len(self.schema.fields), "places": self.places,
        }
        if self._guard is not None:
            learner = self._guard.learner
            rows = learner.table.touched()
            kept["learnt"] = {
                "rows": rows, "block": learner.table.rows_with_state(rows), "dense": learner.dense(),
                "state": learner.dense_state(), "batches": learner.batches_learnt, "examples": learner.examples_learnt,
                "guard": self._guard.state(),
            }
        return kept

    def __setstate__(self, kept: dict[str, Any]) -> None:
        self.__init__(kept["model"], kept["learn"], kept["slots"])  # type: ignore[misc]
        self.places = dict(kept["places"])
        if "learnt" in kept:
            learnt = kept["learnt"]
            self.guard.learner.table.load(learnt["rows"], learnt["block"])
            self.guard.learner.load(learnt["dense"], learnt["state"], learnt["batches"], learnt["examples"])
            self.guard.restore(learnt["guard"])


def _schema(slots: int) -> FieldSchema:
    fields = [
        {"name": f"slot{n}", "number": n, "kind": "set", "pool": "sum", "side": "item"} for n in range(1, slots + 1)
    ]
    return parse({"name": "river", "field": fields}, "FreshetClassifier(slots=…)")


def _ids(features: Mapping[Hashable, Any]) -> dict[str, list[int]]:
    """Name → ids of what stands there, for those where anything does. Raises BadEvent, naming the feature."""
    found: dict[str, list[int]] = {}
    for name, value in features.items():
        try:
            values = sorted(set(value), key=repr) if isinstance(value, list | tuple | set | frozenset) else [value]
            texts = [text for one in values if (text := _text(one)) is not None]
        except BadEvent as bad:
            raise BadEvent(bad.reason, f"feature {name}: {bad}") from bad
        if texts:
            found[str(name)] = [hash_value(_IDS, str(name).encode() + b"\x1f" + text) for text in texts]
    return found


def _text(value: Any) -> bytes | None:
    """What a value is, as bytes; None for nothing. A number and the same digits as text are two things."""
    if isinstance(value, bool | np.bool_ | str) or value is None:
        text = canonical(value)
        return None if text is None else b"c" + text
    if isinstance(value, int | float | np.number):
        return None if isinstance(value, float | np.floating) and math.isnan(value) else b"n" + (log_bin(value) or b"")
    raise BadEvent("wrong_type", f"takes text, a number, true/false, or several in a list, got {type(value).__name__}")


def _rows(frame: pd.DataFrame) -> list[dict[Hashable, Any]]:
    """A dict for each row. NaN, NA and NaT are as if the name were not there."""
    columns = {name: frame[name].tolist() for name in frame.columns}
    gone = {name: frame[name].isna().tolist() for name in frame.columns}
    return [
        {name: values[row] for name, values in columns.items() if not gone[name][row]} for row in range(len(frame))
    ]


__all__ = ["FreshetClassifier", "FreshetError"]
