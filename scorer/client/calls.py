"""What every Python client does alike: dicts to a request, an answer to objects, and which scorer is asked when. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import grpc
import numpy as np

from schemas.errors import FreshetError, RequestError
from schemas.events import columns_from_rows
from schemas.fields import ReadyId
from schemas.hashing import canonical
from schemas.proto import events_pb2, scoring_pb2

SERVICE = scoring_pb2.DESCRIPTOR.services_by_name["Scorer"].full_name  # freshet.scoring.v1.Scorer


def health_name(model: str) -> str:
    """What health calls it; "" = whether any model is served."""
    return f"{SERVICE}/{model}" if model else SERVICE


_THE_CLIENTS = (
    grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED,
)
# A scorer that is going away: to try again helps. CANCELLED, since this client never cancels, is grpc's word for a request
# that a server had received but not begun when it closed.
_GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
TRIES = 4  # a worker that was killed under several requests may fail the second try too, where its port was still open
PAUSE_S = 0.05        # before every scorer is asked once more; then twice as long
REST_S = 1.0          # a scorer that failed is asked last for so long; after each further failure for twice as long
MOST_REST_S = 16.0
_WHOLE = 2**53  # above it a double does not hold every whole number

Objective = Literal["ctr", "ctr_times_bid"]
_OBJECTIVES = {"ctr": scoring_pb2.CTR, "ctr_times_bid": scoring_pb2.CTR_TIMES_BID}

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.initial_reconnect_backoff_ms", 50),  # a scorer that starts again is found at once
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.keepalive_time_ms", 30_000),         # while a call waits: a scorer that vanished is noticed
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.use_local_subchannel_pool", 1),      # an address that is named twice gets two connections
)


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


@dataclass(frozen=True, slots=True)
class ItemExplained:
    """Of one item, in natural log-odds: logit = base + Σ own + Σ pairs + rest (schemas/proto/scoring.proto).

    own: field → what it adds by itself. without: field → what the logit loses where it alone is left out. pairs: two fields →
    what both add only together.
    """

    item_id: str
    logit: float
    base: float
    own: dict[str, float]
    without: dict[str, float]
    pairs: dict[tuple[str, str], float]
    rest: float


@dataclass(frozen=True, slots=True)
class Explained:
    """One answer."""

    items: list[ItemExplained]
    model: str
    lineage: str
    version: int
    warnings: list[str] = field(default_factory=list)


def request_of(
    context: Mapping[str, Any],
    items: Sequence[Mapping[str, Any]],
    model: str,
    request_id: str | None,
    objective: Objective,
    exclude: Iterable[str],
    top: int,
) -> scoring_pb2.ScoreRequest:
    """As `ScorerClient.score` takes them. Raises RequestError."""
    return scoring_pb2.ScoreRequest(
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


def explain_request_of(
    context: Mapping[str, Any], items: Sequence[Mapping[str, Any]], only: Iterable[str], model: str
) -> scoring_pb2.ExplainRequest:
    """As `ScorerClient.explain` takes them. Raises RequestError."""
    return scoring_pb2.ExplainRequest(slate=request_of(context, items, model, None, "ctr", (), 0), item_id=only)


def scored(answer: scoring_pb2.ScoreResponse) -> Scored:
    """The answer as Python has it."""
    return Scored(
        items=[ItemScore(i.item_id, i.probability, i.logit, i.rank, i.echo) for i in answer.items],
        model=answer.model,
        lineage=answer.lineage,
        version=answer.version,
        version_age_s=answer.version_age_s,
        request_id=answer.request_id,
        warnings=list(answer.warnings),
    )


def explained(answer: scoring_pb2.ExplainResponse) -> Explained:
    """The answer as Python has it."""
    names = list(answer.field)
    pairs = list(itertools.combinations(names, 2))
    return Explained(
        items=[
            ItemExplained(
                one.item_id, one.logit, one.base, dict(zip(names, one.own, strict=True)),
                dict(zip(names, one.without, strict=True)), dict(zip(pairs, one.pair, strict=True)), one.rest,
            )
            for one in answer.items
        ],
        model=answer.model,
        lineage=answer.lineage,
        version=answer.version,
        warnings=list(answer.warnings),
    )


def addresses(target: str) -> list[str]:
    """Of "host:port,host:port". Raises RequestError where there is none."""
    found = [address.strip() for address in target.split(",") if address.strip()]
    if not found:
        raise RequestError(f"{target!r}: give the scorer's host:port, or several with commas between")
    return found


class Turns:
    """Whose turn it is: each scorer in turn, those that failed a moment ago last. May be shared by threads."""

    def __init__(self, count: int, now: Callable[[], float]) -> None:
        self.count = count
        self.now = now
        self._next = itertools.count()
        self._rests_until = [-math.inf] * count
        self._rest_s = [0.0] * count

    def order(self) -> list[int]:
        """All of them, in the order in which one call asks them."""
        first, now = next(self._next) % self.count, self.now()
        turn = [(first + step) % self.count for step in range(self.count)]
        return sorted(turn, key=lambda place: max(0.0, self._rests_until[place] - now))  # stable: among the well, in turn

    def failed(self, place: int) -> None:
        """It did not answer."""
        rest_s = min(MOST_REST_S, 2 * self._rest_s[place]) or REST_S
        self._rest_s[place], self._rests_until[place] = rest_s, self.now() + rest_s

    def answered(self, place: int) -> None:
        """It did."""
        self._rest_s[place] = 0.0
        self._rests_until[place] = -math.inf


@dataclass(frozen=True, slots=True)
class Try:
    """place: of the scorer to ask, after pause_s. wait: for the connection, instead of failing where there is none."""

    place: int
    timeout_s: float
    wait: bool
    pause_s: float


class Course:
    """The tries of one call, until one is answered, all have failed, or the time is over.

    Each scorer is asked once, then those that were gone again after growing pauses. While others are left, one may take half
    of the time that is left: then the next is asked. A single scorer is waited for.
    """

    def __init__(self, turns: Turns, timeout_s: float) -> None:
        self._turns = turns
        self._end = turns.now() + timeout_s
        self._order = turns.order()
        self._tries = 0
        self._over = False
        self._first: tuple[grpc.StatusCode, str] | None = None

    def next(self) -> Try | None:
        """What to do now; None = give up."""
        left, again = self._end - self._turns.now(), self._tries - self._turns.count
        if self._over or again >= TRIES - 1 or (left <= 0 and self._tries):
            return None
        alone = self._turns.count == 1
        pause_s = 0.0 if alone or again < 0 else min(PAUSE_S * 2**again, max(0.0, left))
        timeout_s = max(0.0, left - pause_s) * (1.0 if alone or again >= -1 else 0.5)
        place = self._order[self._tries % self._turns.count]
        self._tries += 1
        return Try(place, timeout_s, wait=alone and self._tries > 1, pause_s=pause_s)

    def answered(self, asked: Try) -> None:
        """That try was."""
        self._turns.answered(asked.place)

    def failed(self, asked: Try, code: grpc.StatusCode, details: str | None) -> None:
        """That try was not."""
        late = code is grpc.StatusCode.DEADLINE_EXCEEDED
        if late or code in _GONE:
            self._turns.failed(asked.place)
        else:
            self._turns.answered(asked.place)
        if self._first is None or not late:
            self._first = code, details or ""  # else the one before says more: why there was no connection
        self._over = not (late or code in _GONE)

    def error(self, target: str) -> FreshetError:
        """Of the whole call, once `next` gave None."""
        code, details = self._first or (grpc.StatusCode.DEADLINE_EXCEEDED, "no time to ask")
        text = f"scorer at {target}: {code.name}: {details}{_hint(details)}"
        return RequestError(text) if code in _THE_CLIENTS else ScorerUnavailable(text)


def _hint(details: str) -> str:
    """What to do, where gRPC's own words do not say it."""
    if "CERTIFICATE_VERIFY_FAILED" in details:
        return ". Its certificate is not of an authority that this client believes, has ended, or names another host (ca_file)."
    return ""


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
