"""How torch's threads wait for one another on a machine that has other work too."""

from __future__ import annotations

from collections.abc import MutableMapping

SPINS = "1000"   # some 15 µs: longer than it takes from one operation of a step to the next


def wait_briefly(threads: int, environ: MutableMapping[str, str]) -> None:
    """Before torch is imported: let a thread that waits for the others give up its core soon.

    GNU OpenMP spins for some ms else, and where another process has one of the cores, each of a step's hundred meetings lasts
    as long as the system lets that one run: two threads learnt a tenth of what they do so, at a load of 10 on two cores
    (docs/bench-learn.md). What the user has set stays. The results are the same bits.
    """
    if threads > 1 and "OMP_WAIT_POLICY" not in environ:
        environ.setdefault("GOMP_SPINCOUNT", SPINS)
