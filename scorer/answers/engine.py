"""Ids → probabilities, by exactly one version of the model at any time. No I/O: versions are handed in."""

from __future__ import annotations

import copy
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from schemas.bags import Bags, Floats
from schemas.config import ModelConfig, Precision
from schemas.crosses import crossed
from schemas.errors import SnapshotError
from schemas.fields import FieldSchema
from schemas.models import RowModel, build
from schemas.models.base import Sides
from schemas.models.pooling import pool
from schemas.snapshot import Manifest, Unpacked, model_identity, refuse_other_model
from scorer.answers.network import SlateDeepFM, for_slates, split_of
from scorer.answers.version import Version

T = TypeVar("T", bound=nn.Module)

INIT_ROWS = 1 << 16  # rows initialised at a time: a few MB of scratch instead of a second table
# A version's rows are written in pieces of so many, each while requests wait (.3 ms), and they go first between two pieces.
PIECE_ROWS = 1 << 13
PAUSE_S = 2e-4
# Slates up to so many items are computed one after the other: two at once hand the interpreter to each other at each call of
# torch, a tenth of a core more for each. Longer ones beside them, so that no short one waits for the whole of a long one.
SHORT = 256
# Slates from so many items on are computed in two halves at once, where there is a second core: two thirds of the time if it is
# idle, a twentieth more of a core.
LONG = 512


@dataclass(frozen=True, slots=True)
class Scores:
    """probabilities, logits: (B,) float32, all computed from `version`."""

    probabilities: Floats
    logits: Floats
    version: Version


@dataclass(frozen=True, slots=True)
class Gathered:
    """What `version` computes its scores from. rows: (B, F + C, W), pooled over sets; values: (B, F + C), None = all 1.
    net: as the trainer has it, in float64, for any rows. sides: the two fields of each cross."""

    rows: Tensor
    values: Tensor | None
    net: RowModel
    sides: Sides
    version: Version


@dataclass(frozen=True, slots=True)
class Dense:
    """A version's dense part. net: what answers; tensors: its numbers as they came."""

    net: nn.Module
    tensors: Mapping[str, Tensor]


class Blueprint:
    """What all engines of one model have in common: fields, shapes, and rows that were never touched."""

    def __init__(self, config: ModelConfig, schema: FieldSchema, slates: Precision | None = None) -> None:
        """slates: of the numbers that are multiplied, for engines that are only asked for rows of one slate at a time
        (scorer/answers/network.py); None = any rows, in float32."""
        model = build(config, len(schema.fields), len(schema.crosses), schema.logs, schema.sides).eval()
        self.schema = schema if model.crosses else replace(schema, crosses=())
        self.bits = config.bits
        self.row_width = model.row_width
        self.counted = model.counted
        self._fields = self.schema.identity
        self._identity = model_identity(config, model.row_width)
        self._slates = slates
        self._context = [spec.side == "context" for spec in self.schema.fields]
        self.split = None if slates is None else split_of(model, self._context)
        self._model = model.to("meta")  # shapes alone: each version brings the numbers

    def check(self, manifest: Manifest) -> None:
        """Raise SnapshotError, naming both sides, for a version of another model or of fields with another meaning."""
        refuse_other_model(
            manifest, self._identity, self._fields, "Give trainer and scorer the same [model] settings and schema."
        )

    def table(self) -> Tensor:
        """A table of rows as they are before they are touched, (2^bits, W) float32."""
        table = self.room()
        self.fill(table, np.zeros(len(table), bool))
        return table

    def room(self) -> Tensor:
        """A table of rows that hold nothing yet, (2^bits, W) float32; from numpy, which asks for huge pages."""
        return torch.from_numpy(np.empty((1 << self.bits, self.row_width), np.float32))

    def fill(self, table: Tensor, touched: NDArray[np.bool_]) -> None:
        """Make the other rows of a table what they are before they are touched. touched: (2^bits,)."""
        for start in range(0, len(table), INIT_ROWS):
            rows = torch.from_numpy(start + np.flatnonzero(~touched[start : start + INIT_ROWS]))        # (n,)
            if len(rows):
                table[rows] = self._model.new_rows(rows)

    def dense(self, manifest: Manifest, content: Unpacked) -> Dense:
        """The dense part with a version's numbers. Raises SnapshotError if they are not this model's."""
        net = _twin(self._model)
        # Copies: what they come from may be a mapping of the whole table (versions/segment.py), which would live as long as
        # they.
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in content.dense.items()}
        try:
            net.load_state_dict(tensors, strict=True, assign=True)
        except RuntimeError as wrong:
            raise SnapshotError(f"version {manifest.number}: dense weights of another model: {wrong}") from wrong
        net.requires_grad_(False)
        return Dense(net if self._slates is None else for_slates(net, self._context, self._slates), tensors)

    def plain(self, dense: Dense) -> RowModel:
        """The dense part as the trainer has it, in float64, for any rows."""
        net = _twin(self._model)
        net.load_state_dict(dict(dense.tensors), strict=True, assign=True)
        return net.requires_grad_(False).double()


@dataclass(frozen=True, slots=True)
class _Overwritten:
    """Rows of the present version that the next one has begun to write over. rows: (n,) ascending; floats: (n, W)."""

    rows: NDArray[np.int64]
    floats: Floats

    def put_back(self, numbers: NDArray[np.int64], taken: Floats, through: int) -> None:
        """Into `taken` (m, W), the rows `numbers` of the table: what those up to row `through` were before."""
        place = np.minimum(np.searchsorted(self.rows, numbers), len(self.rows) - 1)             # (m,)
        gone = (self.rows[place] == numbers) & (numbers <= through)                             # (m,)
        taken[gone] = self.floats[place[gone]]


class Engine:
    """One table and one dense part. `score` may be called from any thread, `apply` from one.

    A request takes its rows and the dense part under a lock that `apply` holds while it writes some rows: no answer sees
    half a version. Where a version has many, they are written a piece at a time; a request between two pieces gets those
    that are written already as they were before. The forward pass runs outside the lock, on what nobody changes.
    """

    def __init__(self, blueprint: Blueprint, now_us: Callable[[], int], table: Tensor | None = None) -> None:
        """It answers once the first version is in. table: all rows, (2^bits, W), from now on the engine's own; None = as
        they are before they are touched."""
        self._blueprint = blueprint
        self._now_us = now_us
        self._lock = threading.Lock()
        self._turn = threading.Lock()          # held by the short slate that is computed now
        self._beside = ThreadPoolExecutor(1, "beside") if len(os.sched_getaffinity(0)) > 1 else None
        self._mask = np.int64((1 << blueprint.bits) - 1)
        self._table = blueprint.table() if table is None else table
        self._rows: Floats = self._table.numpy()  # the same: numpy takes rows in a fifth of torch's time
        self._dense: Dense | None = None
        self._version: Version | None = None
        self._before: _Overwritten | None = None
        self._written = -1                     # the last row of the next version that is in the table already

    @property
    def table(self) -> Tensor:
        """All rows, (2^bits, W); to be read only while nothing is applied."""
        return self._table

    @property
    def version(self) -> Version | None:
        """The version that answers now."""
        return self._version

    def apply(self, manifest: Manifest, content: Unpacked, gently: bool = False) -> Version:
        """Go on to the next version: `manifest` must name the present one as its parent. The first may be any.

        gently: many rows a piece at a time, for an engine that is asked meanwhile. Raises SnapshotError, naming both sides,
        and stays at the present version.
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
        dense = self._blueprint.dense(manifest, content)
        pieces = [
            (numbers[at : at + PIECE_ROWS], floats[at : at + PIECE_ROWS])
            for numbers, floats in ((_own(n, np.int64), _own(f, np.float32)) for n, f in content.rows)
            for at in range(0, len(numbers), PIECE_ROWS)
        ]
        if gently and len(pieces) > 1:
            self._write_all_but_the_last(pieces)
            pieces = pieces[-1:]
        with self._lock:
            for numbers, floats in pieces:
                self._table.index_copy_(0, numbers, floats)
            self._dense, self._before = dense, None
            self._version = Version(manifest.lineage, manifest.number, manifest.created_us, self._now_us())
            return self._version

    def _write_all_but_the_last(self, pieces: Sequence[tuple[Tensor, Tensor]]) -> None:
        """While requests go on with the present version."""
        rows = np.concatenate([numbers.numpy() for numbers, _ in pieces])
        before = _Overwritten(rows, self._rows.take(rows, 0))
        for numbers, floats in pieces[:-1]:
            with self._lock:
                self._table.index_copy_(0, numbers, floats)
                self._before, self._written = before, int(numbers[-1])
            time.sleep(PAUSE_S)  # whoever waits for the lock does not get it while its last holder runs on

    @torch.inference_mode()
    def score(self, bags: Bags) -> Scores:
        """Probability and logit of each row, in float32. Raises SnapshotError before the first version."""
        split = self._blueprint.split
        if split is not None and bags.lengths is None and bags.values is None:
            each = bags.ids.view(np.int64).reshape(-1, bags.fields)                     # (B, F)
            taken, dense, version = self._take(split.parts(each))                       # (S + B·R, W)
            slates = dense.net
            assert isinstance(slates, SlateDeepFM)
            context, items = taken[: split.in_context], taken[split.in_context :]
            items = items.reshape(len(bags), split.in_items, -1)                        # (B, R, W)
            logits = self._computed(lambda at: slates.logits(context, items[at]), len(bags))     # (B,)
        else:
            rows, values, dense, version = self._gather(bags)                           # (B, F + C, W), (B, F + C)
            net = dense.net
            logits = self._computed(lambda at: net(rows[at], None if values is None else values[at]), len(bags))     # (B,)
        return Scores(_array(logits.sigmoid()), _array(logits), version)

    @torch.inference_mode()
    def gather(self, bags: Bags) -> Gathered:
        """What `score` would compute from, to be looked into. Raises SnapshotError before the first version."""
        rows, values, dense, version = self._gather(bags)
        return Gathered(rows, values, self._blueprint.plain(dense), self._blueprint.schema.sides, version)

    def _computed(self, logits: Callable[[slice], Tensor], items: int) -> Tensor:
        """The logits of all rows. logits: of some of them; any thread may call it."""
        if items <= SHORT:
            with self._turn:
                return logits(slice(None))
        if items < LONG or self._beside is None:
            return logits(slice(None))
        other = self._beside.submit(_inferred, logits, slice(items // 2))
        own = logits(slice(items // 2, None))
        return torch.cat([other.result(), own])

    def _gather(self, bags: Bags) -> tuple[Tensor, Tensor | None, Dense, Version]:
        bags = crossed(bags, self._blueprint.schema)
        taken, dense, version = self._take(bags.ids.view(np.int64))             # (n, W)
        return *pool(torch.from_numpy(taken), bags, self._blueprint.schema.columns, self._blueprint.counted), dense, version

    def _take(self, ids: NDArray[np.int64]) -> tuple[Floats, Dense, Version]:
        """Their rows, (n, W), and what is of the same version. Raises SnapshotError."""
        numbers = ids & self._mask                                              # (n,)
        with self._lock:
            dense, version, before, written = self._dense, self._version, self._before, self._written
            rows: Floats = self._rows.take(numbers, 0)                          # (n, W)
        if dense is None or version is None:
            raise SnapshotError("no version is loaded yet")
        if before is not None:
            before.put_back(numbers, rows, written)
        return rows, dense, version


def load(blueprint: Blueprint, now_us: Callable[[], int], parts: Iterable[tuple[Manifest, Unpacked]]) -> Engine:
    """A new engine from a chain of versions that hold the whole table, oldest first (schemas.snapshot.chain).

    Raises SnapshotError if they do not follow from one another, or there is none.
    """
    table = blueprint.room()
    touched = np.zeros(len(table), bool)
    engine = Engine(blueprint, now_us, table)
    for manifest, content in parts:
        engine.apply(manifest, content)
        for numbers, _ in content.rows:
            touched[numbers] = True
    if engine.version is None:
        raise SnapshotError("no version to load")
    blueprint.fill(table, touched)
    return engine


def _twin(module: T) -> T:
    """The same module without its numbers: deepcopy takes ten times as long, while requests wait for the interpreter."""
    twin = copy.copy(module)
    for held in ("_parameters", "_buffers"):
        setattr(twin, held, dict(getattr(module, held)))
    twin._modules = {name: None if inner is None else _twin(inner) for name, inner in module._modules.items()}
    return twin


@torch.inference_mode()
def _inferred(logits: Callable[[slice], Tensor], at: slice) -> Tensor:
    """In another thread, which has a mode of its own."""
    return logits(at)


def _own(array: NDArray[Any], kind: Any) -> Tensor:
    """An array as a tensor of that kind: itself where that can be, else a copy."""
    return torch.from_numpy(np.require(array, kind, "W"))


def _array(tensor: Tensor) -> NDArray[np.float32]:
    found: NDArray[np.float32] = tensor.numpy()
    return found
