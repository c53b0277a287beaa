from __future__ import annotations

import base64
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import orjson
import pytest

from ops.simulator.options import StoreOptions
from ops.simulator.slates import Scored, Simulator
from ops.simulator.vocabulary import CATEGORIES
from schemas.errors import ConfigError
from schemas.events import Action, Impression, parse
from schemas.fields import Encoder, load

START_US = int(datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()) * 1_000_000
STEP_US = 20_000
SMALL = StoreOptions(users=300, apps=60, slate=8, candidates=12)


def scored(request, probabilities=None, echoes=None):
    """Scores that favour the last candidates, unless told otherwise."""
    n = len(request.candidates)
    given = list(np.linspace(0.01, 0.5, n)) if probabilities is None else probabilities
    return Scored(probabilities=given, model="appstore", lineage="a1", version=7, echoes=echoes)


def events(options=SMALL, slates=50, start_us=START_US, ranker=lambda _: None):
    """All events of a run, impression by impression."""
    store, found = Simulator(options, start_us), []
    for number in range(slates):
        request = store.next_request(start_us + number * STEP_US)
        impression, clicks = store.show(request, ranker(request))
        found += [impression, *(click for _, click in clicks)]
    return found


def as_bytes(found):
    return b"\n".join(orjson.dumps(event) for event in found)


@pytest.mark.parametrize("ranker", [lambda _: None, scored])
def test_same_seed_same_start_same_ranking_make_the_same_bytes(ranker):
    """Twice from nothing."""
    assert as_bytes(events(ranker=ranker)) == as_bytes(events(ranker=ranker))


@pytest.mark.parametrize("other", [{"options": replace(SMALL, seed=2)}, {"start_us": START_US + 3_600_000_000}])
def test_another_seed_or_start_makes_other_events(other):
    """No impression of the one is in the other: two runs into one topic do not meet."""
    ours, theirs = events(), events(**other)
    assert not {event["impression_id"] for event in ours} & {event["impression_id"] for event in theirs}
    assert [event["context"] for event in ours if "context" in event] != [
        event["context"] for event in theirs if "context" in event
    ]


def test_a_request_does_not_hang_on_the_slates_shown_before_it():
    """Whatever was ranked, the next visitor, candidates and luck are the same."""
    one, other = Simulator(SMALL, START_US), Simulator(SMALL, START_US)
    for number in range(30):
        ours, theirs = (store.next_request(START_US + number * STEP_US) for store in (one, other))
        one.show(ours, None)
        if number % 2:
            other.show(theirs, scored(theirs))
    assert ours.candidates == theirs.candidates
    assert ours.context == theirs.context
    np.testing.assert_array_equal(ours.chance, theirs.chance)
    np.testing.assert_array_equal(ours.delay_us, theirs.delay_us)


def test_events_are_what_the_join_reads():
    """The friendly JSON form: every part arrives as it was shown, and each click names an item of its impression."""
    store = Simulator(SMALL, START_US)
    shown_clicks = 0
    for number in range(60):
        request = store.next_request(START_US + number * STEP_US)
        echoes = [f"echo{place}".encode() for place in range(12)]
        answer = scored(request, echoes=echoes)
        impression, clicks = store.show(request, answer)
        parsed = parse(orjson.dumps(impression))
        assert isinstance(parsed, Impression)
        assert parsed.impression_id == request.impression_id
        assert parsed.time_us == request.time_us
        assert parsed.served_version == 7
        assert parsed.slate.context == request.context
        assert parsed.slate.positions == list(range(1, 9))
        place = {candidate["id"]: which for which, candidate in enumerate(request.candidates)}
        for row, item in enumerate(parsed.slate.item_ids):
            assert (parsed.served_probability or [])[row] == answer.probabilities[place[item]]
            assert (parsed.echo or [])[row] == echoes[place[item]]
            features = request.candidates[place[item]]["features"]
            assert {name: column[row] for name, column in parsed.slate.columns.items()} == features
            assert impression["items"][row]["bid"] > 0
        for due_us, click in clicks:
            action = parse(orjson.dumps(click))
            assert isinstance(action, Action)
            assert (action.impression_id, action.action) == (request.impression_id, "click")
            assert action.item_id in parsed.slate.item_ids
            assert action.time_us == due_us > request.time_us
            shown_clicks += 1
    assert shown_clicks == store.tally.clicks > 0


def test_the_bundled_schema_knows_every_field_and_misses_none():
    """Nothing that the store sends is ignored; nothing in the schema is never sent."""
    schema = load("appstore")
    encoder = Encoder(schema, training=True)
    sent: set[tuple[str, str]] = {("item", "item_id"), ("item", "position")}
    for event in events():
        if "items" in event:
            parsed = parse(orjson.dumps(event))
            assert isinstance(parsed, Impression)
            assert encoder.encode(parsed.slate)[1] == []
            sent |= {("context", name) for name in parsed.slate.context}
            sent |= {("item", name) for name in parsed.slate.columns}
    assert sent == {(spec.side, spec.name) for spec in schema.fields}
    assert [spec.name for spec in schema.fields if spec.training_only] == ["position"]


def test_a_gender_not_given_is_absent():
    """So the schema's missing value is met too."""
    given = Counter(event["context"].get("gender") for event in events(slates=600) if "context" in event)
    assert set(given) == {"f", "m", None}


def test_ranked_slates_stand_in_the_order_of_the_scores_and_random_ones_do_not():
    """One slate in ten is random whatever the scores; without scores all are. The propensities tell them apart."""
    store, options = Simulator(SMALL, START_US), SMALL
    random = 0
    for number in range(1000):
        request = store.next_request(START_US + number * STEP_US)
        impression, _ = store.show(request, scored(request))
        served = [item["served_probability"] for item in impression["items"]]
        chances = {item["propensity"] for item in impression["items"]}
        assert impression["model"] == {"name": "appstore", "lineage": "a1", "version": 7}
        if request.random_order:
            random += 1
            assert chances == {1 / options.candidates}
        else:
            assert chances == {1.0}
            assert served == sorted(served, reverse=True)
            assert min(served) > sorted(scored(request).probabilities)[-options.slate - 1]
    assert abs(random - 100) < 4 * np.sqrt(1000 * 0.1 * 0.9)
    assert store.tally.random_slates == random

    impression, _ = store.show(store.next_request(START_US), None)
    assert "model" not in impression
    assert "served_probability" not in impression["items"][0]
    assert impression["items"][0]["propensity"] == 1 / options.candidates


def test_propensities_are_the_chances_of_a_place():
    """Over all candidates they add up to 1 at each place, and each candidate stands there as often as they say."""
    store = Simulator(replace(SMALL, apps=12, users=5, app_life_days=1e6), START_US)
    where: Counter[tuple[str, int]] = Counter()
    slates = 6000
    for number in range(slates):
        request = store.next_request(START_US + number)
        impression, _ = store.show(request, None)
        assert impression["items"][0]["propensity"] * len(request.candidates) == pytest.approx(1)
        where.update((item["id"], item["position"]) for item in impression["items"])
    expected = slates / 12
    assert len(where) == 12 * 8
    # 96 cells: the largest of so many standard normals is below 4.5 with a chance of 1 − 96·7e-6.
    assert max(abs(count - expected) for count in where.values()) < 4.5 * np.sqrt(expected * 11 / 12)


def test_value_ranks_by_probability_times_bid():
    """Objective `value`: what a click is worth counts."""
    store = Simulator(replace(SMALL, objective="value", random_share=0.0), START_US)
    request = store.next_request(START_US)
    impression, _ = store.show(request, scored(request))
    worth = [item["bid"] * item["served_probability"] for item in impression["items"]]
    assert worth == sorted(worth, reverse=True)


def test_ties_keep_the_random_order_of_the_candidates():
    """A model that knows nothing yet favours nobody."""
    store = Simulator(replace(SMALL, random_share=0.0), START_US)
    request = store.next_request(START_US)
    impression, _ = store.show(request, scored(request, [0.1] * 12))
    assert [item["id"] for item in impression["items"]] == [item["id"] for item in request.candidates[:8]]


def test_scores_for_other_candidates_are_refused():
    """One score per candidate."""
    store = Simulator(replace(SMALL, random_share=0.0), START_US)
    request = store.next_request(START_US)
    with pytest.raises(ValueError, match="11 scores for 12 candidates"):
        store.show(request, scored(request, [0.1] * 11))


def test_an_item_shown_higher_keeps_its_click():
    """Position only costs: whatever is clicked lower down would be clicked at the first place too."""
    store = Simulator(replace(SMALL, random_share=0.0, click_rate=0.3), START_US)
    for number in range(40):
        request = store.next_request(START_US + number * STEP_US)
        ids = [candidate["id"] for candidate in request.candidates]
        _, clicks = store.show(request, scored(request))
        for _, click in clicks:
            first = [1.0 if name == click["item"] else 0.1 for name in ids]
            _, again = store.show(request, scored(request, first))
            assert click["item"] in [other["item"] for _, other in again]


def test_echo_is_base64_and_left_out_where_none_came():
    """An empty echo is no echo."""
    store = Simulator(SMALL, START_US)
    request = store.next_request(START_US)
    impression, _ = store.show(request, scored(request, echoes=[b"", *[b"\x00\xff"] * 11]))
    echoes = {item["id"]: item.get("echo") for item in impression["items"]}
    first = request.candidates[0]["id"]
    assert echoes.get(first) is None
    assert {base64.b64decode(text) for name, text in echoes.items() if name != first} == {b"\x00\xff"}


@pytest.mark.parametrize("wrong", [
    {"seed": -1}, {"slate": 0}, {"slate": 30}, {"candidates": 300}, {"day_s": 0.0}, {"random_share": 1.1},
    {"click_rate": 0.0}, {"delay_median_s": 9.5}, {"slate": 1001, "candidates": 1001, "apps": 2000},
])
def test_wrong_options_are_refused_by_name(wrong):
    """Before anything is made of them."""
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        StoreOptions(**wrong)


def test_categories_and_their_shares_fit():
    """Every category is sold by somebody."""
    store = Simulator(StoreOptions(), START_US)
    store.apps.advance(START_US)
    assert set(store.apps.category) == set(range(len(CATEGORIES)))
