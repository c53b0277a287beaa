import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stream_trainer.watching import drift
from stream_trainer.watching.alarms import Alarm
from stream_trainer.watching.drift import LEAST, ONE_CLASS, STAYS, Drift, Sums, calibration, entropy, slope
from stream_trainer.watching.looking_back import newest_windows
from stream_trainer.watching.metric_log import MetricLog
from stream_trainer.watching.watch import COLUMNS
from tests.kit.windows import Array, Truth, inputs, true, window

ROWS = 20_000
SLICES = {"country": 4, "category": 8}
Codes = Mapping[str, NDArray[np.int64]]


def seconds(window_number: int) -> int:
    return (window_number + 1) * 7_000_000


class Stream:
    """Windows drawn one after the other, and what is said of them."""

    def __init__(self, seed: int = 1) -> None:
        self.rng, self.number, self.drift = np.random.default_rng(seed), 0, Drift()
        self.given: list[tuple[dict[str, Any], dict[str, Any], int]] = []

    def go(self, windows: int, truth: Truth = true, model: Truth = true, **unseen: float) -> list[Alarm]:
        """What was said in these windows."""
        said = []
        for _ in range(windows):
            fields = inputs(self.rng, {"user": 0.3, "item": 0.02} | unseen)
            table = window(self.rng, self.number * ROWS, rows=ROWS, slices=SLICES, truth=truth, model=model)
            self.given.append((table, fields, seconds(self.number)))
            said += self.drift.closed(*self.given[-1])
            self.number += 1
        return said


def test_a_stationary_stream_raises_nothing() -> None:
    """1.2 million examples of a model that is right, in 13 slices and 2 fields: nothing happens by chance."""
    assert Stream().go(60) == []


@pytest.mark.parametrize("seed", [2, 3])
def test_half_of_the_labels_lost_is_one_alarm_from_its_row_on(seed: int) -> None:
    """What all slices show is one alarm, in the window where it happens: since when, from what to what, in which slices; and it
    is over when it is back."""
    stream = Stream(seed)
    stream.go(30)
    (alarm,) = stream.go(2, lambda said, _: said / 2)
    assert (alarm.what, alarm.state, alarm.since_row, alarm.row) == ("drift.calibration", "raised", 30 * ROWS, 31 * ROWS)
    assert (alarm.since_us, alarm.time_us) == (seconds(29), seconds(30))
    assert alarm.was == pytest.approx(1.0, abs=0.03)
    assert alarm.now == pytest.approx(2.0, abs=0.2)
    assert {field for field, _, _ in alarm.slices} == {"country", "category"}
    assert "since row 600,000" in alarm.text
    (over,) = stream.go(5)
    assert (over.what, over.state) == ("drift.calibration", "over")
    assert stream.drift.open == []


def test_one_slice_is_found_and_named_first() -> None:
    """A tenth of the stream is clicked three times as often: the alarm names that slice before all others."""
    def farmed(said: Array, codes: Codes) -> Array:
        return np.where(codes["category"] == 3, np.minimum(3 * said, 0.99), said)

    stream = Stream()
    stream.go(30)
    (alarm,) = [one for one in stream.go(3, farmed) if one.state == "raised"]
    assert alarm.what == "drift.calibration"
    assert alarm.slices[0][:2] == ("category", "v3")


def test_a_slice_of_few_clicks_is_watched_over_several_windows() -> None:
    """The rarest slice has a few clicks a window; that it is never clicked any more is seen all the same."""
    rare = {"app": 30}
    rng, watched, said = np.random.default_rng(5), Drift(), []
    for number in range(120):
        def truth(p: Array, codes: Codes, dead: bool = number >= 90) -> Array:
            return np.where((codes["app"] == 15) & dead, 0.0, p)

        said += watched.closed(window(rng, number * 4000, rows=4000, slices=rare, truth=truth), {}, seconds(number))
    assert [(one.state, one.slices[0][:2], one.since_row >= 80 * 4000) for one in said] == [("raised", ("app", "v15"), True)]


def test_a_model_that_no_longer_tells_clicks_apart_is_found_by_its_slope() -> None:
    """Labels are shuffled over what was said: as many clicks as were expected, so calibration is right; but what the model says
    means nothing, so that the slope is 0, and the loss is up."""
    rng = np.random.default_rng(7)
    stream = Stream()
    stream.go(30)
    said = stream.go(3, lambda said, _: rng.permutation(said))
    assert [one.what for one in said] == ["drift.slope"]
    assert said[0].was == pytest.approx(1.0, abs=0.05)
    assert said[0].now is not None
    assert said[0].now < 0.3                              # one step from 1 does not end at 0
    assert "also moved: normalised entropy" in said[0].text


def test_a_model_that_says_the_same_of_all_is_found_by_its_loss() -> None:
    """It says the click rate whatever it is asked: its level is right, and there is no slope to be wrong; what it is worth is
    gone all the same. The noise about the rate is a millionth."""
    def flat(said: Array, _: Codes) -> Array:
        return 0.1 + (said - 0.1) * 1e-6

    stream = Stream()
    stream.go(30)
    said = stream.go(3, model=flat)
    assert [one.what for one in said] == ["drift.loss"]
    assert said[0].now == pytest.approx(1.0, abs=0.01)


def test_tastes_that_turn_in_one_slice_are_found_there() -> None:
    """In an eighth of the stream what was liked more than most is liked less, as many clicks as before, until the model has
    learnt it two windows later: the level of nothing moves."""
    def turned(said: Array, codes: Codes) -> Array:
        own = codes["category"] == 2
        found = said.copy()
        found[own] = np.sort(said[own])[::-1][np.argsort(np.argsort(said[own]))]
        return found

    stream = Stream()
    stream.go(30)
    (alarm,) = stream.go(2, turned)
    assert (alarm.what, alarm.since_row) == ("drift.slope", 30 * ROWS)
    assert alarm.slices[0][:2] == ("category", "v2")
    assert [one.state for one in stream.go(5)] == ["over"]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_slice_that_swings_with_the_day_is_no_drift_until_it_leaves_its_swing(seed: int) -> None:
    """Four days of forty windows, by which a slice's clicks go up and down by an eighth: nothing. Then three clicks in four are
    lost there: that is one."""
    stream, said = Stream(seed), []
    for number in range(160):
        def swing(said: Array, codes: Codes, tide: float = math.sin(2 * math.pi * number / 40)) -> Array:
            return np.where(codes["category"] == 1, said * math.exp(0.12 * tide), said)

        said += stream.go(1, swing)
    assert said == []
    lost = stream.go(6, lambda said, codes: np.where(codes["category"] == 1, said / 4, said))
    assert [(one.what, one.state, one.slices[0][:2]) for one in lost] == [("drift.calibration", "raised", ("category", "v1"))]


def test_a_slice_that_becomes_harder_to_foretell_is_no_drift() -> None:
    """All of a category becomes much like its mean, as the model knows: its loss is up by a tenth, and nothing is wrong."""
    def alike(said: Array, codes: Codes) -> Array:
        own = codes["category"] == 1
        return np.where(own, said + 0.5 * (said[own].mean() - said), said)

    stream = Stream()
    stream.go(30)
    assert stream.go(10, model=alike) == []


def test_a_log_without_slopes_is_read() -> None:
    """Windows from before there were such columns: what they know is known, slopes begin with what comes."""
    stream = Stream()
    stream.go(30)
    before = [
        ({name: column for name, column in lines.items() if not name.startswith("slope")}, fields, time_us)
        for lines, fields, time_us in stream.given
    ]
    rebuilt, over = Drift.rebuilt(before)
    assert over == []
    stream.drift = rebuilt
    assert stream.go(LEAST + 5) == []
    assert [one.what for one in stream.go(2, lambda said, _: said / 2)] == ["drift.calibration"]


def test_new_values_of_a_field_are_blamed_on_it_and_explain_the_calibration() -> None:
    """Unseen values and the calibration move in the same window: one alarm, named after the cause, with the field first."""
    stream = Stream()
    stream.go(30)
    said = stream.go(3, lambda said, _: 0.6 * said, item=0.2)
    assert [one.what for one in said] == ["drift.unseen"]
    assert said[0].fields[0][0] == "item"
    assert "also moved: calibration" in said[0].text
    assert said[0].was == pytest.approx(0.02, abs=0.01)
    assert said[0].now == pytest.approx(0.2, abs=0.03)


def test_missing_values_that_come_and_go_are_an_alarm_and_its_end() -> None:
    """A producer that loses a field is seen in the window that it loses it in."""
    stream = Stream()
    stream.go(30)
    said = []
    for number in range(6):
        fields = inputs(stream.rng, {"user": 0.3}, missing=0.3 if number < 2 else 0.0)
        said += stream.drift.closed(window(stream.rng, (30 + number) * ROWS, slices=SLICES), fields, seconds(30 + number))
    assert [(one.what, one.state) for one in said] == [("drift.missing", "raised"), ("drift.missing", "over")]


def test_what_stays_becomes_what_is_usual() -> None:
    """A new level is an alarm once; after STAYS windows that is over, and the way back is another alarm."""
    stream = Stream()
    stream.go(30)
    low: Truth = lambda said, _: said * 0.7  # noqa: E731
    assert [one.state for one in stream.go(STAYS + 2, low)] == ["raised", "over"]
    stream.go(LEAST + 2, low)
    assert [one.state for one in stream.go(4)] == ["raised"]


def test_a_window_of_one_class_is_said_and_is_one_alarm() -> None:
    """No click at all: no AUC, no measure of loss, and one alarm; it is over when both classes are there again."""
    stream = Stream()
    stream.go(20)
    said = stream.go(3, lambda said, _: 0 * said)
    assert [(one.what, one.now) for one in said] == [(ONE_CLASS, 0.0)]
    assert "no AUC" in said[0].text
    assert [(one.what, one.state) for one in stream.go(4)] == [(ONE_CLASS, "over")]


def test_figures_that_are_no_numbers_spoil_nothing() -> None:
    """A model that exploded for two windows: what comes after is held against what was before."""
    stream = Stream()
    stream.go(20)
    for bad in (np.nan, np.inf):
        table = window(stream.rng, stream.number * ROWS, slices=SLICES)
        for name in ("loss_sum", "loss_square_sum", "probability_sum"):
            table[name] = np.full_like(table[name], bad)
        assert stream.drift.closed(table, {}, seconds(stream.number)) == []
        stream.number += 1
    assert stream.go(3) == []
    assert [one.what for one in stream.go(2, lambda said, _: said / 3)] == ["drift.calibration"]


def test_clocks_that_jump_change_nothing_but_the_times_that_are_named() -> None:
    """The same windows under a clock that stands, goes back and leaps: the same alarms in the same rows."""
    stream = Stream()
    stream.go(30)
    said = stream.go(6, lambda said, _: said * 1.5)
    clocks = np.random.default_rng(1)
    again = Drift()
    wild = [one for lines, fields, _ in stream.given for one in again.closed(lines, fields, int(clocks.integers(0, 1 << 60)))]
    assert [replace(one, time_us=0, since_us=0) for one in wild] == [replace(one, time_us=0, since_us=0) for one in said]


def test_rebuilt_from_the_windows_it_goes_on_as_if_it_had_never_ended(tmp_path: Path) -> None:
    """Written to Parquet and read back, windows lead to the same state: what is open stands open, what comes next is the same;
    and what stood open of which the windows know nothing is over."""
    stream = Stream()
    stream.go(30)
    stream.go(2, lambda said, _: said / 2)
    log = MetricLog(tmp_path / "windows", "a" * 32, 0, 1 << 30)
    for lines, _, time_us in stream.given:
        nothing = {name: [None] * len(lines["field"]) for name in COLUMNS if name not in lines}
        log.write(time_us, {**nothing, **lines})
    assert log.flush()
    log.close()

    rows = stream.number * ROWS
    stale = Alarm(what="drift.loss", state="raised", time_us=1, text="", row=5)
    back = newest_windows(tmp_path / "windows", tmp_path / "fields", "a" * 32, rows, 200)
    rebuilt, over = Drift.rebuilt(back, [*stream.drift.open, stale])
    assert [(one.what, one.state) for one in over] == [("drift.loss", "over")]
    assert rebuilt.open == stream.drift.open
    without = Drift()
    for lines, _, time_us in stream.given:
        without.closed(lines, {}, time_us)
    comes = [window(stream.rng, rows + number * ROWS, slices=SLICES) for number in range(5)]
    said = [[one for number, lines in enumerate(comes) for one in of.closed(lines, {}, seconds(number + 32))]
            for of in (rebuilt, without)]
    assert said[0] == said[1] != []
    assert list(newest_windows(tmp_path / "windows", tmp_path / "fields", "b" * 32, rows, 200)) == []
    assert len(list(newest_windows(tmp_path / "windows", tmp_path / "fields", "a" * 32, 10 * ROWS, 4))) == 4


def test_a_copy_goes_its_own_way() -> None:
    """A trial may branch: what one of two copies sees the other does not."""
    stream = Stream()
    stream.go(20)
    other = copy.deepcopy(stream)
    assert stream.go(2, lambda said, _: said / 3)
    assert other.drift.open == []
    assert other.go(2) == []


def sums_of(said: Array, clicked: NDArray[np.bool_]) -> Sums:
    losses = -np.log(np.where(clicked, said, 1 - said))
    n, variance, logit = float(len(said)), said * (1 - said), np.log(said / (1 - said))
    off = logit - (variance * logit).sum() / variance.sum()
    return Sums(n, float(clicked.sum()), n, float(clicked.sum()), losses.sum(), (losses**2).sum(), said.sum(),
                ((clicked - said) * off).sum(), (variance * off**2).sum())


@pytest.mark.parametrize("rate", [0.02, 0.2])
def test_standard_errors_are_those_of_many_draws(rate: float) -> None:
    """What calibration, slope and normalised entropy are said to be off by chance is what they are in a thousand draws."""
    rng = np.random.default_rng(3)
    said = rng.beta(1, 1 / rate - 1, (1000, 4000)).clip(1e-6, 1 - 1e-6)
    drawn = [sums_of(row, rng.random(4000) < row) for row in said]
    for figure in (calibration, slope, entropy):
        values = [value for value in map(figure, drawn) if value is not None]
        assert len(values) == 1000
        spread, stated = np.std([value.value for value in values]), np.mean([value.error for value in values])
        assert 0.9 < stated / spread < 1.7, figure


def test_values_of_slices_that_are_gone_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names come and go for ever; what is kept of them is bounded."""
    monkeypatch.setattr(drift, "REMEMBERED", 10)
    rng, watched = np.random.default_rng(1), Drift()
    for number in range(200):
        table = window(rng, number * 2000, rows=2000, slices={"app": 2})
        table["value"] = [value and f"{value} of {number}" for value in table["value"]]
        watched.closed(table, {}, number)
    assert len(watched._series) <= 4 * (10 + drift.KEPT) + 2
    assert len(watched._sums) <= 2 * (10 + drift.KEPT) + 1
