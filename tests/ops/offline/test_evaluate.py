"""One pass over a file: its figures against another library's, and rows in the order of the file."""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet
from sklearn.metrics import log_loss, roc_auc_score
from typer.testing import CliRunner

from ops import formats
from ops.cli import command_line
from ops.offline.evaluate import Evaluation, NothingLearnt, evaluate
from schemas import fields
from schemas.config import JoinConfig, LearnConfig, MetricsConfig, ModelConfig, Settings
from schemas.errors import ConfigError
from schemas.models import MODELS

SETTINGS = Settings(
    model=ModelConfig(schema="criteo", bits=12, hidden=(8,)), learn=LearnConfig(batch_rows=50),
    metrics=MetricsConfig(window_rows=500),
)
ROWS = 1200


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Clicks that hang on the first category."""
    rng = random.Random(2)
    lines = []
    for _ in range(ROWS):
        kind = rng.randrange(20)
        label = int(rng.random() < (0.7 if kind < 5 else 0.1))
        lines.append("\t".join([str(label), *[""] * 13, f"{kind:08x}", *[""] * 25]))
    file = tmp_path / "rows.tsv"
    file.write_text("\n".join(lines) + "\n")
    return file


def run(path: Path, settings: Settings = SETTINGS, from_row: int = 0, interval_s: float | None = None) -> Evaluation:
    interval_us = formats.row_interval_us(settings, interval_s)
    return evaluate(settings, formats.read(path, "criteo", interval_us, settings.join.action), from_row)


def test_a_file_of_another_schema_is_refused_and_not_scored_by_chance(path: Path) -> None:
    """With a schema none of whose fields the file has, every row is the same to the model: AUC .5 of nothing but numbers."""
    with pytest.raises(ConfigError, match=r"model.schema=appstore: none of its fields \(.*which has C1\. Set"):
        run(path, replace(SETTINGS, model=replace(SETTINGS.model, schema="appstore")))


def test_figures_are_those_of_another_library(path: Path) -> None:
    """AUC and log loss of the rows asked for, by scikit-learn on the scores themselves."""
    found = run(path, from_row=300)
    labels = [int(line[0]) for line in path.read_text().splitlines()]
    assert found.labels.tolist() == labels
    assert found.figures.rows == ROWS - 300
    assert found.figures.auc == pytest.approx(roc_auc_score(labels[300:], found.probabilities[300:]), abs=1e-12)
    assert found.figures.log_loss == pytest.approx(log_loss(labels[300:], found.probabilities[300:].astype("f8")), abs=1e-9)
    assert [(window.first_row, window.rows) for window in found.windows] == [(0, 500), (500, 500)]


def test_the_mode_changes_nothing_where_rows_do_not_overlap(path: Path) -> None:
    """Each row's label is final before the next row comes: eager and wait learn the file in its order."""
    wait = replace(SETTINGS, join=JoinConfig(mode="wait"))
    assert run(path).weights_digest == run(path, wait).weights_digest
    assert run(path, interval_s=0.1).weights_digest != run(path, wait, interval_s=0.1).weights_digest


@pytest.mark.parametrize("format", ["csv", "tsv", "parquet", "libffm"])
def test_the_same_rows_in_another_format_lead_to_the_same_weights(format: str, tmp_path: Path) -> None:
    """Criteo's own form and a copy of it: one learner, one set of weights, bit for bit."""
    schema = fields.load("criteo")
    rng, rows = random.Random(3), []
    for _ in range(400):
        counts = [rng.choice(["", "0", "-1", str(rng.randrange(9999))]) for _ in range(13)]
        rows.append([str(rng.randrange(2)), *counts, *[rng.choice(["", f"{rng.randrange(30):08x}"]) for _ in range(26)]])
    original = tmp_path / "rows.tsv"
    original.write_text("".join("\t".join(row) + "\n" for row in rows))
    names = ["label", *[f"I{at}" for at in range(1, 14)], *[f"C{at}" for at in range(1, 27)]]
    copy = tmp_path / "copy"
    if format == "parquet":
        columns = [[None if cell == "" else int(cell) if at < 14 else cell for cell in column]
                   for at, column in enumerate(zip(*rows, strict=True))]
        parquet.write_table(pa.table(dict(zip(names, columns, strict=True))), copy)
    elif format == "libffm":
        numbers = {spec.name: spec for spec in schema.fields}
        copy.write_text("".join(" ".join([row[0], *[
            f"{numbers[name].number}:{name}:{cell}" if numbers[name].kind == "numeric" else f"{numbers[name].number}:{cell}:1"
            for name, cell in zip(names[1:], row[1:], strict=True) if cell
        ]]) + "\n" for row in rows))
    else:
        mark = "," if format == "csv" else "\t"
        copy.write_text("".join(mark.join(row) + "\n" for row in [names, *rows]))
    found = evaluate(SETTINGS, formats.read(copy, format, 10_000_000, "click", schema=schema))
    assert found.labels.tolist() == [float(row[0]) for row in rows]
    assert found.weights_digest == run(original).weights_digest


def dated(tmp_path: Path, days: int) -> Path:
    """300 rows a day, over so many days; the file in no order."""
    rng = random.Random(9)
    rows = []
    for at in range(300 * days):
        kind = rng.randrange(20)
        rows.append(f"{int(rng.random() < (0.7 if kind < 5 else 0.1))},{kind},{at % 17},{1_600_000_000 + at * 288}")
    rng.shuffle(rows)
    file = tmp_path / f"{days}.csv"
    file.write_text("\n".join(["liked,kind,user,at", *rows]) + "\n")
    return file


@pytest.fixture
def dated_settings(tmp_path: Path) -> Settings:
    schema = tmp_path / "kinds.toml"
    schema.write_text('name = "kinds"\n[[field]]\nname = "kind"\nnumber = 1\nkind = "categorical"\nside = "item"\n')
    return replace(SETTINGS, model=replace(SETTINGS.model, schema=str(schema)))


def dated_records(path: Path, settings: Settings, broken: formats.Broken | None = None):
    return formats.read(
        path, "csv", 1, "click", schema=fields.load(settings.model.schema), label="liked", time="at", group="user",
        broken=broken,
    )


def test_the_days_protocol_does_not_learn_the_last_day(tmp_path: Path, dated_settings: Settings) -> None:
    """The weights are those of a file that ends after seven days; the eighth is scored by them, the rest is not looked at."""
    path = dated(tmp_path, 10)
    found = evaluate(dated_settings, dated_records(path, dated_settings), days=7)
    header, *rows = path.read_text().splitlines()
    cut = 1_600_000_000 + 7 * 86_400
    seven, eighth = tmp_path / "seven.csv", [row for row in rows if cut <= int(row.split(",")[3]) < cut + 86_400]
    seven.write_text("\n".join([header, *[row for row in rows if int(row.split(",")[3]) < cut]]) + "\n")
    alone = evaluate(dated_settings, dated_records(seven, dated_settings))
    assert found.weights_digest == alone.weights_digest
    assert found.rows_learnt == alone.rows_learnt == 2100
    eighth.sort(key=lambda row: int(row.split(",")[3]))
    assert sorted(found.labels.tolist()) == sorted(float(row[0]) for row in eighth)
    # One score per kind, but for rounding in a batch of another length: nothing changed while the day was judged.
    assert len({round(said, 5) for said in found.probabilities.tolist()}) == 20
    assert found.figures.rows == 300
    assert found.figures.auc == pytest.approx(roc_auc_score(found.labels, found.probabilities), abs=1e-12)


def test_the_days_protocol_wants_days(tmp_path: Path, dated_settings: Settings) -> None:
    """A file of one day has no second."""
    with pytest.raises(NothingLearnt, match="hour 168 to 192"):
        evaluate(dated_settings, dated_records(dated(tmp_path, 2), dated_settings), days=7)


def test_each_row_keeps_its_group(tmp_path: Path, dated_settings: Settings) -> None:
    """Through the join, which lets clicks overtake non-clicks: the (group, label) pairs are the file's."""
    path = dated(tmp_path, 2)
    found = evaluate(dated_settings, dated_records(path, dated_settings))
    assert found.groups is not None
    pairs = Counter(zip(found.groups.tolist(), found.labels.tolist(), strict=True))
    ordered = sorted((row.split(",") for row in path.read_text().splitlines()[1:]), key=lambda row: int(row[3]))
    numbers: dict[str, int] = {}
    expected = Counter((numbers.setdefault(user, len(numbers)), float(label)) for label, _, user, _ in ordered)
    assert pairs == expected


def test_an_event_that_only_the_join_finds_unusable_is_named_by_its_line(path: Path) -> None:
    """Criteo's integers are checked by the schema's encoder, behind the reader."""
    lines = path.read_text().splitlines()
    cells = lines[6].split("\t")
    cells[3] = "many"
    path.write_text("\n".join([*lines[:6], "\t".join(cells), *lines[7:]]) + "\n")
    broken = formats.Broken()
    evaluate(SETTINGS, formats.read(path, "criteo", 10_000_000, "click", broken=broken), broken=broken)
    assert broken.rows == 1
    assert "line 7: field I3: takes a number, got 'many'" in str(broken.first[0])
    with pytest.raises(formats.BadRow, match="line 7"):
        evaluate(SETTINGS, formats.read(path, "criteo", 10_000_000, "click"), broken=formats.Broken(strict=True))


def command(*arguments: str) -> tuple[int, str, str]:
    """`freshet evaluate …` in this process."""
    result = CliRunner().invoke(command_line(["evaluate"]), ["evaluate", *arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def flags(tmp_path: Path, dated_settings: Settings) -> list[str]:
    """What a user types for a table of their own."""
    return [str(dated(tmp_path, 3)), "--format", "csv", "--label", "liked", "--time", "at", "--group", "user",
            "--set", f"model.schema={dated_settings.model.schema}", "--set", "model.bits=12", "--set", "model.hidden=8",
            "--resamples", "20"]


def test_json_has_fixed_keys_and_figures_with_intervals(flags: list[str]) -> None:
    """Programs read them: rows, auc, log_loss, normalized_entropy, calibration, and what belongs to them."""
    code, out, _ = command(*flags, "--json")
    assert code == 0
    found = json.loads(out)
    names = ("auc", "log_loss", "normalized_entropy", "calibration", "group_auc")
    assert {"rows", "intervals", "rows_broken", "first_broken", "weights_digest", *names} <= set(found)
    assert found["rows"] == 900
    for name in names:
        low, high = found["intervals"][name]
        assert low < found[name] < high


def test_a_list_of_models_gives_one_table_and_a_picture(flags: list[str], tmp_path: Path) -> None:
    """Best first, with the paired difference; and a curve each."""
    picture = tmp_path / "curve.png"
    code, out, _ = command(*flags, "--model", "lr,fm,deepfm", "--plot", str(picture))
    assert code == 0
    head, *lines = out.splitlines()
    assert head.split()[:2] == ["model", "AUC"]
    assert {line.split()[0] for line in lines} == {"lr", "fm", "deepfm"}
    assert picture.read_bytes().startswith(b"\x89PNG")
    aucs = [float(line.split()[1]) for line in lines]
    assert aucs == sorted(aucs, reverse=True)
    models = json.loads(command(*flags, "--model", "lr,fm", "--json")[1])["models"]
    assert models[1]["auc_difference"] == pytest.approx(models[1]["auc"] - models[0]["auc"])
    assert models[1]["auc_difference_interval"][0] <= models[1]["auc_difference_interval"][1]


def test_all_stands_for_every_model_there_is(flags: list[str]) -> None:
    """Those of schemas.models, each with figures."""
    code, out, _ = command(*flags, "--model", "all", "--rows", "120", "--resamples", "0", "--json")
    assert code == 0
    found = json.loads(out)["models"]
    assert {one["model"] for one in found} == set(MODELS)
    assert not [one for one in found if "error" in one]


@pytest.mark.parametrize(("more", "message"), [
    (["--model", "deepfn"], "nearest: deepfm"), (["--format", "cvs"], "did you mean csv"),
    (["--label", "likd"], "did you mean liked"), (["--plot", "no/such/folder.png"], "no such folder"),
    (["--protocol", "days", "--from-row", "3"], "judges the last day and nothing else"),
])
def test_a_wrong_option_ends_with_2_and_names_the_right_one(flags: list[str], more: list[str], message: str) -> None:
    """Before anything is learnt."""
    code, _, said = command(*flags, *more)
    assert code == 2
    assert message in said


def test_without_matplotlib_the_plot_is_refused_before_any_work(flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """And how to get it is said."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, out, said = command(*flags, "--plot", "curve.png")
    assert (code, out) == (2, "")
    assert "pip install 'freshet[plot]'" in said


def test_days_without_a_clock_are_refused(path: Path) -> None:
    """The order of rows is no time."""
    code, _, said = command(str(path), "--format", "criteo", "--protocol", "days", "--set", "model.schema=criteo")
    assert code == 2
    assert "needs the rows' own time" in said


def test_broken_rows_are_told_and_strict_stops(flags: list[str]) -> None:
    """On stderr, by line; the figures are those of the rest."""
    file = Path(flags[0])
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:4], "maybe,1,2,1600000000", *lines[4:], "1,2"]) + "\n")
    code, out, said = command(*flags, "--json")
    assert code == 0
    assert json.loads(out)["rows"] == 900
    assert json.loads(out)["rows_broken"] == 2
    assert "line 5: a label is 0 or 1, got 'maybe'" in said
    assert "line 903: 2 cells" in said
    code, _, said = command(*flags, "--strict")
    assert code == 2
    assert "line 5" in said


def test_nothing_to_judge_is_said(path: Path) -> None:
    """Not an AUC of .5."""
    with pytest.raises(NothingLearnt, match="1,200 examples"):
        run(path, from_row=ROWS)
    with pytest.raises(ConfigError, match="no such file"):
        run(path.with_name("absent"))
