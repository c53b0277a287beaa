"""The models, by the name that stands in the configuration."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType

from schemas.config import ModelConfig
from schemas.errors import ConfigError
from schemas.models.base import RowModel
from schemas.models.deepfm import DeepFM

MODELS: Mapping[str, type[RowModel]] = MappingProxyType({"deepfm": DeepFM})


def build(config: ModelConfig, fields: int) -> RowModel:
    """The model as its seed makes it, on the CPU. Raises ConfigError for an architecture that does not exist."""
    kind = MODELS.get(config.architecture)
    if kind is None:
        near = difflib.get_close_matches(config.architecture.lower(), MODELS, n=1, cutoff=0.0)[0]
        raise ConfigError(
            f"model.architecture={config.architecture}: no such model (nearest: {near}; there are {', '.join(MODELS)})"
        )
    if fields < 1:
        raise ConfigError(f"model.schema={config.schema}: a model needs at least one field")
    return kind(config, fields)


__all__ = ["MODELS", "RowModel", "build"]
