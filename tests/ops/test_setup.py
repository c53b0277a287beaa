"""What `make setup` does on machines that lack something. The packages' own installation is CI's first step."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A copy of the scripts, and a PATH with the shell's own tools alone: no Java, no Maven, no package manager."""
    for name in ("ops/setup.sh", "ops/broker/pom.xml", "requirements.lock", "pyproject.toml", "Makefile"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "bin").mkdir()
    for tool in ("bash", "cat", "dirname", "env", "grep", "head", "id", "mkdir", "sed", "tail"):
        found = shutil.which(tool)
        assert found
        (tmp_path / "bin" / tool).symlink_to(found)
    return tmp_path


def _setup(folder: Path, step: str) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": str(folder / "bin"), "HOME": str(folder)}
    return subprocess.run(
        [folder / "ops" / "setup.sh", step], env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        check=False, timeout=60,
    )


def test_without_java_it_stops_with_three_ways_on(bare):
    """The command for this system, a Kafka of one's own, a container; exit code 1."""
    done = _setup(bare, "java")
    assert done.returncode == 1
    for wanted in ("Java 17", "install maven", "FRESHET_KAFKA=host:port make run", "docker compose -f ops/compose.yaml"):
        assert wanted in done.stderr


def test_the_command_to_install_is_the_systems_own(bare):
    """With brew on the PATH it is brew's."""
    (bare / "bin" / "brew").symlink_to("/bin/true")
    assert "brew install maven" in _setup(bare, "java").stderr


def test_without_python_3_11_it_stops_and_says_how_to_name_another(bare):
    """Exit code 1, and no .venv is left half made."""
    done = _setup(bare, "venv")
    assert done.returncode == 1
    assert "Python 3.11" in done.stderr
    assert "PYTHON=" in done.stderr
    assert not (bare / ".venv").exists()


def test_a_step_that_fails_says_so_and_shows_its_log(bare):
    """A Maven that fails: the line says failed, its last lines and the log's place follow; no stamp, no jars."""
    (bare / "bin" / "rm").symlink_to(str(shutil.which("rm")))
    (bare / "bin" / "mvn").write_text("#!/bin/sh\necho no such repository; exit 1\n")
    (bare / "bin" / "mvn").chmod(0o755)
    (bare / "bin" / "sh").symlink_to("/bin/sh")
    done = _setup(bare, "jars")
    assert done.returncode == 1
    assert "fetching Apache Kafka" in done.stdout
    assert "failed" in done.stdout
    assert "no such repository" in done.stderr
    assert "var/setup.log" in done.stderr


@pytest.mark.parametrize(("kafka", "needed"), [("", True), ("kafka.example:9092", False)])
def test_a_kafka_of_ones_own_needs_no_java(bare, kafka, needed):
    """make's plan for setup with FRESHET_KAFKA names neither Java nor the jars."""
    plan = subprocess.run(
        ["make", "--dry-run", "--directory", str(bare), "setup"], env=os.environ | {"FRESHET_KAFKA": kafka},
        capture_output=True, text=True, check=True,
    ).stdout
    assert "setup.sh packages" in plan
    assert ("setup.sh java" in plan) is needed
    assert ("setup.sh jars" in plan) is needed


def test_what_is_done_is_not_done_again(bare):
    """With every stamp newer than what it is made from, only Java is looked for."""
    for stamp in (".venv/bin/python", ".venv/.packages", ".venv/.project", "var/kafka/.fetched"):
        (bare / stamp).parent.mkdir(parents=True, exist_ok=True)
        (bare / stamp).touch()
    plan = subprocess.run(
        ["make", "--dry-run", "--directory", str(bare), "setup"], env=os.environ | {"FRESHET_KAFKA": ""},
        capture_output=True, text=True, check=True,
    ).stdout
    assert [line for line in plan.splitlines() if "setup.sh" in line] == ["ops/setup.sh java"]
