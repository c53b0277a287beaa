"""When a click comes: seconds after its impression."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from ops.simulator.options import StoreOptions


def delays_us(rng: Generator, count: int, options: StoreOptions) -> NDArray[np.int64]:
    """Delays of `count` clicks in microseconds, each a lognormal around its median.

    A draw above delay_most_s is mirrored to the other tail (0.5 % of them, at the defaults), so none comes too late.
    A late_share of them comes after late_after_s instead, by a further lognormal delay.
    """
    normal = rng.standard_normal(count)
    late = rng.random(count) < options.late_share
    further = options.delay_median_s * np.exp(options.delay_spread * rng.standard_normal(count))
    most = np.log(options.delay_most_s / options.delay_median_s)
    logs = options.delay_spread * normal
    in_time = options.delay_median_s * np.exp(np.where(logs > most, -logs, logs))
    return np.ceil(1e6 * np.where(late, options.late_after_s + further, in_time)).astype(np.int64)
