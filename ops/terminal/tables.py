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


LEAST_GROUPS = 100   # with both classes in a window; the mean AUC of fewer is noise


def watched_table(windows: Sequence[Mapping[str, Any]], total: Mapping[str, Any] | None) -> str:
    """A line per window: the model before it learnt, beside what was served; the model's total last."""
    head = (
        f"{'rows':>23}  {'AUC':>7} {'served':>7} {'in groups':>9}  {'log loss':>8} {'served':>7}  {'NE':>7}  "
        f"{'calibr.':>7} {'served':>7}  {'clicks':>7}"
    )
    lines = [head]
    for window in [*windows, *([total] if total is not None else [])]:
        if window is total:
            lines.append("-" * len(head))
        span = f"{window['first_row']:,} to {window['last_row']:,}"
        auc, group, loss, entropy, calibration = (
            _number(window.get(name)) for name in ("auc", "group_auc", "log_loss", "normalized_entropy", "calibration")
        )
        served = [
            _number(window.get(f"served_{name}")) if window.get("served_rows") else ""
            for name in ("auc", "log_loss", "calibration")
        ]
        within = group if window.get("groups", 0) >= LEAST_GROUPS else ""
        lines.append(
            f"{span:>23}  {auc:>7} {served[0]:>7} {within:>9}  {loss:>8} {served[1]:>7}  {entropy:>7}  "
            f"{calibration:>7} {served[2]:>7}  {window['click_rate']:>7.2%}"
        )
    return "\n".join(lines)


def longer_line(window: Mapping[str, Any]) -> str:
    """The figures over longer times, as the newest window has them."""
    def of(name: str) -> str:
        return f"AUC {_number(window[f'{name}_auc'])}, calibration {_number(window[f'{name}_calibration'])}"

    told = "nobody tells what was served" if window["served_lifetime_log_loss"] is None else (
        f"served: decayed {of('served_decayed')}; lifetime {of('served_lifetime')}"
    )
    return f"decayed: {of('decayed')}; {told}"


def slice_table(field: str, values: Mapping[str, Mapping[str, Any]]) -> str:
    """A line per value of a field."""
    wide = max(len(field), *map(len, values))
    lines = [f"{field:<{wide}}  {'rows':>11}  {'clicks':>7}  " + _SLICE_HEAD]
    lines += [f"{value:<{wide}}  {one['rows']:>11,}  {_rate(one):>7.2%}  " + _slice_cells(one) for value, one in values.items()]
    return "\n".join(lines)


def slice_window_table(lines: Sequence[Mapping[str, Any]]) -> str:
    """A line per window of one slice."""
    head = f"{'window':>23}  {'rows':>7}  {'clicks':>7}  " + _SLICE_HEAD
    spans = (f"{one['first_row']:,} to {one['last_row']:,}" for one in lines)
    return "\n".join([head, *(
        f"{span:>23}  {one['rows']:>7,}  {_rate(one):>7.2%}  " + _slice_cells(one)
        for span, one in zip(spans, lines, strict=True)
    )])


_SLICE_HEAD = f"{'AUC':>7} {'served':>7}  {'log loss':>8} {'served':>7}  {'calibr.':>7} {'served':>7}"


def _slice_cells(one: Mapping[str, Any]) -> str:
    auc, loss, calibration = (
        (_number(one[name]), _number(one[f"served_{name}"]) if one["served_rows"] else "")
        for name in ("auc", "log_loss", "calibration")
    )
    return f"{auc[0]:>7} {auc[1]:>7}  {loss[0]:>8} {loss[1]:>7}  {calibration[0]:>7} {calibration[1]:>7}"


def _rate(line: Mapping[str, Any]) -> float:
    return float(line["click_weight"] / line["weight"]) if line["weight"] else 0.0


def moved_table(moved: Sequence[Any]) -> str:
    """A line per slice and the figure of it that moved most; z in standard errors, beyond 4 hardly chance."""
    wide = max(len(f"{move.field}={move.value}") for move in moved)
    return "\n".join([
        f"{'slice':<{wide}}  {'moved':<11}  {'before':>8}  {'now':>8}  {'z':>7}  {'rows now':>9}",
        *(
            f"{move.field + '=' + move.value:<{wide}}  {FIGURES[move.figure]:<11}  {move.before:>8.4f}  {move.now:>8.4f}  "
            f"{move.z:>+7.1f}  {move.rows:>9,}" for move in moved
        ),
    ])


def fields_table(moved: Sequence[Any]) -> str:
    """A line per field: its figures before and now, and which of them moved most."""
    wide = max(len("field"), *(len(move.field) for move in moved))
    heads = "".join(f"  {name:>8}  {'now':>8}" for name in ("missing", "unseen", "PSI"))
    lines = [f"{'field':<{wide}}{heads}  {'moved':<7}  {'z':>7}  {'rows now':>9}"]
    for move in moved:
        cells = "".join(
            f"  {_share(move.before[name]):>8}  {_share(move.now[name]):>8}" for name in ("missing_share", "unseen_share")
        ) + f"  {_number(move.before['psi']):>8}  {_number(move.now['psi']):>8}"
        what = {"missing_share": "missing", "unseen_share": "unseen", "psi": "PSI"}[move.moved]
        lines.append(f"{move.field:<{wide}}{cells}  {what:<7}  {move.z:>+7.1f}  {move.rows:>9,}")
    return "\n".join(lines)


def _share(share: float | None) -> str:
    return "none" if share is None else f"{share:.2%}"


def reference_line(version: int, own: Mapping[str, Any], still: Mapping[str, Any]) -> str:
    """The model beside the version that stands still, on the same rows."""
    figures = ", ".join(
        f"{shown} {_number(own[name])} (reference {_number(still[name])})"
        for shown, name in (("AUC", "auc"), ("log loss", "log_loss"), ("calibration", "calibration"))
    )
    return f"beside version {version}, {own['rows']:,} rows of the sample: {figures}"


def freshness_table(whole: Mapping[str, float | None], parts: Mapping[str, Mapping[str, float | None]], clicks: int) -> str:
    """How long a click takes to change an answer, and the parts of its way."""
    lines = [f"{'from the click on, ms':<24}{'p50':>8}{'p99':>8}   of {clicks:,} clicks followed"]
    named = {f"until {name}": part for name, part in parts.items()} | {"in all": whole}
    return "\n".join(lines + [f"{name:<24}{part['p50']:>8,.0f}{part['p99']:>8,.0f}" for name, part in named.items()])


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
