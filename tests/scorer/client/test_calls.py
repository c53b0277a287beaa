"""Which scorer a client asks when, without any."""

from __future__ import annotations

import grpc
import pytest

from schemas.errors import ConfigError, RequestError
from scorer.client.access import Access
from scorer.client.calls import MOST_REST_S, PAUSE_S, REST_S, TRIES, Course, ScorerUnavailable, Try, Turns, addresses

GONE, LATE, WRONG = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.INVALID_ARGUMENT


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def asked(turns: Turns, code: grpc.StatusCode | None = None) -> list[int]:
    """Places that one call asks, where all give the same answer."""
    course, places = Course(turns, 10), []
    while (one := course.next()) is not None:
        places.append(one.place)
        if code is None:
            course.answered(one)
            break
        course.failed(one, code, "")
    return places


def test_each_scorer_has_its_turn():
    """Calls go round; a call whose scorer is gone asks the others before any a second time."""
    turns = Turns(3, Clock())
    assert [asked(turns) for _ in range(6)] == [[0], [1], [2], [0], [1], [2]]
    assert asked(turns, GONE)[:3] == [0, 1, 2]
    assert len(asked(turns, GONE)) == 3 + TRIES - 1


def test_a_scorer_that_failed_rests_for_longer_each_time():
    """1 s, 2 s, 4 s …: meanwhile calls go to the others first; an answer ends it."""
    clock = Clock()
    turns = Turns(2, clock)
    for rest_s in (REST_S, 2 * REST_S, 4 * REST_S):
        turns.failed(0)
        clock.now_s += rest_s - 0.01
        assert [turns.order() for _ in range(4)] == [[1, 0]] * 4
        clock.now_s += 0.02
        assert {tuple(turns.order()) for _ in range(2)} == {(0, 1), (1, 0)}
    for _ in range(20):
        turns.failed(0)
    clock.now_s += MOST_REST_S + 0.01
    assert {tuple(turns.order()) for _ in range(2)} == {(0, 1), (1, 0)}
    turns.failed(0)
    turns.answered(0)
    assert {tuple(turns.order()) for _ in range(2)} == {(0, 1), (1, 0)}


def test_one_scorer_is_waited_for():
    """Without pauses of ours: gRPC knows when it is back. The whole time is its."""
    clock = Clock()
    course = Course(Turns(1, clock), 8)
    first = course.next()
    assert first == Try(0, 8, wait=False, pause_s=0)
    course.failed(first, GONE, "refused")
    clock.now_s += 3
    assert course.next() == Try(0, 5, wait=True, pause_s=0)


def test_a_silent_scorer_leaves_time_for_the_next():
    """Half of what is left while others are left, all of it for the last; then pauses."""
    clock = Clock()
    course = Course(Turns(2, clock), 8)
    first = course.next()
    assert first == Try(0, 4, wait=False, pause_s=0)
    clock.now_s += 4
    course.failed(first, LATE, "Deadline Exceeded")
    second = course.next()
    assert second == Try(1, 4, wait=False, pause_s=0)
    course.failed(second, GONE, "refused")
    third = course.next()
    assert third == Try(0, 4 - PAUSE_S, wait=False, pause_s=PAUSE_S)
    clock.now_s += 4
    course.failed(third, LATE, "Deadline Exceeded")
    assert course.next() is None
    error = course.error("a:1,b:1")
    assert isinstance(error, ScorerUnavailable)
    assert str(error) == "scorer at a:1,b:1: UNAVAILABLE: refused"  # says more than that time was over


@pytest.mark.parametrize("code", [WRONG, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED])
def test_what_the_caller_must_change_is_not_tried_again(code):
    """One try, and an error of the caller's; the scorer itself is well."""
    turns = Turns(2, Clock())
    assert asked(turns, code) == [0]
    assert turns.order() == [1, 0]
    course = Course(turns, 1)
    one = course.next()
    assert one is not None
    course.failed(one, code, "change this")
    assert isinstance(course.error("a:1"), RequestError)


def test_addresses_stand_between_commas():
    """Spaces and empty ones do not count; none at all is refused."""
    assert addresses("a:1, b:2,") == ["a:1", "b:2"]
    with pytest.raises(RequestError, match="host:port"):
        addresses(" , ")


def test_a_token_does_not_leave_this_machine_in_plain_text():
    """Anywhere with TLS; else to loopback alone."""
    token = Access(token="t" * 32)
    token.check("127.0.0.1:1")
    token.check("localhost:1")
    token.check("[::1]:1")
    Access(tls=True, token="t" * 32).check("scorer.example:443")
    for address in ("scorer.example:50051", "10.0.0.1:50051", "dns:///scorer.example:50051", "127.0.0.1.example:50051"):
        with pytest.raises(ConfigError, match="everybody on the way could read it"):
            token.check(address)
    assert "t" * 32 not in repr(token)
