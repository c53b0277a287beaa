"""River's detectors at equal false alarms, over values in standard errors: `python -m ops.bench.detectors`.

What docs/decisions/0011 chose by. Each detector gets the most sensitive threshold of its list with which it raises at most
three false alarms among so many stationary values, normal or with the tails of Student's t with 5 degrees of freedom; then what
it finds of a shift, and after how many values.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

VALUES = 300_000        # stationary
KSWIN_VALUES = 6_000    # it takes five hundred times as long
ALLOWED = 3             # false alarms among them
BEFORE, AFTER = 60, 60  # values before a shift and from it on
SHAPES = ((2.0, 60), (3.0, 60), (5.0, 60), (10.0, 60), (5.0, 3), (10.0, 1), (20.0, 1), (1.0, 60))   # standard errors, values

Make = Callable[[float], Any]


def detectors() -> dict[str, tuple[Make, tuple[float, ...], int]]:
    """Name → how to make one of a threshold, thresholds with the most sensitive first, and how many values to try it on."""
    from river import drift

    thresholds = (4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 12.0, 15.0, 20.0, 25.0, 30.0)
    levels = (0.2, 0.05, 0.02, 2e-3, 1e-3, 1e-4, 1e-5, 1e-6, 1e-8, 1e-10, 1e-14, 1e-20)

    def page_hinkley(allowed: float) -> Make:
        return lambda threshold: drift.PageHinkley(min_instances=10, delta=allowed, threshold=threshold, alpha=1.0)

    def adwin(level: float) -> Any:
        return drift.ADWIN(delta=level, clock=1, min_window_length=1, grace_period=10)  # type: ignore[no-untyped-call]

    return {
        "Page-Hinkley, δ=1": (page_hinkley(1.0), thresholds, VALUES),
        "Page-Hinkley, δ=½": (page_hinkley(0.5), thresholds, VALUES),
        "ADWIN": (adwin, levels, VALUES),
        "KSWIN": (
            lambda level: drift.KSWIN(alpha=level, window_size=40, stat_size=15, seed=1), (1e-3, 1e-4, 2e-5), KSWIN_VALUES
        ),
    }


def noise(tails: bool, seed: int, count: int) -> NDArray[np.float64]:
    """Of variance 1."""
    rng = np.random.default_rng(seed)
    return rng.standard_t(5, count) / np.sqrt(5 / 3) if tails else rng.normal(size=count)


def alarms(detector: Any, values: NDArray[np.float64], most: int) -> int:
    """How often it fires; counting ends beyond `most`."""
    found = 0
    for value in values.tolist():
        detector.update(value)
        found += detector.drift_detected
        if found > most:
            break
    return found


def delays(make: Callable[[], Any], tails: bool, size: float, length: int, tries: int) -> list[int]:
    """Values until each shift that was found was."""
    found = []
    for seed in range(tries):
        values, detector = noise(tails, seed, BEFORE + AFTER), make()
        values[BEFORE : BEFORE + length] += size
        for place, value in enumerate(values.tolist()):
            detector.update(value)
            if detector.drift_detected and place >= BEFORE:
                found.append(place - BEFORE + 1)
                break
    return found


def main() -> None:
    """The tables, one for each kind of noise."""
    print("share of shifts found / median values until then; a shift of so many standard errors, for so many values")
    for tails in (False, True):
        print(f"\n{'Student t, 5' if tails else 'normal':<22}{'threshold':>10}{'false':>14}{'µs each':>9}"
              + "".join(f"{f'{size:g}σ × {length}':>12}" for size, length in SHAPES))
        for name, (make, thresholds, count) in detectors().items():
            values = noise(tails, 1, count)
            for threshold in thresholds:
                began = time.thread_time()
                false = alarms(make(threshold), values, ALLOWED)
                if false <= ALLOWED:
                    break
            each_us = (time.thread_time() - began) / count * 1e6
            tries, cells = 60 if count == VALUES else 10, []
            for size, length in SHAPES:
                found = delays(lambda threshold=threshold, make=make: make(threshold), tails, size, length, tries)  # type: ignore[misc]
                cells.append(f"{len(found) / tries:.0%}/{statistics.median(found):g}" if found else "0%")
            print(f"{name:<22}{threshold:>10g}{f'{false} in {count:,}':>14}{each_us:>9.2f}"
                  + "".join(f"{cell:>12}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
