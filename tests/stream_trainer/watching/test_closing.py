"""Windows closed in a process of its own: the same figures, states and lines of the logs as closed here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from schemas import fields
from schemas.bags import Bags
from schemas.config import MetricsConfig, Settings
from stream_trainer.learning.intake import Batch
from stream_trainer.watching.alarms import Alarm
from stream_trainer.watching.beside import Beside
from stream_trainer.watching.closing import ClosingApart
from stream_trainer.watching.drift import Drift
from stream_trainer.watching.marks import Marker
from stream_trainer.watching.progressive import Progressive
from stream_trainer.watching.sampling import Sampler
from stream_trainer.watching.watch import Table, Watch
from stream_trainer.watching.windows import Window, Windows

ROWS, WINDOW, LINEAGE = 9_000, 500, "ab" * 16
SCHEMA = fields.load("appstore")


def unexpected(error: BaseException) -> None:
    raise AssertionError(error)


class Stream:
    """Scores, clicks and keys, judged in pieces; the calibration breaks in the middle of it."""

    def __init__(self, marker: Marker) -> None:
        random = np.random.default_rng(3)
        self.said = random.beta(2, 8, ROWS).astype(np.float32)
        factor = np.where(np.arange(ROWS) < ROWS * 2 // 3, 1.0, 3.0)
        self.labels = (random.random(ROWS) < self.said * factor).astype(np.float32)
        self.keys = random.integers(1, 5, (ROWS, 1 + len(marker.slices))).astype(np.uint64) << np.uint64(48)

        lengths = random.integers(1, 3, ROWS * len(SCHEMA.fields)).astype(np.uint16)
        ids = random.integers(0, 1 << 60, int(lengths.sum())).astype(np.uint64)
        count = np.zeros(ROWS, np.int64)
        self.batch = Batch(
            Bags(len(SCHEMA.fields), ids, None, lengths), self.labels, None, count, count.astype(np.uint8), count,
            np.full(ROWS, np.nan, np.float32), count, np.arange(ROWS) // 10, (np.arange(ROWS) % 10).astype(np.uint16),
        )

    def run(self, progressive: Progressive, start: int = 0, stop: int = ROWS) -> None:
        assert progressive.sampler is not None
        for at in range(start, stop, 170):
            part = slice(at, min(at + 170, stop))
            batch = self.batch.rows(part.start, part.stop)
            progressive.sampler.note(batch, self.said[part], [(batch.bags.ids[::50] & np.uint64(1023)).astype(np.int64)])
            progressive.add(self.said[part], self.labels[part], None, None, self.keys[part])


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(var=tmp_path, metrics=MetricsConfig(window_rows=WINDOW))


@pytest.fixture
def marker(settings: Settings) -> Marker:
    return Marker(SCHEMA, settings.metrics)


class Here:
    """The same in this process."""

    def __init__(self, settings: Settings, marker: Marker) -> None:
        self.tables: list[Table] = []
        self.fields: list[Table] = []
        self.alarms: list[Alarm] = []
        self._drift = Drift()
        closer = Windows(Watch(marker, settings.metrics, self._told))
        self.progressive = Progressive(WINDOW, closer, sampler=Sampler(4, 10))

    def _told(self, windows: Table, own: Table) -> None:
        self.tables.append(windows)
        self.fields.append(own)
        self.alarms += self._drift.closed(windows, own, 1)


class There:
    """A Progressive whose windows are closed apart, as a trainer's are."""

    def __init__(self, settings: Settings, marker: Marker) -> None:
        self.alarms: list[Alarm] = []
        self.closing = ClosingApart(settings, marker)
        self.beside = Beside(unexpected)
        self.progressive = Progressive(WINDOW, self.closing, self.beside, Sampler(4, 10))

    def begin(self) -> None:
        self.closing.begin(LINEAGE, self.progressive.whole_rows, self.alarms.append)

    def close(self) -> None:
        self.beside.close()
        self.closing.end()


@pytest.fixture
def there(settings: Settings, marker: Marker) -> Iterator[There]:
    made = There(settings, marker)
    made.begin()
    yield made
    made.close()


def test_closed_apart_is_closed_here(settings: Settings, marker: Marker, there: There) -> None:
    """Figures of all rows, states to the bit, every line of the log; the alarm that calibration broke is raised here."""
    here, stream = Here(settings, marker), Stream(marker)
    for start, stop in ((0, 4_321), (4_321, ROWS)):
        stream.run(here.progressive, start, stop)
        stream.run(there.progressive, start, stop)
        state, wanted = there.progressive.state(), here.progressive.state()
        assert state.keys() == wanted.keys()
        for name, array in wanted.items():
            np.testing.assert_array_equal(state[name], array, err_msg=name)
        assert there.progressive.lifetime() == here.progressive.lifetime()
    there.closing.flush()
    logged = pd.read_parquet(settings.windows_dir)
    for first, table in zip(range(0, ROWS, WINDOW), here.tables, strict=True):
        own = logged[logged["first_row"] == first].drop(columns=["time", "lineage"]).reset_index(drop=True)
        plain = [name for name in own if "decile" not in name]      # those are lists, on the first line
        pd.testing.assert_frame_equal(own[plain], pd.DataFrame(table)[plain], check_dtype=False, check_exact=True)
        assert own["decile_weight"][0].tolist() == table["decile_weight"][0]
    by_field = pd.read_parquet(settings.fields_dir).sort_values(["first_row"], kind="stable").reset_index(drop=True)
    wanted_fields = pd.concat([pd.DataFrame(own) for own in here.fields], ignore_index=True)
    assert wanted_fields["unseen_share"].max() > 0
    pd.testing.assert_frame_equal(by_field[list(wanted_fields)], wanted_fields, check_dtype=False, check_exact=True)
    assert [(alarm.what, alarm.state, alarm.row) for alarm in there.alarms] == [
        (alarm.what, alarm.state, alarm.row) for alarm in here.alarms
    ]
    assert any(alarm.what == "drift.calibration" for alarm in here.alarms)
    assert there.closing.news.newest is not None
    assert there.closing.news.newest["last_row"] == ROWS - 1


def test_restored_apart_is_never_interrupted(settings: Settings, marker: Marker, there: There) -> None:
    """A state taken there goes on in another process, and the log has each window once."""
    here, stream, at = Here(settings, marker), Stream(marker), 3 * WINDOW + 17
    stream.run(here.progressive)
    stream.run(there.progressive, 0, at)
    state = there.progressive.state()
    there.closing.flush()
    stream.run(there.progressive, at, at + 2 * WINDOW)      # is learnt again by the next one
    there.closing.flush()
    second = There(settings, marker)
    second.progressive.restore(state)
    second.begin()
    stream.run(second.progressive, at, ROWS)
    lifetime: Window | None = second.progressive.lifetime()
    second.close()
    assert lifetime == here.progressive.lifetime()
    logged = pd.read_parquet(settings.windows_dir)
    whole = logged[logged["field"] == ""].sort_values("first_row")
    assert whole["first_row"].tolist() == list(range(0, ROWS, WINDOW))
    np.testing.assert_array_equal(whole["auc"], [table["auc"][0] for table in here.tables])
