"""freshet broker."""

from __future__ import annotations

import typer

from ops.machine.ports import split_address
from schemas.config import Settings, is_loopback
from schemas.errors import ConfigError


def broker(settings: Settings) -> None:
    """Run a real single-node Apache Kafka in the foreground, on the port of kafka.bootstrap.

    Its data, configuration and log are in var/broker. It listens on 127.0.0.1 only.
    """
    from ops.broker.node import run_in_foreground

    host, port = split_address(settings.kafka.bootstrap)
    if not is_loopback(host):
        raise ConfigError(f"kafka.bootstrap={settings.kafka.bootstrap}: our own broker is 127.0.0.1:PORT")
    if settings.kafka.security != "PLAINTEXT":
        raise ConfigError(
            f"kafka.security={settings.kafka.security}: our own broker speaks PLAINTEXT, on 127.0.0.1 only; any other is yours"
        )
    raise typer.Exit(run_in_foreground(settings.var / "broker", port))
