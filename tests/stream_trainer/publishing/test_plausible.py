"""What a change of the stream is, and what is none: counts that are known beforehand, drawn from a seed."""

from __future__ import annotations

import numpy as np
import pytest

from schemas.bags import Bags
from schemas.fields import parse
from stream_trainer.publishing.plausible import Count, Kin, Ripening, Rows, Ties, Usual, Values

SCHEMA = parse({"field": [
    {"name": "user", "number": 1, "kind": "categorical", "side": "context"},
    {"name": "country", "number": 2, "kind": "categorical", "side": "context"},
    {"name": "hour", "number": 3, "kind": "categorical", "side": "context"},
    {"name": "app", "number": 4, "kind": "categorical", "side": "item"},
    {"name": "category", "number": 5, "kind": "categorical", "side": "item"},
    {"name": "age", "number": 6, "kind": "categorical", "side": "context"},
    {"name": "maker", "number": 7, "kind": "categorical", "side": "item"},
]}, "test")
MOST = 20.0
MIX = 0x9E3779B97F4A7C15


def ids(numbers: np.ndarray) -> np.ndarray:
    """64 bits that look like a hash, never 0."""
    mixed = (numbers.astype(np.uint64) + np.uint64(1)) * np.uint64(MIX)
    return (mixed ^ (mixed >> np.uint64(29))) * np.uint64(MIX)


def rows(impression: np.ndarray, values: np.ndarray | None = None, source: int = 0) -> Rows:
    n = len(impression)
    one = np.ones(n, np.float32)
    column = np.zeros((n, 0), np.uint64) if values is None else values
    return Rows(one, one, one, np.full(n, source), impression.astype(np.int64), column)


def usual(rate: float, blocks: int, seed: int, rows_each: int = 512) -> tuple[Usual, np.random.Generator]:
    """A rate that has been like that for so long."""
    made, rng = Usual((2.0, 0.5), 3000), np.random.default_rng(seed)
    for _ in range(blocks):
        learnt(made, rng.binomial(rows_each, rate), rows_each)
    return made, rng


def learnt(made: Usual, clicks: int, rows_each: int) -> None:
    count = Count(clicks, rows_each - clicks)
    made.judge(made.weigh(count), MOST)
    made.learn(count, rows_each)


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5])
def test_a_rate_that_stays_is_no_evidence_however_long_it_stays(rate: float) -> None:
    """A million examples at one rate never have enough evidence of twice the rate, or half."""
    made, rng = usual(rate, 100, seed=1)
    worst = 0.0
    for _ in range(2000):
        learnt(made, rng.binomial(512, rate), 512)
        worst = max(worst, float(made.evidence.max()))
    assert worst < MOST


def test_a_rate_that_grows_by_a_fifth_is_none_either() -> None:
    """The smallest effect is built in: between one and the factor's root nothing adds up."""
    made, rng = usual(0.1, 100, seed=2)
    for block in range(500):
        swing = 0.1 * 1.2 ** np.sin(block / 20)
        learnt(made, rng.binomial(512, swing), 512)
        assert made.evidence.max() < MOST


@pytest.mark.parametrize(("change", "blocks"), [(2.0, 6), (0.0, 2), (9.0, 1)])
def test_twice_as_many_none_and_nearly_all_are_evidence_soon(change: float, blocks: int) -> None:
    """Clicks that double, stop, or change places with those that are none: in so many blocks of 512 at most."""
    made, rng = usual(0.1, 100, seed=3)
    for _ in range(blocks):
        made.judge(made.weigh(Count(clicks := rng.binomial(512, 0.1 * change), 512 - clicks)), MOST)
    assert made.evidence.max() == MOST


def test_traffic_that_scatters_wider_than_chance_counts_for_less() -> None:
    """Blocks of which each has half or one and a half times the clicks: the same evidence weighs a tenth or so."""
    calm, rng = usual(0.1, 300, seed=4)
    wild = Usual((2.0, 0.5), 3000)
    for _ in range(300):
        learnt(wild, rng.binomial(512, 0.1 * rng.choice([0.5, 1.5])), 512)
    doubled = Count(102, 410)
    assert wild.scatter > 5
    assert wild.weigh(doubled)[0] * wild.scatter / wild.ratio == pytest.approx(
        calm.weigh(doubled)[0] * calm.scatter / calm.ratio, rel=1.0
    )
    assert wild.weigh(doubled)[0] < calm.weigh(doubled)[0] / 4


def test_clicks_wait_for_the_zeros_of_their_time() -> None:
    """Traffic grows fourfold within a window: what is ripe has the true rate throughout, what comes has not."""
    rng, ripening, window = np.random.default_rng(5), Ripening(), 40
    shown = np.repeat([100] * 50 + [400] * 100, 1)                     # impressions of each step
    start = np.concatenate(([0], np.cumsum(shown)))
    clicked = rng.random(start[-1]) < 0.1
    seen, worst_raw = np.zeros(2), 0.0
    for step in range(window, len(shown)):
        now, old = np.arange(start[step], start[step + 1]), np.arange(start[step - window], start[step - window + 1])
        come = rows(np.concatenate((now[clicked[now]], old[~clicked[old]])))
        is_click = np.arange(come.n) < int(clicked[now].sum())
        ripe = ripening.ripe(come, is_click)
        worst_raw = max(worst_raw, float(is_click.mean()))
        if step >= 2 * window:
            seen += (ripe.n, come.n - int(is_click.sum()))
    assert worst_raw > 0.25
    assert seen[0] / seen.sum() == pytest.approx(0.1, abs=0.01)


def test_what_waits_comes_back_from_its_state() -> None:
    """A click whose window is open, kept and taken up by another life, is ripe there."""
    first, second = Ripening(), Ripening()
    assert first.ripe(rows(np.array([7, 3])), np.array([True, False])).n == 0
    second.restore(first.state(), 0)
    assert second.ripe(rows(np.array([8])), np.array([False])).impression.tolist() == [7]


class Market:
    """Apps that are clicked at rates of their own, 4 to 16 in a hundred."""

    def __init__(self, seed: int, apps: int = 200) -> None:
        self.rng = np.random.default_rng(seed)
        self.apps = apps
        self.rate = self.rng.uniform(0.04, 0.16, apps)
        self.values = Values(SCHEMA, 4.0)
        self.born = np.zeros(apps, np.uint64)      # bits of the id that differ from an earlier app's of the same place
        self.category_born = np.uint64(0)          # the same of all categories

    def block(self, factor: np.ndarray | float = 1.0, first: int = 0, most: float = MOST) -> None:
        app = self.rng.integers(0, self.apps, 512)
        clicked = self.rng.random(512) < np.minimum(self.rate * factor, 1.0)[app]
        category = ids(1_000_000 + app % 16) ^ self.category_born
        come = rows(np.arange(512), np.column_stack((ids(first + app) ^ self.born[app], category, ids(70_000 + app % 30))))
        ripe = come.take(np.flatnonzero(clicked))
        self.values.judge(ripe, come, clicked, most, True, 0.1 / 0.9)

    def warm(self, blocks: int = 100) -> Market:
        for block in range(blocks):
            self.block(most=0.0 if block < 40 else MOST)
        return self


def test_one_app_farmed_tenfold_is_found_and_named() -> None:
    """And nothing else; its id is what is said."""
    market = Market(6).warm()
    farmed = np.ones(market.apps)
    farmed[17] = 10
    for _ in range(40):
        market.block(farmed)
    found = market.values.standing(MOST)
    assert [(field, value) for field, value, _ in found] == [("app", f"#{int(ids(np.array([17]))[0]):016x}")]
    assert 5 < found[0][2] < 15


def test_quiet_examples_a_rate_that_doubles_for_all_and_new_apps_blame_no_app() -> None:
    """Chance, fashion and what has no history are no farm."""
    market = Market(7).warm(500)
    assert market.values.most < MOST
    for _ in range(100):
        market.block(first=5000)
        assert not market.values.standing(MOST)
    liked = np.where(np.arange(market.apps) % 16 == 3, 6.0, 1.0)         # a whole category becomes the fashion
    market = Market(8).warm()
    for _ in range(100):
        market.block(liked)
        assert not market.values.standing(MOST)


OF_ONE_CATEGORY = np.arange(200) % 16 == 3
SELDOM_CLICKED = OF_ONE_CATEGORY & (np.arange(200) < 48)          # three of its thirteen apps


def at_its_hour(market: Market) -> np.ndarray:
    """(200,): eight times the odds of a click, for a whole category. Three of its apps are clicked 4 times in a hundred, and
    then 25, the others 50 times, and then 89."""
    market.rate[OF_ONE_CATEGORY], market.rate[SELDOM_CLICKED] = 0.5, 0.04
    odds = 8 * market.rate / (1 - market.rate)
    return np.where(OF_ONE_CATEGORY, odds / (1 + odds) / market.rate, 1.0)


def test_an_hour_that_a_category_is_made_for_blames_none_of_its_apps() -> None:
    """Three rise sixfold and are no more than a farm would be; the others show that it is the hour, by their odds."""
    for seed in range(12, 16):
        market = Market(seed)
        lifted = at_its_hour(market)
        market.warm()
        for _ in range(100):
            market.block(lifted)
            assert not market.values.standing(MOST)


def test_an_app_that_is_farmed_at_the_hour_of_its_category_is_named() -> None:
    """Each time that it is shown it is clicked, the hour's own share of that aside."""
    market = Market(16)
    lifted = at_its_hour(market)
    market.warm()
    for _ in range(20):
        market.block(lifted)
    lifted[19] = 25.0
    for _ in range(40):
        market.block(lifted)
    assert [value for _, value, _ in market.values.standing(MOST)] == [f"#{int(ids(np.array([19]))[0]):016x}"]


def test_kin_rises_by_its_odds_and_without_the_value_itself() -> None:
    """App 0, then app 1, of category 4, whose other apps were clicked 30 times of 300; in a block 40 of 200. By hand.
    When somebody else has the category's place, and when nothing is held against the app any more, it counts no longer."""
    shown, clicks = np.array([100, 390, 9, 0, 400], np.float32), np.array([10, 30, 0, 0, 40], np.float32)
    evidence = np.full(5, 5, np.float32)
    kin = Kin(2)
    kin.follow(np.array([0, 1, 2]), evidence, np.array([[0, 4], [1, 4], [2, 3], [2, 4]]), shown, clicks, 0.1)
    assert kin.places.tolist() == [0, 1, 2]
    rise = kin.rise(np.array([50.0, 0.0, 0.0, 0.0, 250.0]), np.array([45, 0, 0, 0, 85]))
    usual, now = (30 + 5) / (300 + 50), (40 + 5) / (200 + 50)            # 5 clicks' worth is presumed
    assert rise[0] == pytest.approx(now / (1 - now) / (usual / (1 - usual)))
    assert rise[1:].tolist() == [1.0, 1.0]                               # too few others; of two categories
    kin.lose(np.arange(5) == 4)
    assert kin.rise(np.array([50.0, 0.0, 0.0, 0.0, 250.0]), np.array([45, 0, 0, 0, 85]))[0] == 1.0
    evidence[0] = 0
    kin.follow(np.array([1]), evidence, np.array([[1, 4]]), shown, clicks, 0.1)
    assert kin.places.tolist() == [1, 2]


def test_kin_whose_place_another_has_says_nothing() -> None:
    """While an app is farmed its category makes way for another whose id has the same last bits, and whose apps are liked."""
    market = Market(17).warm()
    farmed = np.ones(market.apps)
    farmed[17] = 10
    place, evidence = int(ids(np.array([17]))[0]) % market.values.SLOTS, market.values.evidence
    for _ in range(40):
        if evidence[place] < MOST / 2:
            market.block(farmed)
    market.category_born = np.uint64(1 << 50)
    for _ in range(20):
        market.block(np.where(np.arange(market.apps) % 16 == 1, 10, farmed))
    assert evidence[place] == MOST


def test_an_app_does_not_inherit_the_clicks_of_a_dead_one_whose_place_it_has() -> None:
    """One that 1 in a hundred clicked, then another that 20 in a hundred click and whose id has the same last bits."""
    market = Market(11)
    market.rate[17] = 0.01
    market.warm()
    market.rate[17], market.born[17] = 0.2, 1 << 50
    for _ in range(100):
        market.block()
        assert not market.values.standing(MOST)


class World:
    """Users have a country, apps a category; the hour is one for all, and moves on."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.country = self.rng.integers(0, 8, 400)
        self.category = self.rng.integers(0, 16, 10_000)
        self.ties = Ties(SCHEMA)
        self.block_number = 0

    def block(self, shuffled: int | None = None, first: int = 0, most: float = MOST) -> None:
        user, app = self.rng.integers(0, 400, 48), first + self.rng.integers(0, 200, 48)
        self.block_number += 1
        columns = np.column_stack((
            ids(user), ids(10_000 + self.country[user]), ids(20_000 + np.full(48, self.block_number // 50)),
            ids(30_000 + app), ids(50_000 + self.category[app]), ids(60_000 + user % 6), ids(70_000 + app % 30),
        ))
        if shuffled is not None:
            columns[:, shuffled] = self.rng.permutation(columns[:, shuffled])
        self.ties.judge(Bags(7, columns.reshape(-1)), most, learn=True)

    def warm(self, blocks: int = 200) -> World:
        for _ in range(blocks):
            self.block()
        return self


@pytest.mark.parametrize(("column", "blamed"), [(1, "country"), (4, "category"), (3, "app"), (0, "user")])
def test_a_field_that_is_dealt_out_anew_is_found_and_blamed(column: int, blamed: str) -> None:
    """Each value is as frequent as before; within 25 blocks of 48 rows it is known that nothing keeps what it had."""
    world = World(9).warm()
    assert not world.ties.standing(MOST)
    for _ in range(25):
        world.block(shuffled=column)
    found = world.ties.standing(MOST)
    assert found[0][0] == blamed


def test_hours_that_pass_new_apps_and_a_sale_break_no_tie() -> None:
    """The hour changes a dozen times, all apps are new ones, all change their category at once: nobody is blamed."""
    world = World(10).warm(600)
    for first in range(200, 2000, 200):
        for _ in range(20):
            world.block(first=first)
            assert not world.ties.standing(MOST)
    world.category = world.category[::-1].copy()
    for _ in range(100):
        world.block(first=1800)
        assert not world.ties.standing(MOST)


def test_history_survives_its_state() -> None:
    """Values and ties judge on as if nobody had been killed, who is suspicious with its kin included."""
    market, world = Market(11).warm(), World(11).warm()
    for _ in range(3):
        market.block(10.0)
    values, ties = Values(SCHEMA, 4.0), Ties(SCHEMA)
    values.restore(market.values.state())
    ties.restore(world.ties.state())
    again, world.rng = Market(11), np.random.default_rng(1)
    again.values, again.rng, market.rng = values, np.random.default_rng(1), np.random.default_rng(1)
    for _ in range(20):
        market.block(10.0)
        again.block(10.0)
    np.testing.assert_array_equal(values.evidence, market.values.evidence)
    for _ in range(10):
        world.block(shuffled=1)
    other = World(11)
    other.country, other.category, other.ties, other.rng = world.country, world.category, ties, np.random.default_rng(1)
    other.block_number = world.block_number - 10
    for _ in range(10):
        other.block(shuffled=1)
    np.testing.assert_array_equal(ties.evidence, world.ties.evidence)
