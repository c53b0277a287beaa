"""freshet evaluate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ops.settings import Loaded
from ops.verbs.files import Format, Label, RowIntervalS, Strict, Time, tell_broken


def evaluate(
    loaded: Loaded,
    file: Annotated[Path, typer.Argument(help="What to learn; .gz is unpacked.")],
    format: Format = "jsonl",
    label: Label = None,
    time: Time = None,
    group: Annotated[str | None, typer.Option(
        metavar="COLUMN", help="AUC within the groups of this column too, e.g. per user."
    )] = None,
    model: Annotated[str, typer.Option(
        metavar="NAMES", help="all, or a list like deepfm,ffm: one table. Default: model.architecture."
    )] = "",
    protocol: Annotated[Literal["stream", "days"], typer.Option(
        help="stream: every row is scored, then learnt. days: learn some days, judge the next without learning it."
    )] = "stream",
    train_days: Annotated[int, typer.Option(min=1, help="Of --protocol days: 24 hours each, from the first event on.")] = 7,
    from_row: Annotated[int, typer.Option(min=0, help="Figures from this row on only (all rows are learnt).")] = 0,
    rows: Annotated[int, typer.Option(min=0, help="Stop after so many rows of the file; 0 = all.")] = 0,
    row_interval_s: RowIntervalS = None,
    strict: Strict = False,
    resamples: Annotated[int, typer.Option(min=0, help="Of the rows, for the 95 % intervals; 0 = no intervals.")] = 300,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="The learning curve as a picture.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One object on stdout.")] = False,
) -> None:
    """Learn a file in one pass, each row scored before it is learnt: the figures of a replay, without Kafka."""
    from ops import formats
    from ops.offline import curve
    from ops.offline.evaluate import evaluate as learn
    from ops.offline.report import compare, report
    from ops.terminal.console import progress
    from ops.terminal.tables import figure_table, model_table, window_table
    from schemas import fields
    from schemas.config import the_one
    from schemas.errors import ConfigError
    from schemas.models import MODELS
    from stream_trainer.learning.learner import Diverged

    # 1. What is asked for, before any work.
    settings = loaded.settings
    wanted = list(MODELS) if model == "all" else [name.strip() for name in model.split(",") if name.strip()]
    for name in wanted:
        the_one("--model", name, MODELS)
    names = list(dict.fromkeys(wanted)) or [settings.model.architecture]
    if plot is not None:
        curve.check(plot)
    if protocol == "days" and not formats.has_clock(format, time):
        raise ConfigError(f"--protocol days needs the rows' own time: format {format} has none here; name one with --time")
    schema = fields.load(settings.model.schema)
    interval_us = formats.row_interval_us(settings, row_interval_s)

    # 2. Each model over the same events.
    reports: list[dict[str, Any]] = []
    curves, drawn = {}, {}
    for name in names:
        broken = formats.Broken(strict=strict)
        records = formats.read(
            file, format, interval_us, settings.join.action,
            schema=schema, label=label, time=time, group=group, broken=broken,
        )
        with progress("evaluate" if len(names) == 1 else f"evaluate {name}", None, "examples") as bar:
            try:
                found = learn(
                    loaded.with_architecture(name) if model else settings,
                    formats.first_rows(records, rows), from_row, bar.advance,
                    days=train_days if protocol == "days" else 0, broken=broken,
                )
            except Diverged as diverged:
                if len(names) == 1:
                    raise
                reports.append({"model": name, "error": f"diverged: {diverged}"})
                continue
            finally:
                tell_broken(broken)
        made, drawn[name] = report(name, found, group, resamples, broken)
        reports.append(made)
        curves[name] = curve.points(found.probabilities, found.labels)

    # 3. What it led to.
    if plot is not None:
        curve.draw(plot, curves)
    if len(names) > 1:
        ranked = compare(reports, drawn)
        print(json.dumps({"models": ranked}) if as_json else model_table(ranked))
        return
    one = reports[0]
    if as_json:
        print(json.dumps(one))
        return
    print(window_table([] if protocol == "days" else one["windows"], one))
    print(figure_table(one))
    after = f", then {one['rows']:,} judged without learning them," if protocol == "days" else ""
    print(f"{one['rows_learnt']:,} examples learnt{after} in {one['seconds']:.1f} s, weights {one['weights_digest']}")
