"""Random numbers by name and number, not by turn: request 841 draws the same whatever was drawn before it."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.random import Generator, Philox, SeedSequence


class Stream(IntEnum):
    """What the numbers are for. Never renumber: the number is part of the seed."""

    USERS = 1
    APPS = 2
    TASTES = 3
    REQUESTS = 4
    BASE_RATE = 5
    DRIFTS = 6


class Randomness:
    """One stream of generators, numbered. Philox is counter-based, so any of them costs 7 µs, the last like the first.

    A seed sequence of its own for each (`default_rng([seed, n])`) costs 18 µs, which is felt at thousands of slates a
    second. Generator n has 2^128 blocks to itself before it would meet generator n + 1.
    """

    def __init__(self, seed: int, stream: Stream, *more: int) -> None:
        self._key = SeedSequence(seed, spawn_key=(stream, *more)).generate_state(2, np.uint64)

    def generator(self, number: int = 0, part: int = 0) -> Generator:
        """The generator of (number, part), both from 0 to 2^64 − 1."""
        return Generator(Philox(key=self._key, counter=[0, 0, number, part]))

    @property
    def tag(self) -> int:
        """64 bits that tell this stream from others."""
        return int(self._key[0])
