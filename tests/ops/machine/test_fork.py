"""Processes started from one that holds a gRPC channel, as `freshet run` and `demo` do."""

from __future__ import annotations

import os
import subprocess
import sys

STARTS = """
from concurrent.futures import ThreadPoolExecutor
import subprocess
from ops.machine.processes import tied
import grpc

server = grpc.server(ThreadPoolExecutor(2))
port = server.add_insecure_port("127.0.0.1:0")
server.start()
channel = grpc.insecure_channel(f"127.0.0.1:{port}")
grpc.channel_ready_future(channel).result(10)
ended = [subprocess.run(["true"], preexec_fn=tied(), stderr=subprocess.DEVNULL).returncode for _ in range(150)]
print(sum(code != 0 for code in ended))
channel.close()
server.stop(None)
"""


def test_no_child_of_a_process_with_grpc_is_aborted_before_it_begins() -> None:
    """Without ops/__init__.py's setting some of so many end by SIGABRT."""
    clean = {name: value for name, value in os.environ.items() if name != "GRPC_ENABLE_FORK_SUPPORT"}
    done = subprocess.run([sys.executable, "-c", STARTS], env=clean, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["0"], done.stderr
