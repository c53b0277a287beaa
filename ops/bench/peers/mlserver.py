"""The bench's model behind MLServer's gRPC (V2 inference protocol): the runtime that MLServer loads, and a client that writes
the slates as its requests; run as a module in MLServer's own environment. Source: MLServer 1.7.1.

Ids come and scores go as bytes (one BYTES element a tensor), the cheapest that it has: numbers become lists on their way.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import torch
from mlserver import MLModel
from mlserver.grpc import dataplane_pb2, dataplane_pb2_grpc
from mlserver.types import Datatype, InferenceRequest, InferenceResponse, ResponseOutput, TensorData
from numpy.typing import NDArray

from ops.bench.peers.plain import PlainModel

ANSWERED = ("probability", "logit", "rank")


class Runtime(MLModel):  # type: ignore[misc]
    """The model as MLServer wants it: loaded from its file each time that the repository is told to."""

    async def load(self) -> bool:
        """Read the file. True = ready."""
        torch.set_num_threads(1)
        given = self.settings.parameters
        self._model = PlainModel.load(Path(given.uri), given.extra["model"], given.extra["fields"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """A slate's ids → what is answered, a column each."""
        context, items = (np.frombuffer(one.data[0], "<u8") for one in payload.inputs)
        columns: Sequence[NDArray[Any]] = self._model.score(context, items.reshape(payload.inputs[1].shape[0], -1))
        return InferenceResponse(model_name=self.name, outputs=[
            ResponseOutput(name=name, shape=[1], datatype=Datatype.BYTES, data=TensorData([column.tobytes()]))
            for name, column in zip(ANSWERED, columns, strict=True)
        ])


def requests(context: NDArray[np.uint64], items: NDArray[np.uint64]) -> list[Any]:
    """A ModelInferRequest for each slate. context: (slates, fields), items: (slates, items, fields) ready ids."""
    def tensor(name: str, ids: NDArray[np.uint64], length: int) -> Any:
        made = dataplane_pb2.ModelInferRequest.InferInputTensor(name=name, datatype="BYTES", shape=[length])
        made.contents.bytes_contents.append(ids.tobytes())
        return made

    return [
        dataplane_pb2.ModelInferRequest(
            model_name="bench", inputs=[tensor("context", one, 1), tensor("items", many, len(many))]
        )
        for one, many in zip(context, items, strict=True)
    ]


def ask(port: int, asked: Sequence[Any]) -> NDArray[np.float32]:
    """The probabilities of all slates, one after the other."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = dataplane_pb2_grpc.GRPCInferenceServiceStub(channel)
        return np.concatenate([
            np.frombuffer(stub.ModelInfer(one, timeout=10).outputs[0].contents.bytes_contents[0], "<f4") for one in asked
        ])


def main(folder: Path) -> None:
    """Write the requests that the load generator sends (bodies.npz), ask for all of them once (said.npy)."""
    port = json.loads((folder / "task.json").read_text())["port"]
    with np.load(folder / "slates.npz") as slates:
        asked = requests(slates["context"], slates["items"])
    bodies = [np.frombuffer(one.SerializeToString(), np.uint8) for one in asked]
    np.savez(folder / "bodies.npz", data=np.concatenate(bodies), sizes=np.array([len(one) for one in bodies]))
    np.save(folder / "said.npy", ask(port, asked))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
