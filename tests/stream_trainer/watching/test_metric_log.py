"""The log of windows and slices on a disk: read as Parquet, whatever was killed or refused."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
from pyarrow import parquet

from stream_trainer.watching.metric_log import FILE_WINDOWS, SCHEMA, MetricLog
from stream_trainer.watching.watch import COLUMNS

LINEAGE, OTHER = "ab" * 16, "cd" * 16
MANY = 1 << 40


def table(number: int, lines: int = 3) -> dict[str, Any]:
    """Of window `number`, a thousand rows each: the whole, and slices."""
    columns: dict[str, Any] = {name: [None] * lines for name in COLUMNS}
    return columns | {
        "first_row": np.full(lines, 1000 * number), "last_row": np.full(lines, 1000 * number + 999),
        "field": ["", *["country"] * (lines - 1)], "value": ["", *(f"#{place}" for place in range(lines - 1))],
        "auc": np.random.default_rng(number).random(lines), "decile_weight": [[1.0, 2.0]] + [None] * (lines - 1),
    }


def logged(folder: Path, numbers: range, lineage: str = LINEAGE, rows: int = 0, keep: int = MANY, at: int = 0) -> MetricLog:
    """A trainer's life: it goes on from that many rows, and logs these windows, one a microsecond."""
    log = MetricLog(folder, lineage, rows, keep)
    for number in numbers:
        log.write(at + 1_700_000_000_000_000 + number, table(number))
        if number % 100 == 99:
            assert log.flush()
    log.close()
    return log


def windows(folder: Path) -> list[tuple[str, int]]:
    """What any reader of Parquet finds: lineage and number of each window, in the order of time; three lines each."""
    found = ds.dataset(sorted(map(str, folder.glob("*.parquet"))), schema=SCHEMA).to_table().sort_by("time")
    whole = [(line["lineage"], line["first_row"] // 1000) for line in found.to_pylist() if not line["field"]]
    assert len(found) == 3 * len(whole)
    return whole


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    """Values, lists and what does not exist, with the time and its zone."""
    logged(tmp_path, range(2))
    (path,) = tmp_path.glob("*.parquet")
    first, slice_, *_ = parquet.read_table(path).to_pylist()
    assert (first["first_row"], first["last_row"], first["decile_weight"]) == (0, 999, [1.0, 2.0])
    assert [first["auc"], slice_["auc"]] == table(0)["auc"][:2].tolist()
    assert slice_["value"] == "#0"
    assert slice_["log_loss"] is None
    assert first["time"].isoformat() == "2023-11-14T22:13:20+00:00"


def test_files_hold_so_many_windows_each_and_together_all(tmp_path: Path) -> None:
    """In the order of their names, each window once."""
    logged(tmp_path, range(150))
    sizes = [len(parquet.read_table(path)) // 3 for path in sorted(tmp_path.glob("*.parquet"))]
    assert sizes == [FILE_WINDOWS, FILE_WINDOWS, 150 - 2 * FILE_WINDOWS]
    assert windows(tmp_path) == [(LINEAGE, number) for number in range(150)]


def test_what_is_learnt_again_after_a_kill_counts_once(tmp_path: Path) -> None:
    """The trainer goes on from its checkpoint: later windows go when it starts, and come again; the newest file
    is gone on with."""
    logged(tmp_path, range(100))
    logged(tmp_path, range(90, 110), rows=90_000, at=1000)
    assert windows(tmp_path) == [(LINEAGE, number) for number in range(110)]
    assert len(list(tmp_path.glob("*.parquet"))) == 2
    logged(tmp_path, range(60, 61), rows=60_000, at=2000)
    assert windows(tmp_path) == [(LINEAGE, number) for number in range(61)]
    assert len(list(tmp_path.glob("*.parquet"))) == 1


def test_another_model_of_that_name_leaves_the_log_of_the_one_before(tmp_path: Path) -> None:
    """It begins at its own first row; a rollback, which goes on counting rows, leaves all too."""
    logged(tmp_path, range(5))
    logged(tmp_path, range(3), lineage=OTHER, at=1000)
    assert windows(tmp_path) == [(LINEAGE, number) for number in range(5)] + [(OTHER, number) for number in range(3)]
    logged(tmp_path, range(3, 4), lineage="ef" * 16, rows=3000, at=2000)
    assert windows(tmp_path)[-2:] == [(OTHER, 2), ("ef" * 16, 3)]


def test_half_a_file_is_never_seen(tmp_path: Path) -> None:
    """What a kill left beside goes at the next start; a file that cannot be read is set aside, and the rest goes on."""
    logged(tmp_path, range(3))
    (tmp_path / "17000000-abababab.tmp").write_bytes(b"PAR1 and no more")
    (tmp_path / "9999999999999999-abababab.parquet").write_bytes(b"no Parquet")
    logged(tmp_path, range(3, 4), rows=3000)
    assert windows(tmp_path) == [(LINEAGE, number) for number in range(4)]
    assert {path.suffix for path in tmp_path.iterdir()} == {".parquet", ".damaged"}


def test_every_moment_shows_each_window_once(tmp_path: Path) -> None:
    """A reader that looks all the time finds windows 0 to n, each once, n never falling."""
    log, done, seen = MetricLog(tmp_path, LINEAGE, 0, MANY), threading.Event(), []

    def look() -> None:
        while not done.is_set():
            found = []
            for path in sorted(tmp_path.glob("*.parquet")):
                with path.open("rb") as file:
                    found += [line["first_row"] // 1000 for line in parquet.read_table(file).to_pylist()[::3]]
            seen.append(found)

    reader = threading.Thread(target=look)
    reader.start()
    for number in range(100):
        log.write(1_700_000_000_000_000 + number, table(number))
        if number % 8 == 7:
            assert log.flush()
    done.set()
    reader.join()
    log.close()
    assert len(seen) > 5
    assert all(found == list(range(len(found))) for found in seen)
    assert [len(found) for found in seen] == sorted(len(found) for found in seen)


def test_the_oldest_files_go(tmp_path: Path) -> None:
    """No more bytes than were allowed, but the newest file stays whatever it takes."""
    logged(tmp_path, range(100))
    one = max(path.stat().st_size for path in tmp_path.glob("*.parquet"))
    logged(tmp_path, range(100, 500), rows=100_000, keep=3 * one)
    kept = windows(tmp_path)
    assert kept == [(LINEAGE, number) for number in range(500 - len(kept), 500)]
    assert sum(path.stat().st_size for path in tmp_path.glob("*.parquet")) <= 3 * one
    logged(tmp_path, range(500, 501), rows=500_000, keep=1)
    assert windows(tmp_path)[-1] == (LINEAGE, 500)
    assert len(list(tmp_path.glob("*.parquet"))) == 1


FULL = """
import resource, sys, time
from pathlib import Path
from stream_trainer.watching.metric_log import MetricLog
from tests.stream_trainer.watching.test_metric_log import LINEAGE, MANY, table
log = MetricLog(Path(sys.argv[1]), LINEAGE, 0, MANY)
log.write(1, table(0))
assert log.flush() and log.trouble is None
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))      # no file may be longer: the kernel refuses in the middle of one
log.write(2, table(1))
assert not log.flush() and "too large" in log.trouble
for number in range(2, 100):
    log.write(1 + number, table(number))
assert not log.flush()
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
log.write(200, table(100))
while not log.flush():
    time.sleep(0.05)
assert log.trouble is None
print("lost", log.lost)
log.close()
"""


def test_a_disk_without_room_ends_nothing_and_is_said(tmp_path: Path) -> None:
    """What waits, a file's worth, is written when there is room; more is lost and counted. The file before is whole all the
    time."""
    told = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True,
        cwd=Path(__file__).parents[3],
    )
    said = told.stdout + told.stderr
    assert said.count("metrics.unwritten") == 1
    assert said.count("metrics.written_again") == 1
    (lost,) = (int(line.split()[1]) for line in told.stdout.splitlines() if line.startswith("lost "))
    found = [number for _, number in windows(tmp_path)]
    assert found == [0, *range(FILE_WINDOWS, 101)]
    assert lost == FILE_WINDOWS - 1
