"""A made-up slate for any schema."""

from __future__ import annotations

from typing import Any

from schemas.fields import FieldSchema


def example_slate(schema: FieldSchema) -> dict[str, Any]:
    """Three items and a context with every field of the schema; real values where the bundled app store has them."""
    known: dict[str, list[Any]] = {
        "user": ["u17"], "country": ["NO"], "gender": ["f"], "age_band": ["25-34"], "hour": [19],
        "installed": [["games", "music"]], "category": ["games", "food", "music"], "price": [0, 0.99, 2.99],
        "app_age_h": [3, 40, 500], "tags": [["puzzle", "free"], ["delivery"], []],
    }

    def value(name: str, kind: str, place: int) -> Any:
        values = known.get(name) or ([1, 10, 100] if kind == "numeric" else ["a", "b", "c"])
        return values[place % len(values)]

    fields = [spec for spec in schema.fields if not spec.training_only and spec.name != "item_id"]
    return {
        "context": {spec.name: value(spec.name, spec.kind, 0) for spec in fields if spec.side == "context"},
        "items": [
            {
                "id": f"example{place + 1}",
                "features": {spec.name: value(spec.name, spec.kind, place) for spec in fields if spec.side == "item"},
            }
            for place in range(3)
        ],
    }
