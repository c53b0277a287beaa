"""Figures as text for a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def window_table(windows: Sequence[Mapping[str, Any]], total: Mapping[str, Any] | None) -> str:
    """Progressive figures, a line per window, the total last."""
    head = f"{'rows':>23}  {'AUC':>7}  {'log loss':>8}  {'NE':>7}  {'calibration':>11}  {'clicks':>7}"
    lines = [head, *(_line(window) for window in windows)]
    if total is not None:
        lines += ["-" * len(head), _line(total)]
    return "\n".join(lines)


def _line(window: Mapping[str, Any]) -> str:
    span = f"{window['first_row']:,} to {window['last_row']:,}"
    shown = [
        "none" if window[key] is None else f"{window[key]:.4f}"
        for key in ("auc", "log_loss", "normalized_entropy", "calibration")
    ]
    return f"{span:>23}  {shown[0]:>7}  {shown[1]:>8}  {shown[2]:>7}  {shown[3]:>11}  {window['click_rate']:>7.2%}"


FIGURES = {
    "auc": "AUC", "group_auc": "AUC within groups", "log_loss": "log loss", "normalized_entropy": "normalised entropy",
    "calibration": "calibration",
}


def figure_table(report: Mapping[str, Any]) -> str:
    """A line per figure with its 95 % interval."""
    lines = []
    for key, name in FIGURES.items():
        if key in report:
            lines.append(f"{name:<20}{_number(report[key]):>8}   {_between(report['intervals'].get(key))}".rstrip())
    if "groups" in report:
        lines.append(
            f"groups: {report['groups']:,} with both classes ({report['group_rows']:,} rows); left out: "
            f"{report['groups_of_one_class']:,} of one class, {report['rows_without_group']:,} rows that name none"
        )
    return "\n".join(lines)


def model_table(reports: Sequence[Mapping[str, Any]]) -> str:
    """A line per model, best AUC first; the difference is to the first, row by row on the same draws."""
    grouped = any("group_auc" in report for report in reports)
    columns = ["auc", "log_loss", *(["group_auc"] if grouped else [])]
    head = f"{'model':<15}" + "".join(f"{FIGURES[key]:^26}" for key in columns)
    head += f"{'NE':>7}  {'calibr.':>7}  {'AUC − best':^27}{'rows/s':>8}"
    lines = [head]
    for report in reports:
        if "error" in report:
            lines.append(f"{report['model']:<15}{report['error']}")
            continue
        cells = "".join(
            f"{_number(report.get(key)):>7} {_between(report['intervals'].get(key)):<18}" for key in columns
        )
        difference = ""
        if report.get("auc_difference") is not None:
            difference = f"{report['auc_difference']:+.4f} {_between(report['auc_difference_interval'], '+')}"
        lines.append(
            f"{report['model']:<15}{cells}{_number(report['normalized_entropy']):>7}  {_number(report['calibration']):>7}  "
            f"{difference:<27}{report['examples_per_s']:>8,.0f}"
        )
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


def _between(interval: Sequence[float] | None, sign: str = "") -> str:
    return "" if interval is None else f"{interval[0]:{sign}.4f} to {interval[1]:{sign}.4f}"
