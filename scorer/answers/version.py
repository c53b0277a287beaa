"""What an answer names."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Version:
    """One version of the model. created_us: when the trainer published it; applied_us: when this engine took it over."""

    lineage: str
    number: int
    created_us: int
    applied_us: int
