"""The verbs of `freshet`, one module each, named in the table of ops/cli.py.

A verb is a function whose parameters are its arguments and options, spelt for typer:

    def replay(settings: Settings, file: Annotated[Path, typer.Argument(help="…")], *, rate: float = 0.0) -> None:

A parameter of type `Settings` is given the settings, one of type `Loaded` the settings with their origins; the command
line then has --config and --set by itself. The docstring is the verb's help. A FreshetError that leaves the function
becomes one message on stderr and exit code 1, or 2 for a ConfigError or SchemaError; `raise typer.Exit(1)` says that
what was asked did not hold. Imports that take long (torch, faust) go inside the function.
"""
