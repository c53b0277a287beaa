"""MLServer beside the scorer: started with the bench's model, asked once for all slates, told to load it again and again."""

from __future__ import annotations

import http.client
import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from ops.bench.measuring.meanwhile import every
from ops.bench.peers import environment
from ops.bench.peers.plain import PlainModel
from ops.machine.ports import free_port
from ops.machine.processes import tied
from schemas.proto import scoring_pb2

REQUIREMENTS = Path(environment.__file__).with_name("mlserver.txt")
CALL = "/inference.GRPCInferenceService/ModelInfer"
LOAD_EVERY_S = 2.0
START_S = 60.0
MOST_APART = 1e-6  # of a probability: both compute in float32


@dataclass(frozen=True, slots=True)
class MlServer:
    """One that answers. bodies: the slates as its requests, a file for the load generator."""

    port: int
    http_port: int
    process: psutil.Process
    bodies: Path

    @contextmanager
    def loading(self) -> Iterator[None]:
        """The model is loaded again every two seconds meanwhile, through its repository. Raises PeerError if that fails."""
        wrong: list[OSError] = []

        def load() -> None:
            try:
                _http(self.http_port, "POST", "/v2/repository/models/bench/load")
            except OSError as failed:
                wrong.append(failed)

        with every(LOAD_EVERY_S, load):
            yield
        if wrong:
            raise environment.PeerError(f"MLServer did not load its model again: {wrong[0]}")


def install(var: Path, say: Callable[[str], None]) -> Path:
    """Its environment, made on first use below var/peers: it wants another protobuf and fastapi. Raises PeerError."""
    folder = (var / "peers" / "mlserver").absolute()
    environment.make(folder, say, REQUIREMENTS)
    return folder


@contextmanager
def serving(home: Path, model: PlainModel, config: Mapping[str, Any], slates: Path, folder: Path) -> Iterator[MlServer]:
    """`mlserver start`, as its users do: the model in its one process, nothing logged or counted for each call.

    home: its environment. config: settings of the model. slates: requests of a scorer with ready ids. folder: to be made, for
    its files. Raises PeerError.
    """
    folder.mkdir()
    port, http_port = free_port(), free_port()
    model.save(folder / "model.pt")
    context, items = _ids(slates)
    np.savez(folder / "slates.npz", context=context, items=items)
    (folder / "settings.json").write_text(json.dumps({
        "host": "127.0.0.1", "grpc_port": port, "http_port": http_port, "parallel_workers": 0, "debug": False,
        "metrics_endpoint": None,
    }))
    (folder / "model-settings.json").write_text(json.dumps({
        "name": "bench", "implementation": "ops.bench.peers.mlserver.Runtime", "parameters": {
            "uri": str(folder / "model.pt"), "extra": {"model": dict(config), "fields": context.shape[1] + items.shape[2]},
        },
    }))
    with (folder / "log").open("wb") as log:
        child = subprocess.Popen(
            [str(home / "bin" / "mlserver"), "start", str(folder)], cwd=folder, stdout=log, stderr=log,
            stdin=subprocess.DEVNULL, env=environment.variables() | {"OMP_NUM_THREADS": "1"}, preexec_fn=tied(),
        )
    try:
        _wait(child, http_port, folder / "log")
        said = environment.run(environment.python_of(home), "mlserver", folder, {"port": port}, items.shape[0] * items.shape[1])
        ours = np.concatenate([model.score(one, many)[0] for one, many in zip(context, items, strict=True)])
        if (apart := float(np.abs(said - ours).max())) > MOST_APART:
            raise environment.PeerError(f"MLServer's probabilities are {apart:.2g} from those of the same model here")
        yield MlServer(port, http_port, psutil.Process(child.pid), folder / "bodies.npz")
    finally:
        child.kill()
        child.wait()


def _ids(slates: Path) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """(slates, fields) of the contexts and (slates, items, fields) of the items."""
    with np.load(slates) as kept:
        asked = [
            scoring_pb2.ScoreRequest.FromString(one.tobytes()) for one in np.split(kept["data"], np.cumsum(kept["sizes"])[:-1])
        ]
    context = np.stack([np.frombuffer(one.ready_context.ids, "<u8") for one in asked])
    items = np.stack([np.frombuffer(one.ready_items.ids, "<u8").reshape(len(one.item_id), -1) for one in asked])
    return context, items


def _wait(child: subprocess.Popen[bytes], http_port: int, log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end and child.poll() is None:
        try:
            _http(http_port, "GET", "/v2/models/bench/ready")
        except OSError:
            time.sleep(0.05)
        else:
            return
    last = "\n".join(log.read_text(errors="replace").splitlines()[-6:])
    raise environment.PeerError(f"MLServer did not serve its model within {START_S:.0f} s\n{last}")


def _http(port: int, method: str, path: str) -> None:
    """Raises OSError unless the answer is 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        if answer.status != 200:
            raise OSError(f"{method} {path}: {answer.status} {answer.read(500)!r}")
    finally:
        connection.close()
