"""The processes of `freshet bench score`: the load generator; what most people would write with grpcio instead of a scorer; and
a server that computes nothing.

They talk on their standard input and output, the load generator in lines of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np


def generate() -> None:
    """Each line in, a load (ops/bench/scoring/http2.py); what came of it out."""
    from ops.bench.scoring.http2 import Refused, load
    from ops.bench.scoring.picture import counted

    for line in sys.stdin:
        task = json.loads(line)
        kept = np.load(task["bodies"])
        bodies = [bytes(one) for one in np.split(kept["data"], np.cumsum(kept["sizes"])[:-1])]
        cpu = time.process_time()
        try:
            found = load(
                ("127.0.0.1", task["port"]), task["path"], bodies, task["connections"], task["seconds"], task["warm_s"],
                task["rate"], task["in_flight"], task["seed"],
            )
        except (Refused, OSError) as refused:
            print(json.dumps({"refused": str(refused)}), flush=True)
            continue
        ms = np.array(found.latencies or [np.nan]) * 1e3
        print(json.dumps({
            "requests": len(found.latencies), "all_requests": found.sent, "failed": found.failed, "late": found.late,
            "requests_per_s": found.completed / found.seconds, "p50_ms": float(np.quantile(ms, 0.5)),
            "p99_ms": float(np.quantile(ms, 0.99)), "worst_ms": float(ms.max()), "cpu_s": time.process_time() - cpu,
            "answer": found.answer.hex(), "histogram": counted(ms),
        }), flush=True)


def serve_plain(store: str, schema_file: str, port: int) -> None:
    """A model behind grpcio as in its examples: one process, ten threads, torch as it comes, float32; the newest version of
    the store, loaded once. It takes the same requests with ready ids as a scorer, and answers in the same columns."""
    import torch

    from ops.bench.peers.plain import PlainModel
    from schemas import fields
    from schemas.proto import scoring_pb2

    torch.set_num_threads(1)  # two make it slower: 860 requests a second instead of 1,060
    model = PlainModel.of_store(Path(store), Path(store).parent / "plain", schema_file, len(fields.load(schema_file).fields))

    def score(request: scoring_pb2.ScoreRequest, _: Any) -> scoring_pb2.ScoreResponse:
        context = np.frombuffer(request.ready_context.ids, "<u8")
        items = np.frombuffer(request.ready_items.ids, "<u8").reshape(len(request.item_id), -1)
        probabilities, logits, ranks = model.score(context, items)
        return scoring_pb2.ScoreResponse(
            probability=probabilities.tolist(), logit=logits.tolist(), rank=ranks.tolist()
        )

    _serve(score, port)


def serve_empty(port: int) -> None:
    """A method that computes nothing: what the machine, gRPC and the load generator take by themselves. It reads the same
    requests, and answers in the same columns."""
    from schemas.proto import scoring_pb2

    def score(request: scoring_pb2.ScoreRequest, _: Any) -> scoring_pb2.ScoreResponse:
        same = [0.5] * len(request.item_id)
        return scoring_pb2.ScoreResponse(probability=same, logit=same, rank=range(1, len(same) + 1))

    _serve(score, port)


def _serve(score: Callable[[Any, Any], Any], port: int) -> None:
    """Until nobody holds the other end of standard input."""
    import grpc

    from schemas.proto import scoring_pb2

    handler = grpc.unary_unary_rpc_method_handler(
        score, scoring_pb2.ScoreRequest.FromString, scoring_pb2.ScoreResponse.SerializeToString
    )
    server = grpc.server(ThreadPoolExecutor(10))
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("freshet.scoring.v1.Scorer", {"Score": handler})])
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    print("ready", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    if sys.argv[1] == "load":
        generate()
    elif sys.argv[1] == "empty":
        serve_empty(int(sys.argv[2]))
    else:
        serve_plain(sys.argv[2], sys.argv[3], int(sys.argv[4]))
