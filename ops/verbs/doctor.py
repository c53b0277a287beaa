"""freshet doctor."""

from __future__ import annotations

import json
import os
from typing import Annotated

import typer

from ops.settings import Loaded


def doctor(
    loaded: Loaded, *, as_json: Annotated[bool, typer.Option("--json", help="One object on stdout.")] = False
) -> None:
    """Show each setting and where it came from, and check what must fit together.

    Software, field schema, memory for the table, ports, broker, topics, retention. Exit code 1 if a check fails; each
    that does says what to do. Changes nothing.
    """
    from ops.running.doctor import examine

    report = examine(loaded, os.environ)
    if as_json:
        print(json.dumps(report.as_json()))
    else:
        key_width = max(map(len, report.settings))
        value_width = max(len(str(setting["value"])) for setting in report.settings.values())
        for key, setting in report.settings.items():
            print(f"{key:<{key_width}}  {setting['value']!s:<{value_width}}  {setting['from']}")
        print()
        for finding in report.findings:
            print(f"{'ok ' if finding.ok else 'NO '} {finding.check}: {finding.found}")
            if not finding.ok:
                print(f"      → {finding.remedy}")
    raise typer.Exit(0 if report.ok else 1)
