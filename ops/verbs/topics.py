"""freshet topics."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer

from schemas.config import Settings


def topics(
    settings: Settings, *, as_json: Annotated[bool, typer.Option("--json", help="One object on stdout.")] = False
) -> None:
    """Create the topics that are missing. Existing ones stay as they are; what differs from the settings is told."""
    from ops.kafka.topics import ensure_topics

    report = ensure_topics(settings)
    if as_json:
        print(json.dumps(dataclasses.asdict(report)))
        return
    for name in report.created:
        print(f"{name}: created")
    for name in report.existing:
        print(f"{name}: was there")
    for text in report.mismatches:
        typer.echo(f"freshet: {text}; it stays as it is", err=True)
