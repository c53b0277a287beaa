"""The scorer's certificate: read and checked, before anything listens and whenever its files change."""

from __future__ import annotations

import os
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Never

import structlog

from schemas.config import ScoreConfig
from schemas.errors import ConfigError

SETTLED_S = 1.0  # files that changed so shortly ago may not all be there

_log = structlog.get_logger("scorer")
_EXPIRED, _NOT_YET = 10, 9  # X509_V_ERR_CERT_HAS_EXPIRED, X509_V_ERR_CERT_NOT_YET_VALID


@dataclass(frozen=True, slots=True)
class Tls:
    """What the ports show, and whom they believe. client_ca: None = clients need no certificate. All PEM."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None
    context: ssl.SSLContext  # the same for Python's own servers
    ends_s: float | None     # when the certificate does, in seconds since 1970; None = it cannot be told


class Certificates:
    """The files that score.tls_… name, read again after they changed. `tls` is what the ports show now.

    New files that cannot serve are refused, all of them: what was there goes on, and `refused` says why. Files that changed a
    moment ago are left alone: certificate and key are often written one after the other.
    """

    def __init__(self, score: ScoreConfig, now_s: Callable[[], float] = time.time) -> None:
        """score: with TLS. now_s: the clock of the files' times. Raises ConfigError, as read_tls."""
        self._score = score
        self._now_s = now_s
        self._paths = [path for path in (score.tls_certificate_file, score.tls_key_file, score.tls_client_ca_file) if path]
        self._stamp, _ = self._look()
        self._turn = threading.Lock()
        self.tls = _read(score)
        self.refused = ""

    def now(self) -> Tls:
        """Look, which takes a few µs, and return `tls`. For any thread."""
        if self._turn.acquire(blocking=False):
            try:
                self._read_again()
            finally:
                self._turn.release()
        return self.tls

    def watch(self) -> None:
        """Look, and say what changed: for the one process whose log tells of all."""
        before, refused = self.tls, self.refused
        if self.now() is not before:
            _log.info("certificate.renewed", file=self._score.tls_certificate_file, ends=_day(self.tls.ends_s))
        elif self.refused and self.refused != refused:
            _log.error("certificate.refused", error=self.refused, then="the one before goes on", ends=_day(self.tls.ends_s))

    def _read_again(self) -> None:
        stamp, changed_s = self._look()
        if stamp == self._stamp or 0 <= self._now_s() - changed_s < SETTLED_S:
            return
        try:
            found = _read(self._score)
        except ConfigError as wrong:
            self._stamp, self.refused = stamp, str(wrong)
            return
        if self._look()[0] == stamp:
            self._stamp, self.tls, self.refused = stamp, found, ""

    def _look(self) -> tuple[tuple[tuple[int, ...], ...], float]:
        """What tells these files from others, and when the last of them changed."""
        stamp: list[tuple[int, ...]] = []
        changed_s = 0.0
        for path in self._paths:
            try:
                found = os.stat(path)
            except OSError as gone:
                stamp.append((gone.errno or 0,))
                continue
            stamp.append((found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns))
            changed_s = max(changed_s, found.st_ctime)
        return tuple(stamp), changed_s


def certificates(score: ScoreConfig) -> Certificates | None:
    """Of these settings, None where no TLS is asked for. Raises ConfigError, as read_tls."""
    return Certificates(score) if score.tls else None


def read_tls(score: ScoreConfig) -> Tls | None:
    """What score.tls_… name; None where no TLS is asked for. Raises ConfigError for what no client could connect to."""
    return _read(score) if score.tls else None


def _read(score: ScoreConfig) -> Tls:
    files = {
        key: getattr(score, key)
        for key in ("tls_certificate_file", "tls_key_file", "tls_client_ca_file") if getattr(score, key)
    }
    found = {key: pem(f"score.{key}", path) for key, path in files.items()}
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    load_pair(context, "score.tls_", score.tls_certificate_file, score.tls_key_file)
    ends_s = _in_time(context, score.tls_certificate_file)
    if score.tls_client_ca_file:
        load_authorities(context, "score.tls_client_ca_file", score.tls_client_ca_file)
        context.verify_mode = ssl.CERT_REQUIRED
    certificate = found["tls_certificate_file"]
    return Tls(certificate, found.get("tls_key_file", certificate), found.get("tls_client_ca_file"), context, ends_s)


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


def _in_time(server: ssl.SSLContext, certificate_file: str) -> float | None:
    """When the certificate ends, in seconds since 1970: a handshake in memory, with one who trusts just it. None where that one
    finds another fault with it. Raises ConfigError if it has ended or not begun."""
    client = ssl.create_default_context(cafile=certificate_file)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(down, up)
    for side in (asking, server.wrap_bio(up, down, server_side=True)) * 2:  # hello, certificate: more is not needed
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
            return None
    ends = (asking.getpeercert() or {}).get("notAfter")
    return ssl.cert_time_to_seconds(ends) if isinstance(ends, str) else None


def _day(ends_s: float | None) -> str | None:
    return None if ends_s is None else datetime.fromtimestamp(ends_s, UTC).isoformat(timespec="minutes")
