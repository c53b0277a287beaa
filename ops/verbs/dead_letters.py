"""freshet dead-letters."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from typing import Annotated

import typer

from schemas.config import Settings
from schemas.errors import ConfigError


def dead_letters(
    settings: Settings,
    last: Annotated[int, typer.Option(min=0, help="Newest letters listed; all are counted.")] = 10,
    reason: Annotated[list[str] | None, typer.Option(help="Only letters of this reason, e.g. bad_json. Repeatable.")] = None,
    place: Annotated[
        list[str] | None, typer.Option(metavar="PARTITION/OFFSET", help="Only the letter of this event. Repeatable.")
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Each event as a whole, decoded.")] = False,
    replay: Annotated[bool, typer.Option("--replay", help="Send them to `events` again, once each.")] = False,
    again: Annotated[bool, typer.Option("--again", help="With --replay: also those that were sent before.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One object on stdout.")] = False,
) -> None:
    """Events that could not be used: how many by reason, and the newest with where they came from and what was wrong.

    With --replay those that can be used now go back into the topic `events`: impressions with the labels that came for
    them, at the log's own time. What would be a dead letter again is told and not sent.
    """
    from ops.events import dead_letters as work

    if again and not replay:
        raise ConfigError("--again says what --replay sends: add --replay")
    found = [
        letter for letter in work.letters(settings)
        if (not reason or letter.reason in reason) and (not place or str(letter.place) in place)
    ]
    if replay:
        done = work.replay(settings, found, again)
        if as_json:
            print(json.dumps(dataclasses.asdict(done)))
            return
        print(f"{done.sent:,} sent, {done.before:,} had been sent before, {done.gone:,} are gone from the log")
        for name, count in done.unusable.items():
            print(f"{count:>7,}  {name}: still unusable, not sent")
        return
    reasons = Counter(letter.reason for letter in found)
    shown = found[-last:] if last else []
    if as_json:
        print(json.dumps({
            "dead_letters": len(found), "reasons": dict(reasons),
            "letters": [
                {"source_partition": letter.source_partition, "source_offset": letter.source_offset, "reason": letter.reason,
                 "text": letter.text, "size_bytes": letter.size_bytes,
                 "value": work.readable(letter.value) if show else letter.value[:1000].decode(errors="replace")}
                for letter in shown
            ],
        }))
        return
    print(f"{len(found):,} dead letters" + "".join(f"\n  {count:>7,}  {name}" for name, count in reasons.most_common()))
    for letter in shown:
        print(f"events/{letter.source_partition} offset {letter.source_offset}: {letter.reason}: {letter.text}")
        if show:
            print(work.readable(letter.value) + (" …" if letter.size_bytes > len(letter.value) else ""))
        else:
            print(f"    {letter.value[:160].decode(errors='replace')!r}" + (" …" if letter.size_bytes > 160 else ""))
