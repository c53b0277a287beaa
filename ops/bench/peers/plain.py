"""The bench's model as most people would serve it: float32, a table of rows, nothing shared between context and items. It
imports no protobuf: other servers, with a protobuf of their own, run it too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from schemas.config import ModelConfig
from schemas.models import build
from schemas.models.base import RowModel
from schemas.snapshot import model_config
from scorer.versions.reader import SnapshotReader


class PlainModel:
    """`score` again and again. table: (2^bits, floats of a row)."""

    def __init__(self, net: RowModel, table: Tensor) -> None:
        self._net = net.eval().requires_grad_(False)
        self._table = table

    @classmethod
    def of_store(cls, store: Path, secondary: Path, schema_file: str, fields: int) -> PlainModel:
        """The newest version there. secondary: a folder for what the reader writes."""
        with SnapshotReader(store, secondary) as reader:
            number = reader.poll()
            assert number is not None
            config = model_config(reader.manifest(number), "bench", schema_file)
            whole = reader.whole(number)
        net = build(config, fields)
        net.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in whole.dense.items()})
        table = net.new_rows(torch.arange(1 << config.bits))
        table[torch.from_numpy(whole.rows)] = torch.from_numpy(whole.floats)
        return cls(net, table)

    def save(self, file: Path) -> None:
        """One file for `load`."""
        torch.save({"net": self._net.state_dict(), "table": self._table}, file)

    @classmethod
    def load(cls, file: Path, model: Mapping[str, Any], fields: int) -> PlainModel:
        """What `save` left. model: settings of ModelConfig."""
        kept = torch.load(file, weights_only=True)
        net = build(ModelConfig(**model), fields)
        net.load_state_dict(kept["net"])
        return cls(net, kept["table"])

    def score(
        self, context: NDArray[np.uint64], items: NDArray[np.uint64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
        """(fields of the context,) and (B, fields of an item) ids → probabilities, logits, ranks, (B,) each."""
        ids = np.concatenate([np.broadcast_to(context, (len(items), len(context))), items], axis=1)            # (B, F)
        with torch.inference_mode():
            rows = self._table[torch.from_numpy((ids % np.uint64(len(self._table))).astype(np.int64))]
            logits = self._net(rows, None)
            probabilities = logits.sigmoid()
        ranks = np.empty(len(items), np.int64)
        ranks[np.argsort(-probabilities.numpy(), kind="stable")] = np.arange(1, len(items) + 1)
        return probabilities.numpy(), logits.numpy(), ranks
