"""A gRPC server of ours, as every port has it: limits, keepalive, TLS, tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any

import grpc

from schemas.errors import ConfigError
from scorer.ports.door import Door
from scorer.ports.tls import Certificates, Tls
from scorer.ports.tokens import Role, Tokens

MESSAGE_BYTES = 8 << 20  # 1,000 items with 100 features each are about 6 MiB; grpc's own limit is 4 MiB
# A peer that vanished (a cable, a firewall that forgets) would be held for ever: it is asked after a minute of silence.
KEEPALIVE_S = 60.0
KEEPALIVE_TIMEOUT_S = 20.0
# Clients may ask as often; grpc's own limit of five minutes sends those away who keep their way through a firewall open.
LEAST_PING_S = 10.0


def options(shared: bool) -> list[tuple[str, int]]:
    """shared: whether other processes of ours listen on the same port."""
    return [
        ("grpc.so_reuseport", int(shared)),
        ("grpc.max_receive_message_length", MESSAGE_BYTES),
        ("grpc.max_send_message_length", MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", int(KEEPALIVE_S * 1000)),
        ("grpc.keepalive_timeout_ms", int(KEEPALIVE_TIMEOUT_S * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", int(LEAST_PING_S * 1000)),
    ]


def server(
    pool: Executor, shared: bool, in_flight: int, tokens: Tokens, role: Role, refused: Callable[[str], None]
) -> grpc.Server:
    """Not bound to any port yet. in_flight: calls begun and not ended. refused: told the status of calls without a token."""
    doors: Sequence[Any] = [Door(tokens, role, refused)] if tokens.asked[role] else []
    return grpc.server(pool, interceptors=doors, options=options(shared), maximum_concurrent_rpcs=in_flight)


def bind(to: grpc.Server, setting: str, host: str, port: int, certificates: Certificates | None) -> int:
    """The port that it listens on from now on; a connection is shown the certificate of its moment. Raises ConfigError naming
    the setting."""
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if certificates is None:
            found: int = to.add_insecure_port(address)
        else:
            found = to.add_secure_port(address, _credentials(certificates))
    except RuntimeError as taken:
        raise ConfigError(f"{setting}={port}: cannot listen on {address}: {taken}") from taken
    return found


def _credentials(certificates: Certificates) -> grpc.ServerCredentials:
    given = certificates.now()

    def another() -> grpc.ServerCertificateConfiguration | None:
        """Asked for each new connection. None = as before."""
        nonlocal given
        if (now := certificates.now()) is given:
            return None
        given = now
        return _configuration(now)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(given), another, require_client_authentication=given.client_ca is not None
    )


def _configuration(tls: Tls) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(tls.key, tls.certificate)], tls.client_ca)
