"""Latencies of several loads as one picture: which share of the requests took longer, in SVG, without a library for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

# Milliseconds; requests below the first edge count into the first bucket, those above the last into the last.
EDGES: Sequence[float] = tuple(float(edge) for edge in np.geomspace(0.2, 200.0, 91))
LEAST_SHARE = 1e-4
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 760, 420, 70, 40, 20, 56
COLOURS = ("#1b6ca8", "#2e9e5b", "#e08a1e", "#b03a48", "#6b4fa0")


def counted(ms: Sequence[float] | NDArray[np.float64]) -> list[int]:
    """Latencies → how many are in each bucket, (len(EDGES) - 1,)."""
    counts, _ = np.histogram(np.clip(ms, EDGES[0], EDGES[-1]), EDGES)
    return [int(count) for count in counts]


def across(ms: float) -> float:
    """Pixels from the left; the logarithm of the time."""
    share = (np.log(ms) - np.log(EDGES[0])) / (np.log(EDGES[-1]) - np.log(EDGES[0]))
    return round(LEFT + float(share) * (WIDTH - LEFT - RIGHT), 1)


def down(share: float) -> float:
    """Pixels from the top; the logarithm of the share, all at the top."""
    depth = np.log(max(share, LEAST_SHARE)) / np.log(LEAST_SHARE)
    return round(TOP + float(depth) * (HEIGHT - TOP - BOTTOM), 1)


def drawn(title: str, loads: Mapping[str, Sequence[int]]) -> str:
    """loads: name → `counted`, the first the first in the legend. Returns the file."""
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="15">{escape(title)}</text>',
        f'<text x="{LEFT}" y="{HEIGHT - 12}">milliseconds from the moment when the request was due (log scale)</text>',
        f'<text transform="translate(16 {HEIGHT - BOTTOM}) rotate(-90)">share of requests that took longer</text>',
    ]
    for ms in (0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200):
        x = across(ms)
        lines.append(f'<line x1="{x}" y1="{TOP}" x2="{x}" y2="{HEIGHT - BOTTOM}" stroke="#ddd"/>')
        lines.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{ms:g}</text>')
    for share, told in ((1, "all"), (0.1, "10 %"), (0.01, "1 %"), (0.001, "0.1 %"), (0.0001, "0.01 %")):
        y = down(share)
        lines.append(f'<line x1="{LEFT}" y1="{y}" x2="{WIDTH - RIGHT}" y2="{y}" stroke="#ddd"/>')
        lines.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{told}</text>')
    for place, (name, counts) in enumerate(loads.items()):
        colour = COLOURS[place % len(COLOURS)]
        longer = 1 - np.cumsum(counts) / max(1, sum(counts))                    # beyond the right edge of each bucket
        points = [(across(EDGES[0]), down(1.0)), *(
            (across(edge), down(share)) for edge, share in zip(EDGES[1:], longer.tolist(), strict=True)
        )]
        path = " ".join(f"{x},{y}" for x, y in points)
        lines.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        y = HEIGHT - BOTTOM - 18 * (len(loads) - place)                          # down left, where no curve comes
        lines.append(f'<rect x="{LEFT + 14}" y="{y - 6}" width="20" height="4" fill="{colour}"/>')
        lines.append(f'<text x="{LEFT + 40}" y="{y}">{escape(name)}</text>')
    return "\n".join([*lines, "</svg>", ""])
