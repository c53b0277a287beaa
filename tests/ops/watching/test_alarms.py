"""`freshet metrics --alarms`: what joiner and trainer wrote, told to people and programs."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ops.cli import command_line
from ops.running.doctor import _metrics_ports
from schemas.config import AlarmsConfig, MetricsConfig, Settings
from stream_trainer.watching.alarms import Alarm, Alarms

HOUR_US = 3_600_000_000


@pytest.fixture
def raised(tmp_path: Path) -> Settings:
    """Two that are over, one of them hours ago, and one of each process that are open."""
    settings = Settings(var=tmp_path)
    now_us = time.time_ns() // 1000
    own = {
        process: Alarms(AlarmsConfig(), settings.alarms_file, model="appstore", process=process)
        for process in ("trainer", "joiner")
    }
    for process, what, state, hours, text in (
        ("trainer", "drift.loss", "raised", 9, "worse"), ("trainer", "drift.loss", "over", 8, "as good as it was"),
        ("joiner", "lag", "raised", 2, "records wait"), ("trainer", "drift.unseen", "raised", 1, "new apps"),
        ("joiner", "dead_letters", "raised", 0.5, "unusable"), ("joiner", "dead_letters", "over", 0.25, "usable"),
    ):
        own[process].raise_(Alarm(
            what=what, state=state, time_us=now_us - round(hours * HOUR_US), text=text,  # type: ignore[arg-type]
            row=600_000 if what.startswith("drift") else 0, since_row=580_000 if what.startswith("drift") else 0,
        ))
    return settings


def asked(settings: Settings, *argv: str) -> str:
    told = CliRunner().invoke(command_line(["metrics"]), ["metrics", *argv, "--set", f"var={settings.var}"])
    assert told.exit_code == 0, told.output
    return told.stdout


def test_open_ones_stand_first_and_what_is_over_says_how_it_ended(raised: Settings) -> None:
    """The newest first in either part; rows where the alarm is of rows."""
    text = asked(raised, "--alarms")
    places = [text.index(name) for name in ("2 open", "drift.unseen", "lag", "2 over", "dead_letters", "drift.loss")]
    assert places == sorted(places)
    assert "rows 580,000 to 600,000" in text
    assert "over: as good as it was" in text
    told = json.loads(asked(raised, "--alarms", "--json"))
    assert [row["what"] for row in told["open"]] == ["drift.unseen", "lag"]
    over = [(row["what"], row["over"]) for row in told["over"]]
    assert over == [("dead_letters", "usable"), ("drift.loss", "as good as it was")]


def test_since_leaves_out_what_ended_before_and_never_what_is_open(raised: Settings) -> None:
    """An alarm of hours ago that is open is of now."""
    told = json.loads(asked(raised, "--alarms", "--since", "1h", "--json"))
    assert [row["what"] for row in told["open"]] == ["drift.unseen", "lag"]
    assert [row["what"] for row in told["over"]] == ["dead_letters"]


def test_nothing_raised_is_said(tmp_path: Path) -> None:
    """No file, no alarm, no error."""
    assert asked(Settings(var=tmp_path), "--alarms") == "no alarm\n"


def test_doctor_lists_where_openmetrics_are(tmp_path: Path) -> None:
    """Each process's address, or that there is none."""
    found = list(_metrics_ports(Settings(var=tmp_path, metrics=MetricsConfig(joiner_port=0, trainer_port=-1))))
    assert [(one.check, one.remedy) for one in found] == [("metrics ports", "")]
    assert "joiner on any free port (metrics.joiner_port=0)" in found[0].found
    assert "none of the trainer (metrics.trainer_port=-1)" in found[0].found
    assert "scorer on 127.0.0.1:50053" in found[0].found
