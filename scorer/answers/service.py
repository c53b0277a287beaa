"""The one servicer: a request in, checked; an answer from one version out, or a status that says what to change."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Never, TypeVar

import grpc
import numpy as np
import structlog
from numpy.typing import NDArray

from schemas import echo, events
from schemas.bags import Bags
from schemas.columns import from_messages
from schemas.errors import BadEvent, FreshetError, RequestError
from schemas.fields import Encoder, FieldSchema, Slate
from schemas.proto import scoring_pb2
from schemas.proto.scoring_pb2_grpc import ScorerServicer
from scorer.answers.engine import Engine
from scorer.answers.explain import explain
from scorer.answers.ready import Ready
from scorer.answers.version import Version
from scorer.metrics import Metrics

T = TypeVar("T")

NAMED = 20  # most strange fields that a warning names
MOST_EXPLAINED = 10  # items: each takes a pass for each pair of fields, 25 ms of a core for 39 fields and 400-400-400

_log = structlog.get_logger("scorer")


class NotReady(FreshetError):
    """No version is loaded yet. Trying again helps."""


class ByName(ScorerServicer):
    """Several models: each request to the service of the one that it names."""

    def __init__(self, services: Mapping[str, ScoringService]) -> None:
        """services: by the models' names; who names none gets the first."""
        self._first = next(iter(services.values()))
        self._services = {**services, "": self._first}
        self._names = ", ".join(repr(name) for name in services)

    def Score(self, request: scoring_pb2.ScoreRequest, context: grpc.ServicerContext) -> scoring_pb2.ScoreResponse:
        """As ScoringService's."""
        return self._of(request.model, context).Score(request, context)

    def Explain(self, request: scoring_pb2.ExplainRequest, context: grpc.ServicerContext) -> scoring_pb2.ExplainResponse:
        """As ScoringService's."""
        return self._of(request.slate.model, context).Explain(request, context)

    def _of(self, model: str, context: grpc.ServicerContext) -> ScoringService:
        found = self._services.get(model)
        if found is None:
            text = f"model {model[:100]!r} is not served here; this scorer has {self._names}"
            self._first.refuse(context, grpc.StatusCode.NOT_FOUND, text)
        return found


class ScoringService(ScorerServicer):
    """One model: answers `Score` with whichever engine is current when a request comes, whatever name it has."""

    def __init__(
        self,
        model: str,
        schema: FieldSchema,
        strict: bool,
        engine: Callable[[], Engine | None],
        served: Callable[[Version], None],
        metrics: Metrics,
        now_us: Callable[[], int],
    ) -> None:
        """model: its name. engine: the one that answers now. served: told whose answer it was."""
        self._model = model
        self._schema = schema
        self._digest = schema.digest
        self._strict = strict
        self._engine = engine
        self._served = served
        self._metrics = metrics
        self._now_us = now_us
        self._encoder = Encoder(schema, training=False)
        self._ready = Ready(schema)

    def Score(
        self, request: scoring_pb2.ScoreRequest, context: grpc.ServicerContext
    ) -> scoring_pb2.ScoreResponse:
        """A slate → a probability, logit and rank for each item, all from one version."""
        started = time.perf_counter()
        response, version = self._or_refuse(request, context, lambda: self._answer(request))
        self._served(version)
        self._metrics.requests.labels("OK").inc()
        self._metrics.items.inc(max(len(response.items), len(response.probability)))
        self._metrics.request_seconds.observe(time.perf_counter() - started)
        return response

    def Explain(
        self, request: scoring_pb2.ExplainRequest, context: grpc.ServicerContext
    ) -> scoring_pb2.ExplainResponse:
        """What each field and each pair of fields adds to the logits of some items, all from one version."""
        response = self._or_refuse(request.slate, context, lambda: self._explain(request))
        self._metrics.requests.labels("OK").inc()
        return response

    def _or_refuse(self, request: scoring_pb2.ScoreRequest, context: grpc.ServicerContext, made: Callable[[], T]) -> T:
        """What was made, or the call ends in a status that says why not."""
        if not context.is_active():  # its deadline passed while it waited for a thread, or its client went away
            self.refuse(context, grpc.StatusCode.DEADLINE_EXCEEDED, "the request's time was over before its turn came")
        try:
            return made()
        except (RequestError, BadEvent) as wrong:
            self.refuse(context, grpc.StatusCode.INVALID_ARGUMENT, str(wrong))
        except NotReady as early:
            self.refuse(context, grpc.StatusCode.UNAVAILABLE, str(early))
        except Exception:  # noqa: BLE001  (its text must not reach a client)
            _log.exception("score.defect", request_id=request.request_id[:100], items=len(request.item_id))
            self.refuse(context, grpc.StatusCode.INTERNAL, "An error of the scorer's own; its log has the details.")

    def _read(self, request: scoring_pb2.ScoreRequest) -> tuple[Engine, list[str], Bags, list[str]]:
        """Who answers now; the items, a row for each, and warnings. Raises what has a status."""
        engine = self._engine()
        if engine is None:
            raise NotReady(f"no version of {self._model!r} is loaded yet; try again when health says SERVING")
        item_ids = _item_ids(request)
        if request.HasField("ready_items") or request.HasField("ready_context"):
            bags, strange = self._ready.bags(request)
        else:
            bags, strange = self._encoder.encode(_slate(request, item_ids))
        return engine, item_ids, bags, self._strange(strange)

    def _answer(self, request: scoring_pb2.ScoreRequest) -> tuple[scoring_pb2.ScoreResponse, Version]:
        engine, item_ids, bags, warnings = self._read(request)
        bids = _bids(request)
        kept = _kept(item_ids, request.exclude)
        if kept is not None:
            item_ids, bags = [item_ids[place] for place in kept], bags.take(kept)
            bids = None if bids is None else bids[kept]
        scores = engine.score(bags)
        places = ranks(scores.probabilities if bids is None else scores.probabilities * bids)

        version = scores.version
        response = scoring_pb2.ScoreResponse(
            request_id=request.request_id,
            model=self._model,
            lineage=version.lineage,
            version=version.number,
            version_age_s=max(0.0, (self._now_us() - version.created_us) / 1e6),
            warnings=warnings,
        )
        told = np.flatnonzero(places <= request.top) if 0 < request.top < len(item_ids) else np.arange(len(item_ids))
        probabilities, logits = scores.probabilities[told].tolist(), scores.logits[told].tolist()
        if request.compact:
            response.probability.extend(probabilities)
            response.logit.extend(logits)
            response.rank.extend(places[told].tolist())
            if kept is not None or len(told) < len(item_ids):
                response.item.extend((told if kept is None else kept[told]).tolist())
        else:
            echoes = echo.encode(bags, self._digest)
            add = response.items.add  # in place: half the time of messages made first and copied
            for place, probability, logit, rank in zip(
                told.tolist(), probabilities, logits, places[told].tolist(), strict=True
            ):
                add(item_id=item_ids[place], probability=probability, logit=logit, rank=rank, echo=echoes[place])
        return response, version

    def _explain(self, request: scoring_pb2.ExplainRequest) -> scoring_pb2.ExplainResponse:
        engine, item_ids, bags, warnings = self._read(request.slate)
        chosen = _chosen(item_ids, request.item_id)
        found = engine.gather(bags.take(chosen))
        version = found.version
        items = []
        for place, of_item in enumerate(chosen):
            values = None if found.values is None else found.values[place]
            told = explain(found.net, found.rows[place], values, found.sides)
            items.append(scoring_pb2.ItemExplained(
                item_id=item_ids[of_item], logit=told.logit, base=told.base, own=told.own, without=told.without,
                pair=told.pairs, rest=told.rest,
            ))
        return scoring_pb2.ExplainResponse(
            request_id=request.slate.request_id,
            model=self._model,
            lineage=version.lineage,
            version=version.number,
            version_age_s=max(0.0, (self._now_us() - version.created_us) / 1e6),
            field=[spec.name for spec in self._schema.fields],
            items=items,
            warnings=warnings,
        )

    def _strange(self, names: list[str]) -> list[str]:
        """A warning about fields that the schema does not know, or a refusal where the scorer is strict."""
        if not names:
            return []
        self._metrics.unknown_fields.inc(len(names))
        self._encoder.unknown.clear()  # counted above; a count by name would grow with whatever clients send
        listed = ", ".join(name[:100] for name in names[:NAMED]) + (", …" if len(names) > NAMED else "")
        text = f"not in the schema {self._schema.name!r}: {listed}"
        if self._strict:
            raise RequestError(f"fields {text}. Leave them out (score.strict refuses what it does not know).")
        return [f"ignored fields {text}"]

    def refuse(self, context: grpc.ServicerContext, code: grpc.StatusCode, text: str) -> Never:
        """End the call with this status, counted. Raises."""
        self._metrics.requests.labels(code.name).inc()
        context.abort(code, text)
        raise AssertionError("abort raises")


def ranks(worth: NDArray[np.floating]) -> NDArray[np.int64]:
    """1 = highest; ties in the order given. (B,) → (B,)."""
    order = np.argsort(-worth, kind="stable")
    found = np.empty(len(order), np.int64)
    found[order] = np.arange(1, len(order) + 1)
    return found


def _item_ids(request: scoring_pb2.ScoreRequest) -> list[str]:
    """Its items, checked. Raises BadEvent naming what to change."""
    if len(request.item_id) > events.MAX_ITEMS:  # before anything is copied
        raise BadEvent("too_many_items", f"{len(request.item_id):,} items, at most {events.MAX_ITEMS:,} a slate")
    item_ids = list(request.item_id)
    events.check_items(item_ids)
    return item_ids


def _bids(request: scoring_pb2.ScoreRequest) -> NDArray[np.float64] | None:
    """(B,), what each item pays; None where the probability ranks. Raises RequestError."""
    if request.objective == scoring_pb2.CTR:
        return None
    if request.objective != scoring_pb2.CTR_TIMES_BID:
        raise RequestError(f"objective {request.objective} is not known here: CTR (0) or CTR_TIMES_BID (1)")
    found = np.array(request.bid, np.float64)                                               # (B,)
    if len(found) != len(request.item_id):
        raise RequestError(f"bid: {len(found)} entries for {len(request.item_id)} items; CTR_TIMES_BID needs one each")
    if not (np.isfinite(found) & (found >= 0)).all():
        raise RequestError("bid: finite numbers from 0 on")
    return found


def _kept(item_ids: list[str], exclude: Iterable[str]) -> NDArray[np.intp] | None:
    """Places of the items that are to be scored; None = all. Raises RequestError where there is none."""
    out = set(exclude)
    if not out or out.isdisjoint(item_ids):
        return None
    found = np.flatnonzero([item not in out for item in item_ids])
    if not len(found):
        raise RequestError("exclude: names every item, so there is nothing to score")
    return found


def _chosen(item_ids: list[str], wanted: Iterable[str]) -> NDArray[np.intp]:
    """Places of the items that are to be explained. Raises RequestError."""
    names = list(wanted) or item_ids
    if len(names) > MOST_EXPLAINED:
        raise RequestError(f"item_id: {len(names):,} items to explain, at most {MOST_EXPLAINED} at once; name fewer of them")
    place = {name: at for at, name in enumerate(item_ids)}
    strange = [name for name in names if name not in place]
    if strange:
        raise RequestError(f"item_id: {strange[0][:100]!r} is not in the slate")
    return np.array([place[name] for name in names], np.intp)


def _slate(request: scoring_pb2.ScoreRequest, item_ids: list[str]) -> Slate:
    """The request as a slate. Raises BadEvent."""
    context = {name: column[0] for name, column in from_messages(request.context, 1).items()}
    return Slate(item_ids, context, from_messages(request.items, len(item_ids)))
