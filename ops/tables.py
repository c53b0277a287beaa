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
