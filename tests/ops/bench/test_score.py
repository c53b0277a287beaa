from __future__ import annotations

import socket
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch

from ops.bench.peers import environment
from ops.bench.peers.plain import PlainModel
from ops.bench.score import BARS, missed, together
from ops.bench.scoring import mlserver
from ops.bench.scoring.http2 import Connection, Outcome, Refused, load
from schemas.config import ModelConfig
from schemas.models import build
from schemas.proto import scoring_pb2


class Server:
    """A real gRPC server that keeps what it was sent, and refuses what begins with an x."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.stall = threading.Event()
        self.stall.set()
        handler = grpc.unary_unary_rpc_method_handler(self._answer)
        self._server = grpc.server(ThreadPoolExecutor(4))
        self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("a.B", {"C": handler})])
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def _answer(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.got.append(request)
        self.stall.wait(5)
        if request[:1] == b"x":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no")
        return request[:100]

    def load(self, bodies: list[bytes], rate: float | None = None, seconds: float = 0.4, in_flight: int = 4) -> Outcome:
        return load(("127.0.0.1", self.port), "/a.B/C", bodies, 2, seconds, 0.0, rate, in_flight, 1)

    def close(self) -> None:
        self._server.stop(None).wait()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.mark.parametrize("size", [1, 16_000, 300_000])
def test_every_call_arrives_whole_and_is_counted_once(server, size):
    """Also those that are larger than a frame and than what the peer takes at once."""
    bodies = [b"a" + np.random.default_rng(seed).bytes(size) for seed in range(3)]
    found = server.load(bodies, in_flight=2)
    assert {*server.got} <= {*bodies}
    assert len({*server.got}) == min(3, len(server.got))
    assert found.failed == 0
    assert len(found.latencies) == len(server.got) >= found.completed
    assert found.answer in {b"", *(body[:100] for body in bodies)}


def test_what_the_server_refuses_has_failed(server):
    """A status without a message is no answer."""
    found = server.load([b"x"])
    assert (found.latencies, found.completed) == ([], 0)
    assert found.failed == len(server.got) > 0


def test_a_stall_is_paid_by_all_who_were_due_in_it(server):
    """Open loop: calls go on being due while nothing is answered, and their time counts from then."""
    server.stall.clear()
    threading.Timer(0.3, server.stall.set).start()
    found = server.load([b"a"], rate=200.0, seconds=0.6)
    assert found.failed == 0
    assert max(found.latencies) > 0.25
    assert sum(one > 0.05 for one in found.latencies) > 20  # about 50 were due in the stall; four threads held four


def test_who_hangs_up_ends_the_load():
    """A server that speaks something else."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        def hang_up() -> None:
            connection, _ = listener.accept()
            connection.recv(10)
            connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises((Refused, OSError)):
            load(("127.0.0.1", listener.getsockname()[1]), "/a.B/C", [b"a"], 1, 0.2, 0.0, None, 1, 1)
        thread.join()


def test_bars_that_are_missed_are_named():
    """And only those."""
    figures = [{"what": what, "asked": bar, "seen": bar, "held": True} for what, _, _, bar in BARS]
    assert missed({"bars": figures}) == ""
    figures[0] |= {"seen": 1.0, "held": False}
    assert missed({"bars": figures}) == f"{BARS[0][0]}: 1, asked 2.7"


def test_several_runs_are_told_by_their_medians():
    """Figures, bars and whether those hold; latencies are added up, and every run stays to be looked at."""
    def run(value: float) -> dict[str, Any]:
        bar = {"what": "p99", "asked": 3.0, "seen": value, "held": value <= 3}
        return {"p99_ms": value, "precision": "auto", "bars": [bar], "histograms": {"idle": [1, 2]}}

    found = together([run(2.0), run(9.0), run(2.5)])
    assert (found["p99_ms"], found["precision"], found["histograms"]) == (2.5, "auto", {"idle": [3, 6]})
    assert found["bars"] == [{"what": "p99", "asked": 3.0, "seen": 2.5, "held": True, "each_run": [2.0, 9.0, 2.5]}]
    assert len(found["runs"]) == 3
    assert missed(together([run(2.0), run(9.0), run(8.0)])) == "p99: 8, asked 3"


def test_calls_are_spread_over_all_connections(monkeypatch):
    """Also where there are never two at once: each connection has its turn."""
    chosen: list[Connection] = []
    begin = Connection.call

    def call(self: Connection, body: bytes, due: float) -> None:
        chosen.append(self)
        begin(self, body, due)

    monkeypatch.setattr(Connection, "call", call)
    server = Server()
    try:
        load(("127.0.0.1", server.port), "/a.B/C", [b"a"], 4, 0.4, 0.0, None, 1, 1)
    finally:
        server.close()
    counts = Counter(map(id, chosen))
    assert len(counts) == 4
    assert max(counts.values()) - min(counts.values()) <= 1


def test_mlserver_answers_what_the_model_says_here_while_it_is_loaded_again(tmp_path: Path, monkeypatch):
    """Its probabilities are checked as it starts; the load generator's calls are answered by it, meanwhile and after."""
    home = (Path(__file__).parents[3] / "var" / "peers" / "mlserver").absolute()
    if not environment.is_made(home, mlserver.REQUIREMENTS):
        pytest.skip("MLServer is not installed: run `freshet bench score` once")
    monkeypatch.setattr(mlserver, "LOAD_EVERY_S", 0.2)
    config: dict[str, Any] = {"architecture": "deepfm", "factors": 2, "hidden": (8, 4), "statistics": False, "bits": 8}
    net, random = build(ModelConfig(**config), 3), np.random.default_rng(1)
    table = net.new_rows(torch.arange(256)).normal_()
    asked = []
    for _ in range(4):
        request = scoring_pb2.ScoreRequest(item_id=["a", "b"], compact=True)
        request.ready_context.ids = random.integers(0, 1 << 63, 1, np.uint64).tobytes()
        request.ready_items.ids = random.integers(0, 1 << 63, 4, np.uint64).tobytes()
        asked.append(np.frombuffer(request.SerializeToString(), np.uint8))
    slates = tmp_path / "slates.npz"
    np.savez(slates, data=np.concatenate(asked), sizes=[len(one) for one in asked])
    with mlserver.serving(home, PlainModel(net, table), config, slates, tmp_path / "served") as server, server.loading():
        with np.load(server.bodies) as kept:
            bodies = [one.tobytes() for one in np.split(kept["data"], np.cumsum(kept["sizes"])[:-1])]
        found = load(("127.0.0.1", server.port), mlserver.CALL, bodies, 2, 1.0, 0.0, None, 2, 1)
    assert found.failed == 0
    assert found.completed > 10
