"""Ten of the campaign's kills (`make campaign` does a hundred)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import needs_own_broker
from tests.integration.campaign import CRITEO, Plan, campaign, drawn

pytestmark = pytest.mark.integration


@pytest.mark.timeout(400)
@pytest.mark.skipif(not CRITEO.is_file(), reason="needs ../shared/data/criteo_60k.tsv.gz")
def test_ten_kills_at_random_moments(tmp_path: Path) -> None:
    """Joiners, trainer and broker, some while another one is still down: every example once, the bits of a quiet run."""
    needs_own_broker()
    plan = Plan(kills=10, rows=12_000, rate=120)
    outcome = campaign(plan, tmp_path, print)
    assert [kill.what for kill in outcome.kills] == [shot.what for shot in drawn(plan)]
    assert outcome.examples_learnt == plan.rows
    assert outcome.tallies == outcome.expected_tallies
    assert outcome.weights_digest == outcome.expected_digest


def test_a_campaign_is_drawn_from_its_seed() -> None:
    """The same again for the same seed; each process as often as the others."""
    plan = Plan(kills=100)
    shots = drawn(plan)
    assert shots == drawn(plan) != drawn(Plan(kills=100, seed=2))
    assert {sum(shot.what == what for shot in shots) for what in ("joiner-1", "joiner-2", "trainer", "broker")} == {25}
