"""As many events of a store as a measurement wants: a pool of simulated slates, shown again and again as new impressions."""

from __future__ import annotations

import base64
import heapq
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from ops.simulator.options import StoreOptions
from ops.simulator.slates import Simulator
from schemas import echo
from schemas.events import Impression, parse, time_text
from schemas.fields import Encoder, FieldSchema
from schemas.proto import events_pb2
from scorer.client import column

START_US = 1_767_225_600_000_000
POOL = 2000              # different slates; values come back, as they do in a store
CLICK_MEDIAN_S = 1.5     # as the simulated store has them
CLICK_SPREAD = 0.7
CLICK_MOST_S = 9.0
SERVED = 0.03            # every item's served probability: its bytes are what counts
VERSION = 841


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """items: of a slate. clicks: share of slates with a click on one item. slates_per_s: of event time, evenly.

    form: the bytes of an event. echo: items bring back what Score returned for them.
    """

    items: int
    clicks: float
    slates_per_s: float
    form: Literal["protobuf", "json"] = "protobuf"
    echo: bool = False


def events(traffic: Traffic, schema: FieldSchema, slates: int, seed: int) -> Iterator[tuple[bytes, bytes, int]]:
    """Slates and their clicks by event time: (key, value, time in µs). The same arguments make the same events."""
    rng = random.Random(seed)
    pool = _pool(traffic, schema, min(slates, POOL), seed)
    due: list[tuple[int, str, str]] = []
    for number in range(slates):
        time_us = START_US + round(number * 1e6 / traffic.slates_per_s)
        while due and due[0][0] <= time_us:
            yield _click(traffic, *heapq.heappop(due))
        impression_id = f"{seed & 0xFFFF:04x}{number:012x}"
        shown, item_ids = pool[number % len(pool)]
        if traffic.form == "protobuf":
            shown.impression.impression_id, shown.impression.time_us = impression_id, time_us
            value = shown.SerializeToString()
        else:
            shown["impression_id"], shown["time"] = impression_id, time_text(time_us)
            value = orjson.dumps(shown)
        yield impression_id.encode(), value, time_us
        if rng.random() < traffic.clicks:
            after_s = min(CLICK_MEDIAN_S * rng.lognormvariate(0, CLICK_SPREAD), CLICK_MOST_S)
            heapq.heappush(due, (time_us + round(after_s * 1e6), impression_id, rng.choice(item_ids)))


def _click(traffic: Traffic, time_us: int, impression_id: str, item_id: str) -> tuple[bytes, bytes, int]:
    if traffic.form == "protobuf":
        action = events_pb2.Action(impression_id=impression_id, action="click", item_id=item_id, time_us=time_us, value=1.0)
        return impression_id.encode(), events_pb2.Event(action=action).SerializeToString(), time_us
    click = {"impression_id": impression_id, "action": "click", "item": item_id, "time": time_text(time_us), "value": 1.0}
    return impression_id.encode(), orjson.dumps(click), time_us


def _pool(traffic: Traffic, schema: FieldSchema, size: int, seed: int) -> list[tuple[Any, list[str]]]:
    """Slates as they are sent, but for id and time; and the ids of their items."""
    options = StoreOptions(seed=seed, slate=traffic.items, candidates=traffic.items)
    store, encoder = Simulator(options, START_US), Encoder(schema, training=False)
    found: list[tuple[Any, list[str]]] = []
    for number in range(size):
        event, _ = store.show(store.next_request(START_US + number), None)
        shown = parse(orjson.dumps(event))
        assert isinstance(shown, Impression)
        echoes = echo.encode(encoder.encode(shown.slate)[0], schema.digest) if traffic.echo else None
        item_ids = [item["id"] for item in event["items"]]
        if traffic.form == "protobuf":
            found.append((_as_protobuf(shown, event, echoes), item_ids))
            continue
        for place, item in enumerate(event["items"]):
            item["served_probability"] = SERVED
            if echoes is not None:
                item["echo"] = base64.b64encode(echoes[place]).decode()
        event["model"] = {"name": "appstore", "version": VERSION}
        found.append((event, item_ids))
    return found


def _as_protobuf(shown: Impression, event: dict[str, Any], echoes: list[bytes] | None) -> Any:
    slate = shown.slate
    return events_pb2.Event(impression=events_pb2.Impression(
        impression_id="0", item_id=slate.item_ids, position=slate.positions,
        context=[column(name, [value]) for name, value in slate.context.items()],
        items=[column(name, values) for name, values in slate.columns.items()],
        bid=[item["bid"] for item in event["items"]], propensity=[item["propensity"] for item in event["items"]],
        served_probability=[SERVED] * len(slate.item_ids), echo=echoes or [],
        model=events_pb2.ModelRef(name="appstore", version=VERSION),
    ))
