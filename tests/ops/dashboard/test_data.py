"""What the dashboard's page says, without a browser: values of rows, HTML of values."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops.dashboard import data, render, slate
from ops.dashboard.chart import HIGH, Line, figure
from ops.dashboard.data import Board, Served, Window
from ops.dashboard.desk import Desk
from ops.dashboard.reader import Reader
from ops.events.dead_letters import Letter
from ops.simulator.example import example_slate
from ops.verbs.dashboard import dashboard
from schemas import fields
from schemas.config import DashboardConfig, Settings
from schemas.errors import ConfigError, RequestError
from scorer.client.calls import ItemExplained

NOW_US = 1_795_302_746_000_000
S = 1_000_000
TOKEN = "dashboard-token-0123456789"


def status(seconds: float, learnt: int, idle_s: float = 0.0, **more: Any) -> dict[str, Any]:
    return {
        "event": "trainer.status", "time_us": NOW_US + round(seconds * S), "examples_learnt": learnt, "idle_s": idle_s,
        "waiting_rows": 3, **more,
    }


def window(auc: float | None = 0.75, **more: Any) -> Window:
    figures: dict[str, float | None] = {"auc": auc, "calibration": 1.1, "normalized_entropy": 0.8, "log_loss": 0.3}
    return Window(time_us=NOW_US, first_row=0, last_row=99, rows=100, clicks=9, figures=figures | more)


def board(**more: Any) -> Board:
    return Board(time_us=NOW_US, model="appstore", processes=(), window_rows=20_000, **more)


def text_of(html: str) -> str:
    """What a reader reads."""
    parser = _Text()
    parser.feed(html)
    parser.close()
    return " ".join(" ".join(parser.found).split())


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_data(self, data: str) -> None:
        self.found.append(data)


# --- processes ---

def test_who_is_silent_is_named_with_since_when_and_what_starts_it() -> None:
    """A word 2 s ago: up. 35 s ago: down, for 35 s, since that time of day. None ever: said so."""
    assert data.by_journal("trainer", status(-2, 5), NOW_US, "5 examples learnt").state == "up"
    down = data.by_journal("trainer", status(-35, 5), NOW_US, "")
    since = time.strftime("%H:%M:%S", time.localtime(NOW_US / S - 35))
    assert (down.state, down.since_us) == ("down", NOW_US - 35 * S)
    assert down.text == f"no word for 35 s, since {since}; start it with: freshet trainer"
    assert data.by_journal("joiner", None, NOW_US, "").text == "no word from it ever; start it with: freshet joiner"


def test_a_scorer_without_a_version_is_neither_up_nor_down() -> None:
    """It answers; what it lacks is the trainer's. One that does not answer is down since its last sign."""
    said = Served(version=0, lineage="", age_s=0, workers=1, requests=0, requests_per_s=None)
    assert data.scorer_process(said, "h:1", "", NOW_US, NOW_US).state == "waits"
    assert data.scorer_process(replace(said, version=7), "h:1", "", NOW_US, NOW_US).text == "version 7 in 1 worker"
    assert data.scorer_process(None, "h:1", "no token came", NOW_US, NOW_US).text == "no token came"
    assert "nothing answers on h:1 for 12 s" in data.scorer_process(None, "h:1", "", NOW_US - 12 * S, NOW_US).text


@pytest.mark.parametrize(("seconds", "said"), [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2 h"),
                                              (172_800, "2 days")])
def test_spans_are_said_in_the_unit_that_fits(seconds: float, said: str) -> None:
    """Up to two of the next unit, in the smaller one."""
    assert data.span(seconds) == said


# --- figures ---

def test_speed_is_the_mean_of_the_last_ten_seconds() -> None:
    """100 examples a second at first, 10 now; the learner waited half of the time."""
    rows = [status(at, 100 * at, at / 4) for at in range(20)]
    rows += [status(at, 1900 + 10 * (at - 19), 4.75 + (at - 19) / 2) for at in range(20, 40)]
    found = data.speed_of(rows, NOW_US + 40 * S)
    assert found is not None
    assert found.examples_per_s == pytest.approx(10)
    assert found.idle == pytest.approx(0.5)
    assert found.history == pytest.approx([100] * 19 + [10] * 20)


def test_what_was_before_a_rollback_or_a_restart_counts_for_nothing() -> None:
    """Fewer examples than before, or a clock of waiting that began anew: no speed until two reports agree."""
    before = [status(at, 1000 * at, 5 + at) for at in range(8)]
    for first in (status(8, 500, 20.0), status(8, 9000, 0.0)):
        assert data.speed_of([*before, first], NOW_US + 8 * S).examples_per_s is None  # type: ignore[union-attr]
        more = status(10, first["examples_learnt"] + 60, first["idle_s"] + 1)
        assert data.speed_of([*before, first, more], NOW_US + 10 * S).examples_per_s == pytest.approx(30)  # type: ignore[union-attr]
    assert data.speed_of([], NOW_US) is None


def test_a_silent_trainer_has_no_speed() -> None:
    """A minute after its last report nothing is known of now, and what it had learnt stays told."""
    found = data.speed_of([status(at, 100 * at) for at in range(20)], NOW_US + 80 * S)
    assert found is not None
    assert (found.examples_per_s, found.history, found.idle) == (None, (), None)
    assert "Nothing is known of now; 1,900 learnt in all" in text_of(render.fast(board(speed=found)))


def test_requests_a_second_need_two_readings_of_one_counter() -> None:
    """One reading, or a counter that began anew: not known."""
    assert data.rate_of([(0, 5)]) is None
    assert data.rate_of([(0, 5), (2 * S, 25)]) == 10
    assert data.rate_of([(0, 25), (2 * S, 5)]) is None


@given(st.lists(st.integers(1, 3 * S), min_size=1, max_size=300), st.sets(st.integers(1, 300), max_size=3))
def test_the_list_of_versions_is_short_and_stands_still(apart_us: list[int], kept: set[int]) -> None:
    """The newest first, with it those that are kept; a version more changes one line, unless the stretch of a line grows."""
    created = {number: int(at) for number, at in enumerate(np.cumsum(apart_us) + NOW_US, 1)}
    found = data.listed(created, sorted(kept))
    assert found == sorted(found, reverse=True)
    assert found[0] == len(created)
    assert kept & created.keys() <= set(found)
    assert len(found) <= data.VERSIONS + len(kept)
    more = data.listed(created | {len(created) + 1: created[len(created)] + 1}, sorted(kept))
    assert len(set(found) - set(more)) <= 1 or len(more) < len(found)


# --- HTML ---

def drawn(html: str) -> dict[str, list[list[tuple[float, float]]]]:
    """Look of each line → its strokes, each a list of points."""
    picture = ElementTree.fromstring(re.findall("<svg.*?</svg>", html, re.DOTALL)[0])
    found = {}
    for path in picture.iter("path"):
        strokes = [re.findall(r"([\d.]+) ([\d.]+)", stroke) for stroke in path.attrib["d"].split("M")[1:]]
        found[path.attrib["class"]] = [[(float(x), float(y)) for x, y in stroke] for stroke in strokes]
    return found


def test_a_chart_has_each_value_where_it_belongs() -> None:
    """Evenly across; heights are linear in the values, the largest at the top; a value that does not exist ends the stroke."""
    values = [0.5, 0.7, None, 0.6, 0.6]
    strokes = drawn(figure("AUC", "", [Line("model", "model", values)], list("abcde")))["model"]
    assert [len(stroke) for stroke in strokes] == [2, 2]
    points = [point for stroke in strokes for point in stroke]
    assert [x for x, _ in points] == pytest.approx([10, 30, 70, 90])
    heights = [HIGH - y for _, y in points]
    assert heights[0] < heights[2] == heights[3] < heights[1]
    assert (heights[2] - heights[0]) / (heights[1] - heights[0]) == pytest.approx(0.5, abs=0.01)
    assert all(0 <= y <= HIGH for _, y in points)


def test_a_window_of_one_class_has_no_auc_and_the_page_says_so() -> None:
    """No 0.5 anywhere, in words what there was, and a gap in the line."""
    found = render.right(board(windows=(window(), replace(window(None), clicks=0))))
    assert "The newest window has no click in 100 examples: it has no AUC." in text_of(found)
    assert "model none, 0.7500 to 0.7500 in 2 windows" in text_of(found)
    assert "0.5000" not in found
    assert len(drawn(found)["model"][0]) == 1
    only = render.right(board(windows=(replace(window(None), clicks=0),)))
    assert "does not exist in any window" in text_of(only)


def test_the_reference_is_drawn_where_it_is_logged() -> None:
    """Absent columns are no line; a column is a line with its name in the words beside it."""
    assert "reference" not in render.right(board(windows=(window(served_auc=0.7),)))
    found = render.right(board(windows=(window(served_auc=0.7, reference_auc=0.6),)))
    assert set(drawn(found)) == {"model", "served", "reference"}
    assert "frozen reference 0.6000" in text_of(found)


def test_no_window_yet_is_said_with_what_it_takes() -> None:
    """Rows of a window, and how many were learnt."""
    speed = data.speed_of([status(0, 1234)], NOW_US)
    assert "20,000 examples have been judged (metrics.window_rows); 1,234 have been learnt" in render.right(board(speed=speed))


def test_lag_is_told_by_topic_and_its_worst_partition() -> None:
    """Sums over partitions; which one, where there are several and one is behind."""
    found = text_of(render.fast(board(lag={"events": {"0": 5, "1": 1200}, "examples": {"0": 1}})))
    assert "Lag: 1,205 records of events, most of them in partition 1: 1,200; 1 record of examples" in found


def test_an_empty_board_is_a_page_that_says_so() -> None:
    """Each part speaks without anything to speak of."""
    assert "Nothing is served; the store holds no version yet." in text_of(render.old(board()))
    assert "The trainer has not said anything yet." in text_of(render.fast(board()))
    assert text_of(render.drifts(board())) == "No alarm is open."
    assert "The store holds no version yet." in text_of(render.no_versions(board()))
    assert render.gate(board()) == ""


def test_text_from_outside_stays_text() -> None:
    """An alarm, a dead letter, a field and an item with markup in them make no element."""
    bad = "<script>alert(1)</script>"
    alarm = {"what": bad, "state": "raised", "text": bad, "time_us": NOW_US, "since_us": 0, "slices": [[bad, bad, 1.0]],
             "fields": [[bad, 1.0]]}
    letter = Letter(0, 7, bad, bad, 20, bad.encode())
    told = ItemExplained(bad, 0.0, 0.0, {bad: 1.0}, {bad: 1.0}, {(bad, bad): 1.0}, 0.0)
    parts = [
        render.drifts(board(alarms_open=(alarm,))), render.letters([letter], 1), render.explained(told),
        render.processes(board(troubles=(bad,))),
    ]
    for part in parts:
        assert "<script" not in part
        assert bad in text_of(part)


def test_the_gate_says_why_it_holds_and_until_when() -> None:
    """As the trainer's status has it."""
    gate = {"on": True, "held": False, "held_versions": 0, "since_us": 0, "until_us": 0, "reason": None, "text": None}
    assert "open: new versions go live" in text_of(render.gate(board(gate=gate)))
    held = gate | {"held": True, "held_versions": 3, "since_us": NOW_US - S, "until_us": NOW_US + S, "reason": "labels",
                   "text": "0.9 clicks an example"}
    found = text_of(render.gate(board(gate=held)))
    assert "(labels: 0.9 clicks an example); 3 versions not written; gives way at" in found


def test_letters_are_told_with_reason_place_and_first_bytes() -> None:
    """JSON as it reads, other bytes by their values; what is cut is marked."""
    newest = Letter(1, 42, "bad_json", "no brace", 9, b'{"a": 1')
    found = render.letters([newest, Letter(0, 3, "bad", "", 9000, b"\x00" * 9000)], 7)
    assert 'bad_json events/1 offset 42, 9 bytes: no brace {"a": 1' in text_of(found)
    assert "2 of 7 letters" in found
    assert text_of(found).endswith("…")
    assert render.letters([], 0) == "<p>No dead letter: every event could be used.</p>"


# --- a slate by hand ---

@pytest.mark.parametrize("name", ["appstore", "criteo"])
def test_the_form_of_the_example_is_the_example(name: str) -> None:
    """Texts and back: the same ids as the example slate itself has."""
    schema = fields.load(name)
    encoder = fields.Encoder(schema, training=False)

    def ids(plain: Mapping[str, Any]) -> list[int]:
        names = {name for item in plain["items"] for name in item["features"]}
        items = {name: [item["features"].get(name) for item in plain["items"]] for name in names}
        found, unknown = encoder.encode(fields.Slate([item["id"] for item in plain["items"]], plain["context"], items))
        assert unknown == []
        return [*found.ids.tolist(), *found.all_values().tolist()]

    assert ids(slate.slate_of(slate.example(schema), schema)) == ids(example_slate(schema))


def test_a_wrong_number_in_the_form_is_named() -> None:
    """The item, the field, and what stood there; an empty field is left out, an item needs its id."""
    schema = fields.load("appstore")
    form = slate.example(schema)
    form.items[1]["price"] = "cheap"
    with pytest.raises(RequestError, match="item example2, price: 'cheap' is no number"):
        slate.slate_of(form, schema)
    form.items[1]["price"] = ""
    assert "price" not in slate.slate_of(form, schema)["items"][1]["features"]
    form.items[0]["id"] = " "
    with pytest.raises(RequestError, match="an item has no id"):
        slate.slate_of(form, schema)


# --- reading, orders ---

def test_with_nothing_there_all_is_told_to_be_down(make_settings: Callable[..., Settings]) -> None:
    """No var, no broker, no scorer: four parts down, no trouble, and the whole of it is JSON."""
    settings = make_settings(**{"kafka.bootstrap": "127.0.0.1:1", "score.port": 1, "score.operator_port": 2})
    reader = Reader(settings, lambda: NOW_US)
    found = reader.read()
    reader.close()
    assert [(one.name, one.state) for one in found.processes] == [
        ("broker", "down"), ("joiner", "down"), ("trainer", "down"), ("scorer", "down"),
    ]
    assert (found.troubles, found.windows, found.versions) == ((), (), ())
    assert json.loads(json.dumps(found.as_dict()))["model"] == "appstore"
    assert not settings.var.exists()


def test_alarms_and_a_broken_log_of_windows_are_told(make_settings: Callable[..., Settings]) -> None:
    """What stands open and what is over, newest first; a file that is no Parquet is a trouble, not the end."""
    settings = make_settings(**{"kafka.bootstrap": "127.0.0.1:1", "score.port": 1, "score.operator_port": 2})
    settings.windows_dir.mkdir(parents=True)
    (settings.windows_dir / "1-a.parquet").write_bytes(b"no parquet")
    alarms = [("lag", "raised"), ("lag", "over"), ("gate.held", "raised"), ("labels.stopped", "raised")]
    settings.alarms_file.write_text("".join(json.dumps({
        "event": "alarm", "process": "trainer", "what": what, "state": state, "text": what, "time_us": at, "since_us": at,
        "slices": [], "fields": [],
    }) + "\n" for at, (what, state) in enumerate(alarms, 1)))
    reader = Reader(settings, lambda: NOW_US)
    found = reader.read()
    reader.close()
    assert [one["what"] for one in found.alarms_open] == ["labels.stopped", "gate.held"]
    assert [one["what"] for one in found.alarms_over] == ["lag"]
    assert len(found.troubles) == 1
    assert "the log of windows" in found.troubles[0]
    assert "2 alarms open" in render.spoken(found)


def test_the_token_opens_orders_and_nothing_else_does(make_settings: Callable[..., Settings], tmp_path) -> None:
    """From its file; without a token nothing does, not even the empty text."""
    (tmp_path / "token").write_text(TOKEN + "\n")
    desk = Desk(make_settings(**{"dashboard.token_file": str(tmp_path / "token")}))
    assert desk.takes_orders
    assert desk.opens(TOKEN)
    assert not any(desk.opens(wrong) for wrong in ("", TOKEN[:-1], TOKEN.upper(), "ключ"))
    locked = Desk(make_settings())
    assert not locked.takes_orders
    assert not locked.opens("")


@pytest.mark.parametrize(("values", "told"), [
    ({"token": TOKEN, "host": "0.0.0.0"}, "plain HTTP"), ({"port": 70_000}, "from 0 to 65535"),
    ({"token": TOKEN, "token_file": "x"}, "drop one"),
])
def test_settings_that_would_let_others_in_are_refused(values: dict[str, Any], told: str) -> None:
    """A token over plain HTTP to elsewhere, a port that is none, two tokens."""
    with pytest.raises(ConfigError, match=told):
        DashboardConfig(**values)


def test_without_nicegui_it_says_what_to_install(make_settings: Callable[..., Settings], monkeypatch, capsys) -> None:
    """The page needs it, the figures as JSON do not."""
    monkeypatch.setitem(sys.modules, "nicegui", None)
    settings = make_settings(**{"kafka.bootstrap": "127.0.0.1:1", "score.port": 1, "score.operator_port": 2})
    with pytest.raises(ConfigError, match=r"pip install 'freshet\[dashboard\]'"):
        dashboard(settings)
    dashboard(settings, as_json=True)
    assert json.loads(capsys.readouterr().out)["model"] == "appstore"


def test_all_viewers_together_look_once_a_second(make_settings: Callable[..., Settings]) -> None:
    """Twenty that ask at once get one look; what they see is the same. A look that fails is told to all, and tried again."""
    from ops.dashboard.server import Feed

    class Looks:
        def __init__(self) -> None:
            self.count = 0

        def read(self) -> Board:
            self.count += 1
            if self.count == 2:
                raise RuntimeError("disk gone")
            return board()

    async def watched() -> None:
        looks = Looks()
        feed = Feed(make_settings(), looks)  # type: ignore[arg-type]
        boards = await asyncio.gather(*(feed.board() for _ in range(20)))
        assert (looks.count, len(set(map(id, boards)))) == (1, 1)
        feed._looked_at -= 1.0
        assert "disk gone" in (await feed.board()).troubles[0]
        feed._looked_at -= 1.0
        assert (await feed.board()).troubles == ()

    asyncio.run(watched())
