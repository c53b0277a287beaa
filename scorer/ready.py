"""Ids made beforehand, as `Score` takes them in one piece: 1 µs where columns of values take a hundred times as long."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from schemas.bags import Bags
from schemas.errors import BadEvent
from schemas.fields import RAW_LIMIT, Encoder, FieldSchema, Slate
from schemas.proto import scoring_pb2


class Ready:
    """Requests with ready ids → bags. Fields that are not given hold what a missing value does, those for training alone
    what they are served with, and `item_id` the items' own names."""

    def __init__(self, schema: FieldSchema) -> None:
        named = tuple(spec for spec in schema.fields if spec.side == "item" and spec.name == "item_id")
        self._names = Encoder(FieldSchema(schema.name, named), training=False) if named else None
        self._of_names = schema.fields.index(named[0]) if named else 0          # its column
        empty, _ = Encoder(schema, training=False).encode(Slate(["none"], {}, {}))
        self._schema = schema
        self._ids = empty.ids                                                   # (F,), as every field has one when missing
        self._values = empty.values                                             # (F,) or None
        self._place = {
            side: {spec.number: place for place, spec in enumerate(schema.fields) if spec.side == side}
            for side in ("context", "item")
        }

    def bags(self, request: scoring_pb2.ScoreRequest) -> tuple[Bags, list[str]]:
        """A row per item, and the numbers of fields that the schema does not have on that side (they are ignored).

        Raises BadEvent.
        """
        if request.context or request.items:
            raise BadEvent("wrong_type", "fill context and items, or ready_context and ready_items; not both")
        items = len(request.item_id)
        strange: list[str] = []
        ids = np.repeat(self._ids[None], items, axis=0)                         # (B, F)
        values = None if self._values is None else np.repeat(self._values[None], items, axis=0)
        for side, entries, given in (("context", 1, request.ready_context), ("item", items, request.ready_items)):
            strange += self._fill(side, entries, given, ids, values)
        if self._names is not None and self._schema.numbers[self._of_names] not in request.ready_items.field:
            ids[:, self._of_names] = self._names.encode(Slate(list(request.item_id), {}, {}))[0].ids
        f = len(self._schema.fields)
        return Bags(f, ids.reshape(-1), None if values is None else values.reshape(-1), None), strange

    def _fill(
        self, side: str, entries: int, given: scoring_pb2.ReadyIds, ids: NDArray[np.uint64], values: NDArray[np.float32] | None
    ) -> list[str]:
        numbers, name = list(given.field), "ready_context" if side == "context" else "ready_items"
        if len(set(numbers)) != len(numbers):
            raise BadEvent("field_twice", f"{name}: each field once, by number")
        for what, data, width in (("ids", given.ids, 8), ("values", given.values, 4)):
            if len(data) != width * entries * len(numbers) and (data or what == "ids"):
                raise BadEvent(
                    "ragged_columns",
                    f"{name}: {len(data)} bytes of {what} for {len(numbers)} fields and {entries} entries of {width} bytes",
                )
        sent = np.frombuffer(given.ids, "<u8").reshape(entries, len(numbers))
        factors = np.frombuffer(given.values, "<f4").reshape(entries, len(numbers)) if given.values else None
        if factors is not None and not (np.abs(factors) <= RAW_LIMIT).all():
            raise BadEvent("not_finite", f"{name}: values must be finite, within ±{RAW_LIMIT:,.0f}")
        place = self._place[side]
        known = [(column, place[number]) for column, number in enumerate(numbers) if number in place]
        known = [(column, at) for column, at in known if not self._schema.fields[at].training_only]
        for spec in (self._schema.fields[at] for _, at in known):
            if factors is None and spec.kind == "numeric" and not spec.binned:
                raise BadEvent("wrong_type", f"field {spec.name}: its ids need values, the numbers that they are multiplied by")
        columns, places = [column for column, _ in known], [at for _, at in known]
        ids[:, places] = sent if columns == list(range(len(numbers))) else sent[:, columns]
        if values is not None and factors is not None:
            values[:, places] = factors[:, columns]
        return [f"number {number}" for number in numbers if number not in place]
