"""What a broker's port wants, found by asking it: one SaslHandshake, which every Kafka answers before anybody has a name, and
then name and password, if there are any.

Kafka's clients try again for ever when a port speaks TLS and they do not, or the other way round: the broker hangs up
without a word. Over TLS kafka-python 3.0 often misses the refusal of a password too, because the end of the connection
comes with it. So this asks first, by hand, and says which setting does not fit.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import socket
import ssl
import struct

from schemas.config import KafkaConfig
from schemas.errors import ConfigError
from schemas.kafka import password, tls_context

TIMEOUT_S = 2.0
MAX_ANSWER_BYTES = 1 << 16
_CORRELATION = 0x66726573
_HANDSHAKE, _AUTHENTICATE = 17, 36                         # Kafka's requests
_NO_ERROR, _UNKNOWN_MECHANISM, _NO_SASL_HERE = 0, 33, 34  # Kafka's error codes


class _NoKafka(Exception):
    """What came back is no answer of Kafka."""


class _Refused(Exception):
    """Name and password are not those that the broker knows."""


def check(config: KafkaConfig, host: str, port: int) -> None:
    """Whether the port wants what the settings say; silent where it cannot tell. Raises ConfigError saying what to set."""
    context = tls_context(config) if config.tls else None
    where = f"{host}:{port}"
    try:
        with socket.create_connection((host, port), timeout=TIMEOUT_S) as plain:
            speaking = plain if context is None else context.wrap_socket(plain, server_hostname=host)
            with speaking:
                code, mechanisms = _handshake(speaking, config.sasl_mechanism)
                if config.sasl and code == _NO_ERROR:
                    _prove(speaking, config)
    except ssl.SSLCertVerificationError as wrong:
        raise ConfigError(
            f"the certificate of {where} is not to be trusted: {wrong.verify_message}. kafka.ca_file (now: "
            f"{config.ca_file or 'the authorities of this system'}) must hold the PEM of the authority that signed it, and "
            "kafka.bootstrap the name that it was made for"
        ) from wrong
    except ssl.SSLError as wrong:
        if wrong.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNEXPECTED_EOF_WHILE_READING"):
            raise ConfigError(f"{where} does not speak TLS: set kafka.security={_other(config, tls=False)}") from wrong
        if "CERTIFICATE" in (wrong.reason or ""):
            raise _own_certificate(config, where, wrong) from wrong
        return
    except _Refused as wrong:
        raise ConfigError(
            f"{where} refuses kafka.username={config.username} with {config.sasl_mechanism}: name or password is wrong "
            "(kafka.password_file, FRESHET_KAFKA_PASSWORD), or that name has none for this kafka.sasl_mechanism"
        ) from wrong
    except (_NoKafka, OSError) as wrong:
        if config.tls and isinstance(wrong, ConnectionError):
            raise _own_certificate(config, where, wrong) from wrong
        if not config.tls and _speaks_tls(host, port):
            raise ConfigError(
                f"{where} speaks TLS, kafka.security={config.security} does not: set kafka.security={_other(config, tls=True)}"
            ) from wrong
        return
    if config.sasl and code == _NO_SASL_HERE:
        raise ConfigError(f"{where} asks for no name or password: set kafka.security={'SSL' if config.tls else 'PLAINTEXT'}")
    if config.sasl and code == _UNKNOWN_MECHANISM:
        raise ConfigError(
            f"{where} does not know kafka.sasl_mechanism={config.sasl_mechanism}; it knows {', '.join(mechanisms) or 'none'}"
        )
    if not config.sasl and code in (_NO_ERROR, _UNKNOWN_MECHANISM):
        wanted = "SASL_SSL" if config.tls else "SASL_PLAINTEXT"
        raise ConfigError(
            f"{where} asks for a name and a password ({', '.join(mechanisms)}): set kafka.security={wanted}, "
            "kafka.sasl_mechanism, kafka.username and kafka.password_file"
        )


def _own_certificate(config: KafkaConfig, where: str, wrong: OSError) -> ConfigError:
    has = f"refuses kafka.certificate_file={config.certificate_file}" if config.certificate_file else "asks for a certificate"
    return ConfigError(
        f"{where} {has} ({wrong}): set kafka.certificate_file and kafka.key_file to one that its authority signed"
    )


def _other(config: KafkaConfig, tls: bool) -> str:
    return ("SASL_" if config.sasl else "") + ("SSL" if tls else "PLAINTEXT")


def _handshake(stream: socket.socket, mechanism: str) -> tuple[int, list[str]]:
    """(error code, mechanisms that the port knows)."""
    answer = _ask(stream, _HANDSHAKE, 1, struct.pack(">h", len(mechanism)) + mechanism.encode("ascii"))
    code, count = struct.unpack_from(">hi", answer)
    names, at = [], 6
    for _ in range(max(count, 0)):
        (length,) = struct.unpack_from(">h", answer, at)
        names.append(answer[at + 2 : at + 2 + length].decode("ascii", "replace"))
        at += 2 + length
    return code, names


def _prove(stream: socket.socket, config: KafkaConfig) -> None:
    """Name and password as the mechanism has them: PLAIN (RFC 4616) or SCRAM (RFC 5802). Raises _Refused."""
    secret = password(config)
    if config.sasl_mechanism == "PLAIN":
        _authenticate(stream, f"\0{config.username}\0{secret}".encode())
        return
    kind = "sha256" if config.sasl_mechanism.endswith("256") else "sha512"
    user = config.username.replace("=", "=3D").replace(",", "=2C")
    first = f"n={user},r={secrets.token_urlsafe(18)}"
    answer = _authenticate(stream, f"n,,{first}".encode()).decode()
    told = dict(part.split("=", 1) for part in answer.split(",") if "=" in part)
    salted = hashlib.pbkdf2_hmac(kind, secret.encode(), base64.b64decode(told["s"]), int(told["i"]))
    bare = f"c=biws,r={told['r']}"
    client_key = hmac.digest(salted, b"Client Key", kind)
    signature = hmac.digest(hashlib.new(kind, client_key).digest(), f"{first},{answer},{bare}".encode(), kind)
    proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
    _authenticate(stream, f"{bare},p={base64.b64encode(proof).decode()}".encode())


def _authenticate(stream: socket.socket, token: bytes) -> bytes:
    answer = _ask(stream, _AUTHENTICATE, 0, struct.pack(">i", len(token)) + token)
    code, length = struct.unpack_from(">hh", answer)
    if code != _NO_ERROR:
        raise _Refused
    at = 4 + max(length, 0)
    (size,) = struct.unpack_from(">i", answer, at)
    return answer[at + 4 : at + 4 + max(size, 0)]


def _ask(stream: socket.socket, request: int, version: int, body: bytes) -> bytes:
    """The body of the answer."""
    message = struct.pack(">hhih", request, version, _CORRELATION, -1) + body
    stream.sendall(struct.pack(">i", len(message)) + message)
    size, correlation = struct.unpack(">ii", _exactly(stream, 8))
    if correlation != _CORRELATION or not 6 <= size <= MAX_ANSWER_BYTES:
        raise _NoKafka
    return _exactly(stream, size - 4)


def _speaks_tls(host: str, port: int) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is said to it but hello
    try:
        with socket.create_connection((host, port), timeout=TIMEOUT_S) as plain, context.wrap_socket(plain):
            return True
    except ssl.SSLError as wrong:
        return "CERTIFICATE" in (wrong.reason or "")  # it asked for ours: TLS it is
    except OSError:
        return False


def _exactly(stream: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = stream.recv(size - len(data))
        if not more:
            raise ConnectionResetError("it closed the connection")
        data += more
    return data
