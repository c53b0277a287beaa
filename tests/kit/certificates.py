"""Certificates for a test, made by openssl: an authority, and what it signs."""

from __future__ import annotations

import subprocess
from pathlib import Path


class Authority:
    """One certificate authority in a folder of its own. ca_file: what its believers need."""

    def __init__(self, dir: Path, name: str) -> None:
        self.dir = dir / name
        self.dir.mkdir()
        self.ca_file = self.dir / "ca.pem"
        self._key = self.dir / "ca.key"
        _openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                 "-subj", f"/CN={name}", "-keyout", self._key, "-out", self.ca_file)

    def sign(self, name: str, days: int = 2) -> tuple[Path, Path]:
        """(certificate, key) of `name`, good for 127.0.0.1 and so many days; the key in PKCS#8, as Kafka reads it."""
        certificate, key, request = (self.dir / f"{name}.{kind}" for kind in ("pem", "key", "csr"))
        _openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}",
                 "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", request)
        _openssl("x509", "-req", "-in", request, "-CA", self.ca_file, "-CAkey", self._key, "-CAcreateserial",
                 "-days", str(days), "-copy_extensions", "copy", "-out", certificate)
        return certificate, key

    def keystore(self, name: str) -> Path:
        """Key and certificate in one PEM file: what a broker takes as ssl.keystore.location."""
        certificate, key = self.sign(name)
        both = self.dir / f"{name}.keystore.pem"
        both.write_text(key.read_text() + certificate.read_text())
        return both


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
