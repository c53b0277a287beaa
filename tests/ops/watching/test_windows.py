"""Questions to the log of windows and slices: time, slice, and what moved."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score
from typer.testing import CliRunner

from ops.cli import command_line
from ops.watching import freshness, windows
from schemas import fields
from schemas.config import MetricsConfig, Settings
from schemas.errors import ConfigError
from schemas.journal import Journal
from stream_trainer.watching.marks import Marker, slice_id
from stream_trainer.watching.metric_log import FIELDS_SCHEMA, MetricLog
from stream_trainer.watching.progressive import Progressive
from stream_trainer.watching.watch import Watch
from stream_trainer.watching.windows import Windows

ROWS, WINDOWS = 4000, 80   # of a window; in two files
MINUTE_US = 60_000_000
START_US = 1_790_000_000_000_000
MOVED = "travel"           # the category whose clicks doubled in the last eight windows
SCHEMA = fields.load("appstore")
CATEGORIES = next(spec for spec in SCHEMA.fields if spec.name == "category").values


@pytest.fixture(scope="module")
def watched(tmp_path_factory) -> tuple[Settings, dict[str, np.ndarray]]:
    """A model's log, one window a minute, and the rows that led to it: honest scores, of a tenth of which nobody told what was
    served."""
    settings = Settings(var=tmp_path_factory.mktemp("watched"), metrics=MetricsConfig(window_rows=ROWS))
    random = np.random.default_rng(3)
    n = ROWS * WINDOWS
    category = random.integers(0, len(CATEGORIES), n)
    said = (1 / (1 + np.exp(2.5 - random.normal(0, 0.7, n)))).astype(np.float32)
    window = np.arange(n) // ROWS
    doubled = (window >= WINDOWS - 8) & (category == CATEGORIES.index(MOVED))
    labels = (random.random(n) < said * np.where(doubled, 2, 1)).astype(np.float32)
    served = np.where(random.random(n) < 0.9, said * np.float32(0.5), np.float32(np.nan))
    marker = Marker(SCHEMA, settings.metrics)
    keys = np.zeros((n, 1 + len(marker.slices)), np.uint64)
    keys[:, 0] = np.arange(n) // 10 + 1
    (place,) = (place for place, spec in enumerate(marker.slices) if spec.name == "category")
    ids = np.array([slice_id(marker.slices[place], name) for name in CATEGORIES], np.uint64)
    keys[:, 1 + place] = ids[category]
    watch = Watch(marker, settings.metrics)
    Progressive(ROWS, Windows(watch)).add(said, labels, None, served, keys)
    log = MetricLog(settings.windows_dir, "ab" * 16, 0, 1 << 30)
    for number, table in enumerate(watch.take()):
        log.write(START_US + number * MINUTE_US, table)
    log.close()
    return settings, {"said": said, "labels": labels, "served": served, "category": category, "window": window}


def test_windows_are_found_by_time_and_number(watched) -> None:
    """Since is included, until is not; the newest so many; over the borders of files."""
    settings, _ = watched

    def numbers(**wanted: int) -> list[int]:
        return [line["first_row"] // ROWS for line in windows.whole_windows(settings, **wanted)]

    assert numbers() == list(range(WINDOWS))
    assert numbers(most=3) == [77, 78, 79]
    assert numbers(most=70) == list(range(10, 80))
    assert numbers(since_us=START_US + 5 * MINUTE_US, until_us=START_US + 8 * MINUTE_US) == [5, 6, 7]
    assert numbers(until_us=START_US + 70 * MINUTE_US, most=2) == [68, 69]
    assert numbers(since_us=START_US + WINDOWS * MINUTE_US) == []
    lines = windows.slice_lines(settings, "category", most=2)
    found = [(line["first_row"] // ROWS, line["field"]) for line in lines[:: len(CATEGORIES)]]
    assert found == [(78, "category"), (79, "category")]


def test_a_slice_over_all_windows_is_its_rows(watched) -> None:
    """Log loss and calibration of both scores, as from the rows themselves; the AUC is the mean over windows."""
    settings, rows = watched
    values = windows.by_value(windows.slice_lines(settings, "category"))
    for place, name in enumerate(CATEGORIES[:3]):
        mine = rows["category"] == place
        told = mine & np.isfinite(rows["served"])
        one = values[name]
        assert one["rows"] == mine.sum()
        for score, said, which in (("", "said", mine), ("served_", "served", told)):
            p, y = rows[said][which].astype(np.float64), rows["labels"][which]
            assert one[f"{score}log_loss"] == pytest.approx(log_loss(y, p), abs=1e-9)
            assert one[f"{score}calibration"] == pytest.approx(p.sum() / y.sum(), abs=1e-9)
        aucs = [roc_auc_score(rows["labels"][part], rows["said"][part])
                for number in range(WINDOWS) if len(set(rows["labels"][part := mine & (rows["window"] == number)])) == 2]
        assert one["auc"] == pytest.approx(np.mean(aucs), abs=0.002)


def test_the_slice_that_moved_stands_first(watched) -> None:
    """Its calibration, from 1 to a half, far beyond chance; no other slice is beyond what chance makes of a hundred."""
    settings, _ = watched
    ranked = windows.moved(windows.slice_lines(settings, None), 8)
    first, *others = ranked
    assert (first.field, first.value, first.figure) == ("category", MOVED, "calibration")
    assert first.before == pytest.approx(1.0, abs=0.05)
    assert first.now == pytest.approx(0.5, abs=0.05)
    assert first.z < -8
    named = [move for move in others if move.field == "category"]
    assert len(named) == len(CATEGORIES) - 1
    assert max(abs(move.z) for move in named) < 4


def test_where_nothing_moved_z_is_that_of_chance(watched) -> None:
    """Over windows before the change: z of calibration and log loss has a spread of about one, of AUC as Hanley and McNeil have
    it, no more."""
    settings, _ = watched
    before = windows.slice_lines(settings, "category", until_us=START_US + (WINDOWS - 8) * MINUTE_US)
    sides = [{line["first_row"] for line in before if (line["first_row"] // ROWS) % 2 == side} for side in (0, 1)]
    spread: dict[str, list[float]] = {"calibration": [], "log_loss": [], "auc": []}
    for value in CATEGORIES:
        was, now = (
            windows.summed([line for line in before if line["value"] == value and line["first_row"] in side]) for side in sides
        )
        for move in windows._moves("category", value, was, now):
            spread[move.figure].append(move.z)
    for figure, found in spread.items():
        assert len(found) == len(CATEGORIES)
        assert 0.4 < np.sqrt(np.mean(np.square(found))) < 1.7, figure


@pytest.mark.parametrize(("text", "ago_s"), [("90s", 90), ("15m", 900), ("1.5h", 5400), ("7d", 604_800)])
def test_times_may_be_so_long_ago(text: str, ago_s: int) -> None:
    """Or a moment with its zone."""
    assert windows.moment(text, 10**15, "--since") == 10**15 - ago_s * 1_000_000
    assert windows.moment("2026-11-20T10:00:00+01:00", 0, "--since") == 1_795_165_200_000_000


@pytest.mark.parametrize("text", ["yesterday", "2026-11-20T10:00:00", "5 m", "m"])
def test_other_times_are_refused(text: str) -> None:
    """With what is wanted."""
    with pytest.raises(ConfigError, match=r"--since .*15m, 2h or 7d"):
        windows.moment(text, 0, "--since")


def test_a_value_without_a_name_is_found_by_its_id() -> None:
    """What the user writes is hashed; a field that is no slice is refused with the nearest."""
    spec = next(spec for spec in SCHEMA.fields if spec.name == "country")
    assert windows.asked(Settings(), "country=DK") == ("country", ("DK", f"#{slice_id(spec, 'DK'):016x}"))
    assert windows.asked(Settings(), "country") == ("country", ())
    with pytest.raises(ConfigError, match="nearest: country"):
        windows.asked(Settings(), "contry=DK")


def test_the_way_of_a_click_by_its_parts(tmp_path: Path) -> None:
    """Percentiles of each part and of the whole, in ms; of those served within the time."""
    settings = replace(Settings(), var=tmp_path)
    journal = Journal(settings.metrics_dir / "freshness.jsonl")
    for number in range(100):
        at = 1_000_000_000 + number * 1_000_000
        marks = np.cumsum([at, 50_000 + number * 1000, 20_000, 300_000, 4_000]).tolist()
        journal.write(dict(zip(freshness.MARKS, marks, strict=True)))
    journal.write({"click_us": 1, "version": 3})   # never served
    rows = freshness.served(settings)
    assert len(rows) == 100
    parts = freshness.parts_ms(rows)
    assert parts["joined"] == {"p50": 99.5, "p99": 148.0}
    assert [parts[name]["p99"] for name in ("learnt", "published", "served")] == [20.0, 300.0, 4.0]
    assert freshness.whole_way_ms(rows) == {"p50": 423.5, "p99": 472.0}
    assert len(freshness.served(settings, since_us=1_050_000_000)) == 50
    assert freshness.parts_ms([])["joined"] == {"p50": None, "p99": None}


def test_the_verb_tells_it_to_people_and_programs(watched) -> None:
    """One object with --json; else tables, and exit code 1 where there is nothing."""
    settings, _ = watched
    where = ["--set", f"var={settings.var}"]
    Journal(settings.metrics_dir / "trainer.jsonl").write({
        "event": "trainer.status", "lifetime": None, "tallies": {"examples": ROWS * WINDOWS},
        "windows_unwritten": "No space left", "windows_lost": 3,
    })

    def asked(*argv: str) -> str:
        told = CliRunner().invoke(command_line(["metrics"]), ["metrics", *argv, *where])
        assert told.exit_code == 0, told.output
        return told.output

    found = json.loads(asked("--json", "--last", "40"))
    assert len(found["windows"]) == 40
    assert found["windows_now"] == 10
    assert found["moved"][0]["value"] == MOVED
    told = asked()
    assert f"category={MOVED}" in told
    assert "No space left" in told
    assert MOVED in asked("--slice", "category")
    assert len(asked("--slice", f"category={MOVED}", "--last", "5").splitlines()) == 6


def test_the_field_that_moved_stands_first(tmp_path: Path) -> None:
    """Of four fields: one begins to miss values, one has a flood of new ones, one whose values move, one that stays:
    each by the figure that tells, with its z as pooled proportions have it, and by the verb."""
    settings = Settings(var=tmp_path)
    random = np.random.default_rng(2)
    log = MetricLog(settings.fields_dir, "ab" * 16, 0, 1 << 30, FIELDS_SCHEMA)
    names = ["hole", "flood", "drift", "still"]
    shares: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    for number in range(20):
        late = number >= 16
        missing = random.binomial(1000, [0.1 if late else 0.02, 0.02, 0.02, 0.02]) / 1000
        unseen = random.binomial(1000, [0.01, 0.2 if late else 0.01, 0.01, 0.01]) / 1000
        shares[late].append((missing[0], unseen[1]))
        log.write(START_US + number * MINUTE_US, {
            "first_row": np.full(4, 1000 * number), "last_row": np.full(4, 1000 * number + 999), "field": names,
            "rows": np.full(4, 1000), "values": np.full(4, 1000), "missing_share": missing, "unseen_share": unseen,
            "psi": np.full(4, np.nan) if not number else random.normal([0.05, 0.05, 0.5 if late else 0.05, 0.05], 0.01),
            "psi_chance": np.full(4, 0.05), "bins": np.full(4, 40),
        })
    log.close()
    moved = windows.fields_moved(windows.field_lines(settings), 4)
    found = {move.field: move for move in moved}
    assert [found[name].moved for name in names[:3]] == ["missing_share", "unseen_share", "psi"]
    assert moved[-1].field == "still"
    assert abs(moved[-1].z) < 4 < min(abs(move.z) for move in moved[:3])
    was, now = (float(np.mean([share for share, _ in shares[late]])) for late in (False, True))
    pooled = (16 * was + 4 * now) / 20
    assert found["hole"].z == pytest.approx((now - was) / np.sqrt(pooled * (1 - pooled) * (1 / 16_000 + 1 / 4_000)), rel=1e-6)
    assert (found["hole"].before["missing_share"], found["hole"].now["missing_share"]) == pytest.approx((was, now))
    where = ["--set", f"var={settings.var}", "--recent", "4"]
    told = CliRunner().invoke(command_line(["metrics"]), ["metrics", "--fields", *where])
    assert told.exit_code == 0, told.output
    assert [line.split()[0] for line in told.output.splitlines()[2:]] == [move.field for move in moved]
    read = json.loads(CliRunner().invoke(command_line(["metrics"]), ["metrics", "--fields", "--json", *where]).output)
    assert [move["field"] for move in read["fields"]] == [move.field for move in moved]
    assert (read["windows"], read["windows_now"], len(read["lines"])) == (20, 4, 80)
    assert read["lines"][0]["psi"] is None
    nothing = CliRunner().invoke(command_line(["metrics"]), ["metrics", "--fields", "--set", f"var={tmp_path}/none"])
    assert nothing.exit_code == 1
