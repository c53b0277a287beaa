"""What every Kafka client is told, and the settings that cannot be meant."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from schemas.config import KafkaConfig
from schemas.errors import ConfigError
from schemas.kafka import client_settings

NAMED: dict[str, Any] = {"security": "SASL_PLAINTEXT", "username": "alice"}


def test_a_plain_broker_needs_no_secrets() -> None:
    """Addresses and a name for the broker's logs, nothing else."""
    assert client_settings(KafkaConfig(bootstrap="a:1, b:2", client_id="shop"), "replay") == {
        "bootstrap_servers": ["a:1", "b:2"], "client_id": "shop-replay", "security_protocol": "PLAINTEXT",
    }


def test_the_password_comes_from_a_file_or_the_setting(tmp_path: Path) -> None:
    """The first line of the file, whatever follows; and neither shows in a settings object's text."""
    file = tmp_path / "password"
    file.write_text("s3cret \nsecond line\n")
    for config in (KafkaConfig(**NAMED, password_file=str(file)), KafkaConfig(**NAMED, password="s3cret ")):
        told = client_settings(config, "x")
        assert (told["sasl_plain_username"], told["sasl_plain_password"]) == ("alice", "s3cret ")
        assert told["sasl_mechanism"] == "SCRAM-SHA-512"
        assert "s3cret" not in repr(config)


@pytest.mark.parametrize(("values", "told"), [
    ({"security": "SASL_SSL"}, "needs kafka.username"),
    (NAMED, "kafka.password_file or FRESHET_KAFKA_PASSWORD"),
    (NAMED | {"password": "a", "password_file": "b"}, "drop one"),
    ({"username": "alice", "password": "a"}, "asks for no name or password"),
    ({"security": "SSL", "username": "alice"}, "asks for no name or password"),
    ({"ca_file": "ca.pem"}, "encrypts nothing"),
    (NAMED | {"password": "a", "certificate_file": "me.pem"}, "encrypts nothing"),
    ({"security": "SSL", "key_file": "me.key"}, "a key needs its certificate"),
    ({"security": "TLS"}, "kafka.security=TLS: no such name"),
    (NAMED | {"password": "a", "sasl_mechanism": "GSSAPI"}, "SCRAM-SHA-256"),
])
def test_settings_that_cannot_be_meant_are_refused(values: dict[str, Any], told: str) -> None:
    """Each says what to set, or which of two to drop."""
    with pytest.raises(ConfigError, match=told):
        KafkaConfig(**values)


@pytest.mark.parametrize(("values", "told"), [
    (NAMED | {"password_file": "{dir}/none"}, "kafka.password_file=.*No such file"),
    (NAMED | {"password_file": "{dir}/empty"}, "first line is empty"),
    ({"security": "SSL", "ca_file": "{dir}/none"}, "kafka.ca_file=.*No such file"),
    ({"security": "SSL", "ca_file": "{dir}/empty"}, "kafka.ca_file=.*no PEM file"),
    ({"security": "SSL", "certificate_file": "{dir}/empty"}, "kafka.certificate_file=.*not a certificate and its key"),
])
def test_files_that_are_not_what_they_should_be_are_named(values: dict[str, Any], told: str, tmp_path: Path) -> None:
    """Missing, empty, or of another kind: the setting and the file are in the error."""
    (tmp_path / "empty").write_text("")
    config = KafkaConfig(**{key: value.format(dir=tmp_path) for key, value in values.items()})
    with pytest.raises(ConfigError, match=told):
        client_settings(config, "x")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a key with openssl, which is not here")
def test_an_encrypted_key_is_an_error_and_no_question(tmp_path: Path) -> None:
    """OpenSSL would ask for its password at the terminal, and a server would wait for ever."""
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-passout", "pass:abcd", "-subj", "/CN=me", "-days", "2",
                    "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    config = KafkaConfig(security="SSL", certificate_file=str(certificate), key_file=str(key))
    with pytest.raises(ConfigError, match="openssl pkey"):
        client_settings(config, "x")
