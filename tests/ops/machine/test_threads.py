"""How threads wait is set where nobody chose otherwise, and only for more than one."""

from __future__ import annotations

import pytest

from ops.machine.threads import SPINS, wait_briefly


@pytest.mark.parametrize(("threads", "before", "after"), [
    (1, {}, {}), (2, {}, {"GOMP_SPINCOUNT": SPINS}), (2, {"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
    (2, {"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
])
def test_what_the_user_chose_stays(threads: int, before: dict[str, str], after: dict[str, str]) -> None:
    """One thread waits for nobody."""
    environ = dict(before)
    wait_briefly(threads, environ)
    assert environ == after
