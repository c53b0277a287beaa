"""Kafka as companies run it: names and passwords, TLS with an authority of their own, client certificates, missing rights."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest
from kafka.admin import (
    ACL,
    ACLOperation,
    ACLPermissionType,
    ResourcePattern,
    ResourceType,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from ops.broker import Broker, Listener, start_broker
from ops.events.dead_letters import letters
from ops.kafka.cluster import admin, producer, wait_for_broker
from ops.kafka.topics import ensure_topics, wait_for_topics
from ops.machine.ports import free_port
from ops.running.doctor import examine
from ops.settings import Loaded, load
from ops.watching.journals import last
from schemas.config import KafkaConfig, Settings, Source, build
from schemas.errors import BrokerError, ConfigError
from schemas.events import time_text
from tests.conftest import needs_own_broker
from tests.kit.certificates import Authority
from tests.kit.processes import Process, wait_until

PASSWORD = "correct horse, battery"
JAAS = "org.apache.kafka.common.security.{}LoginModule required{};"


@dataclass(frozen=True)
class Secured:
    """A broker with a door of each kind."""

    node: Broker
    authority: Authority
    ports: dict[str, int]
    password_file: Path
    client: tuple[Path, Path]

    def through(self, door: str, **more: Any) -> dict[str, Any]:
        """Settings that fit the door; `more` spoils or adds."""
        values: dict[str, Any] = {"kafka.bootstrap": f"127.0.0.1:{self.ports[door]}"}
        if door in ("tls_name", "name"):
            values |= {"kafka.username": "alice", "kafka.password_file": str(self.password_file), "kafka.security": "SASL_SSL"}
        if door == "name":
            values["kafka.security"] = "SASL_PLAINTEXT"
        if door == "mutual":
            certificate, key = self.client
            values |= {"kafka.security": "SSL", "kafka.certificate_file": str(certificate), "kafka.key_file": str(key)}
        if door in ("tls_name", "mutual"):
            values["kafka.ca_file"] = str(self.authority.ca_file)
        return {key: value for key, value in (values | more).items() if value is not None}

    def kafka(self, door: str, **more: Any) -> KafkaConfig:
        return build(Source("test", self.through(door, **more)))[0].kafka


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """One node for all tests here; whoever comes through its plain door may do everything."""
    needs_own_broker()
    if shutil.which("openssl") is None:
        pytest.skip("makes its certificates with openssl, which is not here")
    dir = tmp_path_factory.mktemp("secured")
    authority = Authority(dir, "ours")
    tls = {
        "ssl.keystore.type": "PEM", "ssl.keystore.location": str(authority.keystore("broker")),
        "ssl.truststore.type": "PEM", "ssl.truststore.location": str(authority.ca_file),
    }
    users = f' user_alice="{PASSWORD}"'
    names = {
        "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
        "plain.sasl.jaas.config": JAAS.format("plain.Plain", users),
        "scram-sha-256.sasl.jaas.config": JAAS.format("scram.Scram", ""),
        "scram-sha-512.sasl.jaas.config": JAAS.format("scram.Scram", ""),
    }
    ports = {door: free_port() for door in ("plain", "tls_name", "mutual", "name")}
    node = start_broker(dir / "broker", port=ports["plain"], listeners=[
        Listener("TLSNAME", "SASL_SSL", ports["tls_name"], tls | names),
        Listener("MUTUAL", "SSL", ports["mutual"], tls | {"ssl.client.auth": "required"}),
        Listener("NAME", "SASL_PLAINTEXT", ports["name"], names),
    ], more={
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS", "allow.everyone.if.no.acl.found": "true",
    })
    try:
        with admin(KafkaConfig(bootstrap=node.bootstrap)) as client:
            for mechanism in (ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512):
                done = client.alter_user_scram_credentials([
                    UserScramCredentialUpsertion(user, mechanism, PASSWORD.encode(), iterations=4096)
                    for user in ("alice", "bob")
                ])
                assert not any(done.values()), done
        password_file = dir / "password"
        password_file.write_text(PASSWORD + "\n")
        yield Secured(node, authority, ports, password_file, authority.sign("client"))
    finally:
        node.stop()


def settings_for(tmp_path: Path, prefix: str, values: dict[str, Any]) -> Settings:
    return build(Source("test", {
        "var": str(tmp_path / "var"), "kafka.prefix": prefix, "model.bits": 12, "model.hidden": "8", "join.window_s": 1.0,
        "snapshot.version_every_s": 0.1, **values,
    }))[0]


def deny(secured: Secured, user: str, kind: ResourceType, name: str, *operations: ACLOperation) -> None:
    with admin(KafkaConfig(bootstrap=secured.node.bootstrap)) as client:
        done = client.create_acls([
            ACL(f"User:{user}", "*", operation, ACLPermissionType.DENY, ResourcePattern(kind, name)) for operation in operations
        ])
    assert not done["failed"], done


@pytest.mark.parametrize(("door", "more"), [
    ("tls_name", {"kafka.sasl_mechanism": "SCRAM-SHA-512"}),
    ("tls_name", {"kafka.sasl_mechanism": "PLAIN"}),
    ("mutual", {}),
], ids=["SASL_SSL with SCRAM", "SASL_SSL with PLAIN", "mTLS"])
def test_an_event_is_learnt_through_a_guarded_broker(
    secured: Secured, tmp_path: Path, prefix: str, door: str, more: dict[str, Any]
) -> None:
    """Producer, joiner, trainer and the reader of dead letters all come in by this door, and no log tells the password."""
    settings = settings_for(tmp_path, prefix, secured.through(door, **more))
    ensure_topics(settings)
    crew = [Process(settings, "joiner"), Process(settings, "trainer")]
    try:
        sender = producer(settings.kafka, "test")
        now = time_text(time.time_ns() // 1000)
        for event in (
            {"impression_id": "p", "time": now, "items": [{"id": "a"}, {"id": "b"}]},
            {"impression_id": "p", "action": "click", "item": "a", "time": now},
        ):
            sender.send(settings.kafka.topic("events"), orjson.dumps(event), key=b"p").get(30)
        sender.send(settings.kafka.topic("events"), b"{torn", key=b"q").get(30)
        sender.close()

        def tallies() -> dict[str, int]:
            row = last(settings, "trainer", "trainer.status")
            return row["tallies"] if row else {}

        wait_until(lambda: tallies().get("examples") == 2, 60, "two examples learnt")
        assert tallies() == {"impressions": 1, "examples": 2, "positives": 1, "dead_letter": 1}
        assert [letter.reason for letter in letters(settings)] == ["bad_json"]
        assert all(PASSWORD not in process.log.read_text() for process in crew)
    finally:
        for process in crew:
            process.stop()


@pytest.mark.parametrize(("door", "spoilt", "told"), [
    ("tls_name", {"kafka.password_file": None, "kafka.password": "wrong"}, "refuses kafka.username=alice"),
    ("tls_name", {"kafka.username": "nobody"}, "refuses kafka.username=nobody"),
    ("tls_name", {"kafka.ca_file": "OTHER"}, "kafka.ca_file"),
    ("tls_name", {"kafka.ca_file": None}, "kafka.ca_file"),
    ("tls_name", {"kafka.security": "SASL_PLAINTEXT", "kafka.ca_file": None}, "set kafka.security=SASL_SSL"),
    ("tls_name", {"kafka.security": "SSL", "kafka.username": None, "kafka.password_file": None}, "set kafka.security=SASL_SSL"),
    ("mutual", {"kafka.certificate_file": None, "kafka.key_file": None}, "set kafka.certificate_file"),
    ("mutual", {"kafka.certificate_file": "OTHER", "kafka.key_file": "OTHER"}, "refuses kafka.certificate_file"),
    ("mutual", {"kafka.security": "PLAINTEXT", "kafka.ca_file": None, "kafka.certificate_file": None, "kafka.key_file": None},
     "set kafka.security=SSL"),
    ("name", {"kafka.security": "SASL_SSL"}, "set kafka.security=SASL_PLAINTEXT"),
    ("name", {"kafka.security": "PLAINTEXT", "kafka.username": None, "kafka.password_file": None},
     "set kafka.security=SASL_PLAINTEXT"),
    ("plain", {"kafka.security": "SASL_PLAINTEXT", "kafka.username": "alice", "kafka.password": "x"},
     "set kafka.security=PLAINTEXT"),
    ("plain", {"kafka.security": "SSL"}, "set kafka.security=PLAINTEXT"),
])
def test_a_wrong_setting_is_an_error_that_says_what_to_set(
    secured: Secured, tmp_path: Path, door: str, spoilt: dict[str, Any], told: str
) -> None:
    """No client hangs, nor tries for ever, at a door that will never open."""
    if "OTHER" in spoilt.values():
        other = Authority(tmp_path, "other")
        certificate, key = other.sign("client")
        files = {"kafka.ca_file": other.ca_file, "kafka.certificate_file": certificate, "kafka.key_file": key}
        spoilt = {name: str(files[name]) for name in spoilt}
    kafka = secured.kafka(door, **spoilt)
    began = time.monotonic()
    with pytest.raises(ConfigError) as found:
        wait_for_broker(kafka, 60)
    assert told in str(found.value)
    assert PASSWORD not in str(found.value)
    assert time.monotonic() - began < 8


def test_doctor_names_the_setting_and_hides_the_password(secured: Secured) -> None:
    """The report says what to change; the password is in none of it."""
    settings, origins = build(Source("test", secured.through(
        "tls_name", **{"kafka.password_file": None, "kafka.password": "a wrong one", "score.port": 0}
    )))
    report = examine(Loaded(settings, origins, {}, None), {})
    assert "a wrong one" not in json.dumps(report.as_json())
    assert "a wrong one" not in repr(settings)
    finding = next(one for one in report.findings if one.check == "kafka")
    assert "kafka.username=alice" in finding.remedy
    with pytest.raises(ConfigError, match="FRESHET_KAFKA_PASSWORD"):
        load(None, ["kafka.password=x"], {})


def test_topics_that_somebody_else_makes_are_listed(secured: Secured, tmp_path: Path, prefix: str) -> None:
    """Switched off, or refused by an ACL: the error names each topic with what it should be."""
    off = settings_for(tmp_path, prefix, secured.through("plain", **{"kafka.create_topics": False}))
    with pytest.raises(BrokerError, match=rf"{prefix}events \(1 partition\(s\), message\.timestamp\.type=LogAppendTime"):
        ensure_topics(off)
    deny(secured, "bob", ResourceType.CLUSTER, "kafka-cluster", ACLOperation.CREATE)
    for name in ("events", "examples", "dead-letters", "model-updates", "model-control"):
        deny(secured, "bob", ResourceType.TOPIC, prefix + name, ACLOperation.CREATE)
    refused = settings_for(tmp_path, prefix, secured.through("tls_name", **{"kafka.username": "bob"}))
    with pytest.raises(BrokerError, match=rf"{prefix}examples .*creating them is refused"):
        ensure_topics(refused)


def test_a_topic_or_group_that_an_acl_forbids_ends_the_joiner_with_its_name(
    secured: Secured, tmp_path: Path, prefix: str
) -> None:
    """Neither waits for a right that nobody will give."""
    settings = settings_for(tmp_path, prefix, secured.through("tls_name", **{"kafka.username": "bob"}))
    ensure_topics(settings_for(tmp_path, prefix, secured.through("plain")))
    group = f"{prefix}freshet-joiner-appstore"
    deny(secured, "bob", ResourceType.GROUP, group, ACLOperation.READ)
    joiner = Process(settings, "joiner")
    try:
        wait_until(lambda: not joiner.alive, 40, "the joiner's end")
        assert group in joiner.tail()
    finally:
        joiner.stop()
    deny(secured, "bob", ResourceType.TOPIC, f"{prefix}events", ACLOperation.DESCRIBE)
    began = time.monotonic()
    with pytest.raises(BrokerError, match=rf"may not see topic {prefix}events"):
        wait_for_topics(settings, ["events"], 60)
    assert time.monotonic() - began < 8
