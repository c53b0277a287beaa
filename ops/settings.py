"""Where settings come from: freshet.toml, the environment, flags, in rising order.

The one place that turns files and variables into `Settings`; what they mean and may be stands in schemas/config.py.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ops.machine.ports import split_address
from schemas.config import (
    SECRETS,
    Settings,
    Source,
    build,
    from_environment,
    from_mapping,
    is_loopback,
    keys,
    value_of,
    variable_name,
)
from schemas.errors import ConfigError

DEFAULT_FILE = "freshet.toml"


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings and where each came from. overrides: flags, `section.key` → text. file: the TOML file read, if any."""

    settings: Settings
    origins: Mapping[str, str]
    overrides: Mapping[str, str]
    file: Path | None

    def with_architecture(self, name: str) -> Settings:
        """The same for another model: what was given stays, what was not is that model's default."""
        given = {key: value_of(self.settings, key) for key, origin in self.origins.items() if not origin.startswith("default")}
        return build(Source("given", given | {"model.architecture": name}))[0]

    def child_environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Variables that give a child process these same settings."""
        child = dict(environ)
        if self.file is not None:
            child["FRESHET_CONFIG"] = str(self.file.resolve())
        for key, text in self.overrides.items():
            child[variable_name(key)] = text
        if "kafka.bootstrap" in self.overrides:
            child.pop("FRESHET_KAFKA", None)
        return child


def load(config: Path | None, flags: Sequence[str], environ: Mapping[str, str], folder: Path | None = None) -> Loaded:
    """Settings of one command.

    config: --config; else FRESHET_CONFIG; else freshet.toml in `folder` (default: here), if it exists. flags: the texts
    of --set, `section.key=value`. Raises ConfigError.
    """
    named = config or (Path(environ["FRESHET_CONFIG"]) if environ.get("FRESHET_CONFIG") else None)
    file = named or (folder or Path()) / DEFAULT_FILE
    if named is not None and not file.is_file():
        raise ConfigError(f"settings file {named} does not exist")

    brokers = {environ[name] for name in ("FRESHET_KAFKA", "FRESHET_KAFKA_BOOTSTRAP") if environ.get(name)}
    if len(brokers) > 1:
        raise ConfigError("FRESHET_KAFKA and FRESHET_KAFKA_BOOTSTRAP both set kafka.bootstrap, and differ: drop one")
    overrides = dict(_split_flag(flag) for flag in flags)
    for key in SECRETS & overrides.keys():
        or_a_file = f" or {key}_file" if f"{key}_file" in keys() else ""
        raise ConfigError(f"--set {key}=…: everybody on this machine could read it; use {variable_name(key)}{or_a_file}")
    used = {name: text for name, text in environ.items() if not (name == "FRESHET_KAFKA" and not text)}
    settings, origins = build(
        _from_file(file) if file.is_file() else Source(str(file), {}),
        from_environment(used),
        Source("--set", overrides),
    )
    for address in settings.kafka.bootstrap.split(","):
        split_address(address)
    return Loaded(settings, origins, overrides, file if file.is_file() else None)


def of_scorer(settings: Settings) -> tuple[Settings, ...]:
    """Of each model that the scorer of these settings serves, its own first.

    The files of score.also count as they stand: environment and flags are the first model's. Only `var` is the first's where a
    file names none. Raises ConfigError.
    """
    found = [settings]
    for name in (name.strip() for name in settings.score.also.split(",") if name.strip()):
        file = Path(name)
        if not file.is_file():
            raise ConfigError(f"score.also: {file} does not exist; name another model's freshet.toml, commas between several")
        other, _ = build(Source("the first model's var", {"var": settings.var}), _from_file(file))
        for known in found:
            if known.model.name == other.model.name:
                raise ConfigError(
                    f"score.also: {file} has model.name={other.model.name}, which this scorer serves already; a request "
                    "chooses its model by name, so give each its own"
                )
        found.append(other)
    return tuple(found)


def broker_is_ours(loaded: Loaded, environ: Mapping[str, str]) -> bool:
    """Whether `freshet run` starts a broker: the address is a port of this machine, and FRESHET_KAFKA did not give it.

    FRESHET_KAFKA says "mine, it runs already"; kafka.bootstrap=127.0.0.1:PORT from elsewhere chooses our own's port. Our own
    speaks PLAINTEXT, so a kafka.security says the same.
    """
    if loaded.settings.kafka.security != "PLAINTEXT":
        return False
    if environ.get("FRESHET_KAFKA") and "kafka.bootstrap" not in loaded.overrides:
        return False
    address = loaded.settings.kafka.bootstrap
    return "," not in address and is_loopback(split_address(address)[0])


def _from_file(file: Path) -> Source:
    try:
        return from_mapping(str(file), tomllib.loads(file.read_text()))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as wrong:
        raise ConfigError(f"{file} is not TOML: {wrong}") from wrong


def _split_flag(flag: str) -> tuple[str, str]:
    key, equals, value = flag.partition("=")
    if not equals:
        raise ConfigError(f"--set {flag}: must be section.key=value, e.g. --set join.window_s=10")
    return key.strip(), value.strip()
