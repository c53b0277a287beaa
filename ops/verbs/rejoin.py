"""freshet rejoin."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from schemas.config import Settings


def rejoin(
    settings: Settings,
    look: Annotated[bool, typer.Option("--look", help="Only say what is suspect and what has come for it.")] = False,
    anyway: Annotated[bool, typer.Option("--anyway", help="Even if few labels have come: the rest are negatives.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One object on stdout.")] = False,
) -> None:
    """Learn what was shown while labels had stopped, now that they are back: each suspect group once, with its late labels.

    The groups are published anew to the topic `events`; those that were before are left out, so the command may be repeated.
    Exit code 1 while their labels are still away.
    """
    from ops.events import rejoin as work

    found = work.find(settings)
    published = 0 if look else work.rejoin(settings, found, anyway)
    report = {
        "suspect": found.suspect, "gone": found.gone, "rejoined_before": found.done, "waiting": len(found.waiting) - published,
        "rejoined": published, "labels": found.labels, "labels_per_item": found.labels_per_item,
        "usual_labels_per_item": found.usual_labels_per_item,
    }
    if as_json:
        print(json.dumps(report))
        return
    print(f"{found.suspect:,} suspect groups: {found.done:,} were rejoined before, {published:,} now, "
          f"{report['waiting']:,} wait, {found.gone:,} are gone from the log")
    print(f"{found.labels:,} labels have come for those of now: {found.labels_per_item:.4f} an item; "
          f"{found.usual_labels_per_item:.4f} are usual")
