"""Lines over windows as SVG, without a script. Numbers stand beside it as text: they can be read where it cannot be seen, and
keep their size on a narrow screen while the lines are stretched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDE, HIGH = 100.0, 40.0     # of the drawing, before it is stretched


@dataclass(frozen=True, slots=True)
class Line:
    """look: a class of the style sheet, which sets colour and dashes. values: one per place, None = does not exist."""

    name: str
    look: str
    values: Sequence[float | None]


def figure(
    title: str, summary: str, lines: Sequence[Line], places: Sequence[str], level: float | None = None, least: float = 0.01,
    digits: int = 3,
) -> str:
    """A chart with its caption. places: what each point is of, shown where the mouse is; the first and the last stand below.

    level: a dotted line at the value that means something (1 for calibration). least: what the height shows at least.
    """
    known = [value for line in lines for value in line.values if value is not None]
    if not known:
        return _caption(title, summary, [])
    shown = [*known, *([] if level is None else [level])]
    low, high = _widened(min(shown), max(shown), least)
    drawn = [line for line in lines if any(value is not None for value in line.values)]
    paths = "".join(f'<path class="{line.look}" d="{_path(line.values, low, high)}"/>' for line in drawn)
    at = "" if level is None else f'<path class="level" d="M0 {_y(level, low, high):.2f}H{WIDE:g}"/>'
    width = WIDE / len(places)
    told = "".join(
        f'<rect x="{place * width:.2f}" width="{width:.2f}" height="{HIGH:g}"><title>{escape(name)}'
        + "".join(f"\n{escape(line.name)} {_number(line.values[place], digits)}" for line in drawn) + "</title></rect>"
        for place, name in enumerate(places)
    )
    return (
        '<figure class="chart">' + _caption(title, summary, drawn)
        + f'<div class="plot"><span class="top">{high:.{digits}f}</span><span class="bottom">{low:.{digits}f}</span>'
        f'<svg viewBox="0 0 {WIDE:g} {HIGH:g}" preserveAspectRatio="none" aria-hidden="true">{at}{paths}{told}</svg></div>'
        f'<div class="places"><span>{escape(places[0])}</span><span>{escape(places[-1])}</span></div></figure>'
    )


def _caption(title: str, summary: str, drawn: Sequence[Line]) -> str:
    legend = "".join(f'<span class="key"><i class="{line.look}"></i>{escape(line.name)}</span>' for line in drawn)
    return f"<figcaption><b>{escape(title)}</b> {legend}<span class=\"told\">{escape(summary)}</span></figcaption>"


def _path(values: Sequence[float | None], low: float, high: float) -> str:
    """Joined where two neighbours exist; a point by itself is a dot (the style's line ends are round)."""
    width, found, apart = WIDE / len(values), [], True
    for place, value in enumerate(values):
        if value is not None:
            to, dot = ("M", "h.01") if apart else ("L", "")
            found.append(f"{to}{(place + 0.5) * width:.2f} {_y(value, low, high):.2f}{dot}")
        apart = value is None
    return "".join(found)


def _y(value: float, low: float, high: float) -> float:
    return HIGH * (high - value) / (high - low)


def _widened(low: float, high: float, least: float) -> tuple[float, float]:
    more = max(least - (high - low), 0.1 * (high - low)) / 2
    return max(low - more, min(low, 0.0)), high + more


def _number(value: float | None, digits: int) -> str:
    return "none" if value is None else f"{value:.{digits}f}"
