"""DeepCTR-Torch's models, by names of ours; run as a module in the peers' environment. Source: DeepCTR-Torch 0.3.0, models/.

Without L2, dropout or batch norm. Two of its models are asked for less than they can: a DeepFM without network or interactions
is a logistic regression, one without a network an FM; a PNN without products is a plain network.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import requests
import torch
from torch import Tensor, nn

from ops.bench.peers.loop import Task, learn, pour, pour_linears, read


def _offline(*_: object, **__: object) -> None:
    raise ConnectionError("a benchmark asks nobody for newer versions")


requests.get = _offline  # the import below would
from deepctr_torch import inputs, models  # noqa: E402

PLAIN: Mapping[str, Any] = {"l2_reg_linear": 0, "l2_reg_embedding": 0}


def build(task: Task) -> nn.Module:
    """The model that the task names, with freshet's initial weights."""
    options, name = task.options, task.options["model"]
    columns = [inputs.SparseFeat(f"f{at}", int(size), embedding_dim=options["factors"]) for at, size in enumerate(task.sizes)]
    hidden = tuple(options["hidden"])
    deep = {**PLAIN, "dnn_hidden_units": hidden}
    pnn = {"l2_reg_embedding": 0, "dnn_hidden_units": hidden}
    dcn = {**deep, "cross_num": options["cross_layers"], "l2_reg_cross": 0}
    known: Mapping[str, Callable[[], Any]] = {
        "lr": lambda: models.DeepFM(columns, [], use_fm=False, dnn_hidden_units=(), **PLAIN),
        "fm": lambda: models.DeepFM(columns, columns, dnn_hidden_units=(), **PLAIN),
        "afm": lambda: models.AFM(columns, columns, attention_factor=options["attention_factors"], l2_reg_att=0, **PLAIN),
        "nfm": lambda: models.NFM(columns, columns, **deep),
        "dnn": lambda: models.PNN(columns, use_inner=False, **pnn),
        "pnn_inner": lambda: models.PNN(columns, **pnn),
        "pnn_outer": lambda: models.PNN(columns, use_inner=False, use_outter=True, **pnn),
        "pnn_both": lambda: models.PNN(columns, use_outter=True, **pnn),
        "wide_deep": lambda: models.WDL(columns, columns, **deep),
        "deepfm": lambda: models.DeepFM(columns, columns, **deep),
        "dcn": lambda: models.DCN(columns, columns, **dcn),
        "dcn_v2": lambda: models.DCN(columns, columns, cross_parameterization="matrix", **dcn),
    }
    model = known[name]()
    first, factors = options["first_order"], options["factors"]
    width = task.start["rows"].shape[1]
    if width > first:
        pour(task, [model.embedding_dict[column.name] for column in columns], first, first + factors)
    if linear := list(model.linear_model.embedding_dict.values()):
        if first:
            pour(task, linear, 0, 1)
        else:
            _zero(linear)
    _pour_dense(task, model, name)
    return model  # type: ignore[no-any-return]


@torch.no_grad()
def _pour_dense(task: Task, model: Any, name: str) -> None:
    if name in ("dcn", "dcn_v2"):
        pour_linears(task, "deep", model.dnn)
        pour_linears(task, "output", nn.ModuleList([model.dnn_linear]))
        for layer in range(task.options["cross_layers"]):
            weight = task.dense(f"cross.{layer}.weight")                        # (1, D) or (D, D)
            model.crossnet.kernels[layer].copy_(weight.T if name == "dcn" else weight)
            model.crossnet.bias[layer].copy_(task.dense(f"cross.{layer}.bias")[:, None])
    elif name == "afm":
        model.fm.attention_W.copy_(task.dense("attention.weight").T)
        model.fm.attention_b.copy_(task.dense("attention.bias"))
        model.fm.projection_h.copy_(task.dense("h.weight").T)
        model.fm.projection_p.copy_(task.dense("p")[:, None])
    elif name not in ("lr", "fm"):
        pour_linears(task, "mlp.layers", nn.ModuleList([model.dnn, model.dnn_linear]))
    if name in ("pnn_outer", "pnn_both"):
        model.outterproduct.kernel.copy_(task.dense("kernel").transpose(0, 1))  # (P, K, K) → (K, P, K)


@torch.no_grad()
def _zero(embeddings: list[Any]) -> None:
    for embedding in embeddings:
        embedding.weight.zero_()


def main(folder: Path) -> None:
    """Do the task."""
    task = read(folder)
    torch.set_num_threads(task.options["threads"])
    model = build(task)

    def score(codes: Tensor) -> Tensor:
        probabilities: Tensor = model(codes.float()).squeeze(1)
        return probabilities

    np.save(folder / "said.npy", learn(task, model, score, model.out.bias))  # type: ignore[union-attr,arg-type]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
