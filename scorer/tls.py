"""The scorer's certificate: read once, checked before anything listens."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Never

from schemas.config import ScoreConfig
from schemas.errors import ConfigError

_EXPIRED, _NOT_YET = 10, 9  # X509_V_ERR_CERT_HAS_EXPIRED, X509_V_ERR_CERT_NOT_YET_VALID


@dataclass(frozen=True, slots=True)
class Tls:
    """What the ports show, and whom they believe. client_ca: None = clients need no certificate. All PEM."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None
    context: ssl.SSLContext  # the same for Python's own servers


def read_tls(score: ScoreConfig) -> Tls | None:
    """What score.tls_… name; None where no TLS is asked for. Raises ConfigError for what no client could connect to."""
    if not score.tls:
        return None
    files = {
        key: getattr(score, key)
        for key in ("tls_certificate_file", "tls_key_file", "tls_client_ca_file") if getattr(score, key)
    }
    found = {key: pem(f"score.{key}", path) for key, path in files.items()}
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    load_pair(context, "score.tls_", score.tls_certificate_file, score.tls_key_file)
    _in_time(context, score.tls_certificate_file)
    if score.tls_client_ca_file:
        load_authorities(context, "score.tls_client_ca_file", score.tls_client_ca_file)
        context.verify_mode = ssl.CERT_REQUIRED
    certificate = found["tls_certificate_file"]
    return Tls(certificate, found.get("tls_key_file", certificate), found.get("tls_client_ca_file"), context)


def pem(setting: str, path: str) -> bytes:
    """The file's bytes. Raises ConfigError naming the setting."""
    try:
        return Path(path).read_bytes()
    except OSError as wrong:
        raise ConfigError(f"{setting}={path}: {wrong.strerror}; name a PEM file that this user may read") from wrong


def load_pair(context: ssl.SSLContext, prefix: str, certificate_file: str, key_file: str) -> None:
    """Certificate and key into a context. prefix: of their settings. Raises ConfigError where they are none, or no pair."""
    try:
        context.load_cert_chain(certificate_file, key_file or None, password=lambda: _encrypted(prefix))
    except (OSError, ssl.SSLError) as wrong:
        if getattr(wrong, "reason", None) == "KEY_VALUES_MISMATCH":
            why = "the key is another certificate's; give the two that were made together"
        else:
            why = f"not a certificate and its key in PEM ({getattr(wrong, 'strerror', None) or wrong})"
        raise ConfigError(
            f"{prefix}certificate_file={certificate_file}, {prefix}key_file={key_file or '(the same)'}: {why}"
        ) from wrong


def load_authorities(context: ssl.SSLContext, setting: str, path: str) -> None:
    """Whom a context believes. Raises ConfigError where the file has no certificate."""
    try:
        context.load_verify_locations(path)
    except (OSError, ssl.SSLError) as wrong:
        raise ConfigError(f"{setting}={path}: no PEM file of certificates") from wrong


def _encrypted(prefix: str) -> Never:
    """Asked for only if the key is encrypted; OpenSSL would else wait for somebody at the terminal."""
    raise ConfigError(
        f"{prefix}key_file is encrypted: decrypt it (openssl pkey -in KEY -out PLAIN) and let only freshet's user read it"
    )


def _in_time(server: ssl.SSLContext, certificate_file: str) -> None:
    """Raise ConfigError if the certificate has ended or not begun: a handshake in memory, with one who trusts just it."""
    client = ssl.create_default_context(cafile=certificate_file)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = (client.wrap_bio(down, up), server.wrap_bio(up, down, server_side=True))
    for side in sides * 2:  # hello, certificate: more is not needed
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLCertVerificationError as wrong:
            if wrong.verify_code in (_EXPIRED, _NOT_YET):
                raise ConfigError(
                    f"score.tls_certificate_file={certificate_file}: {wrong.verify_message}, so every client would refuse it; "
                    "get a new one, or set the clock"
                ) from wrong
            return
