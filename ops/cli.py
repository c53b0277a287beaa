"""`freshet VERB …`: the table of verbs, and what is the same for all of them.

Exit codes: 0 · 1 what was asked did not hold · 2 wrong use (arguments, settings, schema). Results on stdout, all else
on stderr.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import os
import sys
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ops.settings import Loaded, load
from schemas.config import Settings
from schemas.errors import ConfigError, FreshetError, SchemaError


@dataclass(frozen=True, slots=True)
class Verb:
    """One line of the table. function: `module:name`, imported when the verb is used. A name of two words is a verb of a
    group: `freshet bench join`."""

    name: str
    function: str
    summary: str


VERBS = [
    Verb("run", "ops.verbs.run:run", "Everything on this machine until Ctrl-C."),
    Verb("demo", "ops.verbs.demo:demo", "The same, bounded, with a report."),
    Verb("broker", "ops.verbs.broker:broker", "A real single-node Kafka on 127.0.0.1."),
    Verb("topics", "ops.verbs.topics:topics", "Create the topics that are missing."),
    Verb("joiner", "ops.verbs.joiner:joiner", "Events to labelled examples."),
    Verb("trainer", "ops.verbs.trainer:trainer", "Examples to weights."),
    Verb("scorer", "ops.verbs.scorer:scorer", "The newest version to scores, over gRPC."),
    Verb("updates", "ops.verbs.updates:updates", "Versions to Kafka, for scorers on other machines."),
    Verb("mirror", "ops.verbs.mirror:mirror", "Versions from Kafka, for the scorer on this machine."),
    Verb("replay", "ops.verbs.replay:replay", "Publish a file's impressions and clicks."),
    Verb("simulate", "ops.verbs.simulate:simulate", "An app store with a known truth."),
    Verb("evaluate", "ops.verbs.evaluate:evaluate", "Progressive figures of a file, without Kafka."),
    Verb("train", "ops.verbs.train:train", "Train from a file, without Kafka."),
    Verb("score", "ops.verbs.score:score", "Ask the scorer for one slate."),
    Verb("snapshot list", "ops.verbs.snapshot:list_", "Which there are, the newest last."),
    Verb("snapshot show", "ops.verbs.snapshot:show", "One in full, with the digest of all its weights."),
    Verb("snapshot verify", "ops.verbs.snapshot:verify", "Read every byte against its checksum."),
    Verb("snapshot diff", "ops.verbs.snapshot:diff", "What is different between two."),
    Verb("snapshot pin", "ops.verbs.snapshot:pin", "Keep a version."),
    Verb("snapshot unpin", "ops.verbs.snapshot:unpin", "Let it go when its time is over."),
    Verb("snapshot rollback", "ops.verbs.snapshot:rollback", "Go back to a version."),
    Verb("snapshot export", "ops.verbs.snapshot:export", "Write a version into one safetensors file."),
    Verb("snapshot import", "ops.verbs.snapshot:import_", "Begin a model with the weights of such a file."),
    Verb("gate status", "ops.verbs.gate:status", "Whether versions are held back, and why."),
    Verb("gate hold", "ops.verbs.gate:hold", "Let no version go live until told."),
    Verb("gate release", "ops.verbs.gate:release", "Publish what is held back."),
    Verb("metrics", "ops.verbs.metrics:metrics", "What the trainer logged about its model."),
    Verb("rejoin", "ops.verbs.rejoin:rejoin", "Learn what was shown while labels had stopped."),
    Verb("dead-letters", "ops.verbs.dead_letters:dead_letters", "Events that could not be used, and why."),
    Verb("bench models", "ops.verbs.bench.models:models", "Every model beside the libraries that have it."),
    Verb("bench labels", "ops.verbs.bench.labels:labels", "Modes of the label beside an oracle with all labels."),
    Verb("bench join", "ops.verbs.bench.join:join", "The joiner's speed beside a Faust that does nothing."),
    Verb("bench learn", "ops.verbs.bench.learn:learn", "The learner's speed beside others and the machine's limit."),
    Verb("bench score", "ops.verbs.bench.score:score", "The scorer's speed beside other servers."),
    Verb("bench watch", "ops.verbs.bench.watch:watch", "What watching costs the trainer."),
    Verb("bench drift", "ops.verbs.bench.drift:drift", "Planted drifts: what was noticed, and how soon."),
    Verb("dashboard", "ops.verbs.dashboard:dashboard", "Watch it live."),
    Verb("doctor", "ops.verbs.doctor:doctor", "Each setting and its origin; what does not fit together."),
]
GROUPS = {
    "snapshot": "Look into the store of versions and checkpoints, have the trainer go back, move a model in a file.",
    "gate": "What keeps a version from going live.",
    "bench": "Measure: each prints what it compares with, from the same run.",
}

_CONFIG = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Settings file (default: freshet.toml, if it is there).")
]
_SET = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting, e.g. join.window_s=5. Repeatable.")
]


def main(argv: Sequence[str] | None = None) -> None:
    """The console script."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["supervise"]:
        # Not a verb like the others: it stands above every process for its whole life, so it loads next to nothing.
        from ops.running.supervise import main as supervise

        sys.exit(supervise(argv[1:]))
    command_line(argv)(argv, prog_name="freshet")


def command_line(argv: Sequence[str]) -> typer.Typer:
    """The command line as typer has it. Only the verb that argv names is imported; the others show their summary."""
    app = _app("Streaming online learning for click-through rates: Kafka in, fresh scores out.")
    app.info.epilog = "Exit codes: 0, 1 (what was asked did not hold), 2 (wrong use). `freshet VERB --help` tells more."
    groups: dict[str, typer.Typer] = {}
    words = [word for word in argv if not word.startswith("-")]
    for verb in filter(is_built, VERBS):
        group, _, name = verb.name.rpartition(" ")
        if group and group not in groups:
            groups[group] = _app(GROUPS[group])
            app.add_typer(groups[group], name=group)
        into = groups[group] if group else app
        if verb.name.split(" ") == words[: len(verb.name.split(" "))]:
            into.command(name)(_command(_load(verb)))
        else:
            into.command(name, help=verb.summary)(_not_chosen)
    return app


def _app(told: str) -> typer.Typer:
    app = typer.Typer(
        help=told,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_several_verbs)
    return app


def _several_verbs() -> None:
    """Makes typer expect a verb even when there is but one."""


def _not_chosen() -> None:
    """Stands for a verb that this call does not use."""


def is_built(verb: Verb) -> bool:
    """Whether the verb's module is there."""
    try:
        return importlib.util.find_spec(verb.function.partition(":")[0]) is not None
    except ModuleNotFoundError:
        return False


def _load(verb: Verb) -> Callable[..., Any]:
    module, _, name = verb.function.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


def _command(function: Callable[..., Any]) -> Callable[..., None]:
    """A verb's function as typer takes it: settings come from --config and --set, errors become exit codes."""
    hints = typing.get_type_hints(function, include_extras=True)
    parameters = inspect.signature(function).parameters
    given = {name: hints[name] for name in parameters if hints.get(name) in (Settings, Loaded)}

    @functools.wraps(function)
    def command(**options: Any) -> None:
        from ops.terminal.logging import configure

        configure()
        try:
            if given:
                loaded = load(options.pop("config"), options.pop("set_") or [], os.environ)
                options |= {name: loaded if kind is Loaded else loaded.settings for name, kind in given.items()}
            function(**options)
        except FreshetError as wrong:
            typer.echo(f"freshet: {wrong}", err=True)
            raise typer.Exit(2 if isinstance(wrong, ConfigError | SchemaError) else 1) from wrong

    shown = [
        parameter.replace(annotation=hints.get(name, parameter.annotation), kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in parameters.items()
        if name not in given
    ]
    if given:
        shown += [
            inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_CONFIG),
            inspect.Parameter("set_", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_SET),
        ]
    command.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    del command.__wrapped__
    return command


if __name__ == "__main__":
    main()
