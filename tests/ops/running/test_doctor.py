"""What doctor finds, on a real broker and without one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ops.kafka.cluster import admin
from ops.kafka.topics import ensure_topics
from ops.running import doctor
from ops.running.doctor import Finding, Report, examine
from ops.settings import Loaded
from schemas.config import KafkaConfig, Settings, Source, build

pytestmark = pytest.mark.integration


@pytest.fixture
def report(broker: str, prefix: str) -> Callable[..., Report]:
    """Doctor's report with these settings, and topics made with `made` (None: no topics)."""

    def look(made: dict[str, Any] | None = None, **values: Any) -> Report:
        base = {"kafka.bootstrap": broker, "kafka.prefix": prefix, "score.port": 0}
        if made is not None:
            ensure_topics(build(Source("test", base | made))[0])
        settings, origins = build(Source("--set", base | values))
        return examine(Loaded(settings, origins, {}, None), {"FRESHET_KAFKA": broker})

    return look


def _of(report: Report, check: str) -> Finding:
    return next(finding for finding in report.findings if check in finding.check)


def test_all_is_well_where_everything_fits(report):
    """Topics as the settings say, memory enough: every check holds."""
    found = report(made={})
    assert found.ok, [finding for finding in found.findings if not finding.ok]


def test_each_setting_shows_its_value_and_origin(report):
    """Values as they are used; defaults and flags told apart."""
    found = report(made={}, **{"join.window_s": "2.5"})
    assert found.settings["join.window_s"] == {"value": 2.5, "from": "--set"}
    assert found.settings["join.mode"] == {"value": Settings().join.mode, "from": "default"}
    assert found.settings["model.hidden"]["value"] == list(Settings().model.hidden)


def test_missing_topics_are_found_with_the_command_that_makes_them(report):
    """No topics: a finding for each of the five."""
    found = report()
    missing = [finding for finding in found.findings if finding.check.startswith("topic")]
    assert len(missing) == 5
    assert all("freshet topics" in finding.remedy for finding in missing)
    assert not found.ok


def test_other_partitions_than_set_are_found(report):
    """Two partitions where the settings say four."""
    found = _of(report(made={"kafka.event_partitions": 2}, **{"kafka.event_partitions": 4}), "events")
    assert "partitions=2" in found.found
    assert "kafka.event_partitions=2" in found.remedy


def test_a_retention_shorter_than_the_join_needs_is_found(report, broker, prefix):
    """retention.ms below twice the window: a joiner that starts again would find its impressions gone."""
    from kafka.admin import ConfigResource, ConfigResourceType

    settings = {"join.window_s": 60}
    assert _of(report(made={}, **settings), "retention").ok
    with admin(KafkaConfig(bootstrap=broker)) as client:
        client.alter_configs([ConfigResource(ConfigResourceType.TOPIC, f"{prefix}events", {"retention.ms": "119000"})])
    found = _of(report(**settings), "retention")
    assert not found.ok
    assert "retention.ms=120000" in found.remedy


def test_the_second_pass_needs_the_log_for_as_long_as_it_waits(report):
    """Mode corrected reads the log again three days later; Kafka's seven days cover that, not eight."""
    settings = {"join.mode": "corrected", "join.correct_after_s": 3 * 86400}
    assert _of(report(made={}, **settings), "retention").ok
    found = _of(report(**settings | {"join.correct_after_s": 8 * 86400}), "retention")
    assert f"retention.ms={(8 * 86400 + 20) * 1000}" in found.remedy


def test_a_table_larger_than_memory_is_found(report):
    """2^30 rows of 1,001 factors are terabytes."""
    found = _of(report(made={}, **{"model.bits": 30, "model.factors": 1000}), "memory")
    assert "model.bits" in found.remedy


def test_a_schema_that_is_not_there_is_found(report):
    """The finding names it and the bundled ones."""
    found = _of(report(made={}, **{"model.schema": "no-such"}), "schema")
    assert "no-such" in found.remedy
    assert "appstore" in found.remedy


def test_no_broker_is_found_and_the_rest_still_told(make_settings):
    """Nothing listens: one finding says so; settings and the other checks are there."""
    settings, origins = build(Source("--set", {"kafka.bootstrap": "127.0.0.1:1", "score.port": 0}))
    found = examine(Loaded(settings, origins, {}, None), {})
    assert "127.0.0.1:1" in _of(found, "kafka").found
    assert "freshet broker" in _of(found, "kafka").remedy
    assert _of(found, "python").ok


def test_who_may_come_to_the_scorer_is_told(tmp_path):
    """Tokens that are asked for, and certificates that cannot be used; nothing where there are neither, and never a token."""
    def found(**values: str) -> list[Finding]:
        told = list(doctor._scorer_access(build(Source("--set", values))[0]))
        assert "0123456789abcdef" not in str(told)
        return told

    assert found() == []
    (one,) = found(**{"score.tokens": "0123456789abcdef"})
    assert (one.found, one.ok) == ("tokens for those who score", True)
    (one,) = found(**{"score.tls_certificate_file": str(tmp_path / "none.pem")})
    assert "none.pem: No such file or directory" in one.remedy


def test_models_that_the_scorer_serves_too_are_told_and_must_fit(report, tmp_path):
    """Their names and what all take; one that is not there, or too large beside the first, is an error."""
    games = tmp_path / "games.toml"
    games.write_text('[model]\nname = "games"\nbits = 10\n')
    found = _of(report(**{"score.also": str(games)}), "scorer's models")
    assert found.ok
    assert found.found.startswith("appstore, games: at most ")
    games.write_text('[model]\nname = "games"\nbits = 30\n')
    assert "'games'" in _of(report(**{"score.also": str(games)}), "scorer's models").remedy
    assert "nowhere.toml does not exist" in _of(report(**{"score.also": "nowhere.toml"}), "scorer's models").remedy


def test_a_topic_that_loses_versions_before_a_mirror_has_them_is_found(report, broker, prefix):
    """Where versions are sent: retention below two rotations, or records below a chunk. As freshet makes it, all is well."""
    from kafka.admin import ConfigResource, ConfigResourceType

    settings = {"snapshot.updates": True}
    name = f"retention {prefix}model-updates"
    assert _of(report(made={}, **settings), name).ok
    wrong = {"retention.ms": "60000", "max.message.bytes": "1000000"}
    with admin(KafkaConfig(bootstrap=broker)) as client:
        client.alter_configs([ConfigResource(ConfigResourceType.TOPIC, f"{prefix}model-updates", wrong)])
    found = _of(report(**settings), name)
    assert "retention.ms=900000,max.message.bytes=1048576" in found.remedy
    assert name not in [finding.check for finding in report().findings]
