"""freshet metrics."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

import typer

from schemas.config import Settings

MOST = 256       # windows that are looked at where no time is given
SHOWN = 12       # slices that moved
_TIME = "15m, 2h, 7d ago, or a time with its zone."


def metrics(
    settings: Settings,
    last: Annotated[int, typer.Option(min=0, help=f"Newest windows only; 0 = {MOST}, or all within --since.")] = 0,
    since: Annotated[str, typer.Option(metavar="TIME", help=f"Windows that closed then or later: {_TIME}")] = "",
    until: Annotated[str, typer.Option(metavar="TIME", help="Windows that closed before.")] = "",
    of: Annotated[str, typer.Option(
        "--slice", metavar="FIELD[=VALUE]", help="A line per value of a field; of one value, a line per window."
    )] = "",
    of_fields: Annotated[bool, typer.Option(
        "--fields", help="A line per field of what the model is fed with, those that moved most first."
    )] = False,
    recent: Annotated[int, typer.Option(
        min=0, help="Windows that are now, where slices and fields are compared with before; 0 = a quarter."
    )] = 0,
    alarms: Annotated[bool, typer.Option("--alarms", help="What was raised instead, open first; of --since on.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One object on stdout.")] = False,
) -> None:
    """The model's figures from the score of each example before it was learnt, those of what was served, which slices moved,
    and how long a click takes to change an answer."""
    from ops.terminal import tables
    from ops.watching import freshness, windows
    from ops.watching.journals import last as newest

    now_us = time.time_ns() // 1000
    since_us = windows.moment(since, now_us, "--since") if since else None
    until_us = windows.moment(until, now_us, "--until") if until else None
    if alarms:
        from ops.watching.alarms import listing, told

        standing, over = told(settings, since_us)
        print(json.dumps({"open": standing, "over": over}) if as_json else listing(standing, over, now_us))
        return
    most = last or (0 if since else MOST)
    status = newest(settings, "trainer", "trainer.status")
    if of:
        field, names = windows.asked(settings, of)
        lines = windows.of_value(windows.slice_lines(settings, field, since_us, until_us, most), names)
        values = windows.by_value(lines)
        if as_json:
            print(json.dumps({"slice": of, "values": values, "windows": lines if names else []}))
        elif not lines:
            raise _nothing(settings, f"no window with {of}")
        elif names:
            print(tables.slice_window_table(lines))
        else:
            print(tables.slice_table(field, values))
        return

    if of_fields:
        lines = windows.field_lines(settings, since_us, until_us, most)
        count = len({(line["time_us"], line["first_row"]) for line in lines})
        now = recent or max(1, count // 4)
        found = windows.fields_moved(lines, now)
        if as_json:
            print(json.dumps({
                "fields": [move.as_dict() for move in found], "windows_now": now, "windows": count, "lines": lines,
            }))
        elif not lines:
            raise _nothing(settings, "no window with its fields")
        else:
            print(f"fields by how far the newest {now} of {count} windows are from those before:")
            print(tables.fields_table(found))
        return

    shown = windows.whole_windows(settings, since_us, until_us, most)
    now = recent or max(1, len(shown) // 4)
    moved = windows.moved(windows.slice_lines(settings, None, since_us, until_us, most), now) if len(shown) > now else []
    served = freshness.served(settings, since_us, until_us)
    parts, whole_way = freshness.parts_ms(served), freshness.whole_way_ms(served)
    if as_json:
        print(json.dumps({
            "windows": shown, "status": status, "windows_now": now, "moved": [move.as_dict() for move in moved],
            "freshness_ms": {"whole": whole_way, **parts}, "clicks_followed": len(served),
        }))
        return
    if status is None:
        raise _nothing(settings, "no trainer has logged anything")
    print(tables.watched_table(shown, status["lifetime"]))
    if shown:
        print(tables.longer_line(shown[-1]))
        version = shown[-1].get("reference_version")
        beside = [line for line in shown if line.get("reference_version") == version]
        if version is not None:
            print(tables.reference_line(version, windows.summed(beside, "own_"), windows.summed(beside, "reference_")))
    if moved:
        print(f"\nslices by how far the newest {now} of {len(shown)} windows are from those before:")
        print(tables.moved_table(moved[:SHOWN]))
    if served:
        print("\n" + tables.freshness_table(whole_way, parts, len(served)))
    print("\nends: " + ", ".join(f"{count:,} {name}" for name, count in sorted(status["tallies"].items())))
    _warn(status)


def _warn(status: dict[str, Any]) -> None:
    """Say what the log lacks."""
    if status.get("windows_unwritten"):
        typer.echo(f"freshet: the log of windows cannot be written: {status['windows_unwritten']}", err=True)
    if status.get("windows_lost"):
        typer.echo(f"freshet: {status['windows_lost']:,} windows were lost while it could not be written", err=True)


def _nothing(settings: Settings, what: str) -> typer.Exit:
    typer.echo(f"freshet: {what} of {settings.model.name} in {settings.metrics_dir}", err=True)
    return typer.Exit(1)
