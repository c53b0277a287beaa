"""Vowpal Wabbit over a file of its own form; run as a module in the peers' environment."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import vowpalwabbit


def main(folder: Path) -> None:
    """One pass; what VW predicts of a row is said before it learns it. said.npy: (n,) probabilities."""
    options = json.loads((folder / "task.json").read_text())
    said = folder / "said.txt"
    workspace = vowpalwabbit.Workspace(f"-d {folder / 'rows.vw'} -p {said} --quiet {options['arguments']}")
    workspace.run_parser()
    workspace.finish()
    np.save(folder / "said.npy", np.loadtxt(said, np.float32, ndmin=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
