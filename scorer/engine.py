"""Ids → probabilities, by exactly one version of the model at any time. No I/O: versions are handed in."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from schemas.bags import Bags, Floats
from schemas.config import ModelConfig
from schemas.crosses import crossed
from schemas.errors import SnapshotError
from schemas.fields import FieldSchema
from schemas.models import build
from schemas.models.pooling import pool
from schemas.snapshot import Manifest, Unpacked, model_identity, refuse_other_model

INIT_ROWS = 1 << 16  # rows initialised at a time: a few MB of scratch instead of a second table


@dataclass(frozen=True, slots=True)
class Version:
    """What an answer names. created_us: when the trainer published it; applied_us: when this engine took it over."""

    lineage: str
    number: int
    created_us: int
    applied_us: int


@dataclass(frozen=True, slots=True)
class Scores:
    """probabilities, logits: (B,) float32, all computed from `version`."""

    probabilities: Floats
    logits: Floats
    version: Version


class Blueprint:
    """What all engines of one model have in common: fields, shapes, and rows that were never touched."""

    def __init__(self, config: ModelConfig, schema: FieldSchema) -> None:
        model = build(config, len(schema.fields), len(schema.crosses), schema.logs, schema.sides).eval()
        self.schema = schema if model.crosses else replace(schema, crosses=())
        self.bits = config.bits
        self.row_width = model.row_width
        self.counted = model.counted
        self._fields = self.schema.identity
        self._identity = model_identity(config, model.row_width)
        self._model = model.to("meta")  # shapes alone: each version brings the numbers

    def check(self, manifest: Manifest) -> None:
        """Raise SnapshotError, naming both sides, for a version of another model or of fields with another meaning."""
        refuse_other_model(
            manifest, self._identity, self._fields, "Give trainer and scorer the same [model] settings and schema."
        )

    def table(self) -> Tensor:
        """A table of rows as they are before they are touched, (2^bits, W) float32."""
        table = torch.empty((1 << self.bits, self.row_width), dtype=torch.float32)
        for start in range(0, len(table), INIT_ROWS):
            stop = min(start + INIT_ROWS, len(table))
            table[start:stop] = self._model.new_rows(torch.arange(start, stop))
        return table

    def dense(self, manifest: Manifest, content: Unpacked) -> nn.Module:
        """The dense part with a version's numbers. Raises SnapshotError if they are not this model's."""
        net = copy.deepcopy(self._model)
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in content.dense.items()}
        try:
            net.load_state_dict(tensors, strict=True, assign=True)
        except RuntimeError as wrong:
            raise SnapshotError(f"version {manifest.number}: dense weights of another model: {wrong}") from wrong
        return net.requires_grad_(False)


class Engine:
    """One table and one dense part. `score` may be called from any thread, `apply` from one.

    A request takes its rows and the dense part under a lock that `apply` holds while it writes rows (0.4 ms for
    10,000): no answer sees half a version. The forward pass runs outside it, on what nobody changes.
    """

    def __init__(self, blueprint: Blueprint, now_us: Callable[[], int]) -> None:
        """A table never touched; it answers once the first version is in."""
        self._blueprint = blueprint
        self._now_us = now_us
        self._lock = threading.Lock()
        self._mask = np.uint64((1 << blueprint.bits) - 1)
        self._table = blueprint.table()
        self._net: nn.Module | None = None
        self._version: Version | None = None

    @property
    def version(self) -> Version | None:
        """The version that answers now."""
        return self._version

    def apply(self, manifest: Manifest, content: Unpacked) -> Version:
        """Go on to the next version: `manifest` must name the present one as its parent. The first may be any.

        Raises SnapshotError, naming both sides, and stays at the present version.
        """
        self._blueprint.check(manifest)
        now = self._version
        if now is not None and (manifest.lineage != now.lineage or manifest.parent != now.number):
            raise SnapshotError(
                f"version {manifest.number} is a child of {manifest.parent} in lineage {manifest.lineage[:8]}; "
                f"this engine holds {now.number} of {now.lineage[:8]}. Load afresh."
            )
        width = self._blueprint.row_width
        if manifest.width != width:
            raise SnapshotError(f"version {manifest.number} has rows of {manifest.width} floats, {width} needed")
        rows = [
            (torch.from_numpy(numbers.astype(np.int64)), torch.from_numpy(floats.astype(np.float32)))
            for numbers, floats in content.rows
        ]
        net = self._blueprint.dense(manifest, content)
        with self._lock:
            for numbers, floats in rows:
                self._table.index_copy_(0, numbers, floats)
            self._net = net
            self._version = Version(manifest.lineage, manifest.number, manifest.created_us, self._now_us())
            return self._version

    @torch.inference_mode()
    def score(self, bags: Bags) -> Scores:
        """Probability and logit of each row, in float32. Raises SnapshotError before the first version."""
        bags = crossed(bags, self._blueprint.schema)
        numbers = torch.from_numpy((bags.ids & self._mask).astype(np.int64))    # (n,)
        with self._lock:
            net, version = self._net, self._version
            rows = self._table.index_select(0, numbers)                         # (n, W)
        if net is None or version is None:
            raise SnapshotError("no version is loaded yet")
        pooled, values = pool(rows, bags, self._blueprint.schema.columns, self._blueprint.counted)  # (B, F, W), (B, F)
        logits: Tensor = net(pooled, values)                                    # (B,)
        return Scores(_array(logits.sigmoid()), _array(logits), version)


def load(blueprint: Blueprint, now_us: Callable[[], int], parts: Iterable[tuple[Manifest, Unpacked]]) -> Engine:
    """A new engine from a chain of versions that hold the whole table, oldest first (schemas.snapshot.chain).

    Raises SnapshotError if they do not follow from one another, or there is none.
    """
    engine = Engine(blueprint, now_us)
    for manifest, content in parts:
        engine.apply(manifest, content)
    if engine.version is None:
        raise SnapshotError("no version to load")
    return engine


def _array(tensor: Tensor) -> NDArray[np.float32]:
    found: NDArray[np.float32] = tensor.numpy()
    return found
