"""freshet dead-letters."""

from __future__ import annotations

import json
from collections import Counter
from typing import Annotated

import typer

from schemas.config import Settings


def dead_letters(
    settings: Settings,
    last: Annotated[int, typer.Option(min=0, help="Newest letters shown; all are counted.")] = 10,
    reason: Annotated[str | None, typer.Option(help="Only letters of this reason, e.g. bad_json.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One object on stdout.")] = False,
) -> None:
    """Events that could not be used: how many by reason, and the newest with where they came from and what was wrong."""
    from ops.letters import letters

    found = [letter for letter in letters(settings) if reason in (None, letter.reason)]
    reasons = Counter(letter.reason for letter in found)
    shown = found[-last:] if last else []
    if as_json:
        print(json.dumps({
            "dead_letters": len(found), "reasons": dict(reasons),
            "letters": [
                {"source_partition": letter.source_partition, "source_offset": letter.source_offset, "reason": letter.reason,
                 "text": letter.text, "size_bytes": letter.size_bytes, "value": letter.value[:1000].decode(errors="replace")}
                for letter in shown
            ],
        }))
        return
    print(f"{len(found):,} dead letters" + "".join(f"\n  {count:>7,}  {name}" for name, count in reasons.most_common()))
    for letter in shown:
        print(f"events/{letter.source_partition} offset {letter.source_offset}: {letter.text}")
        print(f"    {letter.value[:160].decode(errors='replace')!r}" + (" …" if letter.size_bytes > 160 else ""))
