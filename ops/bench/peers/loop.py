"""One pass of a torch model of somebody else's: each batch is scored, then learnt. Runs in the peers' environment."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

ADAGRAD_INITIAL = 0.1  # what freshet's row optimiser begins with


@dataclass(frozen=True, slots=True)
class Task:
    """What to do. codes: (n, F) places in each field's vocabulary; sizes: (F,) how many values those have; labels: (n,) 0 or 1.

    start: the initial weights, freshet's own: `rows` (Σ sizes, W) holds field after field, of each value its first-order
    weight (if `first_order`) and its factors; the rest is the dense weights by the names that they have there.
    """

    options: Mapping[str, Any]
    codes: NDArray[np.int64]
    sizes: NDArray[np.int64]
    labels: NDArray[np.float32]
    start: Mapping[str, NDArray[np.float32]]

    def columns(self, first: int, stop: int) -> Iterator[NDArray[np.float32]]:
        """Those columns of the initial rows, field by field: (size, stop − first) each."""
        ends = np.cumsum(self.sizes)
        for end, size in zip(ends.tolist(), self.sizes.tolist(), strict=True):
            yield self.start["rows"][end - size : end, first:stop]

    def dense(self, name: str) -> Tensor:
        """An initial dense weight."""
        return torch.from_numpy(np.array(self.start[name]))


def read(folder: Path) -> Task:
    """The task that lies there."""
    options = json.loads((folder / "task.json").read_text())
    with np.load(folder / "rows.npz") as rows, np.load(folder / "start.npz") as start:
        return Task(options, rows["codes"].astype(np.int64), rows["sizes"], rows["labels"], dict(start))


@torch.no_grad()
def pour(task: Task, embeddings: Sequence[Any], first: int, stop: int) -> None:
    """Begin an embedding per field at those columns of freshet's rows."""
    for embedding, values in zip(embeddings, task.columns(first, stop), strict=True):
        embedding.weight.copy_(torch.from_numpy(values))


@torch.no_grad()
def pour_linears(task: Task, prefix: str, into: nn.Module) -> None:
    """Begin the linear layers of a module, in their order, as those under `prefix`. A bias that freshet has not begins at 0."""
    theirs = [layer for layer in into.modules() if isinstance(layer, nn.Linear)]
    ours = sorted({name.rsplit(".", 1)[0] for name in task.start if name.startswith(prefix + ".")}, key=_number)
    for layer, name in zip(theirs, ours, strict=True):
        layer.weight.copy_(task.dense(f"{name}.weight"))
        if layer.bias is not None:
            layer.bias.copy_(task.dense(f"{name}.bias") if f"{name}.bias" in task.start else torch.zeros_like(layer.bias))


def learn(task: Task, model: nn.Module, score: Callable[[Tensor], Tensor], bias: nn.Parameter) -> NDArray[np.float32]:
    """What the model said of each row before it learnt it. score: (B, F) codes → (B,) probabilities. bias: its global one.

    Embeddings learn by Adagrad, all else by Adam; the loss is the sum over a batch of binary cross-entropy and nothing else.
    After the first batch was scored the bias is set to the log-odds of its clicks. All of it is what freshet does.
    """
    options = task.options
    rows = [layer.weight for layer in model.modules() if isinstance(layer, nn.Embedding)]
    known = {id(weight) for weight in rows}
    dense = [weight for weight in model.parameters() if weight.requires_grad and id(weight) not in known]
    optimisers = [
        torch.optim.Adagrad(rows, lr=options["row_rate"], initial_accumulator_value=ADAGRAD_INITIAL),
        torch.optim.Adam(dense, lr=options["dense_rate"]),
    ]
    codes, labels, size = torch.from_numpy(task.codes), torch.from_numpy(task.labels), options["batch_rows"]
    said = []
    for at in range(0, len(labels), size):
        x, y = codes[at : at + size], labels[at : at + size]                # (B, F), (B,)
        model.eval()
        with torch.no_grad():
            said.append(score(x).clone())                                   # (B,)
            if not at:
                bias.fill_(math.log((float(y.sum()) + 1) / (len(y) - float(y.sum()) + 1)))
        model.train()
        for optimiser in optimisers:
            optimiser.zero_grad()
        functional.binary_cross_entropy(score(x), y, reduction="sum").backward()  # type: ignore[no-untyped-call]
        for optimiser in optimisers:
            optimiser.step()
    return torch.cat(said).numpy()


def _number(name: str) -> tuple[int, str]:
    """By the number at the end of "mlp.layers.10"; names without one stay in the order of the alphabet."""
    last = name.rsplit(".", 1)[-1]
    return (int(last) if last.isdigit() else 0, name)
