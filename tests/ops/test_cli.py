"""The command line: quick, with clear errors and the promised exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from ops.cli import VERBS, is_built


def _freshet(*argv: str, **environ: str) -> subprocess.CompletedProcess[str]:
    plain = {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "120"}
    return subprocess.run(
        [sys.executable, "-m", "ops.cli", *argv], capture_output=True, text=True, timeout=60, check=False,
        stdin=subprocess.DEVNULL, env=os.environ | plain | environ,
    )


def test_help_is_quick_and_loads_nothing_heavy():
    """All verbs in under half a second of CPU: neither torch nor Faust nor Kafka is imported for it."""
    before = os.times()
    told = _freshet("--help")
    after = os.times()
    assert told.returncode == 0
    assert after.children_user + after.children_system - before.children_user - before.children_system < 0.5
    names = ("run", "broker", "topics", "doctor", "joiner", "trainer", "scorer")
    assert all(re.search(rf"\b{name}\b", told.stdout) for name in names)
    assert "supervise" not in told.stdout
    heavy = "{'torch', 'faust', 'kafka', 'grpc'}"
    script = f"import sys, ops.cli; ops.cli.command_line(['--help']); print(sorted({heavy} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


@pytest.mark.parametrize("verb", [verb.name for verb in VERBS if is_built(verb)])
def test_every_verb_has_its_help(verb):
    """--help exits 0 and says more than the summary."""
    told = _freshet(*verb.split(" "), "--help")
    assert told.returncode == 0, told.stderr
    assert f"Usage: freshet {verb}" in told.stdout


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["topcs"], "topics"),
        (["topics", "--jsn"], "--json"),
        (["topics", "--set", "join.windw_s=1"], "join.window_s"),
        (["topics", "--set", "join.window_s=never"], "join.window_s='never' (--set): must be a number"),
        (["topics", "--config", "nowhere.toml"], "nowhere.toml"),
        (["broker", "--set", "kafka.bootstrap=kafka.example:9092"], "127.0.0.1:PORT"),
    ],
)
def test_wrong_use_is_exit_code_2_and_one_message(argv, told):
    """What was wrong and what is right, on stderr; never a traceback."""
    done = _freshet(*argv)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout


def test_what_does_not_hold_is_exit_code_1():
    """Nobody listens there: one message, no traceback."""
    done = _freshet("topics", FRESHET_KAFKA="127.0.0.1:1")
    assert done.returncode == 1
    assert done.stderr.startswith("freshet: no broker at 127.0.0.1:1")
    assert "Traceback" not in done.stderr


@pytest.mark.integration
def test_json_is_one_object_on_stdout(broker, prefix):
    """`topics --json` against a real broker, twice: made, then found."""
    first, second = (_freshet("topics", "--json", FRESHET_KAFKA=broker, FRESHET_KAFKA_PREFIX=prefix) for _ in range(2))
    assert (first.returncode, second.returncode) == (0, 0)
    assert json.loads(first.stdout)["created"] == json.loads(second.stdout)["existing"]
    assert len(json.loads(first.stdout)["created"]) == 5
