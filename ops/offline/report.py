"""What `freshet evaluate` says of one model, and of several beside each other. The keys are fixed: programs read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ops.formats import Broken
from ops.offline.evaluate import Evaluation
from ops.offline.judging import Array, draws, group_auc, interval, intervals
from schemas.errors import ConfigError

Report = dict[str, Any]


def report(model: str, found: Evaluation, group: str | None, resamples: int, broken: Broken) -> tuple[Report, dict[str, Array]]:
    """One model's figures as JSON has them, and their bootstrap draws. Raises ConfigError if no row names a group."""
    if group is not None and found.groups is None:
        raise ConfigError(f"--group {group}: no row names one")
    said, labels = found.probabilities[found.first :], found.labels[found.first :]
    groups = None if found.groups is None or group is None else found.groups[found.first :]
    made: Report = {"model": model, **found.figures.as_dict()}
    if groups is not None:
        within = group_auc(said, labels, groups)
        made |= {
            "group_auc": within.auc, "groups": within.groups, "groups_of_one_class": within.left_out,
            "group_rows": within.rows, "rows_without_group": within.rows_without,
        }
    drawn = draws(said, labels, groups, resamples) if resamples else {}
    made |= {
        "intervals": intervals(drawn), "resamples": resamples,
        "windows": [window.as_dict() for window in found.windows], "tallies": found.tallies, "rows_learnt": found.rows_learnt,
        "rows_broken": broken.rows, "first_broken": [str(bad) for bad in broken.first],
        "weights_digest": found.weights_digest, "seconds": found.seconds,
        "examples_per_s": found.rows_learnt / found.seconds,
    }
    return made, drawn


def compare(reports: Sequence[Report], drawn: Mapping[str, dict[str, Array]]) -> list[Report]:
    """Best AUC first, each with its difference to that one: draw by draw, so what both share falls out of the interval.
    Models without figures come last."""
    def auc(one: Report) -> float:
        return -1.0 if one.get("auc") is None else float(one["auc"])

    ranked = sorted(reports, key=auc, reverse=True)
    best = ranked[0]
    for one in ranked:
        if one is best or one.get("auc") is None:
            continue
        one["auc_difference"] = one["auc"] - best["auc"]
        apart = drawn[one["model"]].get("auc", np.empty(0)) - drawn[best["model"]].get("auc", np.empty(0))
        one["auc_difference_interval"] = interval(apart)
    return ranked
