"""`freshet bench join`: its traffic is what it says, it counts what the joiner wrote, and it says which bar was missed."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import islice

import pytest

from ops.bench.join import Bench, Run, Shape, memory_over, missed, report, table
from ops.bench.joining.child import STAGES
from ops.bench.joining.traffic import Traffic, events
from ops.settings import Loaded, load
from schemas import fields
from schemas.config import Settings, variable_name
from schemas.echo import to_bags
from schemas.events import Action, Impression, parse
from schemas.fields import Encoder

SCHEMA = fields.load("appstore")
SMALL = Traffic(items=3, clicks=0.5, slates_per_s=1000)


@pytest.fixture
def loaded(kafka_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch) -> Loaded:
    """Settings as the command line has them; the shared broker counts as one that the user brings."""
    settings = kafka_settings()
    for key, value in {
        "kafka.bootstrap": settings.kafka.bootstrap, "var": settings.var, "join.window_s": 0.2, "join.linger_s": 0.01,
    }.items():
        monkeypatch.setenv("FRESHET_KAFKA" if key == "kafka.bootstrap" else variable_name(key), str(value))
    return load(None, [], os.environ)


def test_every_form_of_a_slate_has_the_same_ids() -> None:
    """Protobuf, JSON and what Score returned lead to the same ids; half of the slates have a click on an item of theirs."""
    encoder, found = Encoder(SCHEMA, training=True), []
    for traffic in (Traffic(items=3, clicks=0.5, slates_per_s=20), Traffic(items=3, clicks=0.5, slates_per_s=20, form="json")):
        shown = [parse(value) for _, value, _ in events(traffic, SCHEMA, 600, 3)]
        slates = {one.impression_id: one for one in shown if isinstance(one, Impression)}
        clicks = [one for one in shown if isinstance(one, Action)]
        assert all(one.item_id in slates[one.impression_id].slate.item_ids for one in clicks)
        assert all(one.time_us > slates[one.impression_id].time_us for one in clicks)
        found.append([encoder.encode(one.slate)[0].ids.tolist() for one in slates.values()])
    assert found[0] == found[1]
    assert len(clicks) == pytest.approx(285, rel=0.2)   # not 300: those due after the last slate are not sent

    scored = Encoder(SCHEMA, training=False)
    for _, value, _ in islice(events(Traffic(items=3, clicks=0, slates_per_s=9, echo=True), SCHEMA, 10, 3), 10):
        one = parse(value)
        assert isinstance(one, Impression)
        assert one.echo is not None
        bags = to_bags(one.echo, SCHEMA)
        assert bags is not None
        assert bags.ids.tolist() == scored.encode(one.slate)[0].ids.tolist()


@pytest.mark.timeout(180)
def test_a_small_bench_measures_what_the_topics_hold(loaded: Loaded) -> None:
    """Stock Faust, our joiner and its stages on a real Kafka; examples per record are those of the events."""
    bench = Bench(loaded, [Shape(name="small", traffic=SMALL, slates=3000)], 1, lambda _: None)
    with bench.broker():
        records = bench.publish("small")
        stock, ours = bench.stock("small", records), bench.joiner("small", records)
        stages = bench.stages("small", records)
    assert stock.records_per_s > 100
    assert ours.records_per_s > 100
    slates_per_record = 3000 / (records - 2)
    assert ours.examples_per_s / ours.records_per_s == pytest.approx(3 * slates_per_record, rel=0.1)
    assert tuple(stages) == STAGES
    assert all(us >= 0 for us in stages.values())
    assert sum(stages.values()) > 10


@pytest.mark.timeout(120)
def test_memory_is_told_at_several_points(loaded: Loaded) -> None:
    """While events are written and read; what is open stays what window and rate make of it."""
    seen = memory_over(loaded, 6000, 1, lambda _: None, points=2)
    assert [one["events"] >= due for one, due in zip(seen, (3000, 6000), strict=False)] == [True, True]
    assert all(one["bytes"] > 1 << 20 for one in seen)


def run(records: float, examples: float = 0.0) -> Run:
    """A contender's round."""
    return Run(records_per_s=records, examples_per_s=examples, cpu_share=0.5, bytes_per_open=2000.0, open_most=10)


@pytest.mark.parametrize(("single", "slates", "wanted"), [
    (9_500, 130_000, ""), (8_000, 130_000, "0.80 of stock Faust"), (9_500, 110_000, "110,000 examples/s"),
])
def test_a_missed_bar_is_named(single: float, slates: float, wanted: str) -> None:
    """Medians over the rounds, the ratio within each round, against the bars."""
    ours = {"single": [run(single), run(single), run(1)], "slates": [run(9000, slates), run(9000, slates), run(1, 1)]}
    stages = {name: dict.fromkeys(STAGES, 10.0) for name in ours}
    found = report([run(10_000), run(10_000), run(10_000)], ours, stages)
    assert found["of_stock_faust"] == pytest.approx(single / 10_000)
    assert (found["records_per_s"], found["examples_per_s"]) == (single, slates)
    assert wanted in missed(found)
    assert bool(missed(found)) == bool(wanted)
    assert f"{slates:,.0f} examples/s" in table(found)
