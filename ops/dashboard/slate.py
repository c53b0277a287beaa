"""A slate as the texts of a form, and back. A set's members stand with commas between; an empty field is left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ops.simulator.example import example_slate
from schemas.errors import RequestError
from schemas.fields import FieldSchema

Texts = dict[str, str]


@dataclass(slots=True)
class Form:
    """What is filled in: texts by field, of the context and of each item, whose id stands under ID."""

    context: Texts
    items: list[Texts]


ID = "id"


def example(schema: FieldSchema) -> Form:
    """Filled with the schema's example slate."""
    slate = example_slate(schema)
    return Form(
        {name: as_text(value) for name, value in slate["context"].items()},
        [{ID: item["id"], **{name: as_text(value) for name, value in item["features"].items()}} for item in slate["items"]],
    )


def slate_of(form: Form, schema: FieldSchema) -> dict[str, Any]:
    """As the scorer's client takes it. Raises RequestError naming the field."""
    kinds = {spec.name: str(spec.kind) for spec in schema.fields}
    if not all(item[ID].strip() for item in form.items):
        raise RequestError("an item has no id")
    return {
        "context": _values(form.context, kinds, "context"),
        "items": [
            {"id": item[ID].strip(), "features": _values(item, kinds, f"item {item[ID]}")} for item in form.items
        ],
    }


def as_text(value: Any) -> str:
    """One of the example's values."""
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _values(texts: Mapping[str, str], kinds: Mapping[str, str], where: str) -> dict[str, Any]:
    return {
        name: _value(text.strip(), kinds[name], f"{where}, {name}")
        for name, text in texts.items() if name != ID and text.strip()
    }


def _value(text: str, kind: str, where: str) -> Any:
    if kind == "set":
        return [part.strip() for part in text.split(",") if part.strip()]
    if kind != "numeric":
        return text
    try:
        return float(text)
    except ValueError as wrong:
        raise RequestError(f"{where}: {text!r} is no number") from wrong
