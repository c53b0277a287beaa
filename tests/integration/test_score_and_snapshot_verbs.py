"""`freshet score` and `freshet snapshot` as a person meets them: exit codes, and what they say when something is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from schemas.fields import load
from tests.kit.scorer import ScorerServer
from tests.scorer.lineage import Lineage, RocksWriter, small, spoilt

ROOT = Path(__file__).resolve().parents[2]
MODEL = {"model.bits": 9, "model.factors": 3, "model.hidden": "8,4", "model.init_scale": 0.1,
         "model.statistics": False}
SLATE: dict[str, Any] = {
    "impression_id": "i1", "context": {"user": "u1", "moon": "full"},
    "items": [{"id": "app1", "features": {"category": "games"}, "position": 1}, {"id": "app2"}],
}

pytestmark = pytest.mark.integration


def freshet(settings, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ops.cli", *arguments, "--set", f"var={settings.var}"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False, input=stdin,
    )


@pytest.fixture
def settings(make_settings):
    return make_settings(**MODEL)


def test_a_slate_from_a_file_or_stdin_is_scored_best_first(settings, tmp_path):
    """An impression event serves as a slate; the table names the version, warnings follow."""
    writer = RocksWriter(settings.store_dir)
    writer.write(Lineage(small(), load("appstore")).publish())
    server = ScorerServer(settings)
    server.start()
    target = ["--set", f"score.port={server.port}"]
    file = tmp_path / "slate.json"
    file.write_text(json.dumps(SLATE))
    table = freshet(settings, "score", str(file), *target)
    patience = time.monotonic() + 30
    while "UNAVAILABLE" in table.stderr and time.monotonic() < patience:
        table = freshet(settings, "score", str(file), *target)
    assert table.returncode == 0, table.stderr
    lines = table.stdout.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["rank", "1", "2"]
    assert {line.split()[1] for line in lines[1:3]} == {"app1", "app2"}
    assert lines[3].startswith("model appstore, version 1 of lineage aaaaaaaa, ")
    assert lines[4] == "warning: ignored fields not in the schema 'appstore': moon"

    report = json.loads(freshet(settings, "score", "-", "--json", *target, stdin=json.dumps(SLATE)).stdout)
    assert report["request_id"] == "i1"
    assert [item["item_id"] for item in report["items"]] == ["app1", "app2"]
    assert "explained" not in report
    explain = ("score", str(file), *target, "--explain", "app2")
    told = json.loads(freshet(settings, *explain, "--json").stdout)["explained"]
    assert told["item_id"] == "app2"
    parts = [told["base"], told["rest"], *told["own"].values(), *(adds for _, _, adds in told["pairs"])]
    assert abs(sum(parts) - report["items"][1]["logit"]) < 2e-6
    shown = freshet(settings, *explain).stdout
    assert f"app2: logit {told['logit']:.4f} = " in shown
    assert " with " in shown.splitlines()[-1]

    refused = freshet(settings, "score", "-", *target, stdin=json.dumps(SLATE | {"items": SLATE["items"][:1] * 2}))
    assert refused.returncode == 1
    assert "INVALID_ARGUMENT: items of a slate are distinct; shown twice: app1" in refused.stderr
    assert not refused.stdout
    server.stop()
    writer.close()


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "text"),
    [
        (["-"], "not json", 1, "not JSON"),
        (["-"], "[]", 1, 'needs "items"'),
        (["-"], '{"items": [{"features": {}}]}', 1, 'needs "items"'),
        (["nowhere.json"], "", 1, "nowhere.json: No such file"),
        ([], "", 2, "--example"),
        (["--example", "--target", "127.0.0.1:1", "--timeout", "0.2"], "", 1, "127.0.0.1:1: UNAVAILABLE"),
        (["--example", "--set", "model.schema=nonsense"], "", 2, "model.schema=nonsense"),
    ],
)
def test_a_slate_that_cannot_be_scored_says_why(settings, arguments, stdin, code, text):
    """1 for what did not work, 2 for wrong use; nothing on stdout."""
    done = freshet(settings, "score", *arguments, stdin=stdin)
    assert (done.returncode, done.stdout) == (code, "")
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_a_store_is_listed_shown_and_verified(settings):
    """A broken version is named and makes verify exit 1; the others are as they were written."""
    nothing = freshet(settings, "snapshot", "list")
    assert nothing.returncode == 1
    assert "holds no version of model 'appstore'" in nothing.stderr

    lineage, writer = Lineage(small(), load("appstore")), RocksWriter(settings.store_dir)
    for _ in range(6):
        writer.write(lineage.publish())
    listed = json.loads(freshet(settings, "snapshot", "list", "--last", "2", "--json").stdout)
    assert [(one["number"], one["parent"]) for one in listed["snapshots"]] == [(5, 4), (6, 5)]
    assert listed["count"] == 6
    assert "6 in all; --last N shows more" in freshet(settings, "snapshot", "list", "--last", "2").stdout

    shown = json.loads(freshet(settings, "snapshot", "show", "5", "--json").stdout)
    assert (shown["number"], shown["examples_learnt"], shown["cursors"]) == (5, 500, {"0": [5, 4, 3]})
    assert shown["tallies"] == {"learnt": 500}
    missing = freshet(settings, "snapshot", "show", "77")
    assert (missing.returncode, missing.stdout) == (1, "")
    assert "version 77 is not in" in missing.stderr
    assert freshet(settings, "snapshot", "burn").returncode == 2

    assert freshet(settings, "snapshot", "verify").returncode == 0
    writer.write(spoilt(lineage.publish()))
    verified = freshet(settings, "snapshot", "verify", "--json")
    assert verified.returncode == 1
    report = json.loads(verified.stdout)
    assert [one["number"] for one in report["broken"]] == [7]
    assert (report["checked"], report["whole"]) == (7, None)
    writer.close()
