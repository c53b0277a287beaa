"""A small Python client: dicts in, scores out, tried again where that helps."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal

import grpc
import numpy as np

from schemas.errors import FreshetError, RequestError
from schemas.events import columns_from_rows
from schemas.fields import ReadyId
from schemas.hashing import canonical
from schemas.proto import events_pb2, scoring_pb2
from schemas.proto.scoring_pb2_grpc import ScorerStub

SERVICE = scoring_pb2.DESCRIPTOR.services_by_name["Scorer"].full_name  # freshet.scoring.v1.Scorer

_THE_CLIENTS = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED)
# A scorer that is going away: to try again helps. CANCELLED, since this client never cancels, is grpc's word for a request
# that a server had received but not begun when it closed.
_GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
TRIES = 4  # a worker that was killed under several requests may fail the second try too, where its port was still open
_WHOLE = 2**53  # above it a double does not hold every whole number


Objective = Literal["ctr", "ctr_times_bid"]
_OBJECTIVES = {"ctr": scoring_pb2.CTR, "ctr_times_bid": scoring_pb2.CTR_TIMES_BID}


class ScorerUnavailable(FreshetError):
    """The scorer did not answer in time, or has no version yet. Trying again helps."""


@dataclass(frozen=True, slots=True)
class ItemScore:
    """rank: 1 = best by the objective. echo: goes into the impression event as it is."""

    item_id: str
    probability: float
    logit: float
    rank: int
    echo: bytes


@dataclass(frozen=True, slots=True)
class Scored:
    """One answer. items: in the order of the request, without those that it did not ask for."""

    items: list[ItemScore]
    model: str
    lineage: str
    version: int
    version_age_s: float
    request_id: str = ""
    warnings: list[str] = field(default_factory=list)

    def ranked(self) -> list[ItemScore]:
        """The items, best first."""
        return sorted(self.items, key=lambda item: item.rank)


class ScorerClient:
    """One channel to one scorer; may be shared by threads. Use it as a context manager or call `close`."""

    def __init__(self, target: str) -> None:
        """target: host:port."""
        self.target = target
        self._channel = grpc.insecure_channel(
            target,
            options=[
                ("grpc.initial_reconnect_backoff_ms", 50),  # a scorer that starts again is found at once
                ("grpc.min_reconnect_backoff_ms", 50),
                ("grpc.max_reconnect_backoff_ms", 1000),
                ("grpc.max_receive_message_length", 16 << 20),
            ],
        )
        self._stub = ScorerStub(self._channel)  # type: ignore[no-untyped-call]

    def __enter__(self) -> ScorerClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def score(
        self,
        context: Mapping[str, Any],
        items: Sequence[Mapping[str, Any]],
        model: str = "",
        request_id: str | None = None,
        timeout_s: float = 1.0,
        objective: Objective = "ctr",
        exclude: Iterable[str] = (),
        top: int = 0,
    ) -> Scored:
        """Score a slate.

        context: field → value. items: [{"id": "app42", "features": {field: value}, "bid": 1.2}, …]. A value is text, a
        number, a bool, None, a ReadyId, or a list of them (a set). objective: what ranks; ctr_times_bid needs every item's
        bid. exclude: ids of items not to be scored. top: answer with so many of the best; 0 = all. timeout_s: for all tries
        together. Raises RequestError for what the caller must change, ScorerUnavailable where a later try may work.
        """
        request = scoring_pb2.ScoreRequest(
            model=model,
            request_id=request_id or "",
            context=[column(name, [value]) for name, value in context.items()],
            item_id=[str(item["id"]) for item in items],
            objective=_OBJECTIVES[objective],
            bid=[float(item["bid"]) for item in items if item.get("bid") is not None] if objective == "ctr_times_bid" else (),
            exclude=exclude,
            top=top,
            items=[
                column(name, values)
                for name, values in columns_from_rows([item.get("features") or {} for item in items]).items()
            ],
        )
        answer = self.ask(request, timeout_s)
        return Scored(
            items=[ItemScore(i.item_id, i.probability, i.logit, i.rank, i.echo) for i in answer.items],
            model=answer.model,
            lineage=answer.lineage,
            version=answer.version,
            version_age_s=answer.version_age_s,
            request_id=answer.request_id,
            warnings=list(answer.warnings),
        )

    def wait_ready(self, timeout_s: float) -> None:
        """Return once the scorer has a version to answer from. Raises ScorerUnavailable after timeout_s."""
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        stub = health_pb2_grpc.HealthStub(self._channel)
        end = time.monotonic() + timeout_s
        last = "no answer"
        while (left := end - time.monotonic()) > 0:
            try:
                answer = stub.Check(
                    health_pb2.HealthCheckRequest(service=SERVICE), timeout=left, wait_for_ready=True
                )
            except grpc.RpcError as away:
                last = str(away.details())
            else:
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    return
                last = "it answers, but no version is loaded yet (does the trainer publish?)"
            time.sleep(min(0.02, max(0.0, end - time.monotonic())))
        raise ScorerUnavailable(f"scorer at {self.target} was not ready within {timeout_s} s: {last}")

    def close(self) -> None:
        """End the connection."""
        self._channel.close()

    def ask(self, request: scoring_pb2.ScoreRequest, timeout_s: float) -> scoring_pb2.ScoreResponse:
        """A request as it goes over the wire, tried again as `score` does. The same errors."""
        end = time.monotonic() + timeout_s
        first: grpc.RpcError | None = None
        for attempt in range(TRIES):
            try:
                return self._try(request, max(0.0, end - time.monotonic()), wait_for_ready=attempt > 0)
            except grpc.RpcError as failed:
                if first is None or failed.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                    first = failed  # else the one before says more: why there was no connection
                if failed.code() not in _GONE or time.monotonic() >= end:
                    break
        assert first is not None
        text = f"scorer at {self.target}: {first.code().name}: {first.details()}"
        if first.code() in _THE_CLIENTS:
            raise RequestError(text) from first
        raise ScorerUnavailable(text) from first

    def _try(self, request: scoring_pb2.ScoreRequest, timeout_s: float, wait_for_ready: bool) -> scoring_pb2.ScoreResponse:
        answer: scoring_pb2.ScoreResponse = self._stub.Score(request, timeout=timeout_s, wait_for_ready=wait_for_ready)
        return answer


def column(name: str, values: Sequence[Any]) -> events_pb2.Column:
    """One field's values, one entry each, as the wire has them. Raises RequestError."""
    entries = [list(value) if isinstance(value, list | tuple | set | frozenset) else [value] for value in values]
    present = [[one for one in entry if one is not None] for entry in entries]
    flat = [one for entry in present for one in entry]
    lengths = [len(entry) for entry in present]
    found = events_pb2.Column(field=name, lengths=[] if all(length == 1 for length in lengths) else lengths)
    if flat and all(type(one) is ReadyId for one in flat):
        found.ids.extend(flat)
    elif all(_fits_double(name, one) for one in flat):
        found.numbers.extend(float(one) for one in flat)
    else:
        found.strings.extend(one if type(one) is str else _text(name, one) for one in flat)
    return found


def _fits_double(name: str, value: Any) -> bool:
    if isinstance(value, float) and not math.isfinite(value):
        raise RequestError(f"field {name}: {value} cannot be scored; leave the field out where there is no number")
    if isinstance(value, bool | np.bool_ | ReadyId | np.float32 | np.float16):
        return False  # float32 0.1 is hashed as "0.1", which its double is not
    return isinstance(value, float) or (isinstance(value, int | np.integer) and abs(int(value)) <= _WHOLE)


def _text(name: str, value: Any) -> str:
    if type(value) is ReadyId:
        raise RequestError(f"field {name}: ready ids and plain values do not go together in one column")
    try:
        return (canonical(value) or b"").decode("utf-8", "surrogatepass")
    except FreshetError as wrong:
        raise RequestError(f"field {name}: {wrong}") from wrong
