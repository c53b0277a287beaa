"""Alert rules and the dashboard: Prometheus's own tool accepts them, and every metric in them is one that a process has."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from scorer.metrics import Metrics
from stream_trainer.watching import exposition
from tests.stream_trainer.watching.test_health import JOINER, NOW_US, TRAINER

ROOT = Path(__file__).resolve().parents[3]
ALERTS = ROOT / "ops" / "alerts"


@pytest.fixture(scope="module")
def promtool() -> str:
    """The tool that comes with Prometheus, fetched where that can be done."""
    own = ROOT / "var" / "promtool" / "promtool"
    if not own.is_file() and shutil.which("promtool") is None:
        subprocess.run([ROOT / "ops" / "setup.sh", "promtool"], check=False, capture_output=True, timeout=120)
    found = str(own) if own.is_file() else shutil.which("promtool")
    if found is None:
        pytest.skip("no promtool, and apt-get cannot fetch Debian's prometheus here: ops/setup.sh promtool")
    return found


@pytest.mark.parametrize("asked", [
    ("check", "rules", "--lint-fatal", "freshet.rules.yml"), ("test", "rules", "freshet.test.yml"),
    ("check", "config", "prometheus.yml"),
])
def test_promtool_accepts(promtool: str, asked: tuple[str, ...]) -> None:
    """Rules parse, fire on what they are for and on nothing else, and the configuration finds them."""
    done = subprocess.run([promtool, *asked], cwd=ALERTS, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_rule_is_tested_both_ways() -> None:
    """A rule that no series of the tests makes fire, or that none keeps silent, is not tested."""
    rules = re.findall(r"alert: (\w+)", (ALERTS / "freshet.rules.yml").read_text())
    tests = (ALERTS / "freshet.test.yml").read_text()
    assert len(rules) == len(set(rules)) > 5
    for rule in rules:
        assert f"alertname: {rule}, exp_alerts: []" in tests, rule
        assert f'alertname="{rule}"' in tests or re.search(rf"alertname: {rule}\n\s+exp_alerts:\n", tests), rule


def exposed() -> set[str]:
    """Every sample name that a process shows, from the code that shows it."""
    window = dict.fromkeys((score + of for score in ("", "served_") for of in exposition.WINDOW), 0.5) | {"last_row": 1}
    found = [*exposition.of_joiner(JOINER, []), *exposition.of_trainer(TRAINER, window, [], NOW_US)]
    own = {family.name + ("_total" if family.type == "counter" else "") for family in found}
    scorer = Metrics()
    scorer.request_seconds.observe(0.001)
    return own | {sample.name for family in scorer.registry.collect() for sample in family.samples}


@pytest.mark.parametrize("file", ["freshet.rules.yml", "freshet.test.yml", "grafana.json"])
def test_every_metric_that_is_named_is_one_that_a_process_has(file: str) -> None:
    """A name that nobody shows makes an alert that never fires, and an empty panel."""
    named = set(re.findall(r"\bfreshet_[a-z0-9_]+", (ALERTS / file).read_text()))
    assert len(named) > 5
    assert named <= exposed()


def test_the_dashboard_has_no_panel_without_a_query_and_none_on_top_of_another() -> None:
    """What Grafana loads: panels on a grid 24 wide, each with a title, a query and a legend."""
    panels = json.loads((ALERTS / "grafana.json").read_text())["panels"]
    places: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["title"]
        assert all(target["expr"] and target["legendFormat"] for target in panel["targets"])
        at = panel["gridPos"]
        own = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not own & places
        places |= own
