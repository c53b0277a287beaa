"""FuxiCTR's models, by names of ours; run as a module in the peers' environment.

FuxiCTR's package holds its layers, not its models of a click: those stand beside it as examples (model_zoo). So they are put
together here from its layers as its examples put them: which layers, their order, and where there are biases. Source:
FuxiCTR 2.3.10, pytorch/layers, and model_zoo/{LR,FM,FFM,AFM,NFM,DNN,PNN,WideDeep,DeepFM,DCN,DCNv2}.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch import layers
from torch import Tensor, nn

from ops.bench.peers.loop import Task, learn, pour, pour_linears, read

Inputs = Mapping[str, Tensor]


class Model(nn.Module):
    """An embedding per field, and the parts that a model has."""

    def __init__(self, task: Task, name: str) -> None:
        super().__init__()
        options = task.options
        self.name = name
        self.features = feature_map(task)
        fields, k, hidden = len(task.sizes), options["factors"], list(options["hidden"])
        inputs = fields * k
        with_first = name in ("lr", "fm", "ffm", "afm", "nfm", "wide_deep", "deepfm")
        with_bias = name in ("lr", "fm", "ffm", "afm", "deepfm")
        self.first = layers.LogisticRegression(self.features, use_bias=with_bias) if with_first else None
        self.embedding = layers.FeatureEmbedding(self.features, k) if name not in ("lr", "ffm") else None
        self.mlp = self.cross = self.fc = None
        if name in ("dcn", "dcn_v2", "dcn_v2_stacked"):
            net = layers.CrossNet if name == "dcn" else layers.CrossNetV2
            self.cross = net(inputs, options["cross_layers"])
            self.mlp = layers.MLP_Block(inputs, hidden)
            self.fc = nn.Linear(hidden[-1] + (0 if name == "dcn_v2_stacked" else inputs), 1)
        elif name in ("nfm", "dnn", "pnn_inner", "wide_deep", "deepfm"):
            pairs = fields * (fields - 1) // 2
            width = {"nfm": k, "pnn_inner": inputs + pairs}.get(name, inputs)
            self.mlp = layers.MLP_Block(width, hidden, output_dim=1)
        product = {
            "fm": "product_sum", "deepfm": "product_sum", "nfm": "bi_interaction", "pnn_inner": "inner_product",
            "afm": "elementwise_product",
        }
        self.interaction = layers.InnerProductInteraction(fields, product[name]) if name in product else None
        if name == "afm":
            width = options["attention_factors"]
            self.attention = nn.Sequential(nn.Linear(k, width), nn.ReLU(), nn.Linear(width, 1, bias=False), nn.Softmax(dim=1))
            self.p = nn.Linear(k, 1, bias=False)
        if name == "ffm":
            self.others = nn.ModuleList(layers.FeatureEmbedding(self.features, k) for _ in range(fields - 1))

    def forward(self, x: Inputs) -> Tensor:
        """x: field → (B,) codes. Returns (B,) probabilities."""
        logit: Any = 0 if self.first is None else self.first(x)                             # (B, 1)
        if self.name == "ffm":
            logit = logit + self._field_aware(x)
        if self.embedding is not None:
            logit = logit + self._embedded(self.embedding(x))
        return torch.sigmoid(logit).squeeze(1)                                              # (B,)

    def _embedded(self, v: Tensor) -> Any:
        """v: (B, F, K). Returns (B, 1)."""
        flat = v.flatten(start_dim=1)                                                       # (B, F·K)
        if self.cross is not None and self.mlp is not None and self.fc is not None:
            crossed = self.cross(flat)
            stacked = self.name == "dcn_v2_stacked"
            return self.fc(self.mlp(crossed) if stacked else torch.cat([crossed, self.mlp(flat)], dim=1))
        products = None if self.interaction is None else self.interaction(v)
        if self.name == "fm":
            return products
        if self.name == "afm":
            return self.p((self.attention(products) * products).sum(dim=1))
        assert self.mlp is not None
        if self.name == "deepfm":
            return products + self.mlp(flat)
        if self.name == "nfm":
            return self.mlp(products)
        return self.mlp(flat if products is None else torch.cat([flat, products], dim=1))

    def _field_aware(self, x: Inputs) -> Any:
        """Group j − 1 of field i meets group i of field j: F − 1 groups serve F fields. Returns (B, 1)."""
        groups = [group(x) for group in self.others]                                        # F − 1 of (B, F, K)
        pairs = itertools.combinations(range(len(groups) + 1), 2)
        return sum((groups[j - 1][:, i] * groups[i][:, j]).sum(dim=1, keepdim=True) for i, j in pairs)


def feature_map(task: Task) -> Any:
    """A categorical feature for each field."""
    made = FeatureMap("bench", "")
    for at, size in enumerate(task.sizes.tolist()):
        made.features[f"f{at}"] = {"type": "categorical", "source": "", "vocab_size": size}
    made.num_fields = made.get_num_fields()
    made.default_emb_dim = task.options["factors"]
    return made


def build(task: Task) -> tuple[Model, nn.Parameter]:
    """The model that the task names, with freshet's initial weights, and its global bias: where it has two, the first."""
    name, first, k = task.options["model"], task.options["first_order"], task.options["factors"]
    model = Model(task, name)
    if model.first is not None:
        pour(task, _of(model.first.embedding_layer), 0, 1)
    if model.embedding is not None:
        pour(task, _of(model.embedding), first, first + k)
    if name == "ffm":
        _pour_groups(task, model)
    if name == "afm":
        pour_linears(task, "attention", nn.ModuleList([model.attention[0]]))
        pour_linears(task, "h", nn.ModuleList([model.attention[2]]))
        with torch.no_grad():
            model.p.weight.copy_(task.dense("p"))
    if model.fc is not None and model.mlp is not None and model.cross is not None:
        pour_linears(task, "deep", model.mlp)
        pour_linears(task, "output", nn.ModuleList([model.fc]))
        pour_linears(task, "cross", model.cross)
        if name == "dcn":
            with torch.no_grad():
                for at, layer in enumerate(model.cross.cross_net):
                    layer.bias.copy_(task.dense(f"cross.{at}.bias"))
        return model, model.fc.bias
    if model.mlp is not None:
        pour_linears(task, "mlp.layers", model.mlp)
    bias = model.first.bias if model.first is not None and model.first.bias is not None else model.mlp.mlp[-1].bias  # type: ignore[union-attr]
    return model, bias


def _of(embedding: Any) -> list[Any]:
    return list(embedding.embedding_layer.embedding_layers.values())


@torch.no_grad()
def _pour_groups(task: Task, model: Model) -> None:
    """Our rows hold, of field i, a group of factors for each field j, its own too; theirs lack that one."""
    k = task.options["factors"]
    for place, group in enumerate(model.others):
        for field, embedding in enumerate(_of(group)):
            meets = place if field > place else place + 1
            values = next(itertools.islice(task.columns(1 + meets * k, 1 + (meets + 1) * k), field, None))
            embedding.weight.copy_(torch.from_numpy(values))


def main(folder: Path) -> None:
    """Do the task."""
    task = read(folder)
    torch.set_num_threads(task.options["threads"])
    model, bias = build(task)
    names = list(model.features.features)

    def score(codes: Tensor) -> Tensor:
        probabilities: Tensor = model(dict(zip(names, codes.unbind(dim=1), strict=True)))
        return probabilities

    np.save(folder / "said.npy", learn(task, model, score, bias))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
