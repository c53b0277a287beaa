"""The learning curve of one pass as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from schemas.errors import ConfigError
from stream_trainer.watching.windows import Floats, Window, figures

POINTS = 40         # windows along the curve
LEAST_ROWS = 200    # of a window: the AUC of fewer is noise


def points(probabilities: Floats, labels: Floats) -> list[Window]:
    """Figures of windows of equal length, at most POINTS of them; a last one that is not full is left out."""
    rows = len(labels)
    window = max(LEAST_ROWS, -(-rows // POINTS))
    return [
        figures(at, probabilities[at : at + window], labels[at : at + window]) for at in range(0, rows - window + 1, window)
    ]


def check(path: Path) -> None:
    """Before any work: can it be drawn, and where? Raises ConfigError."""
    try:
        import matplotlib  # noqa: F401  only whether it is there
    except ImportError as absent:
        raise ConfigError("--plot needs matplotlib: pip install 'freshet[plot]'") from absent
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"--plot {path}: a file named .png, .svg or .pdf")
    if not path.parent.is_dir():
        raise ConfigError(f"--plot {path}: no such folder")


def draw(path: Path, curves: Mapping[str, Sequence[Window]]) -> None:
    """AUC and log loss of each window against the rows before it, a line per model."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 7), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True)
    for name, windows in curves.items():
        middle = [window.first_row + window.rows / 2 for window in windows]
        auc = [np.nan if window.auc is None else window.auc for window in windows]
        upper.plot(middle, auc, label=name, linewidth=1.2)
        lower.plot(middle, [window.log_loss for window in windows], label=name, linewidth=1.2)
    upper.set_ylabel("AUC of the window")
    lower.set_ylabel("log loss of the window")
    lower.set_xlabel("rows seen, each scored before it is learnt")
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
    upper.legend(loc="lower right", fontsize="small", ncols=1 + len(curves) // 10)
    figure.savefig(path, dpi=120)
