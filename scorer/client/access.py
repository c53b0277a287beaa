"""How a client comes to a scorer: TLS, its own certificate, its token."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field

from schemas.config import ScoreConfig, is_loopback
from schemas.errors import ConfigError
from scorer.ports.tls import load_authorities, load_pair, pem
from scorer.ports.tokens import BEARER, read_token


@dataclass(frozen=True, slots=True)
class Access:
    """As it stands: plain text, and no token. Any of the files asks for TLS."""

    tls: bool = False
    ca_file: str = ""           # PEM of the authorities that signed the scorer's certificate; none = those that gRPC brings
    certificate_file: str = ""  # PEM of the client's own certificate, where the scorer asks for one
    key_file: str = ""          # PEM of its key; none = it stands in certificate_file
    token: str | None = field(default=None, repr=False)

    @property
    def encrypted(self) -> bool:
        """Whether connections are TLS."""
        return self.tls or bool(self.ca_file or self.certificate_file)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...] | None:
        """What goes with every call."""
        return None if self.token is None else (("authorization", BEARER + self.token),)

    def check(self, address: str) -> None:
        """Raise ConfigError for a token that anybody on the way to that address could read."""
        host = address.removeprefix("dns:///").rpartition(":")[0].strip("[]")
        if self.token is not None and not self.encrypted and not is_loopback(host) and not address.startswith("unix:"):
            raise ConfigError(f"a token for {address} without TLS: everybody on the way could read it; use TLS")

    def files(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """(authorities, key, certificate), as gRPC takes them. Raises ConfigError for what is missing or no pair."""
        context = ssl.create_default_context()
        authorities = key = certificate = None
        if self.ca_file:
            authorities = pem("ca_file", self.ca_file)
            load_authorities(context, "ca_file", self.ca_file)
        if self.certificate_file:
            certificate = pem("certificate_file", self.certificate_file)
            key = pem("key_file", self.key_file) if self.key_file else certificate
            load_pair(context, "", self.certificate_file, self.key_file)
        return authorities, key, certificate


PLAIN = Access()


def access_of(score: ScoreConfig) -> Access:
    """How freshet's own callers come to the scorer of these settings. Raises ConfigError."""
    return Access(
        score.tls, score.caller_ca_file, score.caller_certificate_file, score.caller_key_file, read_token(score)
    )
