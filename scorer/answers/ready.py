"""Ids made beforehand, as `Score` takes them in one piece: 1 µs where columns of values take a hundred times as long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from schemas.bags import Bags
from schemas.errors import BadEvent
from schemas.fields import RAW_LIMIT, Encoder, FieldSchema, Slate
from schemas.proto import scoring_pb2

PLANS = 64  # clients name the same fields in each request
_NAMES = {"context": "ready_context", "item": "ready_items"}


@dataclass(frozen=True, slots=True)
class _Plan:
    """Where the columns of a side go. columns: which of them are used, None = all. places: in a row, for each of those.
    needs_values: name of a field whose ids are nothing without values. strange: fields that the schema does not have."""

    columns: list[int] | None
    places: list[int] | slice
    needs_values: str | None
    strange: tuple[str, ...]


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
        self._plan = lru_cache(PLANS)(self._planned)

    def bags(self, request: scoring_pb2.ScoreRequest) -> tuple[Bags, list[str]]:
        """A row per item, and the numbers of fields that the schema does not have on that side (they are ignored).

        Raises BadEvent.
        """
        if request.context or request.items:
            raise BadEvent("wrong_type", "fill context and items, or ready_context and ready_items; not both")
        items = len(request.item_id)
        strange: list[str] = []
        ids = np.empty((items, len(self._ids)), np.uint64)                      # (B, F)
        ids[:] = self._ids
        values = None if self._values is None else np.repeat(self._values[None], items, axis=0)
        strange += self._fill("context", 1, request.ready_context, ids, values)
        strange += self._fill("item", items, request.ready_items, ids, values)
        if self._names is not None and self._schema.numbers[self._of_names] not in request.ready_items.field:
            ids[:, self._of_names] = self._names.encode(Slate(list(request.item_id), {}, {}))[0].ids
        f = len(self._schema.fields)
        return Bags(f, ids.reshape(-1), None if values is None else values.reshape(-1), None), strange

    def _planned(self, side: Literal["context", "item"], numbers: tuple[int, ...]) -> _Plan:
        if len(set(numbers)) != len(numbers):
            raise BadEvent("field_twice", f"{_NAMES[side]}: each field once, by number")
        place = self._place[side]
        known = [(column, place[number]) for column, number in enumerate(numbers) if number in place]
        known = [(column, at) for column, at in known if not self._schema.fields[at].training_only]
        specs = [self._schema.fields[at] for _, at in known]
        columns, places = [column for column, _ in known], [at for _, at in known]
        return _Plan(
            None if columns == list(range(len(numbers))) else columns,
            slice(places[0], places[-1] + 1) if places and places == list(range(places[0], places[-1] + 1)) else places,
            next((spec.name for spec in specs if spec.kind == "numeric" and not spec.binned), None),
            tuple(f"number {number}" for number in numbers if number not in place),
        )

    def _fill(
        self, side: Literal["context", "item"], entries: int, given: scoring_pb2.ReadyIds, ids: NDArray[np.uint64],
        values: NDArray[np.float32] | None,
    ) -> Sequence[str]:
        fields, of_ids, of_values = len(given.field), given.ids, given.values
        planned = self._plan if fields <= len(self._ids) else self._planned  # what is kept is no longer than a schema
        plan = planned(side, tuple(given.field))
        for what, data, width in (("ids", of_ids, 8), ("values", of_values, 4)):
            if len(data) != width * entries * fields and (data or what == "ids"):
                raise BadEvent(
                    "ragged_columns",
                    f"{_NAMES[side]}: {len(data)} bytes of {what} for {fields} fields and {entries} entries of {width} bytes",
                )
        sent = np.frombuffer(of_ids, "<u8").reshape(entries, fields)
        factors = np.frombuffer(of_values, "<f4").reshape(entries, fields) if of_values else None
        if factors is not None and not (np.abs(factors) <= RAW_LIMIT).all():
            raise BadEvent("not_finite", f"{_NAMES[side]}: values must be finite, within ±{RAW_LIMIT:,.0f}")
        if factors is None and plan.needs_values is not None:
            raise BadEvent(
                "wrong_type", f"field {plan.needs_values}: its ids need values, the numbers that they are multiplied by"
            )
        ids[:, plan.places] = sent if plan.columns is None else sent[:, plan.columns]
        if values is not None and factors is not None:
            values[:, plan.places] = factors if plan.columns is None else factors[:, plan.columns]
        return plan.strange
