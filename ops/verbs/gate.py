"""freshet gate."""

from __future__ import annotations

import json
import time
from datetime import datetime
from typing import Annotated, Any, Literal

import typer

from schemas.config import Settings

_Json = Annotated[bool, typer.Option("--json", help="One object on stdout.")]
_Wait = Annotated[float, typer.Option(min=0, help="Seconds to wait for the trainer's answer.")]


def status(settings: Settings, *, as_json: _Json = False) -> None:
    """Whether versions are held back, since when, why, until when; exits with 1 while they are."""
    report = told(settings)
    print(json.dumps(report) if as_json else status_text(report))
    if report["held"]:
        raise typer.Exit(1)


def hold(settings: Settings, *, wait: _Wait = 15.0, as_json: _Json = False) -> None:
    """Let no version go live until `freshet gate release`, or a rollback. Learning goes on."""
    _order(settings, "hold", wait, as_json)


def release(settings: Settings, *, wait: _Wait = 15.0, as_json: _Json = False) -> None:
    """Publish now what is held back, and let the same reason pass for gate.longest_s."""
    _order(settings, "release", wait, as_json)


def _order(settings: Settings, what: Literal["hold", "release"], wait_s: float, as_json: bool) -> None:
    from ops.versions import orders

    report = orders.to_gate(settings, what, wait_s)
    print(json.dumps(report) if as_json else orders.to_gate_text(report, wait_s))
    if report["refused"]:
        raise typer.Exit(1)


def told(settings: Settings) -> dict[str, Any]:
    """What the trainer said last; as_of_us: when."""
    from ops.watching.journals import last

    row = last(settings, "trainer", "trainer.status")
    if row is None or "gate" not in row:
        return {"model": settings.model.name, "held": False, "as_of_us": None}
    return {"model": settings.model.name, **row["gate"], "newest_version": row["newest_version"], "as_of_us": row["time_us"]}


def status_text(report: dict[str, Any]) -> str:
    """In a few lines."""
    if report["as_of_us"] is None:
        return f"the trainer of {report['model']} has said nothing here yet"
    old_s = time.time() - report["as_of_us"] / 1e6
    lines = [] if old_s < 10 else [f"as of {_clock(report['as_of_us'])}, {old_s:.0f} s ago: is the trainer running?"]
    if not report["held"]:
        lines.append("versions go live" if report["on"] else "versions go live (gate.on=false: nothing is looked at)")
    else:
        until = f"gives way at {_clock(report['until_us'])}" if report["until_us"] else "until `freshet gate release`"
        lines += [
            f"held since {_clock(report['since_us'])} ({report['reason']}): {report['text']}",
            f"version {report['newest_version']} is served on, {report['held_versions']} were not written; {until}",
        ]
        lines += [f"  {field}={value}  {times:.1f} times as usual" for field, value, times in report["slices"]]
        lines += [f"  {field}  {score:.2f}" for field, score in report["fields"] if not report["slices"]]
    lines += [f"let pass until {_clock(until_us)}: {reason}" for reason, until_us in report["forgiven"].items()]
    return "\n".join(lines)


def _clock(time_us: int) -> str:
    return datetime.fromtimestamp(time_us / 1e6).astimezone().strftime("%H:%M:%S")
