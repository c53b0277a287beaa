"""Tables in their formats: one set of rows written in each gives the same events, and a clear word where it does not fit."""

from __future__ import annotations

import csv
import gzip
import io
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from ops import formats
from ops.formats.common import BadRow, Broken, EventRecord
from ops.formats.tabular import time_of
from schemas.errors import BadEvent, ConfigError
from schemas.events import Action, Impression, parse
from schemas.fields import Encoder, Slate, load
from schemas.fields import parse as parse_schema
from tests.conftest import shared

SCHEMA = parse_schema({"name": "little", "field": [
    {"name": "user", "number": 1, "kind": "categorical", "side": "context"},
    {"name": "item_id", "number": 2, "kind": "categorical", "side": "item"},
    {"name": "price", "number": 3, "kind": "numeric", "side": "item", "transform": "log"},
    {"name": "tags", "number": 4, "kind": "set", "side": "item"},
]}, "test")
NAMES = ("label", "user", "item_id", "price", "tags", "shown_at", "unused")
ENDINGS = {"csv": "csv.gz", "tsv": "tsv", "parquet": "parquet", "libffm": "ffm"}


def make_rows(count: int = 50) -> list[dict[str, Any]]:
    """Values of all kinds, missing ones among them, text beyond ASCII."""
    rng = random.Random(4)
    return [{
        "label": rng.randrange(2), "user": rng.choice(["ann", "zoë", "", "42"]), "item_id": str(rng.randrange(9)),
        "price": rng.choice([None, 0.0, -3.0, 12.5, 1e9]), "tags": rng.sample(["a", "b", "c"], rng.randrange(4)),
        "shown_at": 1_700_000_000 + at, "unused": "x",
    } for at in range(count)]


def write(rows: list[dict[str, Any]], format: str, folder: Path) -> Path:
    path = folder / f"rows.{ENDINGS[format]}"
    if format == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    elif format == "libffm":
        path.write_text("".join(
            " ".join([str(row["label"]),
                      *([f"1:{row['user']}:1"] if row["user"] else []), f"2:{row['item_id']}:1",
                      *([f"3:price:{row['price']}"] if row["price"] is not None else []),
                      *[f"4:{tag}:1" for tag in row["tags"]]]) + "\n" for row in rows
        ))
    else:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, NAMES, delimiter="," if format == "csv" else "\t")
        writer.writeheader()
        writer.writerows({**row, "tags": "|".join(row["tags"])} for row in rows)
        data = text.getvalue().encode()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def read(path: Path, format: str, **options) -> list[EventRecord]:
    return list(formats.read(path, format, 1_000_000, "click", schema=SCHEMA, **options))


def examples(records: list[EventRecord]) -> list[tuple[Any, ...]]:
    """(ids, values, clicked) of each impression, as the learner would get them."""
    encoder, found = Encoder(SCHEMA, training=True), []
    for record in records:
        event = parse(record.value)
        if isinstance(event, Impression):
            bags, strange = encoder.encode(event.slate)
            assert not strange
            found.append([bags.ids.tolist(), bags.values.tolist() if bags.values is not None else None, False])
        else:
            assert isinstance(event, Action)
            found[-1][2] = True
    return [tuple(one) for one in found]


@pytest.mark.parametrize("format", ENDINGS)
def test_each_format_says_what_plain_values_say(format: str, tmp_path: Path):
    """The ids and labels are those of the rows themselves, encoded without any file between."""
    rows = make_rows()
    encoder, expected = Encoder(SCHEMA, training=True), []
    for row in rows:
        columns = {"item_id": [row["item_id"]], "price": [row["price"]], "tags": [row["tags"]]}
        bags, _ = encoder.encode(Slate(["any"], {"user": row["user"]}, columns))
        expected.append((bags.ids.tolist(), bags.values.tolist() if bags.values is not None else None, bool(row["label"])))
    assert examples(read(write(rows, format, tmp_path), format)) == expected


@pytest.mark.parametrize("format", ["csv", "tsv", "parquet"])
def test_rows_come_in_the_order_of_their_time(format: str, tmp_path: Path):
    """Whatever the file's order; a click stays behind its impression, and a row brings its group."""
    rows = make_rows()
    random.Random(1).shuffle(rows)
    found = read(write(rows, format, tmp_path), format, time="shown_at", group="user")
    assert [record.time_us for record in found] == sorted(record.time_us for record in found)
    assert found[0].time_us == 1_700_000_000_000_000
    for record in found:
        assert record.group == (rows[record.row - (1 if format == "parquet" else 2)]["user"] or None)
    names = [(record.row, isinstance(parse(record.value), Action)) for record in found]
    assert all(names[at - 1] == (row, False) for at, (row, clicked) in enumerate(names) if clicked)


@pytest.mark.parametrize(("value", "expected"), [
    ("2017-11-06 16:00:00", datetime(2017, 11, 6, 16, tzinfo=UTC)),
    ("2019-11-24T01:00:00.25+01:00", datetime(2019, 11, 24, 0, 0, 0, 250_000, tzinfo=UTC)),
    ("881250949", datetime(1997, 12, 4, 15, 55, 49, tzinfo=UTC)), (881250949.0, datetime(1997, 12, 4, 15, 55, 49, tzinfo=UTC)),
    (881250949_000, datetime(1997, 12, 4, 15, 55, 49, tzinfo=UTC)),
    (881250949_000_000, datetime(1997, 12, 4, 15, 55, 49, tzinfo=UTC)),
    (datetime(2020, 1, 2), datetime(2020, 1, 2, tzinfo=UTC)),  # noqa: DTZ001  Parquet's times have no zone
])
def test_a_time_is_read_in_its_usual_spellings(value, expected: datetime):
    """ISO 8601 with or without a zone; seconds, ms and µs since 1970."""
    assert time_of(value) == round(expected.timestamp() * 1e6)


@pytest.mark.parametrize("value", ["", "soon", None, float("nan"), -5, True, "9e99", "inf"])
def test_what_is_no_time_is_refused(value):
    """Not taken as 1970."""
    with pytest.raises(BadEvent, match="time"):
        time_of(value)


@pytest.mark.parametrize(("format", "text", "lines", "words"), [
    ("csv", "label,user,item_id,price,tags\n1,a,1,2,\n7,a,1,2,\n0,a,1\n\n0,a,1,cheap,\n0,a,1,2,x|y\n,a,1,2,\n",
     [3, 4, 6, 8], ["label is 0 or 1, got '7'", "3 cells", "field price: takes a number, got 'cheap'", "got nothing"]),
    ("libffm", "1 1:a:1 3:p:2\n2 1:a:1\n0 9:a:1\n0 1:a:0.5\n0 1:a:1 1:b:1\n0 junk\n0 3:p:nan\n-1 1:a:1\n",
     [2, 3, 4, 5, 6, 7], ["label", "no number of the schema's", "have value 1", "one feature", "field:feature:value"]),
])
def test_broken_rows_are_counted_and_named_by_line(format, text, lines, words, tmp_path: Path):
    """The others are read; with strict the first one is raised."""
    path = tmp_path / "rows"
    path.write_text(text)
    broken = Broken()
    assert len([one for one in read(path, format, broken=broken) if isinstance(parse(one.value), Impression)]) == 2
    assert broken.rows == len(lines)
    assert [bad.line for bad in broken.first] == lines[:5]
    for bad, word in zip(broken.first, words, strict=False):
        assert word in str(bad)
    with pytest.raises(BadRow, match=f"line {lines[0]}: ") as caught:
        read(path, format, broken=Broken(strict=True))
    assert caught.value.line == lines[0]


def test_bytes_that_are_no_utf8_break_their_row_alone(tmp_path: Path):
    """In a CSV and in libffm's text."""
    table = b"label,user,item_id,price,tags\n1,\xff,1,2,\n1,a,1,2,\n"
    for format, data in (("csv", table), ("libffm", b"1 1:\xff:1\n1 1:a:1\n")):
        path = tmp_path / format
        path.write_bytes(data)
        broken = Broken()
        assert len(read(path, format, broken=broken)) == 2
        assert broken.rows == 1
        assert "UTF-8" in str(broken.first[0])


def test_a_broken_row_of_a_parquet_file_is_named_by_its_number(tmp_path: Path):
    """A null label is no 0."""
    rows = make_rows(5)
    rows[3]["label"] = None
    broken = Broken()
    assert len({record.row for record in read(write(rows, "parquet", tmp_path), "parquet", broken=broken)}) == 4
    assert "row 4: a label is 0 or 1, got nothing" in str(broken.first[0])


@pytest.mark.parametrize("format", ["csv", "tsv", "parquet"])
@pytest.mark.parametrize(("drop", "options", "message"), [
    ("price", {}, "field price: no such column"), ("label", {}, "--label label: no such column"),
    ("unused", {"time": "shown_att"}, "did you mean shown_at"), ("unused", {"group": "usr"}, "did you mean user"),
    ("unused", {"label": "lable"}, "did you mean label"),
])
def test_a_missing_column_is_an_error_and_never_a_null(format, drop, options, message, tmp_path: Path):
    """One that the schema or an option names, before any row is read; even when rows may be broken."""
    rows = [{key: value for key, value in row.items() if key != drop} for row in make_rows(5)]
    if format != "parquet":
        path = tmp_path / "rows"
        mark = "," if format == "csv" else "\t"
        path.write_text("\n".join([mark.join(rows[0]), mark.join("1" for _ in rows[0])]) + "\n")
    else:
        path = write(rows, format, tmp_path)
    with pytest.raises(ConfigError, match=message):
        read(path, format, broken=Broken(), **options)


def test_a_file_that_is_not_of_its_format_is_said(tmp_path: Path):
    """Neither a traceback nor silence."""
    path = tmp_path / "rows.gz"
    path.write_bytes(b"label,user\n")
    with pytest.raises(ConfigError, match="cannot be unpacked"):
        read(path, "csv")
    with pytest.raises(ConfigError, match="cannot be read as Parquet"):
        read(path, "parquet")
    empty = tmp_path / "empty"
    empty.write_text("")
    with pytest.raises(ConfigError, match="header"):
        read(empty, "csv")
    with pytest.raises(ConfigError, match="--time x: format libffm"):
        read(empty, "libffm", time="x")


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path):
    """Which one is meant cannot be known."""
    path = tmp_path / "rows"
    path.write_text("label,user,user,item_id,price,tags\n1,a,b,1,2,\n")
    with pytest.raises(ConfigError, match="2 columns have that name"):
        read(path, "csv")


def test_movielens_joins_its_three_files(tmp_path: Path):
    """Liked from 4 on; genres are a set; a film that is not there breaks its row."""
    (tmp_path / "m.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t10\t4\t200\n1\t11\t3\t100\n1\t12\t5\t300\n")
    (tmp_path / "m.user").write_text(
        "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n1\t24\tM\twriter\t85711\n")
    (tmp_path / "m.item").write_text(
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        "10\tA b\t1995\tDrama War\n11\tC\t\tComedy\n")
    broken = Broken()
    found = list(formats.read(
        tmp_path / "m.inter", "movielens", 1, "click", schema=load("movielens"), group="user_id", broken=broken))
    shown = [parse(record.value) for record in found]
    assert [type(event).__name__ for event in shown] == ["Impression", "Impression", "Action"]
    assert isinstance(shown[1], Impression)
    assert shown[1].slate.context == {
        "user_id": "1", "age": "24", "gender": "M", "occupation": "writer", "zip_code": "85711"}
    assert shown[1].slate.columns == {"item_id": ["10"], "release_year": ["1995"], "class": [("Drama", "War")]}
    assert {record.group for record in found} == {"1"}
    assert "item 12 is not in the file beside" in str(broken.first[0])


@pytest.mark.parametrize(("name", "format", "schema", "options", "rows", "clicks"), [
    ("movielens100k/ml-100k.inter", "movielens", "movielens", {}, 100_000, 55_375),
    ("open_bandit/bts_men.csv.gz", "csv", "open_bandit", {"label": "click", "time": "timestamp"}, 10_000, 69),
    ("talkingdata/train_sample.csv.gz", "csv", "talkingdata", {"label": "is_attributed", "time": "click_time"}, 100_000, 227),
])
def test_real_sets_are_read_whole_by_their_schemas(name, format, schema, options, rows, clicks):
    """As many rows and positives as ../shared/data/README.md and a count of the column say."""
    path = shared(name)
    found = list(formats.read(path, format, 1, "click", schema=load(schema), **options))
    assert len({record.row for record in found}) == rows
    assert len(found) - rows == clicks
