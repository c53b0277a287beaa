"""Small Python clients, one that waits and one for asyncio: dicts in, scores out, tried again where that helps."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from schemas.errors import RequestError
from schemas.proto import scoring_pb2
from schemas.proto.scoring_pb2_grpc import OperatorStub, ScorerStub
from scorer.client.access import PLAIN, Access
from scorer.client.calls import (
    CHANNEL_OPTIONS,
    Course,
    Explained,
    Objective,
    Scored,
    ScorerUnavailable,
    Turns,
    addresses,
    explain_request_of,
    explained,
    health_name,
    request_of,
    scored,
)

POLL_S = 0.02  # between two looks whether a scorer is ready
_NO_VERSION = "it answers, but no version is loaded yet (does the trainer publish?)"


class ScorerClient:
    """One channel to each of several scorers; may be shared by threads. Use it as a context manager or call `close`."""

    def __init__(self, target: str, access: Access = PLAIN) -> None:
        """target: host:port; several with commas between are asked in turn, those that fail last. One that is named twice gets
        two connections, which may meet two workers. Raises ConfigError."""
        self.target = target
        self._channels = [_channel(grpc, address, access) for address in addresses(target)]
        self._stubs = [ScorerStub(channel) for channel in self._channels]  # type: ignore[no-untyped-call]
        self._turns = Turns(len(self._channels), time.monotonic)
        self._metadata = access.metadata

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
        return scored(self.ask(request_of(context, items, model, request_id, objective, exclude, top), timeout_s))

    def explain(
        self,
        context: Mapping[str, Any],
        items: Sequence[Mapping[str, Any]],
        only: Iterable[str] = (),
        model: str = "",
        timeout_s: float = 5.0,
    ) -> Explained:
        """What each field and each pair of fields adds to the logits of items of a slate, as `score` takes it.

        only: ids of the items, at most ten; empty = all of them, where there are no more. The same errors.
        """
        return explained(self._asked("Explain", explain_request_of(context, items, only, model), timeout_s))

    def ask(self, request: scoring_pb2.ScoreRequest, timeout_s: float) -> scoring_pb2.ScoreResponse:
        """A request as it goes over the wire, tried again as `score` does. The same errors."""
        answer: scoring_pb2.ScoreResponse = self._asked("Score", request, timeout_s)
        return answer

    def _asked(self, method: str, request: Any, timeout_s: float) -> Any:
        course, failed = Course(self._turns, timeout_s), None
        while (one := course.next()) is not None:
            if one.pause_s:
                time.sleep(one.pause_s)
            try:
                answer = getattr(self._stubs[one.place], method)(
                    request, timeout=one.timeout_s, wait_for_ready=one.wait, metadata=self._metadata
                )
            except grpc.RpcError as error:
                failed = error
                course.failed(one, error.code(), error.details())
            else:
                course.answered(one)
                return answer
        raise course.error(self.target) from failed

    def wait_ready(self, timeout_s: float, model: str = "") -> None:
        """Return once a scorer has a version of that model to answer from; "" = of any. Raises ScorerUnavailable after
        timeout_s."""
        stubs = [health_pb2_grpc.HealthStub(channel) for channel in self._channels]
        request = health_pb2.HealthCheckRequest(service=health_name(model))
        end, last, alone = time.monotonic() + timeout_s, "no answer", len(stubs) == 1
        while (left := end - time.monotonic()) > 0:
            for stub in stubs:
                try:
                    status = stub.Check(request, timeout=left / len(stubs), wait_for_ready=alone).status
                except grpc.RpcError as away:
                    last = str(away.details()) if away.code() is not grpc.StatusCode.DEADLINE_EXCEEDED else last
                else:
                    if status == health_pb2.HealthCheckResponse.SERVING:
                        return
                    last = _NO_VERSION
            time.sleep(min(POLL_S, max(0.0, end - time.monotonic())))
        raise ScorerUnavailable(f"scorer at {self.target} was not ready within {timeout_s} s: {last}")

    def close(self) -> None:
        """End the connections."""
        for channel in self._channels:
            channel.close()


class OperatorClient:
    """A scorer's port for operators. May be shared by threads; `close` ends it."""

    def __init__(self, target: str, access: Access = PLAIN) -> None:
        """target: host:port. Raises ConfigError."""
        self.target = target
        self._channel = _channel(grpc, target, access)
        self._stub = OperatorStub(self._channel)  # type: ignore[no-untyped-call]
        self._metadata = access.metadata

    def status(self, model: str = "", timeout_s: float = 1.0) -> scoring_pb2.StatusResponse:
        """What the scorer says of a model, "" = its first. Raises ScorerUnavailable, RequestError where it refuses."""
        try:
            answer: scoring_pb2.StatusResponse = self._stub.Status(
                scoring_pb2.StatusRequest(model=model), timeout=timeout_s, metadata=self._metadata
            )
        except grpc.RpcError as failed:
            if failed.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise ScorerUnavailable(f"nothing answers on {self.target} (score.operator_port)") from failed
            raise RequestError(f"{self.target} (score.operator_port): {failed.details()}") from failed
        return answer

    def close(self) -> None:
        """End the connection."""
        self._channel.close()


class AsyncScorerClient:
    """The same for asyncio: made, used and closed on one event loop, by `async with` or `await close()`."""

    def __init__(self, target: str, access: Access = PLAIN) -> None:
        """As ScorerClient's."""
        self.target = target
        self._channels = [_channel(grpc.aio, address, access) for address in addresses(target)]
        self._stubs = [ScorerStub(channel) for channel in self._channels]  # type: ignore[no-untyped-call]
        self._turns = Turns(len(self._channels), time.monotonic)
        self._metadata = access.metadata

    async def __aenter__(self) -> AsyncScorerClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def score(
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
        """As ScorerClient.score."""
        return scored(await self.ask(request_of(context, items, model, request_id, objective, exclude, top), timeout_s))

    async def explain(
        self,
        context: Mapping[str, Any],
        items: Sequence[Mapping[str, Any]],
        only: Iterable[str] = (),
        model: str = "",
        timeout_s: float = 5.0,
    ) -> Explained:
        """As ScorerClient.explain."""
        return explained(await self._asked("Explain", explain_request_of(context, items, only, model), timeout_s))

    async def ask(self, request: scoring_pb2.ScoreRequest, timeout_s: float) -> scoring_pb2.ScoreResponse:
        """As ScorerClient.ask."""
        answer: scoring_pb2.ScoreResponse = await self._asked("Score", request, timeout_s)
        return answer

    async def _asked(self, method: str, request: Any, timeout_s: float) -> Any:
        course, failed = Course(self._turns, timeout_s), None
        while (one := course.next()) is not None:
            if one.pause_s:
                await asyncio.sleep(one.pause_s)
            try:
                answer = await getattr(self._stubs[one.place], method)(
                    request, timeout=one.timeout_s, wait_for_ready=one.wait, metadata=self._metadata
                )
            except grpc.RpcError as error:
                failed = error
                course.failed(one, error.code(), error.details())
            else:
                course.answered(one)
                return answer
        raise course.error(self.target) from failed

    async def wait_ready(self, timeout_s: float, model: str = "") -> None:
        """As ScorerClient.wait_ready."""
        stubs = [health_pb2_grpc.HealthStub(channel) for channel in self._channels]
        request = health_pb2.HealthCheckRequest(service=health_name(model))
        end, last, alone = time.monotonic() + timeout_s, "no answer", len(stubs) == 1
        while (left := end - time.monotonic()) > 0:
            for stub in stubs:
                try:
                    status = (await stub.Check(request, timeout=left / len(stubs), wait_for_ready=alone)).status
                except grpc.RpcError as away:
                    last = str(away.details()) if away.code() is not grpc.StatusCode.DEADLINE_EXCEEDED else last
                else:
                    if status == health_pb2.HealthCheckResponse.SERVING:
                        return
                    last = _NO_VERSION
            await asyncio.sleep(min(POLL_S, max(0.0, end - time.monotonic())))
        raise ScorerUnavailable(f"scorer at {self.target} was not ready within {timeout_s} s: {last}")

    async def close(self) -> None:
        """As ScorerClient.close."""
        for channel in self._channels:
            await channel.close()


def _channel(kind: Any, address: str, access: Access) -> Any:
    """kind: grpc or grpc.aio."""
    access.check(address)
    if not access.encrypted:
        return kind.insecure_channel(address, options=CHANNEL_OPTIONS)
    return kind.secure_channel(address, grpc.ssl_channel_credentials(*access.files()), options=CHANNEL_OPTIONS)
