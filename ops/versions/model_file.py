"""A model in one file: what `freshet snapshot export` writes, `import` begins from, and any program can read.

It is one safetensors file (github.com/huggingface/safetensors). Tensors, n rows of W weights and C counts:

    rows           (n,) int64      numbers of all rows ever touched, ascending; the others are a function of model.seed
    weights        (n, W) float32
    counts         (n, C) float32  times seen and clicked; only of models with statistics
    dense/NAME                     the dense weights
    state/rows     (n, S) float32  the rows' optimiser state, and
    state/NAME/…                   that of the dense weights (and of the guard, and the running figures): all that
                                   learning on needs; only where the store had a checkpoint to take it from

Metadata, all text: `format`; `manifest`, JSON: lineage, version (`number`), place in the stream, model settings and the
digest of each field; `schema`, the field schema's TOML; `weights_digest`; `training`, JSON: whose optimisers' state it is;
`state_examples_learnt`, how many examples that state has seen (`manifest` says how many the weights have).
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from schemas import fields
from schemas.errors import SchemaError, SnapshotError
from schemas.fields import FieldSchema
from schemas.snapshot import Manifest, manifest_from_json, manifest_json, refuse_other_model, weights_digest
from scorer.versions.reader import Whole

FORMAT = "freshet-model/1"
_STATE, _DENSE = "state/", "dense/"

Floats = NDArray[np.float32]
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """What learning on needs. rows: (n, S), beside the model's rows; others: as a checkpoint names them ("dense/…")."""

    rows: Floats
    others: Arrays
    training: Mapping[str, Any]
    examples_learnt: int


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A version, whole. floats: (n, W + C), counts last. schema: its TOML."""

    manifest: Manifest
    schema: str
    rows: NDArray[np.int64]
    floats: Floats
    counted: int
    dense: Arrays
    state: State | None

    @property
    def digest(self) -> str:
        """As `freshet snapshot show` tells it."""
        return weights_digest(self.rows, self.floats, self.dense)


def taken(version: Manifest, whole: Whole, counted: int, schema: str, start: tuple[Manifest, Whole, Arrays] | None) -> Model:
    """A version from a store. start: the checkpoint that going back to it begins from, whole, with its other state.

    The state is the checkpoint's: of this very moment, or of some examples earlier, as `rollback --then skip` has it
    (docs/decisions/0007-going-back.md). A row that was touched in between begins with none.
    """
    state = None
    if start is not None:
        checkpoint, there, others = start
        width = version.width
        rows = np.zeros((len(whole.rows), checkpoint.width - width), np.float32)                # (n, S)
        known = np.isin(there.rows, whole.rows)
        rows[np.searchsorted(whole.rows, there.rows[known])] = there.floats[known, width:]
        same = checkpoint.examples_learnt == version.examples_learnt
        kept = (_DENSE, "guard/", "progressive/") if same else (_DENSE,)
        chosen = {name: array for name, array in others.items() if name.startswith(kept)}
        state = State(rows, chosen, checkpoint.training, checkpoint.examples_learnt)
    manifest = replace(version, chunks=(), traces=())
    return Model(manifest, schema, whole.rows, np.ascontiguousarray(whole.floats, np.float32), counted, whole.dense, state)


def write(path: Path, model: Model) -> int:
    """Whole or not at all; returns how many bytes. Raises SnapshotError where the disk does not take it."""
    learnt = model.floats.shape[1] - model.counted
    tensors: Arrays = {"rows": model.rows, "weights": model.floats[:, :learnt]}
    if model.counted:
        tensors["counts"] = model.floats[:, learnt:]
    tensors |= {_DENSE + name: array for name, array in model.dense.items()}
    about = {
        "format": FORMAT, "manifest": manifest_json(model.manifest).decode(), "schema": model.schema,
        "weights_digest": model.digest,
    }
    if model.state is not None:
        tensors[_STATE + "rows"] = model.state.rows
        tensors |= {_STATE + name: array for name, array in model.state.others.items()}
        about |= {"training": orjson.dumps(dict(model.state.training)).decode(),
                  "state_examples_learnt": str(model.state.examples_learnt)}
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, unfinished, about)
        with unfinished.open("rb") as written:
            os.fsync(written.fileno())
        size = unfinished.stat().st_size
        unfinished.replace(path)
    except (OSError, SafetensorError) as full:
        unfinished.unlink(missing_ok=True)
        raise SnapshotError(f"{path} cannot be written: {full}") from full
    return size


def read(path: Path, tensor: Callable[[], None] = lambda: None) -> Model:
    """What `write` wrote, or SnapshotError that says what is wrong with the file. tensor: called after each one read."""
    if not path.is_file():
        raise SnapshotError(f"{path}: no such file")
    try:
        with safe_open(path, framework="numpy") as opened:
            about: dict[str, str] = opened.metadata() or {}
            if about.get("format") != FORMAT:
                raise SnapshotError(f"{path}: its format is {about.get('format')!r}, this program reads {FORMAT!r}")
            tensors: Arrays = {}
            for name in opened.keys():  # noqa: SIM118 not a mapping
                tensors[name] = opened.get_tensor(name)
                tensor()
    except (OSError, SafetensorError, ValueError, TypeError) as broken:
        raise SnapshotError(f"{path}: cut short, or no safetensors file: {broken}") from broken
    try:
        return _model(about, tensors)
    except SnapshotError as wrong:
        raise SnapshotError(f"{path}: {wrong}") from wrong


def _model(about: Mapping[str, str], tensors: Arrays) -> Model:
    missing = [f"metadata {name}" for name in ("manifest", "schema", "weights_digest") if name not in about]
    missing += [f"tensor {name}" for name in ("rows", "weights") if name not in tensors]
    if _STATE + "rows" in tensors:
        missing += [f"metadata {name}" for name in ("training", "state_examples_learnt") if name not in about]
    if missing:
        raise SnapshotError(f"{', '.join(missing)}: not there")
    manifest = manifest_from_json(about["manifest"])
    rows, n = tensors["rows"], len(tensors["rows"])
    beside = [name for name in ("counts", _STATE + "rows") if name in tensors]
    for name in ("weights", *beside):
        if tensors[name].ndim != 2 or len(tensors[name]) != n or tensors[name].dtype != np.float32:
            raise SnapshotError(f"tensor {name} is {tensors[name].dtype} {tensors[name].shape}, float32 ({n}, …) needed")
    end = 1 << int(manifest.model.get("bits", 0))
    if rows.dtype != np.int64 or rows.ndim != 1 or bool((rows[1:] <= rows[:-1]).any()) or not _within(rows, end):
        raise SnapshotError(f"tensor rows is not int64 numbers of rows, ascending, below {end}")
    counted = tensors["counts"].shape[1] if "counts" in tensors else 0
    floats = np.concatenate([tensors["weights"], tensors["counts"]], axis=1) if counted else tensors["weights"]
    if floats.shape[1] != manifest.width:
        raise SnapshotError(f"its rows have {floats.shape[1]} floats, its manifest says {manifest.width}")
    state = None
    if _STATE + "rows" in tensors:
        others = {name.removeprefix(_STATE): array for name, array in tensors.items() if name.startswith(_STATE)}
        rows_state = others.pop("rows")
        try:
            training, examples = dict(orjson.loads(about["training"])), int(about["state_examples_learnt"])
        except ValueError as wrong:
            raise SnapshotError(f"metadata training, state_examples_learnt: {wrong}") from wrong
        state = State(rows_state, others, training, examples)
    dense = {name.removeprefix(_DENSE): array for name, array in tensors.items() if name.startswith(_DENSE)}
    model = Model(manifest, about["schema"], rows, floats, counted, dense, state)
    if model.digest != about["weights_digest"]:
        raise SnapshotError(f"its weights have digest {model.digest}, it names {about['weights_digest']}: the file is damaged")
    return model


def _within(rows: NDArray[np.int64], end: int) -> bool:
    return not len(rows) or (int(rows[0]) >= 0 and int(rows[-1]) < end)


def refuse_other(model: Model, identity: Mapping[str, Any], columns: Sequence[tuple[int, int]], schema: FieldSchema) -> None:
    """Raise SnapshotError where this process's settings or schema are not the file's: both sides, fields by their names."""
    try:
        refuse_other_model(model.manifest, identity, columns, "Set [model] and model.schema as they are there.")
    except SnapshotError as unfit:
        raise SnapshotError(f"{unfit} {_named(model.schema, schema)}".rstrip()) from unfit


def _named(text: str, here: FieldSchema) -> str:
    """The fields that are not the same, by name and kind; nothing where the file's schema cannot be read."""
    try:
        there = fields.parse(tomllib.loads(text), "the file's schema")
    except (tomllib.TOMLDecodeError, SchemaError):
        return ""
    sides = [{spec.number: spec for spec in schema.fields} for schema in (there, here)]
    told = [
        " against ".join(f"{side[number].name} ({side[number].kind})" if number in side else "none" for side in sides)
        for number in sorted({*sides[0], *sides[1]})
        if number not in sides[0] or number not in sides[1] or sides[0][number].digest != sides[1][number].digest
    ]
    return f"Schema {there.name} there, {here.name} here: {'; '.join(told)}." if told else ""
