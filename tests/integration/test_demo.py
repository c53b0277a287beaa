"""`freshet demo` on a broker of its own: the whole loop in one command, and a report that a program can read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from ops.machine.ports import free_port
from schemas.config import JoinConfig

FIGURES = {
    "impressions", "clicks", "dead_letters", "examples_learnt", "reconciled", "versions_published", "versions_served",
    "auc_served_thirds", "auc_oracle_thirds", "click_to_served_ms", "parts_ms",
}


def test_the_demo_accounts_for_every_event(tmp_path: Path) -> None:
    """A short run: too short to judge the model, long enough for a click to reach a score, and for the counts to add up."""
    settings = [
        f"--set=var={tmp_path / 'var'}", f"--set=kafka.bootstrap=127.0.0.1:{free_port()}",
        f"--set=score.port={free_port()}", "--set=score.operator_port=0", "--set=score.metrics_port=0", "--set=join.window_s=4",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "ops.cli", "demo", "--seconds", "60", "--json", *settings],
        capture_output=True, text=True, timeout=170, check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    assert set(report) >= FIGURES
    assert report["reconciled"], done.stderr
    assert report["dead_letters"] == 3
    assert report["examples_learnt"] == report["items"] > 0
    assert 0 < report["versions_served"] <= report["versions_published"]
    assert report["click_to_served_ms"]["p99"] > report["click_to_served_ms"]["p50"] > 0
    assert JoinConfig().mode == "eager"
    assert report["click_to_served_ms"]["p99"] < 5000, done.stderr
    assert set(report["parts_ms"]) == {"joined", "learnt", "published", "served"}
    assert json.loads((tmp_path / "var" / "demo.json").read_text()) == report
