"""Requests that somebody has damaged, or made up: answered, or refused with a status and what to change, at once.

Valid requests have parts changed, and their bytes. FUZZ_INPUTS=100000 makes as many; the suite makes a few hundred. A part of
them goes through gRPC to a server that others ask meanwhile.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.message import DecodeError

from schemas.fields import load
from schemas.proto.events_pb2 import Column
from schemas.proto.scoring_pb2 import ExplainRequest, ReadyIds, ScoreRequest, ScoreResponse
from schemas.snapshot import unpack
from scorer.answers.engine import Blueprint
from scorer.answers.engine import load as load_engine
from scorer.answers.service import ScoringService
from scorer.client import SERVICE, ScorerClient
from scorer.metrics import Metrics
from tests.kit.scorer import ScorerServer
from tests.scorer.lineage import Lineage, RocksWriter, small

INPUTS = int(os.environ.get("FUZZ_INPUTS", "600"))
LONGEST_S = 2.0 if INPUTS == 600 else 10.0    # for one input; a busy machine may stop us for a while in a long run
LONGEST_TEXT = 4096                           # of a refusal: gRPC carries 8 kB of headers

_STORE = load("appstore")
_NUMBERS: dict[str, Any] = {"price": "raw", "app_age_h": "log_bins_and_log"}  # numbers that multiply rows, or stand beside
SCHEMA = replace(_STORE, fields=tuple(replace(one, transform=_NUMBERS.get(one.name, one.transform)) for one in _STORE.fields))
STRANGE = ["moon", "", "\x00", "é" * 300]
TEXTS = ["games", "food", "NO", "", "\x00", "1e400", "nan", "-0", "😀" * 50, "x" * 5000, "3.5"]
NUMBERS = [0.0, -0.0, 1.0, 1e308, -1e308, 5e-324, float("nan"), float("inf"), -float("inf"), 2.0**53 + 2, 0.99]
COUNTS = [0, 1, 2, 3, 7, 2**31, 2**32 - 1]
REFUSALS = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND}


class Aborted(Exception):
    """What gRPC's own `abort` raises is its own affair; this names what was said."""


class Call:
    """What the service asks of a call's context."""

    said: tuple[grpc.StatusCode, str] | None = None

    def is_active(self) -> bool:
        return True

    def abort(self, code: grpc.StatusCode, details: str) -> None:
        self.said = code, details
        raise Aborted


def columns(rng: random.Random, side: str, entries: int) -> list[Column]:
    """Of some of the schema's fields, mostly one value an entry, in one of the ways there are; now and then a strange field, a
    value in two ways, too many, or lengths that do not fit."""
    names = [spec.name for spec in SCHEMA.fields if spec.side == side and rng.random() < 0.4]
    if rng.random() < 0.1:
        names += [rng.choice(STRANGE + names)]
    return [a_column(rng, name, entries) for name in names]


def a_column(rng: random.Random, name: str, entries: int) -> Column:
    made = Column(field=name)
    count = entries if rng.random() < 0.95 else rng.choice([0, 1, entries + 1, 40])
    for _ in range(1 if rng.random() < 0.97 else 2):
        match rng.randrange(3):
            case 0:
                made.strings.extend(rng.choice(TEXTS) if rng.random() < 0.2 else "1.5" for _ in range(count))
            case 1:
                made.numbers.extend(rng.choice(NUMBERS) if rng.random() < 0.1 else rng.random() for _ in range(count))
            case 2:
                made.ids.extend(rng.getrandbits(64) for _ in range(count))
    if rng.random() < 0.1:
        made.lengths.extend(rng.choice(COUNTS) if rng.random() < 0.3 else 1 for _ in range(entries))
    return made


def ready(rng: random.Random, side: str, entries: int) -> ReadyIds:
    """Of the schema's fields, mostly as many bytes as there should be."""
    numbers = [spec.number for spec in SCHEMA.fields if spec.side == side]
    numbers = [number for number in numbers if rng.random() < 0.9]
    if rng.random() < 0.1:
        numbers += rng.choices([0, 1, 999, 2**32 - 1, *numbers], k=2)
    size = len(numbers) * entries + (rng.choice([1, -1]) if numbers and rng.random() < 0.05 else 0)
    made = ReadyIds(field=numbers, ids=rng.randbytes(max(0, 8 * size)))
    if rng.random() < 0.9:
        wild = rng.random() < 0.2
        values = np.frombuffer(rng.randbytes(4 * max(0, size)), "<f4") if wild else np.ones(max(0, size), "<f4")
        made.values = values.tobytes()
    return made


def a_request(rng: random.Random) -> ScoreRequest:
    """A slate as somebody might send it, right in most of its parts."""
    items = rng.choice([1, 2, 3, 3, 3, 17]) if rng.random() < 0.97 else rng.choice([0, 1001])
    made = ScoreRequest(item_id=[f"app{place}" for place in range(items)])
    if rng.random() < 0.5:
        made.context.extend(columns(rng, "context", 1))
        made.items.extend(columns(rng, "item", items))
    else:
        made.ready_context.CopyFrom(ready(rng, "context", 1))
        made.ready_items.CopyFrom(ready(rng, "item", items))
    for changes in range(rng.choice([0, 0, 1, 2])):
        match rng.randrange(9):
            case 0:
                made.model = rng.choice(["appstore", "other", "\x00", "m" * 10_000])
            case 1:
                made.request_id = rng.choice(["r", "é" * 3000])
            case 2:
                made.item_id.append(rng.choice(["app0", "", "x" * 2000, "\ud7ff"]))
            case 3:
                made.objective = rng.choice([0, 1, 1, 2, -1, 2**31 - 1])  # type: ignore[assignment]
                made.bid.extend(rng.choice(NUMBERS) if rng.random() < 0.1 else 1.5 for _ in range(items))
            case 4:
                made.exclude.extend(rng.choice(["app0", "app1", "strange", ""]) for _ in range(rng.randrange(40)))
            case 5:
                made.top = rng.choice(COUNTS)
            case 6:
                made.compact = True
            case 7:
                made.context.add(field=STRANGE[changes], strings=["a"])
            case 8:
                made.ready_items.field.append(rng.choice(COUNTS))
    return made


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Bits turned, bytes cut out and put in."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(4):
            case 0 if at < len(out):
                out[at] ^= 1 << rng.randrange(8)
            case 1:
                del out[at : at + rng.choice([1, 4, 100])]
            case 2:
                out[at:at] = rng.randbytes(rng.choice([1, 3, 20]))
            case 3:
                out[at:at] = out[max(0, at - 30) : at]
    return bytes(out)


def inputs(seed: int, count: int) -> Any:
    """Serialised requests, a quarter of them damaged."""
    rng = random.Random(seed)
    for _ in range(count):
        data = a_request(rng).SerializeToString()
        yield damaged(rng, data) if rng.random() < 0.25 else data


def check_answer(request: ScoreRequest, answer: ScoreResponse) -> None:
    """Every item that was to be scored once, with a probability, and a rank of its own."""
    wanted = [name for name in request.item_id if name not in set(request.exclude)]
    told = min(len(wanted), request.top or len(wanted))
    if request.compact:
        probabilities, logits, ranks = list(answer.probability), list(answer.logit), list(answer.rank)
    else:
        probabilities = [item.probability for item in answer.items]
        logits, ranks = [item.logit for item in answer.items], [item.rank for item in answer.items]
    assert len(probabilities) == len(logits) == told
    assert sorted(ranks) == list(range(1, told + 1))
    assert all(0 <= one <= 1 for one in probabilities)
    assert np.isfinite(logits).all()


@pytest.fixture(scope="module")
def service():
    lineage = Lineage(small(), SCHEMA)
    pairs = lineage.publish(rows=300)
    content = unpack(lineage.manifests[1], [value for _, value in pairs[:-1]])
    engine = load_engine(Blueprint(small(), SCHEMA, "auto"), lambda: 0, [(lineage.manifests[1], content)])
    return ScoringService("appstore", SCHEMA, False, lambda: engine, lambda version: None, Metrics(), lambda: 3_500_000)


def test_any_request_is_answered_or_refused_with_what_to_change(service):
    """No other exception, no INTERNAL, no long text, no long time; enough of them are answered for this to say something."""
    ends: Counter[str] = Counter()
    for place, data in enumerate(inputs(7, INPUTS)):
        try:
            request = ScoreRequest.FromString(data)
        except DecodeError:  # gRPC refuses these by itself
            ends["no request"] += 1
            continue
        call, began = Call(), time.perf_counter()
        try:
            if place % 20 == 0:
                answer = service.Explain(ExplainRequest(slate=request, item_id=request.item_id[:2]), call)
                for item in answer.items:
                    assert np.isfinite([item.logit, item.base, item.rest, *item.own, *item.without, *item.pair]).all()
            else:
                check_answer(request, service.Score(request, call))
            ends["answered"] += 1
        except Aborted:
            assert call.said is not None
            code, text = call.said
            assert code in REFUSALS, (place, call.said)
            assert 10 < len(text) < LONGEST_TEXT, (place, call.said)
            ends[code.name] += 1
        assert time.perf_counter() - began < LONGEST_S, place
    assert ends["answered"] > INPUTS // 10, ends
    assert ends["INVALID_ARGUMENT"] > INPUTS // 10, ends


def test_bytes_that_are_no_request_reach_nobody_else(make_settings):
    """Through a real server, one call in four well-formed: each ends in a status, what is not ours to say is gRPC's own words,
    and every well-formed call is answered as before."""
    values = {"model.bits": 9, "model.factors": 3, "model.hidden": "8,4", "model.init_scale": 0.1, "model.statistics": False}
    settings = make_settings(**values, **{"score.threads": 2})
    writer = RocksWriter(settings.store_dir)
    writer.write(Lineage(small(), _STORE).publish(rows=300))
    server = ScorerServer(settings)
    server.start()
    target = f"127.0.0.1:{server.port}"
    ends: Counter[str] = Counter()
    try:
        with ScorerClient(target) as client, grpc.insecure_channel(target) as channel:
            client.wait_ready(10)
            before = client.score({"user": "u"}, [{"id": "a"}, {"id": "b"}])
            raw = channel.unary_unary(f"/{SERVICE}/Score")
            for place, data in enumerate(inputs(8, INPUTS // 3)):
                call = raw.future(data, timeout=LONGEST_S * 2)
                code, text = call.code(), call.details()
                ends[code.name] += 1
                if code is grpc.StatusCode.OK:
                    check_answer(ScoreRequest.FromString(data), ScoreResponse.FromString(call.result()))
                elif code is grpc.StatusCode.INTERNAL:
                    assert text == "Exception deserializing request!", place
                else:
                    assert code in REFUSALS, (place, code, text)
                    assert 10 < len(text) < LONGEST_TEXT, place
                if place % 4 == 0:
                    assert client.score({"user": "u"}, [{"id": "a"}, {"id": "b"}]).items == before.items
    finally:
        server.stop()
        writer.close()
    assert {"OK", "INVALID_ARGUMENT", "INTERNAL"} <= ends.keys()
