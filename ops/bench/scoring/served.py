"""What `freshet bench score` has served: a model's versions in a store, and the slates that are asked for."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ops.bench.measuring.meanwhile import every
from ops.settings import Loaded
from schemas import fields
from schemas.config import ModelConfig, Settings, Source, build
from schemas.fields import FieldSchema
from schemas.hashing import hash_value
from schemas.models import build as build_model
from schemas.proto import events_pb2, scoring_pb2
from schemas.snapshot import Manifest, encode_rows, encode_tensors, model_identity
from stream_trainer.store import SnapshotStore

FIELDS, CONTEXT = 39, 20
ZIPF = 1.1                   # how often the values of a field come, as in real traffic
BODIES = 64                  # different slates, sent in turns
VERSION_EVERY_S = 0.5
PREPARED = 8                 # different versions, published in turns
MODEL: Mapping[str, Any] = {
    "model.name": "bench", "model.architecture": "deepfm", "model.factors": 10, "model.hidden": (400, 400, 400),
    "model.statistics": False, "model.bits": 20,
}


def schema_in(directory: Path) -> str:
    """A field schema of FIELDS categorical fields, as a file there."""
    lines = ['name = "bench"']
    for place in range(FIELDS):
        side = "context" if place < CONTEXT else "item"
        lines += ["[[field]]", f'name = "f{place}"', f"number = {place + 1}", 'kind = "categorical"', f'side = "{side}"']
    file = directory / "bench.toml"
    file.write_text("\n".join(lines))
    return str(file)


def settings_for(var: Path, schema: str, port: int, loaded: Loaded, model: Mapping[str, Any]) -> Settings:
    """Those of one store and its scorer; how that one works is as the caller has set it."""
    values = {f"score.{key}": getattr(loaded.settings.score, key) for key in ("workers", "threads", "precision", "poll_s")}
    return build(Source("bench", {"var": var, **model, **values, "model.schema": schema, "score.port": port}))[0]


class Writer:
    """In the trainer's place: publishes rows at random, all of them at first."""

    def __init__(self, settings: Settings, seed: int) -> None:
        self._config: ModelConfig = settings.model
        self._schema: FieldSchema = fields.load(settings.model.schema)
        self._random = np.random.default_rng(seed)
        self._net = build_model(self._config, len(self._schema.fields)).eval()
        self._store = SnapshotStore(settings.store_dir)
        self._rows = 1 << self._config.bits
        self.number = 0

    def publish(self, rows: int | None) -> None:
        """A version with so many rows, None = all; with a trace, so that what it waited for is written down."""
        self._write(*self._prepared(rows))

    def _prepared(self, rows: int | None) -> tuple[int, list[bytes]]:
        """How many rows, and the chunks of rows and dense part."""
        chosen = np.arange(self._rows) if rows is None else np.sort(self._random.choice(self._rows, rows, replace=False))
        floats = self._random.normal(0, 0.1, (len(chosen), self._net.row_width)).astype(np.float32)
        dense = {name: tensor.numpy() for name, tensor in self._net.state_dict().items()}
        return len(chosen), [*encode_rows(chosen, floats), *encode_tensors(dense)]

    def _write(self, rows: int, chunks: Sequence[bytes]) -> None:
        now_us = time.time_ns() // 1000
        parent, self.number = self.number or None, self.number + 1
        manifest = Manifest(
            kind="version", lineage="b" * 32, number=self.number, parent=parent, rotation=64, share=self.number % 64,
            model=model_identity(self._config, self._net.row_width), fields=self._schema.identity, chunks=(),
            rows=rows, width=self._net.row_width, created_us=now_us, examples_learnt=self.number,
            batches_learnt=self.number, traces=({"click_us": now_us},),
        )
        self._store.write_version(manifest, chunks)

    @contextmanager
    def publishing(self, rows: int) -> Iterator[None]:
        """A version every half second meanwhile, at this process's own priority. Its rows were made before: the scorer is
        measured, not random numbers."""
        prepared = itertools.cycle([self._prepared(rows) for _ in range(PREPARED)])
        with every(VERSION_EVERY_S, lambda: self._write(*next(prepared))):
            yield

    def close(self) -> None:
        """Let go of the store."""
        self._store.close()


def requests(directory: Path, schema: FieldSchema, kind: str, seed: int) -> Path:
    """Requests as bytes in one file: ready ids answered in columns, or strings answered with echoes."""
    random = np.random.default_rng(seed)
    items = 1000 if kind == "1000" else 100
    names = [f"app{place}" for place in range(items)]
    numbers = list(schema.numbers)
    made = []
    for _ in range(BODIES):
        words = random.zipf(ZIPF, (items, FIELDS)) % 1_000_000
        words[:, :CONTEXT] = words[:1, :CONTEXT]
        if kind == "strings":
            column = [[f"v{word:07d}" for word in words[:, place]] for place in range(FIELDS)]
            request = scoring_pb2.ScoreRequest(
                item_id=names,
                context=[events_pb2.Column(field=f"f{place}", strings=column[place][:1]) for place in range(CONTEXT)],
                items=[events_pb2.Column(field=f"f{place}", strings=column[place]) for place in range(CONTEXT, FIELDS)],
            )
        else:
            salt = np.array([hash_value(number, b"v") for number in numbers], np.uint64)
            ids = (words.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) ^ salt                  # (B, F)
            request = scoring_pb2.ScoreRequest(item_id=names, compact=True)
            request.ready_context.field.extend(numbers[:CONTEXT])
            request.ready_context.ids = ids[0, :CONTEXT].tobytes()
            request.ready_items.field.extend(numbers[CONTEXT:])
            request.ready_items.ids = np.ascontiguousarray(ids[:, CONTEXT:]).tobytes()
        made.append(np.frombuffer(request.SerializeToString(), np.uint8))
    file = directory / f"{kind}.npz"
    np.savez(file, data=np.concatenate(made), sizes=np.array([len(one) for one in made]))
    return file
