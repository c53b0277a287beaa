"""Where the peers live: a virtual environment made on first use, and processes in it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.errors import FreshetError

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
ROOT = Path(__file__).resolve().parents[3]


class PeerError(FreshetError):
    """A peer cannot be installed or did not do its work."""


def versions(requirements: Path = REQUIREMENTS) -> dict[str, str]:
    """Package → version, as pinned."""
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", requirements.read_text(), flags=re.MULTILINE))


def python_of(folder: Path) -> Path:
    """The environment's interpreter."""
    return folder / "bin" / "python"


def is_made(folder: Path, requirements: Path = REQUIREMENTS) -> bool:
    """Whether the environment holds what is pinned now."""
    stamp = folder / "made"
    return stamp.is_file() and stamp.read_text() == _stamp(requirements)


def make(folder: Path, tell: Callable[[str], None], requirements: Path = REQUIREMENTS) -> None:
    """Make the environment, if it is not there as pinned. tell: takes a line for a person.

    It sees freshet's own packages (torch alone is gigabytes) behind its own. Raises PeerError with the last of what pip said.
    """
    if is_made(folder, requirements):
        return
    began, pinned = time.monotonic(), versions(requirements)
    tell(f"installing {len(pinned)} packages into {folder}, this once: {', '.join(pinned)}")
    _must(
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        "Python cannot make a virtual environment (on Debian: apt-get install python3-venv)",
    )
    own = _must([str(python_of(folder)), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], "a broken Python")
    (Path(own.strip()) / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    _must(
        [str(python_of(folder)), "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--no-deps",
         "--require-hashes", "--quiet", "-r", str(requirements)],
        "pip could not install them. It needs a network, or an index that pip is configured for; then try again",
    )
    (folder / "made").write_text(_stamp(requirements))
    tell(f"installed after {time.monotonic() - began:.0f} s")


def run(python: Path, peer: str, folder: Path, task: Mapping[str, Any], rows: int) -> NDArray[np.float32]:
    """Let a peer do its task on what lies in the folder. Returns (rows,) probabilities. Raises PeerError."""
    said = folder / "said.npy"
    said.unlink(missing_ok=True)
    (folder / "task.json").write_text(json.dumps(task))
    _must([str(python), "-m", f"ops.bench.peers.{peer}", str(folder)], f"{peer} did not do {task}")
    if not said.is_file():
        raise PeerError(f"{peer} ended without scores. Its task was {task}")
    found: NDArray[np.float32] = np.load(said)
    if found.shape != (rows,) or not np.isfinite(found).all():
        raise PeerError(f"{peer} had {rows} rows and left {found.shape} scores, {np.isfinite(found).sum()} of them finite")
    return found


def variables() -> dict[str, str]:
    """What a process there is started with."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "PYTHONNOUSERSITE": "1"}


def _must(command: list[str], wrong: str) -> str:
    """What it printed. Raises PeerError with the last lines of what it complained of."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, env=variables())
    if done.returncode:
        last = "\n".join((done.stderr or done.stdout).strip().splitlines()[-6:])
        raise PeerError(f"{wrong}.\nExit code {done.returncode} of {' '.join(command)}\n{last}")
    return done.stdout


def _stamp(requirements: Path) -> str:
    """Another one whenever the pins or the Python change."""
    return hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()
