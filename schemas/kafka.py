"""How every Kafka client of ours connects: one function, in names that kafka-python and aiokafka share."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from schemas.config import KafkaConfig
from schemas.errors import ConfigError


def client_settings(config: KafkaConfig, role: str) -> dict[str, Any]:
    """Keyword arguments of a client: where, who, and what proves it. role: what the client is for, shown in the broker's logs.

    Reads the files that the settings name. Raises ConfigError for one that is missing or not what it should be.
    """
    settings: dict[str, Any] = {
        "bootstrap_servers": [address.strip() for address in config.bootstrap.split(",")],
        "client_id": f"{config.client_id}-{role}",
        "security_protocol": config.security,
    }
    if config.tls:
        settings["ssl_context"] = tls_context(config)
    if config.sasl:
        settings["sasl_mechanism"] = config.sasl_mechanism
        settings["sasl_plain_username"] = config.username
        settings["sasl_plain_password"] = password(config)
    return settings


def tls_context(config: KafkaConfig) -> ssl.SSLContext:
    """TLS that believes only brokers whose certificate names them and is signed by kafka.ca_file, else by the system's
    authorities; with our own certificate if there is one. Raises ConfigError."""
    try:
        context = ssl.create_default_context(cafile=config.ca_file or None)
    except (OSError, ssl.SSLError) as wrong:
        raise ConfigError(f"kafka.ca_file={config.ca_file}: no PEM file of certificates ({_short(wrong)})") from wrong
    if config.certificate_file:
        try:
            context.load_cert_chain(config.certificate_file, config.key_file or None, password=_no_password)
        except (OSError, ssl.SSLError) as wrong:
            raise ConfigError(
                f"kafka.certificate_file={config.certificate_file}, kafka.key_file={config.key_file or '(the same)'}: "
                f"not a certificate and its key in PEM ({_short(wrong)})"
            ) from wrong
    return context


def password(config: KafkaConfig) -> str:
    """From kafka.password_file, else kafka.password. Raises ConfigError."""
    if not config.password_file:
        return config.password
    try:
        lines = Path(config.password_file).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as wrong:
        raise ConfigError(f"kafka.password_file={config.password_file}: {_short(wrong)}") from wrong
    if not lines or not lines[0]:
        raise ConfigError(f"kafka.password_file={config.password_file}: its first line is empty")
    return lines[0]


def _no_password() -> str:
    """Asked for only if the key is encrypted; OpenSSL would else wait for somebody at the terminal."""
    raise ConfigError(
        "kafka.key_file is encrypted: decrypt it (openssl pkey -in KEY -out PLAIN) and let only freshet's user read it"
    )


def _short(wrong: Exception) -> str:
    return getattr(wrong, "strerror", None) or str(wrong)
