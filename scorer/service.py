"""The one servicer: a request in, checked; an answer from one version out, or a status that says what to change."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Never

import grpc
import numpy as np
import structlog
from numpy.typing import NDArray

from schemas import echo, events
from schemas.errors import BadEvent, FreshetError, RequestError
from schemas.fields import Encoder, FieldSchema, Slate
from schemas.proto import scoring_pb2
from schemas.proto.scoring_pb2_grpc import ScorerServicer
from scorer.engine import Engine, Version
from scorer.metrics import Metrics

NAMED = 20  # most strange fields that a warning names

_log = structlog.get_logger("scorer")


class NotFound(FreshetError):
    """A model that this scorer does not serve."""


class NotReady(FreshetError):
    """No version is loaded yet. Trying again helps."""


class ScoringService(ScorerServicer):
    """Answers `Score` with whichever engine is current when a request comes."""

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
        """model: the name clients may ask for. engine: the one that answers now. served: told whose answer it was."""
        self._model = model
        self._schema = schema
        self._digest = schema.digest
        self._strict = strict
        self._engine = engine
        self._served = served
        self._metrics = metrics
        self._now_us = now_us
        self._encoder = Encoder(schema, training=False)

    def Score(
        self, request: scoring_pb2.ScoreRequest, context: grpc.ServicerContext
    ) -> scoring_pb2.ScoreResponse:
        """A slate → a probability, logit and rank for each item, all from one version."""
        started = time.perf_counter()
        try:
            response, version = self._answer(request)
        except (RequestError, BadEvent) as wrong:
            self._refuse(context, grpc.StatusCode.INVALID_ARGUMENT, str(wrong))
        except NotFound as unknown:
            self._refuse(context, grpc.StatusCode.NOT_FOUND, str(unknown))
        except NotReady as early:
            self._refuse(context, grpc.StatusCode.UNAVAILABLE, str(early))
        except Exception:  # noqa: BLE001  (its text must not reach a client)
            _log.exception("score.defect", request_id=request.request_id[:100], items=len(request.item_id))
            self._refuse(context, grpc.StatusCode.INTERNAL, "An error of the scorer's own; its log has the details.")
        self._served(version)
        self._metrics.requests.labels("OK").inc()
        self._metrics.items.inc(len(response.items))
        self._metrics.request_seconds.observe(time.perf_counter() - started)
        return response

    def _answer(self, request: scoring_pb2.ScoreRequest) -> tuple[scoring_pb2.ScoreResponse, Version]:
        if request.model not in ("", self._model):
            raise NotFound(f"model {request.model[:100]!r} is not served here; this scorer has {self._model!r}")
        engine = self._engine()
        if engine is None:
            raise NotReady(f"no version of {self._model!r} is loaded yet; try again when health says SERVING")
        slate = _slate(request)
        bags, strange = self._encoder.encode(slate)
        warnings = self._strange(strange)
        scores = engine.score(bags)

        echoes = echo.encode(bags, self._digest)
        columns = zip(
            slate.item_ids, scores.probabilities.tolist(), scores.logits.tolist(), ranks(scores.probabilities).tolist(),
            echoes, strict=True,
        )
        version = scores.version
        response = scoring_pb2.ScoreResponse(
            request_id=request.request_id,
            model=self._model,
            lineage=version.lineage,
            version=version.number,
            version_age_s=max(0.0, (self._now_us() - version.created_us) / 1e6),
            items=[
                scoring_pb2.ItemScore(item_id=item, probability=probability, logit=logit, rank=rank, echo=used)
                for item, probability, logit, rank, used in columns
            ],
            warnings=warnings,
        )
        return response, version

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

    def _refuse(self, context: grpc.ServicerContext, code: grpc.StatusCode, text: str) -> Never:
        self._metrics.requests.labels(code.name).inc()
        context.abort(code, text)
        raise AssertionError("abort raises")


def ranks(probabilities: NDArray[np.float32]) -> NDArray[np.int64]:
    """1 = highest; ties in the order given. (B,) → (B,)."""
    order = np.argsort(-probabilities, kind="stable")
    found = np.empty(len(order), np.int64)
    found[order] = np.arange(1, len(order) + 1)
    return found


def _slate(request: scoring_pb2.ScoreRequest) -> Slate:
    """The request as a slate. Raises BadEvent naming what to change."""
    if len(request.item_id) > events.MAX_ITEMS:  # before anything is copied
        raise BadEvent("too_many_items", f"{len(request.item_id):,} items, at most {events.MAX_ITEMS:,} a slate")
    item_ids = list(request.item_id)
    events.check_items(item_ids)
    context = {name: column[0] for name, column in events.columns_from_proto(request.context, 1).items()}
    return Slate(item_ids, context, events.columns_from_proto(request.items, len(item_ids)))
