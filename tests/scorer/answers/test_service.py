from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
import structlog

from schemas import echo
from schemas.bags import Bags
from schemas.errors import RequestError
from schemas.fields import Encoder, ReadyId, Slate, load
from schemas.proto.events_pb2 import Column
from schemas.proto.scoring_pb2 import CTR_TIMES_BID, ReadyIds, ScoreRequest
from schemas.proto.scoring_pb2_grpc import ScorerStub, add_ScorerServicer_to_server
from schemas.snapshot import unpack
from scorer.answers.engine import Blueprint, Engine, Scores
from scorer.answers.engine import load as load_engine
from scorer.answers.service import ByName, ScoringService, ranks
from scorer.answers.version import Version
from scorer.client import ScorerClient, ScorerUnavailable, column
from scorer.metrics import Metrics
from tests.kit.processes import wait_until
from tests.scorer.lineage import Lineage, small

SCHEMA = load("appstore")
CONTEXT = {"user": "u17", "country": "NO", "hour": 10, "installed": ["games", "food"]}
ITEMS: list[dict[str, Any]] = [
    {"id": "app1", "features": {"category": "games", "price": 0.99, "tags": ["puzzle", "free"]}},
    {"id": "app2", "features": {"category": "food", "price": None, "tags": []}},
    {"id": "app3", "features": {}},
]


class Service:
    """The servicer behind a real gRPC server, with an engine that a test may take away or replace."""

    def __init__(self, strict: bool = False) -> None:
        self.lineage = Lineage(small(), SCHEMA)
        pairs = self.lineage.publish(rows=300)
        content = unpack(self.lineage.manifests[1], [value for _, value in pairs[:-1]])
        self.engine: Engine | None = load_engine(
            Blueprint(small(), SCHEMA), lambda: 0, [(self.lineage.manifests[1], content)]
        )
        self.served: list[Version] = []
        self.metrics = Metrics()
        service = ScoringService(
            "appstore", SCHEMA, strict, lambda: self.engine, self.served.append, self.metrics, lambda: 3_500_000
        )
        self.server = grpc.server(ThreadPoolExecutor(2))
        add_ScorerServicer_to_server(ByName({"appstore": service}), self.server)
        port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()
        self.client = ScorerClient(f"127.0.0.1:{port}")
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self.stub = ScorerStub(self.channel)

    def close(self) -> None:
        self.client.close()
        self.channel.close()
        self.server.stop(None).wait()


@pytest.fixture(scope="module")
def shared_service():
    service = Service()
    yield service
    service.close()


@pytest.fixture
def service(shared_service):
    """The shared one, as it was."""
    engine = shared_service.engine
    yield shared_service
    shared_service.engine = engine


def test_an_answer_is_what_the_slates_ids_give(service):
    """Probability, logit, rank and echo of each item, the version's name and age, from the whole table by hand."""
    scored = service.client.score(CONTEXT, ITEMS, request_id="r1")
    columns: dict[str, list[Any]] = {
        "category": ["games", "food", None], "price": [0.99, None, None], "tags": [["puzzle", "free"], None, None]
    }
    bags, _ = Encoder(SCHEMA, training=False).encode(Slate(["app1", "app2", "app3"], CONTEXT, columns))
    truth = service.lineage.truth(1, bags)
    assert [item.item_id for item in scored.items] == ["app1", "app2", "app3"]
    np.testing.assert_allclose([item.logit for item in scored.items], truth, atol=1e-6)
    np.testing.assert_allclose([item.probability for item in scored.items], 1 / (1 + np.exp(-truth)), atol=1e-6)
    assert [item.rank for item in scored.items] == (np.argsort(np.argsort(-truth)) + 1).tolist()
    assert [item.rank for item in scored.ranked()] == [1, 2, 3]
    assert (scored.request_id, scored.model, scored.lineage, scored.version) == ("r1", "appstore", "a" * 32, 1)
    assert scored.version_age_s == 2.5
    assert scored.warnings == []
    back = echo.to_bags([item.echo for item in scored.items], SCHEMA)
    assert back is not None
    np.testing.assert_array_equal(back.ids, bags.ids)
    assert service.served[-1].number == 1


def test_the_same_features_in_any_form_are_the_same_scores(service):
    """Text, number or ready id; one value or a set of one; a number as text: what is scored is the same."""
    def logits(features):
        items = [{"id": "x", "features": features}, {"id": "y", "features": features}]
        return [item.logit for item in service.client.score({"user": 7, "hour": 10}, items).items]

    encoder = Encoder(SCHEMA, training=False)
    bags, _ = encoder.encode(Slate(["x"], {}, {"category": ["games"]}))
    place = [spec.name for spec in SCHEMA.fields].index("category")
    assert bags.lengths is not None
    ready = ReadyId(int(bags.ids[int(bags.lengths[:place].sum())]))
    same = [
        {"category": "games", "price": 3}, {"category": ["games"], "price": 3.0}, {"category": ready, "price": "3"},
        {"category": " games ", "price": np.float32(3)}, {"category": np.str_("games"), "price": np.int64(3)},
    ]
    expected = logits(same[0])
    for features in same[1:]:
        assert logits(features) == expected
    assert logits({"category": "food", "price": 3}) != expected


def ready(request: ScoreRequest, bags: Bags) -> ScoreRequest:
    """The same slate with the ids of `bags`, one a field."""
    ids = bags.ids.reshape(len(bags), -1)
    for side, rows, into in (("context", ids[:1], request.ready_context), ("item", ids, request.ready_items)):
        places = [place for place, spec in enumerate(SCHEMA.fields) if spec.side == side]
        into.field.extend(SCHEMA.numbers[place] for place in places)
        into.ids = np.ascontiguousarray(rows[:, places]).tobytes()
    return request


def test_ready_ids_in_one_piece_are_the_same_scores(service):
    """Ids of an echo, sent back as one block, with and without the answer in columns; a field left out counts as missing,
    but the items' ids are known."""
    ids = [f"app{n}" for n in range(7)]
    items = [{"id": name, "features": {"category": f"c{name}", "price": len(name)}} for name in ids]
    scored = service.client.score({"user": "u1", "hour": 10}, items)
    bags = echo.to_bags([item.echo for item in scored.items], SCHEMA)
    assert bags is not None
    request = ready(ScoreRequest(item_id=ids), bags)
    answer = service.stub.Score(request)
    assert [item.logit for item in answer.items] == [item.logit for item in scored.items]
    one_each = Bags(bags.fields, bags.ids, bags.values, None)
    assert [item.echo for item in answer.items] == echo.encode(one_each, SCHEMA.digest)
    request.compact = True
    answer = service.stub.Score(request)
    assert (list(answer.logit), list(answer.rank)) == ([i.logit for i in scored.items], [i.rank for i in scored.items])
    assert (list(answer.probability), len(answer.items)) == ([i.probability for i in scored.items], 0)
    without = service.stub.Score(ScoreRequest(item_id=["a"], compact=True, ready_items=ReadyIds()))
    nothing = service.client.score({}, [{"id": "a"}])
    assert list(without.logit) == [item.logit for item in nothing.items]


def test_a_bid_ranks_by_what_is_expected_to_be_paid(service):
    """Probability times bid; the probabilities themselves stay. Bids are not looked at where the probability ranks."""
    bids = [0.1, 0.0, 3.0]
    items = [item | {"bid": bid} for item, bid in zip(ITEMS, bids, strict=True)]
    plain = service.client.score(CONTEXT, items)
    paid = service.client.score(CONTEXT, items, objective="ctr_times_bid")
    worth = [-item.probability * bid for item, bid in zip(plain.items, bids, strict=True)]
    assert [item.rank for item in paid.items] == [sorted(worth).index(one) + 1 for one in worth]
    assert [item.probability for item in paid.items] == [item.probability for item in plain.items]
    assert [item.rank for item in service.client.score(CONTEXT, ITEMS).items] == [item.rank for item in plain.items]


def test_items_left_out_and_the_best_alone(service):
    """An excluded item is neither scored nor ranked; of the others only the best are told, with the scores they have anyway."""
    items = [{"id": f"app{n}", "features": {"category": f"c{n}"}} for n in range(20)]
    every = {item.item_id: item for item in service.client.score(CONTEXT, items).items}
    best = service.client.score(CONTEXT, items, exclude=["app3", "app19", "nobody"], top=5)
    left = sorted((item for name, item in every.items() if name not in ("app3", "app19")), key=lambda item: item.rank)[:5]
    assert [item.item_id for item in best.ranked()] == [item.item_id for item in left]
    assert [item.rank for item in best.ranked()] == [1, 2, 3, 4, 5]
    assert {(item.item_id, item.logit, item.echo) for item in best.items} == {(i.item_id, i.logit, i.echo) for i in left}
    compact = service.stub.Score(ScoreRequest(
        item_id=[f"app{n}" for n in range(20)], context=[column(name, [value]) for name, value in CONTEXT.items()],
        items=[column("category", [f"c{n}" for n in range(20)])], exclude=["app3", "app19"], top=5, compact=True,
    ))
    assert [f"app{place}" for place in compact.item] == [item.item_id for item in best.items]
    assert list(compact.logit) == [item.logit for item in best.items]


def test_a_request_whose_time_is_over_is_not_computed(service):
    """It waited behind others for longer than its client does: nobody would read the answer."""
    slow, asked = SlowEngine(service.engine), service.metrics.totals()["items_scored"]
    service.engine = slow
    with grpc.insecure_channel(service.client.target) as channel:
        calls = [ScorerStub(channel).Score.future(request(), timeout=0.2) for _ in range(6)]
        for call in calls:
            assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED   # waits until it has ended
        slow.go_on.set()
    service.engine = slow.behind
    service.stub.Score(request())
    assert slow.calls <= 2  # there are two threads
    counted = asked + 2 * (1 + slow.calls)
    wait_until(lambda: service.metrics.totals()["items_scored"] == counted, 5, "both threads to have counted", 0.01)


def test_position_is_scored_at_its_served_value(service):
    """A training-only field that a client sends changes nothing."""
    without = service.client.score(CONTEXT, ITEMS)
    with_places = [item | {"features": {**item["features"], "position": 9}} for item in ITEMS]
    sent = service.client.score(CONTEXT, with_places)
    assert [item.logit for item in sent.items] == [item.logit for item in without.items]
    assert sent.warnings == []


def test_ties_rank_in_the_order_of_the_request(service):
    """Items without features of their own differ by their id alone; equal probabilities keep their order."""
    assert ranks(np.array([0.2, 0.5, 0.2, 0.5, 0.9], np.float32)).tolist() == [4, 2, 5, 3, 1]
    assert ranks(np.array([0.5] * 100, np.float32)).tolist() == list(range(1, 101))


def test_a_thousand_items_are_scored_at_once(service):
    """The most there may be; ranks are 1 to 1,000, each once."""
    scored = service.client.score(CONTEXT, [{"id": f"app{n}"} for n in range(1000)], timeout_s=10)
    assert sorted(item.rank for item in scored.items) == list(range(1, 1001))


def test_unknown_fields_are_ignored_with_a_warning(service):
    """The scores are the same; the warning names the fields."""
    odd = [item | {"features": {**item["features"], "colour": "red"}} for item in ITEMS]
    scored = service.client.score(CONTEXT | {"moon": "full"}, odd)
    assert scored.warnings == ["ignored fields not in the schema 'appstore': moon, colour"]
    assert [i.logit for i in scored.items] == [i.logit for i in service.client.score(CONTEXT, ITEMS).items]


def test_a_strict_scorer_refuses_unknown_fields():
    """The same slate is INVALID_ARGUMENT, with the fields' names and the setting's."""
    service = Service(strict=True)
    with pytest.raises(RequestError, match=r"INVALID_ARGUMENT: fields not in the schema 'appstore': moon.*score\.strict"):
        service.client.score(CONTEXT | {"moon": "full"}, ITEMS)
    service.client.score(CONTEXT, ITEMS)
    service.close()


def request(**changes) -> ScoreRequest:
    whole: dict[str, Any] = {
        "context": [Column(field="user", strings=["u1"])], "item_id": ["a", "b"],
        "items": [Column(field="price", numbers=[1, 2])],
    }
    return ScoreRequest(**whole | changes)


def block(**values) -> ScoreRequest:
    return ScoreRequest(item_id=["a", "b"], ready_items=ReadyIds(**values))


INVALID = grpc.StatusCode.INVALID_ARGUMENT
BAD = {
    "no items": (request(item_id=[], items=[]), INVALID, "at least one item"),
    "1,001 items": (request(item_id=[str(n) for n in range(1001)], items=[]), INVALID, "1,001 items, at most 1,000"),
    "100,000 items": (request(item_id=[str(n) for n in range(100_000)], items=[]), INVALID, "at most 1,000"),
    "an item twice": (request(item_id=["a", "a"]), INVALID, "distinct; shown twice: a"),
    "an item without id": (request(item_id=["a", ""]), INVALID, "item 1 has no id"),
    "ragged columns": (request(item_id=["a", "b", "c"]), INVALID, "price: 2 values for 3 entries"),
    "ragged lengths": (
        request(items=[Column(field="tags", strings=["x", "y"], lengths=[1, 2])]), INVALID, "lengths adding up to 3"
    ),
    "a huge length": (
        request(items=[Column(field="tags", strings=["x", "y"], lengths=[2**32 - 1, 3])]), INVALID, "adding up to"
    ),
    "NaN": (request(items=[Column(field="price", numbers=[1, math.nan])]), INVALID, "must be finite"),
    "infinity": (request(items=[Column(field="price", numbers=[1, math.inf])]), INVALID, "must be finite"),
    "text for a number": (request(items=[Column(field="price", strings=["1", "cheap"])]), INVALID, "takes a number"),
    "NaN as text": (request(items=[Column(field="price", strings=["1", "nan"])]), INVALID, "takes a finite number"),
    "a set for one value": (
        request(items=[Column(field="category", strings=["x", "y", "z"], lengths=[1, 2])]), INVALID, "takes one value"
    ),
    "a set too large": (
        request(items=[Column(field="tags", strings=["x"] * 2000, lengths=[1000, 1000])] * 1), None, ""
    ),
    "a set far too large": (
        request(items=[Column(field="tags", strings=["x"] * 2001, lengths=[1001, 1000])]), INVALID, "at most 1000"
    ),
    "a field twice": (
        request(items=[Column(field="price", numbers=[1, 2])] * 2), INVALID, "column 'price': each field once"
    ),
    "a field without name": (request(items=[Column(numbers=[1, 2])]), INVALID, "each field once, by name"),
    "text and numbers": (
        request(items=[Column(field="price", numbers=[1, 2], strings=["1", "2"])]), INVALID, "one of strings, numbers"
    ),
    "ready ids and columns": (request(ready_items=ReadyIds()), INVALID, "not both"),
    "ready ids cut": (block(field=[30], ids=b"12345678"), INVALID, "8 bytes of ids for 1 fields and 2 entries"),
    "a ready field twice": (block(field=[30, 30], ids=bytes(32)), INVALID, "ready_items: each field once"),
    "a ready NaN": (block(field=[30], ids=bytes(16), values=np.full(2, np.nan, "<f4").tobytes()), INVALID, "finite"),
    "an unknown ready field": (block(field=[9999], ids=bytes(16)), None, ""),
    "no bids": (request(objective=CTR_TIMES_BID), INVALID, "0 entries for 2 items"),
    "a negative bid": (request(objective=CTR_TIMES_BID, bid=[1, -1]), INVALID, "bid: finite numbers from 0 on"),
    "an unknown objective": (request(objective=7), INVALID, "objective 7 is not known"),
    "all excluded": (request(exclude=["b", "a"]), INVALID, "nothing to score"),
    "two contexts": (request(context=[Column(field="user", strings=["u1", "u2"])]), INVALID, "2 values for 1 entries"),
    "another model": (request(model="other"), grpc.StatusCode.NOT_FOUND, "this scorer has 'appstore'"),
    "the model's name": (request(model="appstore"), None, ""),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_a_status_that_says_what_to_change(service, name):
    """Each with its own text; the next request is answered as before."""
    bad, code, text = BAD[name]
    if code is None:
        service.stub.Score(bad)
        return
    before = service.metrics.registry.get_sample_value("freshet_scorer_requests_total", {"status": code.name}) or 0
    with pytest.raises(grpc.RpcError) as failed:
        service.stub.Score(bad)
    assert failed.value.code() is code
    assert text in failed.value.details()
    after = service.metrics.registry.get_sample_value("freshet_scorer_requests_total", {"status": code.name})
    assert after == before + 1
    service.stub.Score(request())


def test_before_the_first_version_it_is_unavailable(service):
    """A status that says: try again."""
    service.engine = None
    with pytest.raises(ScorerUnavailable, match="UNAVAILABLE: no version of 'appstore' is loaded yet"):
        service.client.score(CONTEXT, ITEMS)


class SlowEngine(Engine):
    """Answers once it may."""

    def __init__(self, behind: Engine) -> None:
        self.behind = behind
        self.calls = 0
        self.go_on = threading.Event()

    def score(self, bags: Bags) -> Scores:
        self.calls += 1
        self.go_on.wait(10)
        return self.behind.score(bags)


class BrokenEngine(Engine):
    """Fails as no engine should."""

    def __init__(self) -> None:
        pass

    def score(self, bags: Bags) -> Scores:
        raise ZeroDivisionError("secret/path/of/ours")


def test_an_unexpected_error_tells_the_client_nothing_and_the_log_everything(service):
    """INTERNAL with a general text; the traceback is an event in the log."""
    service.engine = BrokenEngine()
    with structlog.testing.capture_logs() as logs, pytest.raises(grpc.RpcError) as failed:
        service.stub.Score(request(request_id="r7"))
    assert failed.value.code() is grpc.StatusCode.INTERNAL
    assert failed.value.details() == "An error of the scorer's own; its log has the details."
    assert [(entry["event"], entry["request_id"]) for entry in logs] == [("score.defect", "r7")]


@pytest.mark.parametrize(
    ("features", "text"),
    [({"price": math.nan}, "nan cannot be scored"), ({"price": {}}, "field price"), ({"price": [1, ReadyId(5)]}, "ready")],
)
def test_the_client_refuses_what_cannot_be_sent(service, features, text):
    """Before anything goes over the wire, with the field's name."""
    with pytest.raises(RequestError, match=text):
        service.client.score(CONTEXT, [{"id": "a", "features": features}])


def test_nobody_there_is_unavailable():
    """Within the time given, and naming the address."""
    with ScorerClient("127.0.0.1:1") as client:
        with pytest.raises(ScorerUnavailable, match=r"127\.0\.0\.1:1"):
            client.score(CONTEXT, ITEMS, timeout_s=0.2)
        with pytest.raises(ScorerUnavailable, match=r"not ready within 0\.2 s"):
            client.wait_ready(0.2)


def test_an_explanation_is_of_the_scores_that_the_same_slate_gets(service):
    """Its logits are Score's, its parts add up to them, by the schema's fields; named items alone where some are named. What
    leaving a field out takes away is what the whole table gives by hand where its row is zeros."""
    scored = service.client.score(CONTEXT, ITEMS)
    told = service.client.explain(CONTEXT, ITEMS)
    assert (told.lineage, told.version, told.model) == (scored.lineage, 1, "appstore")
    assert [item.item_id for item in told.items] == ["app1", "app2", "app3"]
    names = [spec.name for spec in SCHEMA.fields]
    for item, its in zip(told.items, scored.items, strict=True):
        assert item.logit == pytest.approx(its.logit, abs=2e-6)
        assert list(item.own) == list(item.without) == names
        assert len(item.pairs) == len(names) * (len(names) - 1) // 2
        assert item.base + sum(item.own.values()) + sum(item.pairs.values()) + item.rest == pytest.approx(item.logit, abs=1e-9)
        for name in names:
            shared = sum(pair for sides, pair in item.pairs.items() if name in sides)
            assert item.without[name] == pytest.approx(item.own[name] + shared, abs=1e-9)

    bags = echo.to_bags([scored.items[0].echo], SCHEMA)
    assert bags is not None
    category = names.index("category")
    table = service.lineage.tables[1]
    try:
        begun = int(bags.all_lengths()[:category].sum())
        service.lineage.tables[1] = table.copy()
        service.lineage.tables[1][int(bags.ids[begun]) % len(table)] = 0
        left_out = float(service.lineage.truth(1, bags)[0])
    finally:
        service.lineage.tables[1] = table
    assert told.items[0].without["category"] == pytest.approx(told.items[0].logit - left_out, abs=1e-6)
    (only,) = service.client.explain(CONTEXT, ITEMS, only=["app2"]).items
    assert only == told.items[1]


def test_an_explanation_that_cannot_be_given_says_what_to_change(service):
    """An item that is not there, too many of them, a bad slate, an unknown model."""
    many = [{"id": f"app{place}"} for place in range(11)]
    for only, items, model, wrong in (
        (["app9"], ITEMS, "", "'app9' is not in the slate"),
        ([], many, "", "11 items to explain, at most 10 at once"),
        ([], [], "", "INVALID_ARGUMENT"),
        ([], ITEMS, "other", "NOT_FOUND: model 'other' is not served here"),
    ):
        with pytest.raises(RequestError, match=wrong):
            service.client.explain(CONTEXT, items, only=only, model=model)
    assert len(service.client.explain(CONTEXT, many, only=["app3", "app10"]).items) == 2
