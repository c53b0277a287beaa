"""A stand-in for the trainer: a table changed at random, published version by version, with the truth kept for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rocksdict import Options, Rdict, WriteBatch

from schemas.bags import Bags
from schemas.config import ModelConfig
from schemas.errors import SnapshotError
from schemas.fields import FieldSchema
from schemas.models import build
from schemas.snapshot import (
    Manifest,
    Unpacked,
    chunk_key,
    decode_manifest,
    described,
    encode_manifest,
    encode_rows,
    encode_tensors,
    manifest_key,
    model_identity,
    unpack,
)


class Lineage:
    """`publish` changes some rows and the dense part, and gives the version's keys and values in the order of writing."""

    def __init__(
        self, config: ModelConfig, schema: FieldSchema, name: str = "a" * 32, rotation: int = 4, first: int = 1
    ) -> None:
        self.config, self.schema, self.name, self.rotation = config, schema, name, rotation
        self.random = np.random.default_rng(first)
        self.net = build(config, len(schema.fields)).eval()
        self.table = self.net.new_rows(torch.arange(1 << config.bits)).numpy()
        self.touched = np.zeros(len(self.table), bool)
        self.next = first
        self.parent: int | None = None
        self.tables: dict[int, np.ndarray[Any, Any]] = {}
        self.states: dict[int, dict[str, torch.Tensor]] = {}
        self.manifests: dict[int, Manifest] = {}

    def publish(self, rows: int = 20, traces: Sequence[Mapping[str, Any]] = ()) -> list[tuple[bytes, bytes]]:
        """Learn something, then the next version."""
        changed = self.random.choice(len(self.table), rows, replace=False)
        self.table[changed] = self.random.normal(0, 0.2, (rows, self.table.shape[1])).astype(np.float32)
        self.touched[changed] = True
        with torch.no_grad():
            for parameter in self.net.parameters():
                parameter.copy_(torch.from_numpy(self.random.normal(0, 0.2, parameter.shape).astype(np.float32)))
        number, share = self.next, self.next % self.rotation
        sent = np.zeros(len(self.table), bool)
        sent[changed] = True
        numbers = np.arange(len(self.table))
        sent |= self.touched & ((numbers % self.rotation == share) | (self.parent is None))
        sent_rows = np.flatnonzero(sent)
        dense = {name: tensor.numpy() for name, tensor in self.net.state_dict().items()}
        chunks = [*encode_rows(sent_rows, self.table[sent_rows], 4096), *encode_tensors(dense, "dense", 4096)]
        manifest = Manifest(
            kind="version", lineage=self.name, number=number, parent=self.parent, rotation=self.rotation, share=share,
            model=model_identity(self.config, self.net.row_width),
            fields=tuple(zip(self.schema.numbers, self.schema.digests, strict=True)),
            chunks=tuple(described(chunk) for chunk in chunks), rows=len(sent_rows), width=self.table.shape[1],
            created_us=1_000_000 * number, examples_learnt=100 * number, batches_learnt=number, traces=tuple(traces),
            cursors={0: (5, 4, 3)}, tallies={"learnt": 100 * number},
        )
        self.tables[number] = self.table.copy()
        self.states[number] = {name: tensor.clone() for name, tensor in self.net.state_dict().items()}
        self.manifests[number] = manifest
        self.parent, self.next = number, number + 1
        written = [(chunk_key("version", number, place), chunk) for place, chunk in enumerate(chunks)]
        return [*written, (manifest_key("version", number), encode_manifest(manifest))]

    def truth(self, number: int, bags: Bags) -> np.ndarray[Any, Any]:
        """Logits of `bags` by version `number`, from the whole table as it was then, bag by bag."""
        net = build(self.config, len(self.schema.fields)).eval()
        net.load_state_dict(self.states[number])
        table = self.tables[number]
        lengths = bags.all_lengths().astype(int)
        values = bags.all_values()
        rows, factors, at = [], [], 0
        for place, length in enumerate(lengths):
            ids = bags.ids[at : at + length]
            found = [table[int(one) % len(table)].astype(np.float64) for one in ids]
            spec = self.schema.fields[place % bags.fields]
            total = np.sum(found, axis=0)
            rows.append(total / length if spec.kind == "set" and spec.pool == "mean" else total)
            factors.append(values[at])
            at += length
        shape = (len(bags), bags.fields)
        with torch.no_grad():
            logits = net.double()(
                torch.from_numpy(np.array(rows)).view(*shape, -1), torch.tensor(factors, dtype=torch.float64).view(*shape)
            )
        found_logits: np.ndarray[Any, Any] = logits.numpy()
        return found_logits


class MemorySource:
    """A store in memory, with the methods that the follower needs."""

    def __init__(self) -> None:
        self.kept: dict[bytes, bytes] = {}
        self.reads: list[int] = []

    def write(self, pairs: Sequence[tuple[bytes, bytes]]) -> None:
        self.kept.update(pairs)

    def delete(self, number: int) -> None:
        for key in [key for key in self.kept if key[1:9] == number.to_bytes(8, "big")]:
            del self.kept[key]

    def poll(self) -> int | None:
        return max(self.numbers(), default=None)

    def numbers(self) -> Sequence[int]:
        return sorted(int.from_bytes(key[1:], "big") for key in self.kept if key[:1] == b"v" and len(key) == 9)

    def manifest(self, number: int) -> Manifest:
        key = manifest_key("version", number)
        if key not in self.kept:
            raise SnapshotError(f"version {number} is not there")
        return decode_manifest(self.kept[key], key)

    def manifests(self) -> Mapping[int, Manifest]:
        found = {}
        for number in self.numbers():
            try:
                found[number] = self.manifest(number)
            except SnapshotError:
                continue
        return found

    def read(self, manifest: Manifest) -> Unpacked:
        self.reads.append(manifest.number)
        return unpack(manifest, self._chunks(manifest))

    def _chunks(self, manifest: Manifest) -> Iterator[bytes]:
        for place in range(len(manifest.chunks)):
            key = chunk_key("version", manifest.number, place)
            if key in self.kept:
                yield self.kept[key]


def small(bits: int = 9, **values: Any) -> ModelConfig:
    """A model that builds in a millisecond."""
    chosen: dict[str, Any] = {"bits": bits, "factors": 3, "hidden": (8, 4), "init_scale": 0.1, "statistics": False} | values
    return ModelConfig(**chosen)


class RocksWriter:
    """A primary that takes what a lineage publishes, and can spoil it. What the trainer's own store writes is tested in
    tests/integration/test_scorer_server.py."""

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.db = Rdict(str(path), Options(raw_mode=True))

    def write(self, pairs: Sequence[tuple[bytes, bytes]]) -> None:
        batch = WriteBatch(raw_mode=True)
        for key, value in pairs:
            batch.put(key, value)
        self.db.write(batch)

    def delete(self, number: int) -> None:
        start = chunk_key("version", number, 0)
        self.db.delete_range(start, chunk_key("version", number + 1, 0))
        self.db.delete(manifest_key("version", number))

    def close(self) -> None:
        self.db.close()


def spoilt(pairs: Sequence[tuple[bytes, bytes]], place: int = 0) -> list[tuple[bytes, bytes]]:
    """A version with one bit of a chunk flipped."""
    key, value = pairs[place]
    data = bytearray(value)
    data[len(data) // 2] ^= 4
    return [*pairs[:place], (key, bytes(data)), *pairs[place + 1 :]]
