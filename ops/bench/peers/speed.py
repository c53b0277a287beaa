"""How fast DeepCTR-Torch and FuxiCTR learn: `python -m ops.bench.peers.speed deepctr|fuxi FOLDER`, in the peers' environment,
takes turns (ops/bench/measuring/turns.py).

Each is run as its users run it, with its own defaults but for the sizes of the model: DeepCTR-Torch by `fit` with Adam and its
L2 of 1e-5, FuxiCTR by `train_step` of its trainer with Adam and clipping, on batches that are tensors already. FuxiCTR's DeepFM
is put together from its layers as its example does (model_zoo/DeepFM). Source: DeepCTR-Torch 0.3.0, FuxiCTR 2.3.10.
"""

from __future__ import annotations

import importlib
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ops.bench.measuring.turns import Step, Task, Work, serve

FIT_ROWS = 8192    # of one `fit`, at least four batches: what starting it costs is shared by so many


class Rows:
    """The generated rows, and the model's sizes. codes: (n, F) places in each field's vocabulary, labels: (n,)."""

    def __init__(self, folder: Path) -> None:
        self.options = json.loads((folder / "task.json").read_text())
        self.codes: NDArray[np.int32] = np.load(folder / "codes.npy", mmap_mode="r")
        self.labels: NDArray[np.float32] = np.load(folder / "labels.npy", mmap_mode="r")

    def parts(self, rows: int) -> Iterator[slice]:
        """Stretches of so many rows, round and round."""
        starts = range(0, len(self.labels) - rows + 1, rows)
        return (slice(start, start + rows) for start in itertools.cycle(starts))


def deepctr(rows: Rows) -> Callable[[Task], Step]:
    """DeepCTR-Torch."""
    library = importlib.import_module("ops.bench.peers.deepctr")   # keeps it from asking for newer versions

    options = rows.options
    columns = [
        library.inputs.SparseFeat(f"f{at}", size, embedding_dim=options["factors"]) for at, size in enumerate(options["sizes"])
    ]
    device = "cuda:0" if options["device"] == "cuda" else "cpu"
    model = library.models.DeepFM(columns, columns, dnn_hidden_units=tuple(options["hidden"]), device=device)
    model.compile("adam", "binary_crossentropy")

    def make(task: Task) -> Step:
        batch = task["batch"]
        parts = rows.parts(batch * max(4, FIT_ROWS // batch))

        def step() -> int:
            torch.set_num_threads(task["threads"])
            part = next(parts)
            model.fit(list(rows.codes[part].T), rows.labels[part], batch_size=batch, epochs=1, verbose=0)
            return part.stop - part.start  # type: ignore[no-any-return]

        step()
        return step

    return make


def fuxi(rows: Rows) -> Callable[[Task], Step]:
    """FuxiCTR."""
    from fuxictr.features import FeatureMap
    from fuxictr.pytorch import layers
    from fuxictr.pytorch.models import BaseModel

    options, names = rows.options, [f"f{at}" for at in range(len(rows.options["sizes"]))]
    features = FeatureMap("bench", "")
    features.labels = ["label"]
    for name, size in zip(names, options["sizes"], strict=True):
        features.features[name] = {"type": "categorical", "source": "", "vocab_size": size}
    features.num_fields = features.get_num_fields()
    features.default_emb_dim = options["factors"]

    class DeepFM(BaseModel):  # type: ignore[misc]
        """As in model_zoo/DeepFM/DeepFM_torch/src/DeepFM.py."""

        def __init__(self) -> None:
            gpu = 0 if options["device"] == "cuda" else -1
            super().__init__(features, gpu=gpu, verbose=0, model_root=".", metrics=["AUC"])
            self.embedding_layer = layers.FeatureEmbedding(features, options["factors"])
            self.fm = layers.FactorizationMachine(features)
            self.mlp = layers.MLP_Block(len(names) * options["factors"], list(options["hidden"]), output_dim=1)
            self.compile("adam", "binary_crossentropy", 1e-3)
            self.reset_parameters()
            self.model_to_device()

        def forward(self, inputs: Any) -> Any:
            x = self.get_inputs(inputs)
            embedded = self.embedding_layer(x)
            y_pred = self.fm(x, embedded)
            y_pred += self.mlp(embedded.flatten(start_dim=1))
            return {"y_pred": self.output_activation(y_pred)}

    model = DeepFM()
    model.train()
    model._max_gradient_norm = 10.0

    def make(task: Task) -> Step:
        parts = rows.parts(task["batch"])

        def step() -> int:
            torch.set_num_threads(task["threads"])
            part = next(parts)
            codes = torch.from_numpy(np.array(rows.codes[part]))
            labels = torch.from_numpy(np.array(rows.labels[part]))
            model.train_step(dict(zip(names, codes.unbind(dim=1), strict=True)) | {"label": labels}).item()
            return part.stop - part.start  # type: ignore[no-any-return]

        step()
        return step

    return make


def main(name: str, folder: Path) -> None:
    """Take turns."""
    def start() -> Work:
        rows = Rows(folder)
        on_gpu = rows.options["device"] == "cuda"
        return Work({"deepctr": deepctr, "fuxi": fuxi}[name](rows), torch.cuda.synchronize if on_gpu else lambda: None)

    serve(start)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
