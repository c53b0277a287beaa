"""freshet score."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from schemas.config import Settings
from schemas.errors import RequestError

if TYPE_CHECKING:
    from scorer.client import ItemExplained, Scored

PAIRS_SHOWN = 10


def score(
    settings: Settings,
    file: Annotated[
        Path | None, typer.Argument(help='A slate as JSON, {"context": {…}, "items": [{"id": …, "features": {…}}]}; - = stdin.')
    ] = None,
    *,
    example: Annotated[bool, typer.Option("--example", help="Score a made-up slate instead of a file.")] = False,
    target: Annotated[
        str, typer.Option(help="host:port of the scorer, or several with commas. Default: score.host and score.port.")
    ] = "",
    tls: Annotated[bool, typer.Option("--tls", help="Speak TLS; the files below ask for it too.")] = False,
    ca_file: Annotated[str, typer.Option(help="Who signed the scorer's certificate. Default: score.caller_ca_file.")] = "",
    certificate_file: Annotated[
        str, typer.Option(help="Our own certificate. Default: score.caller_certificate_file.")
    ] = "",
    key_file: Annotated[str, typer.Option(help="Its key, unless it stands there too. Default: score.caller_key_file.")] = "",
    token_file: Annotated[str, typer.Option(help="Its first line is the token. Default: score.caller_token_file.")] = "",
    explain: Annotated[
        str, typer.Option(metavar="ITEM", help="Also what each field, and each pair of fields, adds to this item's logit.")
    ] = "",
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds to wait for the answer.")] = 5.0,
    as_json: Annotated[bool, typer.Option("--json", help="One object on stdout.")] = False,
) -> None:
    """Ask the scorer for one slate: each item's probability, best first, and the version that said so.

    An impression event is a slate too: what else is in it is not sent.
    """
    from ops.machine.ports import reached
    from ops.simulator.example import example_slate
    from schemas import fields
    from scorer.client import ScorerClient
    from scorer.client.access import access_of

    if example == (file is not None):
        raise typer.BadParameter("give a file with a slate (- for stdin), or --example")
    slate = example_slate(fields.load(settings.model.schema)) if example else read_slate(file)
    given: dict[str, Any] = {
        "caller_ca_file": ca_file, "caller_certificate_file": certificate_file, "caller_key_file": key_file,
        "caller_token_file": token_file,
    }
    access = access_of(replace(settings.score, **{key: file for key, file in given.items() if file}))
    target = target or reached(settings.score.host, settings.score.port)
    with ScorerClient(target, replace(access, tls=access.tls or tls)) as client:
        scored = client.score(
            slate["context"], slate["items"], model=settings.model.name,
            request_id=str(slate.get("impression_id", "")), timeout_s=timeout,
        )
        told = client.explain(
            slate["context"], slate["items"], [explain], settings.model.name, timeout
        ).items[0] if explain else None
    if as_json:
        print(json.dumps(as_object(scored) | ({} if told is None else {"explained": explained_as_object(told)})))
    else:
        print("\n\n".join([as_table(scored), *([] if told is None else [explained_as_table(told)])]))


def read_slate(file: Path | None) -> dict[str, Any]:
    """The file as a slate. Raises RequestError naming what is wrong."""
    try:
        text = sys.stdin.read() if file is None or str(file) == "-" else file.read_text(encoding="utf-8")
        slate = json.loads(text)
    except OSError as unreadable:
        raise RequestError(f"{file}: {unreadable.strerror}") from unreadable
    except ValueError as wrong:
        raise RequestError(f"{file}: not JSON: {wrong}") from wrong
    items = slate.get("items") if isinstance(slate, dict) else None
    if not isinstance(items, list) or not all(isinstance(item, Mapping) and item.get("id") for item in items):
        raise RequestError(f'{file}: needs "items": [{{"id": "app1", "features": {{…}}}}, …]')
    context = slate.get("context") or {}
    if not isinstance(context, Mapping):
        raise RequestError(f'{file}: "context": an object of field and value')
    return {**slate, "context": context}


def as_object(scored: Scored) -> dict[str, Any]:
    """The answer as JSON has it; the echo in base64, as events carry it."""
    import base64

    found = asdict(scored)
    for item in found["items"]:
        item["echo"] = base64.b64encode(item["echo"]).decode()
    return found


def explained_as_object(told: ItemExplained) -> dict[str, Any]:
    """As JSON has it: pairs as a list of [field, field, what they add]."""
    return asdict(told) | {"pairs": [[*fields, adds] for fields, adds in told.pairs.items()]}


def explained_as_table(told: ItemExplained) -> str:
    """Fields, then the pairs that count, what changes the logit most first."""
    width = max(map(len, told.own))
    lines = [
        f"{told.item_id}: logit {told.logit:.4f} = {told.base:.4f} of no field + fields + pairs + {told.rest:.4f} of more",
        f"{'field':<{width}}  {'adds':>9}  {'lost without it':>15}",
    ]
    lines += [
        f"{name:<{width}}  {told.own[name]:>9.4f}  {lost:>15.4f}"
        for name, lost in sorted(told.without.items(), key=lambda pair: -abs(pair[1]))
    ]
    best = sorted(told.pairs.items(), key=lambda pair: -abs(pair[1]))[:PAIRS_SHOWN]
    return "\n".join([*lines, *(f"{adds:>+9.4f}  {one} with {other}" for (one, other), adds in best)])


def as_table(scored: Scored) -> str:
    """Best first."""
    width = max(len("item"), *(len(item.item_id) for item in scored.items))
    lines = [f"{'rank':>4}  {'item':<{width}}  {'probability':>11}  {'logit':>8}"]
    lines += [
        f"{item.rank:>4}  {item.item_id:<{width}}  {item.probability:>11.6f}  {item.logit:>8.4f}"
        for item in scored.ranked()
    ]
    lines.append(
        f"model {scored.model}, version {scored.version} of lineage {scored.lineage[:8]}, {scored.version_age_s:.1f} s old"
    )
    return "\n".join([*lines, *(f"warning: {text}" for text in scored.warnings)])
